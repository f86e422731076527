"""Hugging Face's ViTMSN: `ViTMSNModel` and `ViTMSNForImageClassification`, in the names of released files and
in those that transformers 5 has in memory.

A classifier stands beside `vit.`; transformers 5.23 saves a new one without that prefix before some names, so
it is taken off name by name. The three projections of attention are one matrix here, its rows in the order
query, key, value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from belvedere.core.errors import WeightsError
from belvedere.nn.spec import FeatureSpec, ViTSpec
from belvedere.nn.spec.count import times
from belvedere.zoo.convert.checkpoint import (
    Asked,
    Checkpoint,
    Converted,
    Stated,
    named_tensors,
    names_of,
    require_fit,
    shapes_of,
)
from belvedere.zoo.convert.described import described
from belvedere.zoo.convert.images import huggingface_images, unread
from belvedere.zoo.convert.networks import network_of

SYSTEMS = ("huggingface",)
FEATURES = FeatureSpec(
    source="cls", blocks=1, norm="all", resize_px=256, crop_px=224, interpolation="bilinear"
)
MASK_TOKEN = "embeddings.mask_token"
DROPPED = {MASK_TOKEN: "stands for masked patches, which MSN drops instead: it was never trained"}

_CLASSIFIER = "classifier."
_PREFIX = "vit."
_TOP = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_LAYER = re.compile(r"(?:encoder\.layer|layers)\.(\d+)\.(.+)\.(weight|bias)")
_IN_LAYER = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_PROJECTIONS = {
    "attention.attention.query": 0,
    "attention.attention.key": 1,
    "attention.attention.value": 2,
    "attention.q_proj": 0,
    "attention.k_proj": 1,
    "attention.v_proj": 2,
}
_USUAL_HEADS = 12
"""Of a ViTMSN whose `config.json` does not say."""
_FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("vit_msn",),
    "hidden_act": ("gelu", "gelu_python"),
    "num_channels": (3,),
}
"""Settings of `config.json` and the values that belvedere's ViT has; both activations are the exact GELU."""
_SIZES = {
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "image_size": "image_px",
    "patch_size": "patch_px",
    "qkv_bias": "qkv_bias",
}
"""Settings that the tensors tell too, and their names in belvedere's description."""
_USED = ("num_attention_heads", "layer_norm_eps", "intermediate_size", "id2label", *_FIXED, *_SIZES)
_IRRELEVANT = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "architectures",
    "torch_dtype",
    "dtype", "transformers_version", "label2id", "num_labels", "problem_type", "_name_or_path",
    "name_or_path",
    "chunk_size_feed_forward", "is_encoder_decoder", "output_attentions", "output_hidden_states",
    "return_dict",
    "_attn_implementation", "_attn_implementation_autoset", "attn_implementation", "use_return_dict",
    "task_specific_params",
    "encoder_stride",
)  # fmt: skip
"""Settings that change nothing of what the network gives of an image outside of training."""
_KNOWN = (*_USED, *_IRRELEVANT)


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether this is a ViTMSN's state dict."""
    content = checkpoint.content
    return isinstance(content, Mapping) and "embeddings.cls_token" in names_of(content, (_PREFIX,))


identifies = recognises


def convert(checkpoint: Checkpoint, asked: Asked) -> Converted:
    """Backbone, classifier if there is one, and card.

    Raises `WeightsError` listing every entry that is missing, unexpected or mis-shaped, or if `config.json`
    asks for what belvedere's ViT is not.
    """
    origin = checkpoint.origin
    config = checkpoint.beside.get("config.json", {})
    _check_config(config, origin=origin)
    stored = named_tensors(checkpoint.content, "the file", origin=origin, prefixes=(_PREFIX,))
    dropped = {name: reason for name, reason in DROPPED.items() if name in stored}
    heads = {name: tensor for name, tensor in stored.items() if name.startswith(_CLASSIFIER)}
    left = {name: tensor for name, tensor in stored.items() if name not in heads.keys() | dropped.keys()}
    backbone = _renamed(left, origin=origin)
    stated = _stated(config, origin=origin)
    notes = unread(config, _KNOWN, "config.json")
    if config and stated.heads is None and asked.heads is None and asked.backbone is None:
        notes["attention heads"] = f"{_USUAL_HEADS}, as transformers takes it: config.json names none"
        stated = replace(stated, heads=_USUAL_HEADS)
    spec = network_of(backbone, asked, origin=origin, stated=stated)
    assert isinstance(spec, ViTSpec)
    _require_agreement(config, spec, origin=origin)
    _check_classifier(heads, spec.width, origin=origin)
    prepared = huggingface_images(checkpoint.beside.get("preprocessor_config.json", {}), spec, origin=origin)
    data: dict[str, Any] = {}
    if not config:
        notes["activation"] = (
            f"exact GELU, and norms with an epsilon of {spec.norm_eps:g}, assumed; no config.json"
        )
    if heads and isinstance(config.get("id2label"), Mapping):
        data["labels"] = {str(number): str(label) for number, label in config["id2label"].items()}
    card = described(
        checkpoint,
        asked,
        system="huggingface",
        backbone=spec,
        features=FEATURES,
        dropped=dropped,
        data=data,
        notes=notes,
        prepared=prepared,
        stated=stated,
    )
    return Converted(backbone, heads, card)


def _renamed(stored: Mapping[str, Tensor], *, origin: str) -> dict[str, Tensor]:
    """Under our names; a name that is none of ViTMSN's stays as it is, for the comparison to list."""
    state: dict[str, Tensor] = {}
    parts: dict[str, dict[int, tuple[str, Tensor]]] = {}
    for name, tensor in stored.items():
        ours, found = _TOP.get(name, name), _LAYER.fullmatch(name)
        if found and found[2] in _PROJECTIONS:
            target = f"blocks.{found[1]}.attn.qkv.{found[3]}"
            parts.setdefault(target, {})[_PROJECTIONS[found[2]]] = (name, tensor)
            continue
        if found and found[2] in _IN_LAYER:
            ours = f"blocks.{found[1]}.{_IN_LAYER[found[2]]}.{found[3]}"
        if ours in state:
            raise WeightsError(f"{origin} has {ours} under two names, one of them {name}")
        state[ours] = tensor
    return state | {target: _joined(target, three, origin=origin) for target, three in parts.items()}


def _joined(target: str, parts: Mapping[int, tuple[str, Tensor]], *, origin: str) -> Tensor:
    """Query, key and value as one."""
    if len(parts) < 3:
        there = ", ".join(name for name, _ in parts.values())
        missing = ", ".join(
            word for number, word in enumerate(("query", "key", "value")) if number not in parts
        )
        raise WeightsError(f"{origin} is missing {missing} beside {there}")
    three = [parts[number][1] for number in range(3)]
    if len({tuple(one.shape) for one in three}) > 1:
        sizes = ", ".join(f"{parts[number][0]} is {list(one.shape)}" for number, one in enumerate(three))
        raise WeightsError(f"{origin}: {sizes}; they must be of one shape")
    return torch.cat(three)


def _check_config(config: Mapping[str, Any], *, origin: str) -> None:
    for name, allowed in _FIXED.items():
        if config.get(name, allowed[0]) not in allowed:
            words = " or ".join(map(repr, allowed))
            raise WeightsError(
                f"{origin}: config.json has {name} {config[name]!r}; belvedere's ViT has {words}"
            )


def _stated(config: Mapping[str, Any], *, origin: str) -> Stated:
    """Heads and norms, of which no tensor tells."""
    heads, eps = config.get("num_attention_heads"), config.get("layer_norm_eps")
    if heads is not None and (isinstance(heads, bool) or not isinstance(heads, int) or heads < 1):
        raise WeightsError(
            f"{origin}: config.json has num_attention_heads {heads!r}, must be a whole number of at least 1"
        )
    if eps is not None and (isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps < 1):
        raise WeightsError(f"{origin}: config.json has layer_norm_eps {eps!r}, must be between 0 and 1")
    return Stated(heads, None if eps is None else float(eps))


def _require_agreement(config: Mapping[str, Any], spec: ViTSpec, *, origin: str) -> None:
    """Raise `WeightsError` where `config.json` says another size than the tensors have."""
    ours = {name: getattr(spec, attribute) for name, attribute in _SIZES.items()}
    ours["intermediate_size"] = times(spec.width, spec.mlp_ratio)
    for name, value in ours.items():
        said = config.get(name, value)
        said = said[0] if isinstance(said, list) and len(set(map(str, said))) == 1 else said
        if said != value or isinstance(said, bool) != isinstance(value, bool):
            raise WeightsError(
                f"{origin}: config.json says {name} {config[name]!r}, the tensors {value!r}; correct "
                f"config.json, "
                "or give the file alone in a folder without it"
            )


def _check_classifier(heads: Mapping[str, Tensor], width: int, *, origin: str) -> None:
    if heads:
        found = shapes_of(heads)
        classes = next(iter(found.values()))[:1] or (1,)
        expected = {f"{_CLASSIFIER}weight": (*classes, width), f"{_CLASSIFIER}bias": classes}
        require_fit(expected, found, "a classifier on the class token", origin=origin)

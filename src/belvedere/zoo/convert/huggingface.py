"""Hugging Face's ViTMSN: `ViTMSNModel` and `ViTMSNForImageClassification`, in the names of released files and
in those that transformers 5 has in memory.

A classifier stands beside `vit.`; transformers 5.23 saves a new one without that prefix before some names, so
it is taken off name by name. The three projections of attention are one matrix here, its rows in the order
query, key, value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from belvedere.core.errors import WeightsError
from belvedere.nn.spec import FeatureSpec, ViTSpec
from belvedere.zoo.convert.checkpoint import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Asked,
    Checkpoint,
    Converted,
    named_tensors,
    names_of,
    require_fit,
    shapes_of,
)
from belvedere.zoo.convert.described import described
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
_FIXED = {"model_type": "vit_msn", "hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True}
"""Settings of `config.json` that belvedere's ViT has in one form."""


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether this is a ViTMSN's state dict."""
    content = checkpoint.content
    return isinstance(content, Mapping) and "embeddings.cls_token" in names_of(content, (_PREFIX,))


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
    spec = network_of(backbone, asked, origin=origin, heads=config.get("num_attention_heads"))
    assert isinstance(spec, ViTSpec)
    _check_classifier(heads, spec.width, origin=origin)
    mean, std = _normalization(checkpoint)
    data: dict[str, Any] = {}
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
        mean=mean,
        std=std,
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
    for name, value in _FIXED.items():
        if name in config and config[name] != value:
            raise WeightsError(
                f"{origin}: config.json has {name} {config[name]!r}; belvedere's ViT has {value!r}"
            )


def _check_classifier(heads: Mapping[str, Tensor], width: int, *, origin: str) -> None:
    if heads:
        found = shapes_of(heads)
        classes = next(iter(found.values()))[:1] or (1,)
        expected = {f"{_CLASSIFIER}weight": (*classes, width), f"{_CLASSIFIER}bias": classes}
        require_fit(expected, found, "a classifier on the class token", origin=origin)


def _normalization(
    checkpoint: Checkpoint,
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """What `preprocessor_config.json` says; else what MSN was trained with."""
    settings = checkpoint.beside.get("preprocessor_config.json", {})
    found = []
    for name, usual in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD)):
        values = settings.get(name, usual)
        if not isinstance(values, list | tuple) or len(values) != 3:
            raise WeightsError(
                f"{checkpoint.origin}: preprocessor_config.json has {name} {values!r}, must be three numbers"
            )
        found.append((float(values[0]), float(values[1]), float(values[2])))
    return found[0], found[1]

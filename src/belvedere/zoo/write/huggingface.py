"""A ViT as transformers' ViTMSN reads it: `config.json`, `model.safetensors`, `preprocessor_config.json`.

The names are those of the released models, which every version of transformers reads; what transformers saves
itself has depended on its version. A few-label classifier goes out as the linear head of
`ViTMSNForImageClassification`: see `huggingface_head`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from belvedere.core.files import save_tensors, write_json
from belvedere.nn.spec import FeatureSpec, ViTSpec
from belvedere.nn.vit import ViT
from belvedere.zoo.cards import Card
from belvedere.zoo.statement import Statement, metadata
from belvedere.zoo.write.agreement import EXACT, doubled
from belvedere.zoo.write.huggingface_head import head_of
from belvedere.zoo.write.huggingface_reading import opened
from belvedere.zoo.write.positions import positions_for
from belvedere.zoo.write.target import Outgoing, Side, Target, square

_PREFIX = "vit."
_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # PIL's numbers
_WHOLE = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_IN_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_FOLDED = 1e-2  # the eps of the final norm, which the fitted classifier does not have, and float32


def released_state(state: Mapping[str, Tensor], *, classification: bool = False) -> dict[str, Tensor]:
    """The tensors of a `ViT` under the released names; `qkv` becomes query, key and value.

    classification: under the names of `ViTMSNForImageClassification`, without its head.
    """
    prefix = _PREFIX if classification else ""
    released: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in _WHOLE:
            released[prefix + _WHOLE[name]] = tensor
            continue
        _, number, rest = name.split(".", 2)
        part, kind = rest.rsplit(".", 1)
        layer = f"{prefix}encoder.layer.{number}."
        if part == "attn.qkv":
            for which, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                released[f"{layer}attention.attention.{which}.{kind}"] = third
        else:
            released[f"{layer}{_IN_BLOCK[part]}.{kind}"] = tensor
    return released


def config(spec: ViTSpec, *, classes: tuple[str, ...] | None = None) -> dict[str, Any]:
    """`config.json` of a ViTMSN; with classes, of one with a classification head."""
    head = "ViTMSNModel" if classes is None else "ViTMSNForImageClassification"
    written: dict[str, Any] = {
        "architectures": [head],
        "model_type": "vit_msn",
        "hidden_size": spec.width,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.heads,
        "intermediate_size": int(spec.width * spec.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": spec.norm_eps,
        "image_size": spec.image_px,
        "patch_size": spec.patch_px,
        "num_channels": 3,
        "qkv_bias": spec.qkv_bias,
        "torch_dtype": "float32",
    }
    if classes is not None:
        written["id2label"] = {str(number): name for number, name in enumerate(classes)}
        written["label2id"] = {name: number for number, name in enumerate(classes)}
    return written


def preprocessor(card: Card) -> dict[str, Any]:
    """`preprocessor_config.json`: a resize to the card's crop (aspect not kept, as in the released files),
    and the card's normalization."""
    px = card.features.crop_px
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": px, "width": px},
        "resample": _RESAMPLE[card.features.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(card.mean),
        "image_std": list(card.std),
    }


def written_spec(card: Card) -> ViTSpec:
    """The network as it goes out: at the card's size where transformers would resize positions otherwise."""
    spec = card.backbone
    assert isinstance(spec, ViTSpec)
    return spec.model_copy(update={"image_px": card.features.crop_px}) if spec.position_margin else spec


def _refusal(card: Card) -> str:
    spec = card.backbone
    if isinstance(spec, ViTSpec) and spec.stem == "patch":
        return ""
    return "transformers' ViTMSN is a ViT whose patches are cut out, not convolved"


def _write(folder: Path, outgoing: Outgoing) -> None:
    backbone, card, classifier = outgoing.backbone, outgoing.card, outgoing.classifier
    assert isinstance(backbone, ViT)
    spec = written_spec(card)
    tensors = released_state(positions_for(backbone, spec.image_px), classification=classifier is not None)
    classes = None
    if classifier is not None:
        classes, head = classifier.classes, head_of(classifier, backbone.norm)
        tensors |= {f"classifier.{name}": tensor for name, tensor in head.state_dict().items()}
    plain = {name: tensor.detach().cpu().float().contiguous() for name, tensor in tensors.items()}
    stated = card.model_copy(update={"backbone": spec})
    save_tensors(folder / "model.safetensors", plain, metadata=metadata(Statement("huggingface", stated)))
    write_json(folder / "config.json", config(spec, classes=classes))
    write_json(folder / "preprocessor_config.json", preprocessor(card))


def _read_back(folder: Path, outgoing: Outgoing) -> list[Side]:
    backbone, card, classifier = outgoing.backbone, outgoing.card, outgoing.classifier
    assert isinstance(backbone, ViT)
    spec, own = written_spec(card), doubled(backbone)
    sizes = _sizes(spec, card)

    def ours(images: Tensor) -> Tensor:
        features = own(images)
        assert features.regions is not None
        return torch.cat([features.pooled[:, None], features.regions], dim=1)

    model = opened("ViTMSNModel", folder)

    def theirs(images: Tensor) -> Tensor:
        tokens: Tensor = model(images, interpolate_pos_encoding=True).last_hidden_state
        return tokens

    sides = [Side("ViTMSNModel, all tokens", ours, theirs, sizes, EXACT, True)]
    return sides if classifier is None else [*sides, *_head_sides(folder, outgoing, own, sizes)]


def _head_sides(folder: Path, outgoing: Outgoing, own: ViT, sizes: tuple[tuple[int, int], ...]) -> list[Side]:
    """The exported head against itself in belvedere, and against the classifier that it was made of."""
    assert outgoing.classifier is not None
    head = head_of(outgoing.classifier, own.norm).float().double()  # as it is written
    labelled = opened("ViTMSNForImageClassification", folder)

    def logits(images: Tensor) -> Tensor:
        found: Tensor = head(own(images).pooled)
        return found

    def their_logits(images: Tensor) -> Tensor:
        found: Tensor = labelled(images, interpolate_pos_encoding=True).logits
        return found

    def probabilities(images: Tensor) -> Tensor:
        found: Tensor = outgoing.feature(images)[1]
        return found

    def their_probabilities(images: Tensor) -> Tensor:
        return their_logits(images.double()).softmax(1).float()

    fitted = Side(
        "probabilities of the fitted classifier", probabilities, their_probabilities, sizes, _FOLDED, False
    )
    what = "ViTMSNForImageClassification, logits"
    return [Side(what, logits, their_logits, sizes, EXACT, True), fitted]


def _sizes(spec: ViTSpec, card: Card) -> tuple[tuple[int, int], ...]:
    """The card's size and, where positions are resized alike, one that is larger and not square."""
    px, crop = spec.patch_px, square(card.features.crop_px)
    other = (spec.image_px + px, spec.image_px + 2 * px)
    return (crop,) if spec.position_margin else (crop, other)


def _classifier_feature(features: FeatureSpec) -> FeatureSpec:
    return features.model_copy(update={"source": "cls", "blocks": 1, "norm": "none"})


def _notes(outgoing: Outgoing) -> list[str]:
    card = outgoing.card
    spec = written_spec(card)
    notes = []
    if spec.position_margin:
        notes.append(
            f"positions are written for {spec.image_px} px; at other sizes transformers resizes them a "
            "little differently than the code these weights come from"
        )
    elif spec.image_px != card.features.crop_px:
        notes.append(
            f"positions are those of {spec.image_px} px and images {card.features.crop_px} px: call the "
            "model with interpolate_pos_encoding=True"
        )
    if card.features.resize_px != card.features.crop_px:
        notes.append(
            f"ViTImageProcessor squeezes an image to {card.features.crop_px} x {card.features.crop_px}; "
            "belvedere evaluates on the middle of an image whose shorter side is "
            f"{card.features.resize_px} px"
        )
    return notes


def _loading(outgoing: Outgoing) -> str:
    card = outgoing.card
    size = "" if written_spec(card).image_px == card.features.crop_px else ", interpolate_pos_encoding=True"
    if outgoing.classifier is not None:
        return f"""\
from transformers import AutoImageProcessor, ViTMSNForImageClassification

processor = AutoImageProcessor.from_pretrained("DIR")
model = ViTMSNForImageClassification.from_pretrained("DIR")
logits = model(**processor(image, return_tensors="pt"){size}).logits
label = model.config.id2label[int(logits.argmax())]
"""
    return f"""\
from transformers import AutoImageProcessor, ViTMSNModel

processor = AutoImageProcessor.from_pretrained("DIR")
model = ViTMSNModel.from_pretrained("DIR")
tokens = model(**processor(image, return_tensors="pt"){size}).last_hidden_state  # the class token comes first
"""


TARGET = Target(
    name="huggingface",
    library="transformers",
    extra="transformers",
    packages=("transformers",),
    refusal=_refusal,
    write=_write,
    read_back=_read_back,
    notes=_notes,
    loading=_loading,
    classifier_feature=_classifier_feature,
)

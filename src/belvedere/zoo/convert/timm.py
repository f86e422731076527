"""timm's state dicts: ViTs, Swins and ResNets, bare or as training saves them.

A ViT and a ResNet have our names there. A Swin has its halvings elsewhere and norms of another epsilon, for
which see `swin`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from belvedere.core.errors import WeightsError
from belvedere.nn.spec import BackboneSpec, FeatureSpec
from belvedere.zoo.convert.checkpoint import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Asked,
    Checkpoint,
    Converted,
    drop,
    named_tensors,
    names_of,
    plain_values,
    refuse_unknown,
    state_dicts,
)
from belvedere.zoo.convert.described import described
from belvedere.zoo.convert.networks import family, network_of
from belvedere.zoo.convert.resnet import with_counts
from belvedere.zoo.convert.swin import swin_state, told_of_norms

SYSTEMS = ("timm",)
WRAPPER = {
    "optimizer": "belongs to another training loop",
    "lr_scheduler": "belongs to another training loop",
    "scaler": "belongs to another training loop",
    "amp_scaler": "belongs to another training loop",
    "args": "the command line of the run it comes from",
    "state_dict_ema": "a running mean of the weights; the weights themselves are kept",
    "model_ema": "a running mean of the weights; the weights themselves are kept",
    "epoch": "a count, kept in this card under data",
    "arch": "a name, kept in this card under data",
    "version": "a count, kept in this card under data",
    "metric": "a count, kept in this card under data",
}
"""What training files have beside a state dict under `state_dict` or `model`."""

CLASSIFIER = {"head": "the classifier", "fc": "the classifier"}
_FAMILIES = ("vit", "swin", "resnet")
_NOT_TIMM = (
    "projection_head",
    "prototypes",
    "head.mlp",
    "head.last_layer",
    "fc.fc1",
    "relation_blocks",
    "head_dense",
)
_IMAGENET_PX = 224


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether this is a ViT, a Swin or a ResNet under timm's names, with nothing of another system beside."""
    return _stored(checkpoint.content) is not None


def convert(checkpoint: Checkpoint, asked: Asked) -> Converted:
    """Backbone and card; the classifier is left out.

    Raises `WeightsError` listing every entry that is missing, unexpected or mis-shaped.
    """
    return converted(checkpoint, asked, system="timm")


def converted(checkpoint: Checkpoint, asked: Asked, *, system: str) -> Converted:
    """A flat state dict of this kind as one of `system`."""
    content, origin = checkpoint.content, checkpoint.origin
    stored = _stored(content)
    if stored is None:
        raise WeightsError(f"{origin} is no state dict of a ViT, a Swin or a ResNet")
    dropped: dict[str, str] = {}
    if stored is not content:
        known = {"state_dict", "model", *WRAPPER}
        refuse_unknown(content, known, what="timm's training files", origin=origin)
        dropped |= {key: reason for key, reason in WRAPPER.items() if key in content}
    state = named_tensors(stored, "the state dict", origin=origin)
    backbone, without = ours(state)
    spec = network_of(backbone, asked, origin=origin)
    mean, std, told = normalization(checkpoint)
    data = told | told_of_norms(spec) | (plain_values(content, WRAPPER) if stored is not content else {})
    card = described(
        checkpoint,
        asked,
        system=system,
        backbone=spec,
        features=features(spec),
        dropped=dropped | without,
        data=data,
        mean=mean,
        std=std,
    )
    return Converted(backbone, {}, card)


def ours(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A state dict under our names, and what was left out of it."""
    kind = family(set(state))
    if kind == "swin":
        return swin_state(state)
    left, dropped = drop(state, CLASSIFIER, first=True)
    return (with_counts(left) if kind == "resnet" else left), dropped


def features(spec: BackboneSpec) -> FeatureSpec:
    """What such a network's classifier reads, at the size it was built for."""
    px = spec.image_px if spec.name in ("vit", "swin") else _IMAGENET_PX
    return FeatureSpec(
        source="pooled",
        blocks=1,
        norm="none",
        resize_px=max(px, round(px * 256 / 224)),
        crop_px=px,
        interpolation="bilinear" if spec.name == "resnet" else "bicubic",
    )


def normalization(
    checkpoint: Checkpoint,
) -> tuple[tuple[float, float, float], tuple[float, float, float], dict[str, Any]]:
    """Mean and standard deviation: of `config.json` where it lies beside, as timm's hub writes it, else
    ImageNet's, which the third part then says."""
    config = checkpoint.beside.get("config.json", {})
    settings = config.get("pretrained_cfg", config)
    mean, std = (settings.get(name) for name in ("mean", "std")) if isinstance(settings, Mapping) else (0, 0)
    if isinstance(mean, list) and isinstance(std, list) and len(mean) == len(std) == 3:
        return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]), {}
    told = "ImageNet's mean and standard deviation are taken; the file does not say which are right"
    return IMAGENET_MEAN, IMAGENET_STD, {"normalization": told}


def _stored(content: Any) -> Mapping[str, Any] | None:
    for stored in state_dicts(content):
        names = names_of(stored)
        if family(names) in _FAMILIES and not any(name.startswith(_NOT_TIMM) for name in names):
            return stored
    return None

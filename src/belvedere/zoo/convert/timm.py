"""timm's state dicts: ViTs, Swins and ResNets, with the `config.json` that its hub keeps beside them.

A ViT and a ResNet have our names there. A Swin has its halvings elsewhere, for which see `swin`. What
training wraps around a state dict is taken off before (`unwrapping`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from belvedere.core.errors import WeightsError
from belvedere.nn.spec import BackboneSpec, FeatureSpec, SwinSpec
from belvedere.zoo.convert.checkpoint import (
    Asked,
    Checkpoint,
    Converted,
    Stated,
    drop,
    named_tensors,
    names_of,
)
from belvedere.zoo.convert.described import described
from belvedere.zoo.convert.images import own_px, timm_images, timm_unread
from belvedere.zoo.convert.networks import family, network_of
from belvedere.zoo.convert.resnet import with_counts
from belvedere.zoo.convert.swin import swin_state
from belvedere.zoo.convert.timm_config import SWIN_EPS, VIT_EPS, read_config, require_agreement, settings_of

SYSTEMS = ("timm",)
CLASSIFIER = {"head": "the classifier", "fc": "the classifier"}
_OWN = {"architecture", "model_args", "pretrained_cfg"}
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


def identifies(checkpoint: Checkpoint) -> bool:
    """Whether timm's own settings lie beside such a network: in its names alone nothing is timm's."""
    return bool(_OWN & checkpoint.beside.get("config.json", {}).keys()) and recognises(checkpoint)


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether this is a ViT, a Swin or a ResNet under timm's names, with nothing of another system beside."""
    content = checkpoint.content
    if not isinstance(content, Mapping):
        return False
    names = names_of(content)
    return family(names) in _FAMILIES and not any(name.startswith(_NOT_TIMM) for name in names)


def convert(checkpoint: Checkpoint, asked: Asked) -> Converted:
    """Backbone and card; the classifier is left out.

    Raises `WeightsError` listing every entry that is missing, unexpected or mis-shaped, or if `config.json`
    asks for what belvedere's network is not.
    """
    return converted(checkpoint, asked, system="timm")


def converted(checkpoint: Checkpoint, asked: Asked, *, system: str) -> Converted:
    """A flat state dict of this kind as one of `system`."""
    if not recognises(checkpoint):
        raise WeightsError(f"{checkpoint.origin} is no state dict of a ViT, a Swin or a ResNet")
    state = named_tensors(checkpoint.content, "the state dict", origin=checkpoint.origin)
    backbone, dropped = ours(state)
    return from_ours(checkpoint, asked, backbone, dropped, system=system)


def from_ours(
    checkpoint: Checkpoint,
    asked: Asked,
    backbone: Mapping[str, Tensor],
    dropped: Mapping[str, str],
    *,
    system: str,
) -> Converted:
    """A state dict under our names as a network of timm's or torchvision's making."""
    origin, kind = checkpoint.origin, family(set(backbone))
    stated = Stated(norm_eps={"vit": VIT_EPS, "swin": SWIN_EPS}.get(kind or ""))
    told = _told_of_kind(kind, stated)
    source, licence, settings = "pooled", None, cast("Mapping[str, Any]", {})
    if beside := checkpoint.beside.get("config.json", {}):
        config = read_config(beside, kind, asked, origin=origin)
        settings = settings_of(beside, origin=origin)
        source, licence = config.source, settings.get("license")
        told = ({} if beside.get("architecture") else told) | dict(config.told) | timm_unread(settings)
        stated = (
            config.stated
            if config.stated.norm_eps is not None
            else Stated(config.stated.heads, stated.norm_eps, config.stated.image_px)
        )
    spec = network_of(backbone, asked, origin=origin, stated=stated)
    if beside:
        require_agreement(config, spec, origin=origin)
    if system == "timm":
        _refuse_padded_shifts(spec, origin)
    prepared = timm_images(settings, spec, interpolation=interpolation(spec), origin=origin)
    card = described(
        checkpoint,
        asked,
        system=system,
        backbone=spec,
        features=features(spec, source=source),
        dropped=dropped,
        notes=told,
        prepared=prepared,
        stated=stated,
    )
    if isinstance(licence, str):
        card = card.model_copy(update={"licence": f"{licence}, as config.json says"})
    return Converted(backbone, {}, card)


def _refuse_padded_shifts(spec: BackboneSpec, origin: str) -> None:
    """Raise `WeightsError` for a Swin of timm's that shifts windows over a map which they do not divide:
    timm rolls such a map before it pads it, belvedere, as the published networks, after."""
    if not isinstance(spec, SwinSpec):
        return
    for stage, depth in enumerate(spec.blocks):
        side, window = spec.built_side(stage), spec.window_of(stage)
        if depth > 1 and spec.shift_of(stage, 1) and side % window:
            raise WeightsError(
                f"{origin} is a Swin for {spec.image_px} px whose map of {side} x {side} cells "
                f"(stage {stage}) is no whole number of windows of {window}; timm shifts and pads such a "
                f"map in another order than belvedere, and the features would differ"
            )


def ours(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A state dict under our names, and what was left out of it."""
    kind = family(set(state))
    if kind == "swin":
        return swin_state(state)
    left, dropped = drop(state, CLASSIFIER, first=True)
    return (with_counts(left) if kind == "resnet" else left), dropped


def features(spec: BackboneSpec, *, source: str = "pooled") -> FeatureSpec:
    """What such a network's classifier reads, at the size it was built for. source: `mean` of a ViT whose
    classifier reads the mean of its normed patches."""
    px = own_px(spec)
    return FeatureSpec.model_validate(
        {
            "source": source,
            "blocks": 1,
            "norm": "none" if source == "pooled" else "all",
            "resize_px": px,
            "crop_px": px,
            "interpolation": interpolation(spec),
        }
    )


def interpolation(spec: BackboneSpec) -> str:
    """How such a network's images are resized where nothing is said."""
    return "bilinear" if spec.name == "resnet" else "bicubic"


def _told_of_kind(kind: str | None, stated: Stated) -> dict[str, str]:
    """What no shape tells of a network without a `config.json`."""
    if kind == "resnet":
        return {"activation": "ReLU, and strides of 2, assumed; the file does not say"}
    return {
        "activation": (
            f"exact GELU, and norms with an epsilon of {stated.norm_eps:g}, assumed; the file does not say"
        )
    }

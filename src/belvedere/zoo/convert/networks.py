"""Which network a state dict is of, by its names and shapes, and whether it is the one that was asked for."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import ValidationError
from torch import Tensor

from belvedere.core.errors import WeightsError
from belvedere.core.match import Shape
from belvedere.nn.build import build
from belvedere.nn.spec import BackboneSpec, ResNetSpec, SwinSpec, ViTSpec
from belvedere.zoo.convert.checkpoint import Asked, require_fit, shapes_of
from belvedere.zoo.convert.cvt import cvt_spec_of
from belvedere.zoo.convert.resnet import resnet_spec_of
from belvedere.zoo.convert.swin import swin_spec_of
from belvedere.zoo.convert.vil import vil_spec_of
from belvedere.zoo.convert.vit import vit_spec_of
from belvedere.zoo.network_words import KINDS

_SIGNS = {
    "vit": "blocks.0.norm1.weight",
    "swin": "layers.0.blocks.0.norm1.weight",
    "cvt": "stage0.0.proj.weight",
    "vil": "layer1.0.norm_embed.weight",
    "resnet": "layer1.0.conv1.weight",
}


def family(names: Mapping[str, object] | set[str]) -> str | None:
    """The kind of network that has entries of these names, as a spec calls it; None for none of ours."""
    return next((kind for kind, sign in _SIGNS.items() if sign in names), None)


def network_of(
    state: Mapping[str, Tensor], asked: Asked, *, origin: str, heads: int | None = None
) -> BackboneSpec:
    """The network of a state dict under our names, compared name by name and shape by shape.

    heads: a ViT's number of attention heads, where the file states it. Raises `WeightsError` if it is none
    of ours, another one than was asked for, if shapes leave it open, or if anything does not fit.
    """
    shapes = shapes_of(state)
    try:
        spec = _spec(shapes, asked, origin=origin, heads=heads)
        expected = backbone_shapes(spec)
    except ValidationError as error:
        reasons = "; ".join(one["msg"] for one in error.errors())
        raise WeightsError(
            f"{origin}: its shapes are of no network that belvedere has ({reasons})"
        ) from error
    require_fit(expected, shapes, spec, origin=origin)
    return spec


def backbone_shapes(spec: BackboneSpec) -> dict[str, Shape]:
    """The shapes of a network's tensors, without the memory of them."""
    with torch.device("meta"):
        return shapes_of(build(spec).state_dict())


def _spec(shapes: Mapping[str, Shape], asked: Asked, *, origin: str, heads: int | None) -> BackboneSpec:
    kind = family(set(shapes))
    if kind is None and asked.backbone is None:
        listed = ", ".join(list(shapes)[:6])
        raise WeightsError(
            f"{origin} holds none of belvedere's networks; it begins with {listed or 'nothing'}"
        )
    if asked.backbone is not None:
        if kind is not None and kind != asked.backbone.name:
            raise WeightsError(
                f"{origin} is a {KINDS[kind]}; --as {asked.name} says a {KINDS[asked.backbone.name]}"
            )
        return _as_asked(asked, asked.backbone, shapes, origin=origin)
    match kind:
        case "vit":
            return vit_spec_of(shapes, origin=origin, heads=heads)
        case "swin":
            return swin_spec_of(shapes, origin=origin)
        case "cvt":
            return cvt_spec_of(shapes, origin=origin)
        case "vil":
            return vil_spec_of(shapes, origin=origin)
        case _:
            return resnet_spec_of(shapes, origin=origin)


def _as_asked(asked: Asked, named: BackboneSpec, shapes: Mapping[str, Shape], *, origin: str) -> BackboneSpec:
    """The spec that was asked for, without drop path, which what is kept has not; a ViT's position table is
    as large as the file's, and a Swin whose sizes were not all named has the file's windows."""
    if isinstance(named, ViTSpec) and "pos_embed" in shapes:
        return vit_spec_of(shapes, origin=origin, named=named)
    if isinstance(named, SwinSpec) and not asked.exact:
        found = swin_spec_of(shapes, origin=origin)
        update = {"window": found.window, "image_px": found.image_px, "drop_path": 0.0}
        return named.model_copy(update=update)
    return named if isinstance(named, ResNetSpec) else named.model_copy(update={"drop_path": 0.0})

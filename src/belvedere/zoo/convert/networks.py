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
from belvedere.zoo.convert.checkpoint import NOTHING_STATED, Asked, Stated, require_fit, shapes_of
from belvedere.zoo.convert.cvt import cvt_spec_of
from belvedere.zoo.convert.resnet import resnet_spec_of
from belvedere.zoo.convert.swin import swin_spec_of
from belvedere.zoo.convert.vil import vil_spec_of
from belvedere.zoo.convert.vit import vit_spec_of
from belvedere.zoo.network_words import KINDS

SIGNS = {
    "vit": "blocks.0.norm1.weight",
    "swin": "layers.0.blocks.0.norm1.weight",
    "cvt": "stage0.0.proj.weight",
    "vil": "layer1.0.norm_embed.weight",
    "resnet": "layer1.0.conv1.weight",
}
"""An entry that each kind of network has, by its name in a spec."""


def family(names: Mapping[str, object] | set[str]) -> str | None:
    """The kind of network that has entries of these names, as a spec calls it; None for none of ours."""
    return next((kind for kind, sign in SIGNS.items() if sign in names), None)


def network_of(
    state: Mapping[str, Tensor], asked: Asked, *, origin: str, stated: Stated = NOTHING_STATED
) -> BackboneSpec:
    """The network of a state dict under our names, compared name by name and shape by shape.

    stated: what the file says of it beside its tensors. Raises `WeightsError` if it is none of ours, another
    one than was asked for, if shapes leave it open, or if anything does not fit.
    """
    shapes = shapes_of(state)
    spec = spec_of(shapes, asked, origin=origin, stated=stated)
    require_fit(backbone_shapes(spec), shapes, spec, origin=origin)
    return spec


def spec_of(
    shapes: Mapping[str, Shape], asked: Asked, *, origin: str, stated: Stated = NOTHING_STATED
) -> BackboneSpec:
    """The network that shapes are of, not yet compared. Raises `WeightsError` as `network_of` does."""
    try:
        spec = _spec(shapes, asked, origin=origin, stated=stated)
    except ValidationError as error:
        reasons = "; ".join(one["msg"] for one in error.errors())
        heads = "" if asked.heads is None else f" (with --heads {asked.heads})"
        raise WeightsError(
            f"{origin}: its shapes{heads} are of no network that belvedere has ({reasons})"
        ) from error
    if asked.heads is not None and not isinstance(spec, ViTSpec):
        raise WeightsError(
            f"{origin} is a {KINDS[spec.name]}, whose heads its tensors tell; leave out --heads"
        )
    if spec.num_blocks > len(shapes):
        raise WeightsError(
            f"{origin} has {len(shapes)} tensors, whose names announce a network of {spec.num_blocks} blocks"
        )
    return spec


def backbone_shapes(spec: BackboneSpec) -> dict[str, Shape]:
    """The shapes of a network's tensors, without the memory of them."""
    with torch.device("meta"):
        return shapes_of(build(spec).state_dict())


def _spec(shapes: Mapping[str, Shape], asked: Asked, *, origin: str, stated: Stated) -> BackboneSpec:
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
        return _as_asked(asked, asked.backbone, shapes, origin=origin, stated=stated)
    match kind:
        case "vit":
            return vit_spec_of(shapes, origin=origin, stated=stated, heads=asked.heads)
        case "swin":
            return _swin(shapes, origin=origin, stated=stated)
        case "cvt":
            return cvt_spec_of(shapes, origin=origin)
        case "vil":
            return vil_spec_of(shapes, origin=origin)
        case _:
            return resnet_spec_of(shapes, origin=origin)


def _as_asked(
    asked: Asked, named: BackboneSpec, shapes: Mapping[str, Shape], *, origin: str, stated: Stated
) -> BackboneSpec:
    """The spec that was asked for, without drop path, which what is kept has not; a ViT's position table is
    as large as the file's, and a Swin whose sizes were not all named has the file's windows."""
    if isinstance(named, ViTSpec) and "pos_embed" in shapes:
        return vit_spec_of(
            shapes, origin=origin, named=named, exact=asked.exact, stated=stated, heads=asked.heads
        )
    if isinstance(named, SwinSpec) and not asked.exact:
        found = _swin(shapes, origin=origin, stated=stated)
        update = {name: getattr(found, name) for name in ("window", "image_px", "norm_eps")}
        update["drop_path"] = 0.0
        return named.model_copy(update=update)
    return named if isinstance(named, ResNetSpec) else named.model_copy(update={"drop_path": 0.0})


def _swin(shapes: Mapping[str, Shape], *, origin: str, stated: Stated) -> SwinSpec:
    spec = swin_spec_of(shapes, origin=origin, image_px=stated.image_px)
    return spec if stated.norm_eps is None else spec.model_copy(update={"norm_eps": stated.norm_eps})


def assumed(spec: BackboneSpec, asked: Asked, stated: Stated) -> dict[str, str]:
    """What the tensors' shapes leave open of a network, nobody stated, and was assumed: for a card."""
    if asked.backbone is not None and (asked.exact or not isinstance(spec, SwinSpec)):
        return {}
    if isinstance(spec, ViTSpec) and asked.heads is None and stated.heads is None:
        columns = spec.width // spec.heads
        words = (
            f"{spec.heads} of {columns} columns assumed; the file does not say (--heads N sets "
            f"another number)"
        )
        return {"attention heads": words}
    if isinstance(spec, SwinSpec) and stated.image_px is None:
        words = "assumed from the windows; the file does not say, and shifts of windows follow from it"
        return {"built for": f"{spec.image_px} px, {words}"}
    return {}

"""MSN's published checkpoints (facebookresearch/msn): a dictionary around two state dicts.

Evaluation reads `target_encoder`, so that is the backbone; its `fc.*` is the projection head. Names carry
`module.` where training used several processes. Every entry is used or dropped by a rule that stands here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from belvedere.core.errors import WeightsError
from belvedere.core.match import Shape, mismatches, with_nearest
from belvedere.nn.build import build
from belvedere.nn.heads import ProjectionHead
from belvedere.nn.spec import FeatureSpec, HeadSpec, ViTSpec
from belvedere.nn.vit import VIT_NAMES, ViT, vit_spec
from belvedere.zoo.cards import Card

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
FEATURES = FeatureSpec(
    source="cls", blocks=1, norm="none", resize_px=256, crop_px=224, interpolation="bilinear"
)
LICENCE = (
    "CC-BY-NC-4.0 for the files published by facebookresearch/msn; "
    "of a checkpoint from elsewhere, that of whoever trained it"
)
DROPPED = {
    "encoder": "the student; MSN is evaluated by its target encoder",
    "opt": "the optimizer's state",
    "epoch": "a count, kept in this card under data",
    "loss": "a count, kept in this card under data",
    "batch_size": "a count, kept in this card under data",
    "world_size": "a count, kept in this card under data",
    "lr": "a setting, kept in this card under data",
    "temperature": "a setting, kept in this card under data",
}
"""Entries beside `target_encoder` and `prototypes`, and why each is not kept as a tensor."""

PUBLISHED: dict[str, dict[str, float | str]] = {
    "vits16_800ep.pth.tar": {"imagenet, 1 % of labels": 67.2},
    "vitb4_300ep.pth.tar": {"imagenet, 5 labels per class": 72.4, "imagenet, 1 % of labels": 75.7},
}
"""Top-1 that the authors state for files of these names (an issue of theirs, the paper's abstract)."""

_PREFIX = "module."
_HEAD = "fc."
_HEAD_WIDTH = 64  # columns per attention head, but for deit_huge
_HUGE_WIDTH, _HUGE_HEADS = 1280, 16


@dataclass(frozen=True)
class Converted:
    """A published checkpoint as modules. heads: `head` and `prototypes`, as far as the file has them."""

    backbone: ViT
    heads: dict[str, nn.Module | Tensor]
    card: Card


def recognises(content: Any) -> bool:
    """Whether this is what MSN's code saves."""
    return isinstance(content, Mapping) and isinstance(content.get("target_encoder"), Mapping)


def convert(content: Mapping[str, Any], *, origin: str, architecture: str | None = None) -> Converted:
    """Backbone, heads and card of a checkpoint. origin: its file name.

    Raises `WeightsError` listing every entry that is missing, unexpected or mis-shaped.
    """
    _refuse_unknown(content, origin)
    state = _state(content["target_encoder"], origin)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    spec = vit_spec_of(shapes, origin=origin, architecture=architecture)
    backbone, head = build(spec), _head(shapes, spec.width)
    prototypes = content.get("prototypes")
    expected = _shapes(backbone) | {_HEAD + name: shape for name, shape in _shapes(head).items()}
    if prototypes is not None:
        _refuse_nonfinite("prototypes", prototypes, origin)
        out = head.fc3.out_features if isinstance(head, ProjectionHead) else prototypes.shape[-1:].numel()
        shapes["prototypes"] = tuple(prototypes.shape)
        expected["prototypes"] = (_shape(shapes, "prototypes", 2, origin)[0], out)
    if wrong := mismatches(expected, shapes):
        raise WeightsError(
            f"{origin} is not the network its shapes announce ({spec})\n  " + "\n  ".join(wrong)
        )
    backbone.load_state_dict(_without(state, head=False), strict=True, assign=True)
    heads: dict[str, nn.Module | Tensor] = {}
    if isinstance(head, ProjectionHead):
        head.load_state_dict(_without(state, head=True), strict=True, assign=True)
        heads["head"] = head.eval()
    if prototypes is not None:
        heads["prototypes"] = prototypes
    return Converted(backbone.eval(), heads, _card(content, spec, origin))


def vit_spec_of(shapes: Mapping[str, Shape], *, origin: str, architecture: str | None = None) -> ViTSpec:
    """The network that has tensors of these shapes. The number of heads follows from the width (spec A.2).

    architecture: overrides what shapes say, but for the size of the position table.
    """
    if architecture is not None and architecture not in VIT_NAMES:
        raise WeightsError(
            f"no architecture is called {with_nearest(architecture, VIT_NAMES)}; "
            f"choose from {', '.join(VIT_NAMES)}"
        )
    conv = any(name.startswith("patch_embed.stem.") for name in shapes)
    width = _shape(shapes, "cls_token", 3, origin)[-1]
    tokens = _shape(shapes, "pos_embed", 3, origin)[1]
    patch_px = 16 if conv else _shape(shapes, "patch_embed.proj.weight", 4, origin)[-1]
    hidden = _shape(shapes, "blocks.0.mlp.fc1.weight", 2, origin)[0]
    side = math.isqrt(max(tokens - 1, 0))
    if side < 1 or side * side != tokens - 1:
        raise WeightsError(
            f"{origin}: pos_embed has {tokens} rows, which is no square grid and a class token"
        )
    if architecture is not None:
        spec = vit_spec(architecture)
        return spec.model_copy(update={"image_px": side * spec.patch_px})
    depth = 1 + max(int(found[1]) for name in shapes if (found := re.match(r"blocks\.(\d+)\.", name)))
    return ViTSpec(
        name="vit",
        width=width,
        depth=depth,
        heads=_num_heads(width, origin),
        patch_px=patch_px,
        mlp_ratio=_ratio(hidden, width),
        stem="conv" if conv else "patch",
        image_px=side * patch_px,
        drop_path=0.0,
    )


def _num_heads(width: int, origin: str) -> int:
    if width == _HUGE_WIDTH:
        return _HUGE_HEADS
    if width % _HEAD_WIDTH:
        raise WeightsError(
            f"{origin}: tensors {width} wide do not tell the number of attention heads; "
            f"name the architecture, one of {', '.join(VIT_NAMES)}"
        )
    return width // _HEAD_WIDTH


def _ratio(hidden: int, width: int) -> float:
    """The MLP ratio whose product with the width rounds down to `hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _shape(shapes: Mapping[str, Shape], name: str, ndim: int, origin: str) -> Shape:
    if name not in shapes:
        raise WeightsError(f"{origin}: target_encoder is missing {with_nearest(name, shapes)}")
    if len(shapes[name]) != ndim or 0 in shapes[name]:
        raise WeightsError(
            f"{origin}: {name} is {list(shapes[name])}, must have {ndim} dimensions, none empty"
        )
    return shapes[name]


def _refuse_unknown(content: Mapping[str, Any], origin: str) -> None:
    known = {"target_encoder", "prototypes", *DROPPED}
    unknown = [with_nearest(str(key), known) for key in content if key not in known]
    if unknown:
        raise WeightsError(f"{origin} has entries that MSN's checkpoints do not have: {', '.join(unknown)}")


def _state(stored: Mapping[str, Any], origin: str) -> dict[str, Tensor]:
    """The state dict without `module.`, in at least float32."""
    state: dict[str, Tensor] = {}
    for key, value in stored.items():
        name = str(key).removeprefix(_PREFIX)
        if name in state:
            raise WeightsError(f"{origin}: target_encoder has {name} twice, with and without {_PREFIX}")
        _refuse_nonfinite(name, value, origin)
        state[name] = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value.detach()
    return state


def _refuse_nonfinite(name: str, value: Any, origin: str) -> None:
    if not isinstance(value, Tensor):
        raise WeightsError(f"{origin}: {name} is a {type(value).__name__}, must be a tensor")
    if value.is_floating_point() and not bool(value.isfinite().all()):
        raise WeightsError(f"{origin}: {name} has values that are not finite numbers")


def _head(shapes: Mapping[str, Shape], width: int) -> ProjectionHead | None:
    """The projection head of these shapes; sizes that are missing are found missing later, by name."""
    if not any(name.startswith(_HEAD) for name in shapes):
        return None
    hidden = max((1, *shapes.get("fc.fc1.weight", ())[:1]))
    out = max((1, *shapes.get("fc.fc3.weight", ())[:1]))
    batch_norm = any(name.startswith("fc.bn") for name in shapes)
    return ProjectionHead(width, HeadSpec(hidden=hidden, out=out, batch_norm=batch_norm))


def _shapes(module: nn.Module | None) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in (module.state_dict() if module else {}).items()}


def _without(state: Mapping[str, Tensor], *, head: bool) -> dict[str, Tensor]:
    return {
        name.removeprefix(_HEAD): tensor for name, tensor in state.items() if name.startswith(_HEAD) == head
    }


def _card(content: Mapping[str, Any], spec: ViTSpec, origin: str) -> Card:
    counts = {key: content[key] for key in DROPPED if key in content and key not in ("encoder", "opt")}
    plain = {key: value.item() if hasattr(value, "item") else value for key, value in counts.items()}
    return Card(
        system="msn",
        backbone=spec,
        features=FEATURES,
        mean=MEAN,
        std=STD,
        source=f"MSN checkpoint {origin}",
        licence=LICENCE,
        published=PUBLISHED.get(origin, {}),
        dropped={key: reason for key, reason in DROPPED.items() if key in content},
        data={key: value for key, value in plain.items() if isinstance(value, int | float | str)},
    )

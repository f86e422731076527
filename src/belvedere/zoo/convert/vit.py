"""A vision transformer by the shapes of its tensors, which MSN, Mugs, DeiT, timm and others name alike."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from belvedere.core.errors import WeightsError
from belvedere.core.match import Shape, with_nearest
from belvedere.nn.spec import ViTSpec
from belvedere.nn.spec.vit import VIT_NAMES, vit_spec
from belvedere.zoo.convert.checkpoint import shape

_HEAD_WIDTH = 64  # columns per attention head, but for deit_huge
_HUGE_WIDTH, _HUGE_HEADS = 1280, 16
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def vit_spec_of(
    shapes: Mapping[str, Shape],
    *,
    origin: str,
    architecture: str | None = None,
    named: ViTSpec | None = None,
    heads: int | None = None,
) -> ViTSpec:
    """The network that has tensors of these shapes. The number of heads follows from the width.

    architecture: one of `VIT_NAMES`; it, or `named`, overrides what shapes say but for the size of the
    position table. heads: where the file says how many there are.
    """
    if architecture is not None and architecture not in VIT_NAMES:
        raise WeightsError(
            f"no architecture is called {with_nearest(architecture, VIT_NAMES)}; "
            f"choose from {', '.join(VIT_NAMES)}"
        )
    conv = any(name.startswith("patch_embed.stem.") for name in shapes)
    width = shape(shapes, "cls_token", 3, origin=origin)[-1]
    tokens = shape(shapes, "pos_embed", 3, origin=origin)[1]
    patch_px = 16 if conv else shape(shapes, "patch_embed.proj.weight", 4, origin=origin)[-1]
    hidden = shape(shapes, "blocks.0.mlp.fc1.weight", 2, origin=origin)[0]
    side = math.isqrt(max(tokens - 1, 0))
    if side < 1 or side * side != tokens - 1:
        raise WeightsError(
            f"{origin}: pos_embed has {tokens} rows, which is no square grid and a class token"
        )
    if architecture is not None:
        named = vit_spec(architecture)
    if named is not None:
        return named.model_copy(update={"image_px": side * named.patch_px, "drop_path": 0.0})
    return ViTSpec(
        name="vit",
        width=width,
        depth=1 + max(int(found[1]) for name in shapes if (found := _BLOCK.match(name))),
        heads=_num_heads(width, origin) if heads is None else heads,
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
            f"name the architecture (--as), one of {', '.join(VIT_NAMES)}"
        )
    return width // _HEAD_WIDTH


def _ratio(hidden: int, width: int) -> float:
    """The MLP ratio whose product with the width rounds down to `hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)

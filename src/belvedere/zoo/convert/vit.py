"""A vision transformer by the shapes of its tensors, which MSN, Mugs, DeiT, timm and others name alike."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from belvedere.core.errors import WeightsError
from belvedere.core.match import Shape
from belvedere.nn.spec import ViTSpec
from belvedere.nn.spec.vit import VIT_NAMES
from belvedere.zoo.convert.checkpoint import NOTHING_STATED, Stated, shape

_HEAD_WIDTH = 64  # columns per attention head, but for deit_huge
_HUGE_WIDTH, _HUGE_HEADS = 1280, 16
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def vit_spec_of(
    shapes: Mapping[str, Shape],
    *,
    origin: str,
    named: ViTSpec | None = None,
    exact: bool = False,
    stated: Stated = NOTHING_STATED,
    heads: int | None = None,
) -> ViTSpec:
    """The network that has tensors of these shapes. How many heads it has does not show in them: see
    `heads_of`.

    named: its sizes override what shapes say, but for that of the position table; exact: whether that is so
    of the bias of queries, keys and values, and of the norms, too. heads: of `--heads`.
    """
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
    num_heads = heads_of(width, named=named, stated=stated, heads=heads, origin=origin)
    has_bias = any(name.endswith(".attn.qkv.bias") for name in shapes)
    has_none = "blocks.0.attn.qkv.weight" in shapes and not has_bias
    open_to_file: dict[str, Any] = {"qkv_bias": not has_none}
    open_to_file |= {} if stated.norm_eps is None else {"norm_eps": stated.norm_eps}
    if named is not None:
        own = {"image_px": side * named.patch_px, "drop_path": 0.0, **({} if exact else open_to_file)}
        return named.model_copy(update=own)
    return ViTSpec(
        name="vit",
        width=width,
        depth=1 + max(int(found[1]) for name in shapes if (found := _BLOCK.match(name))),
        heads=num_heads,
        patch_px=patch_px,
        mlp_ratio=_ratio(hidden, width),
        stem="conv" if conv else "patch",
        image_px=side * patch_px,
        drop_path=0.0,
        **open_to_file,
    )


def heads_of(width: int, *, named: ViTSpec | None, stated: Stated, heads: int | None, origin: str) -> int:
    """How many attention heads a ViT of this width has: as many as are stated, else one for 64 columns.

    Raises `WeightsError` where two that state it differ, and where nobody does and the width does not tell.
    """
    said = {"--heads": heads, stated.by: stated.heads, "--as": None if named is None else named.heads}
    known = {who: count for who, count in said.items() if count is not None}
    if len(set(known.values())) > 1:
        words = ", ".join(f"{who} says {count}" for who, count in known.items())
        raise WeightsError(
            f"{origin}: how many attention heads are right? {words}; leave out or correct the wrong one"
        )
    if known:
        return next(iter(known.values()))
    if width == _HUGE_WIDTH:
        return _HUGE_HEADS
    if width % _HEAD_WIDTH:
        raise WeightsError(
            f"{origin}: tensors {width} wide do not tell the number of attention heads; say it with --heads "
            f"N, or name the architecture (--as), one of {', '.join(VIT_NAMES)}"
        )
    return width // _HEAD_WIDTH


def _ratio(hidden: int, width: int) -> float:
    """The MLP ratio whose product with the width rounds down to `hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)

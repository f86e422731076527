"""Swin weights of other code under our names, which are the published ones.

timm keeps a stage's halving at the start of the stage after it (`layers.1.downsample`), the authors and this
project at the end of its own (`layers.0.downsample`). Both may store tables that follow from the sizes, and a
classifier. LayerNorms of timm's and torchvision's Swins have an epsilon of 1e-5, the published ones of 1e-6.
At other sizes than the built one timm rolls a map before it pads it, which no published network did.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import Tensor

from belvedere.core.errors import WeightsError
from belvedere.core.match import Shape, with_nearest
from belvedere.nn.spec import SwinSpec

DROPPED = {
    "relative_position_index": "follows from the window",
    "attn_mask": "follows from the size of the map",
    "head": "the classifier",
}
"""Entries that are not kept, by the last part (`head`: the first part) of their names, and why."""

_USUAL_PX = 224
_DOWNSAMPLE = re.compile(r"layers\.(\d+)\.downsample\.")
_BLOCK = re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.")


def swin_state(stored: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A Swin's tensors under our names, and what was left out: {name: reason}.

    stored: a state dict of timm's or the authors' network; which of the two it is shows in whether its first
    stage has a halving. Tensors are passed on as they are; whether all are there is for strict loading to
    say.
    """
    published = any(name.startswith("layers.0.downsample.") for name in stored)
    state: dict[str, Tensor] = {}
    dropped: dict[str, str] = {}
    for name, tensor in stored.items():
        if reason := _reason(name):
            dropped[name] = reason
        elif not published and (found := _DOWNSAMPLE.match(name)):
            state[f"layers.{int(found[1]) - 1}.downsample.{name[found.end() :]}"] = tensor
        else:
            state[name] = tensor
    return state, dropped


def swin_spec_of(shapes: Mapping[str, Shape], *, origin: str, image_px: int | None = None) -> SwinSpec:
    """The network that has tensors of these shapes, under our names; drop path is 0.

    image_px: the size it was built for. Shapes leave it open; None takes 224 where all windows are then as
    found and divide their maps, else the size whose last map is one window, as all published ones have it.

    origin: what the shapes were read from, for the `WeightsError`.
    """
    width, _, patch_px, _ = _shape(shapes, "patch_embed.proj.weight", 4, origin)
    blocks: dict[int, int] = {}
    for name in shapes:
        if found := _BLOCK.match(name):
            blocks[int(found[1])] = max(blocks.get(int(found[1]), 0), int(found[2]) + 1)
    tables = [
        _shape(shapes, f"layers.{stage}.blocks.0.attn.relative_position_bias_table", 2, origin)
        for stage in range(max(blocks, default=0) + 1)
    ]
    hidden = _shape(shapes, "layers.0.blocks.0.mlp.fc1.weight", 2, origin)[0]
    windows = [_window(rows, origin) for rows, _ in tables]
    return SwinSpec(
        name="swin",
        embed_width=width,
        blocks=tuple(blocks[stage] for stage in range(len(tables))),
        heads=tuple(heads for _, heads in tables),
        patch_px=patch_px,
        window=max(windows),
        mlp_ratio=hidden / width,
        image_px=_built_px(windows, patch_px) if image_px is None else image_px,
        drop_path=0.0,
    )


def _built_px(windows: list[int], patch_px: int) -> int:
    """The size of images that gives the stages these windows."""
    sides = [(_USUAL_PX // patch_px) >> stage for stage in range(len(windows))]
    usual = [min(max(windows), side) for side in sides]
    whole = all(side % window == 0 for side, window in zip(sides, windows, strict=True))
    if _USUAL_PX % patch_px == 0 and usual == windows and whole:
        return _USUAL_PX
    return (windows[-1] << (len(windows) - 1)) * patch_px


def _reason(name: str) -> str | None:
    """Why an entry is not kept; None for one that is."""
    first, *_, last = name.split(".")
    return DROPPED["head"] if first == "head" else DROPPED.get(last)


def _shape(shapes: Mapping[str, Shape], name: str, ndim: int, origin: str) -> Shape:
    if name not in shapes:
        raise WeightsError(f"{origin} is no Swin: it is missing {with_nearest(name, shapes)}")
    if len(shapes[name]) != ndim or 0 in shapes[name]:
        raise WeightsError(
            f"{origin}: {name} is {list(shapes[name])}, must have {ndim} dimensions, none empty"
        )
    return shapes[name]


def _window(rows: int, origin: str) -> int:
    """The side of the windows whose table of relative positions has so many rows."""
    side = math.isqrt(rows)
    if side * side != rows or side % 2 == 0:
        raise WeightsError(
            f"{origin}: a relative_position_bias_table has {rows} rows, which is no odd number squared"
        )
    return (side + 1) // 2

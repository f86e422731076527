"""A picture of what a method sees: images and the views made of them, by role.

V views per role, B images, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor

from belvedere.viz.figure import DOTS_PER_INCH, MUTED, SKY, drawn, without_ticks

# in inches
_CELL, _GAP, _ROLE_GAP, _MARGIN, _HEADING = 1.0, 0.08, 0.22, 0.12, 0.52

_DROPPED = tuple(int(SKY[i : i + 2], 16) for i in (1, 3, 5))


@dataclass(frozen=True)
class KeptPatches:
    """Which patches of a role's views the network sees: row-major indices on a grid of patch_px squares."""

    indices: Sequence[int]
    patch_px: int


def views_picture(
    views: Mapping[str, Tensor],
    roles: Sequence[str],
    path: Path,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    originals: Sequence[NDArray[np.uint8]] = (),
    kept: Mapping[str, KeptPatches] | None = None,
    count: int = 4,
) -> None:
    """One line per image: the image itself if given, then its views, role by role, under their names.

    views: {role: [V, B, 3, H, W]} normalized by mean and std; the first `count` images are shown. Views of
    fewer pixels are drawn smaller, pixels enlarged as squares. Patches that are not in `kept` are blue.
    """
    columns = _columns(views, roles, mean=mean, std=std, kept=kept or {})
    rows = min(count, *(len(column.images) for column in columns))
    if originals:
        columns.insert(0, _Column("image", _original_words(originals), list(originals), 1.0, first=True))
    lefts = _lefts(columns)
    width = lefts[-1] + _CELL * columns[-1].share + _MARGIN
    height = _HEADING + rows * (_CELL + _GAP) + _MARGIN
    with drawn(path, width=width, height=height, arranged=False) as figure:
        for column, left in zip(columns, lefts, strict=True):
            for row, image in enumerate(column.images[:rows]):
                side = _CELL * column.share
                bottom = _MARGIN + (rows - 1 - row) * (_CELL + _GAP) + _GAP + (_CELL - side) / 2
                _show(figure.add_axes((left / width, bottom / height, side / width, side / height)), image)
            if column.first:
                figure.text(left / width, 1 - 0.24 / height, column.title, fontsize=11)
                figure.text(left / width, 1 - 0.42 / height, column.words, fontsize=8, color=MUTED)


@dataclass
class _Column:
    """One column of the picture. share: of the largest view's side; first: whether a role starts here."""

    title: str
    words: str
    images: list[NDArray[np.uint8]]
    share: float
    first: bool


def _columns(
    views: Mapping[str, Tensor],
    roles: Sequence[str],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    kept: Mapping[str, KeptPatches],
) -> list[_Column]:
    largest = max(views[role].shape[-1] for role in roles)
    columns = []
    for role in roles:
        px = views[role].shape[-1]
        words = f"{px} px"
        if role in kept:
            share = 1 - len(kept[role].indices) / (px // kept[role].patch_px) ** 2
            words += f", {share:.0%} dropped"
        for number, view in enumerate(views[role]):  # [B, 3, H, W]
            pixels = _denormalized(view, mean, std)
            if role in kept:
                pixels = _without_dropped(pixels, kept[role])
            columns.append(_Column(role, words, list(pixels), px / largest, first=number == 0))
    return columns


def _denormalized(view: Tensor, mean: Sequence[float], std: Sequence[float]) -> NDArray[np.uint8]:
    """Pixels uint8 [B, H, W, 3] of normalized images [B, 3, H, W]."""
    image = view.detach().double().cpu().numpy().transpose(0, 2, 3, 1) * np.asarray(std) + np.asarray(mean)
    pixels: NDArray[np.uint8] = np.rint(image.clip(0.0, 1.0) * 255.0).astype(np.uint8)
    return pixels


def _without_dropped(pixels: NDArray[np.uint8], kept: KeptPatches) -> NDArray[np.uint8]:
    side = pixels.shape[1] // kept.patch_px
    seen = np.zeros(side * side, dtype=bool)
    seen[list(kept.indices)] = True
    mask = seen.reshape(side, side).repeat(kept.patch_px, 0).repeat(kept.patch_px, 1)  # [H, W]
    return np.where(mask[None, :, :, None], pixels, np.array(_DROPPED, dtype=np.uint8))


def _original_words(originals: Sequence[NDArray[np.uint8]]) -> str:
    sizes = {image.shape[:2] for image in originals}
    height, width = originals[0].shape[:2]
    return f"{width} x {height} px" if len(sizes) == 1 else "any size"


def _lefts(columns: Sequence[_Column]) -> list[float]:
    """Where each column starts, in inches from the left."""
    lefts = []
    left = _MARGIN - _ROLE_GAP
    for column in columns:
        left += _ROLE_GAP if column.first else _GAP
        lefts.append(left)
        left += _CELL * column.share
    return lefts


def _show(axes: Axes, image: NDArray[np.uint8]) -> None:
    """The whole image in the middle of square axes, small ones with each pixel repeated to a square."""
    without_ticks(axes)
    height, width = image.shape[:2]
    times = max(1, round(_CELL * DOTS_PER_INCH / max(height, width)))
    enlarged = image.repeat(times, 0).repeat(times, 1)
    axes.imshow(enlarged, interpolation="antialiased")

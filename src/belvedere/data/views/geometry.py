"""Crop and resize, as Pillow does them: all views of one image, or a batch of small images at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from belvedere.data.spec import Interpolation
from belvedere.data.views import native
from belvedere.data.views.native import Crops
from belvedere.data.views.row import Column

SMALL_PX = 64
"""Sides up to which images of one size are cropped and resized as a batch."""

_BITS = 22  # Pillow's fixed point: 32 bits less 8 for the pixel and 2 for overshoot
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}

Pixels = NDArray[np.uint8]


def geometry(
    image: Pixels, rows: NDArray[np.float64], px: int, *, interpolation: Interpolation, shrink: int = 1
) -> Pixels:
    """The crops [V, 3, px, px] of one image [H, W, 3] by the boxes in rows [V, P], antialiased."""
    crops = np.empty((len(rows), 3, px, px), dtype=np.uint8)
    crop_image(image, [Crops(boxes_in(image, rows, shrink=shrink), interpolation, crops)])
    return crops


def boxes_in(image: Pixels, rows: NDArray[np.float64], *, shrink: int) -> NDArray[np.float64]:
    """The boxes [V, 4] of rows [V, P] in pixels of `image` [H, W, C].

    shrink: the image is this many times smaller than the one whose pixels the rows count; a box then begins
    and ends within pixels, which count by their part.
    """
    boxes = rows[:, : Column.WIDTH + 1] / shrink
    if shrink > 1:  # a decoder may drop a part of the last pixel
        boxes[:, Column.HEIGHT :] = np.minimum(
            boxes[:, Column.HEIGHT :], image.shape[:2] - boxes[:, : Column.HEIGHT]
        )
    return boxes


def crop_image(image: Pixels, jobs: Sequence[Crops]) -> None:
    """Crop and resize all views of one image [H, W, C] into the jobs' `out`, as `native.crop` describes it.

    Resized across and then down, as the Pillow of the papers does; since Pillow 13 the order depends on the
    sizes, which differs by one level here and there. Two calls keep the bytes the same with any Pillow.
    """
    if native.available():
        native.crop(image, jobs)
        return
    gray = image.shape[-1] == 1
    whole = Image.fromarray(image[..., 0] if gray else np.ascontiguousarray(image[..., :3]))
    for boxes, interpolation, out in jobs:
        for crop, box in zip(out, boxes.tolist(), strict=True):
            pixels = np.asarray(resized(whole, box, out.shape[-1], RESAMPLING[interpolation]))
            crop[:] = pixels if gray else pixels.transpose(2, 0, 1)


def resized(whole: Image.Image, box: list[float], px: int, resample: Image.Resampling) -> Image.Image:
    """The part of an image in box (top, left, height, width), which may be fractional, as [px, px]."""
    top, left, height, width = box
    y, x = math.floor(top), math.floor(left)
    # crop first: resize(box=...) would let pixels outside the box into its edge
    cover = whole.crop((x, y, math.ceil(left + width), math.ceil(top + height)))
    across = (left - x, 0, left - x + width, cover.height)
    wide = cover.resize((px, cover.height), resample, box=across)
    return wide.resize((px, px), resample, box=(0, top - y, px, top - y + height))


def small_geometry(
    images: Pixels, rows: NDArray[np.float64], px: int, *, interpolation: Interpolation
) -> Pixels:
    """The crops [V, B, C, px, px] of equally sized small images [B, H, W, C] by the boxes in rows [B, V, P].

    The arithmetic of `geometry` as two products with weight matrices: every image's rows with the
    horizontal weights of all its views, rounded to uint8, then each view's columns with its vertical
    weights. The weights are Pillow's whole numbers and float64 holds the sums exactly, so the pixels are
    equal to Pillow's.
    """
    num, height, width, channels = images.shape
    views = rows.shape[1]
    box = rows[..., : Column.WIDTH + 1].astype(np.int64)  # [B, V, 4]
    across = _weights(width, px, interpolation)[
        box[..., Column.WIDTH], box[..., Column.LEFT]
    ]  # [B, V, px, W]
    down = _weights(height, px, interpolation)[box[..., Column.HEIGHT], box[..., Column.TOP]]  # [B, V, px, H]
    lines = images.transpose(0, 3, 1, 2).reshape(num, channels * height, width).astype(np.float64)
    wide = _rounded(lines @ across.reshape(num, views * px, width).transpose(0, 2, 1))  # [B, C * H, V * px]
    columns = wide.reshape(num, channels, height, views, px).transpose(0, 3, 2, 1, 4)  # [B, V, H, C, px]
    crops = _rounded(down @ columns.reshape(num, views, height, channels * px))  # [B, V, px, C * px]
    return crops.reshape(num, views, px, channels, px).transpose(1, 0, 3, 2, 4).astype(np.uint8)


def _rounded(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fixed-point sums as pixel values: rounded half up and cut to 0..255; in place."""
    sums *= 2.0**-_BITS
    sums += 0.5
    np.floor(sums, out=sums)
    return np.clip(sums, 0.0, 255.0, out=sums)


@lru_cache(maxsize=32)
def _weights(side: int, px: int, interpolation: Interpolation) -> NDArray[np.float64]:
    """Resizing weights by box length and start [side + 1, side + 1, px, side], whole numbers times 2**-22.

    A view into zero-padded matrices: moving a box by one pixel moves its weights by one column. Small ones
    are copied out, which makes looking them up a plain copy.
    """
    padded = np.zeros((side + 1, px, 2 * side))
    for length in range(1, side + 1):
        padded[length, :, side : side + length] = resize_weights(length, px, interpolation)
    windows = np.lib.stride_tricks.sliding_window_view(padded, side, axis=2)  # [side + 1, px, side + 1, side]
    by_start = windows[:, :, ::-1].transpose(0, 2, 1, 3)
    return np.ascontiguousarray(by_start) if by_start.size <= 2**20 else by_start


def resize_weights(length: int, px: int, interpolation: Interpolation) -> NDArray[np.float64]:
    """The matrix [px, length] that resizes a line of `length` pixels to `px`, in whole numbers times 2**-22.

    A triangle or cubic (a = -0.5) widened by the shrinking factor, cut to the line and normalized.
    """
    scale = length / px
    stretch = max(scale, 1.0)
    center = (np.arange(px) + 0.5) * scale
    support = _SUPPORT[interpolation] * stretch
    first = np.maximum(np.trunc(center - support + 0.5), 0)
    last = np.minimum(np.trunc(center + support + 0.5), length)
    pixel = np.arange(length)
    distance = np.abs((pixel[None, :] - center[:, None] + 0.5) / stretch)
    weights = _triangle(distance) if interpolation == "bilinear" else _cubic(distance)
    weights[(pixel < first[:, None]) | (pixel >= last[:, None])] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    scaled = weights * (1 << _BITS)
    return np.trunc(scaled + np.copysign(0.5, scaled))


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(1.0 - x, 0.0)


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    a = -0.5
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))

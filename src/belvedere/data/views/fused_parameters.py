"""The numbers the fused kernels read: one int32 array a batch, so that one copy brings it to the device.

A head of what all views share, then one row of fields per view. Factors stand as the bits of their float32.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from belvedere.data.views.blur import box_radii, box_weights
from belvedere.data.views.color import hsv_to_rgb, rgb_to_hsv
from belvedere.data.views.row import Column

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Bools = NDArray[np.bool_]

PLACES = 4
"""Adjustments a row's order holds."""

HUE_LEVELS = 256


class Head(IntEnum):
    """Where the head's parts begin: which exact hues fall short, then each channel's factor and offset."""

    SHORT = 0
    FACTOR = HUE_LEVELS
    OFFSET = FACTOR + 3
    END = OFFSET + 3


class Field(IntEnum):
    """Fields of one view's row.

    Which adjustment stands at each place of the order (by its number in the order columns, `NOTHING` for
    none) and by how much (a factor; for the hue, steps of 1/255 of the colour circle); the place of contrast,
    or `PLACES`; whether to flip, to turn gray, to solarize; where among the blurred views it stands, or
    `NOTHING`; the blur's weights of inner and outer pixels and its reach.

    CONTRASTED and BLURRED are lists of their own, over all rows: the views with contrast and those with blur.
    """

    OPERATION = 0
    AMOUNT = OPERATION + PLACES
    CONTRAST_AT = AMOUNT + PLACES
    FLIP = 9
    GRAY = 10
    SOLARIZE = 11
    BLUR = 12
    INNER = 13
    OUTER = 14
    REACH = 15
    CONTRASTED = 16
    BLURRED = 17
    COUNT = 18


NOTHING = -1
CONTRAST = 1
SATURATION = 2
HUE = 3

_FACTORS = (Column.BRIGHTNESS, Column.CONTRAST, Column.SATURATION, Column.HUE)


@cache
def short_hues() -> Ints:
    """Of the 256 levels of hue, 1 for those that Pillow's arithmetic gives one too low when they are exact.

    A hue is a fraction of the circle, cut to a whole number of 255ths. Pillow computes it in floating point,
    where a fraction that is exactly so many 255ths may come out below. Whether it does depends on the level
    only, so the saturated colour of each level tells.
    """
    level = torch.arange(HUE_LEVELS, dtype=torch.int32).view(1, 1, -1)
    full = torch.full_like(level, 255)
    found = rgb_to_hsv(hsv_to_rgb(level, full, full))[0]
    short: Ints = (level - found).view(-1).numpy()
    short[-1] = 0  # 255 of 255 is the whole circle: hue 0, never asked for
    return short


def packed(
    rows: Floats, *, gray: bool, factor: NDArray[np.float32], offset: NDArray[np.float32]
) -> tuple[Ints, int, int]:
    """The array [Head.END + N * Field.COUNT] of rows [N, P], how many views have contrast, and how many blur.

    gray: crops have one channel, which saturation, hue and gray leave as it is. factor, offset [3]: of the
    normalization.
    """
    array = np.zeros(Head.END + len(rows) * Field.COUNT, dtype=np.int32)
    array[Head.SHORT : Head.FACTOR] = short_hues()
    array[Head.FACTOR : Head.OFFSET] = factor.view(np.int32)
    array[Head.OFFSET : Head.END] = offset.view(np.int32)
    fields = array[Head.END :].reshape(len(rows), Field.COUNT)
    fields[:, Field.FLIP] = rows[:, Column.FLIP] > 0
    fields[:, Field.GRAY] = (rows[:, Column.GRAY] > 0) & (not gray)
    fields[:, Field.SOLARIZE] = rows[:, Column.SOLARIZE] > 0
    _pack_jitter_(fields, rows, gray=gray)
    _pack_blur_(fields, rows)
    with_contrast = _list_(fields, Field.CONTRASTED, fields[:, Field.CONTRAST_AT] < PLACES)
    with_blur = _list_(fields, Field.BLURRED, fields[:, Field.BLUR] != NOTHING)
    return array, with_contrast, with_blur


def _pack_jitter_(fields: Ints, rows: Floats, *, gray: bool) -> None:
    """The adjustments that change something, in each row's order."""
    amounts = np.empty((len(rows), len(_FACTORS)), dtype=np.int32)
    active = np.repeat(rows[:, Column.JITTER, None] > 0, len(_FACTORS), axis=1)
    for number, column in enumerate(_FACTORS):
        if column == Column.HUE:
            amounts[:, number] = np.trunc(rows[:, column] * 255.0).astype(np.int32)
        else:
            amounts[:, number] = rows[:, column].astype(np.float32).view(np.int32)
        active[:, number] &= rows[:, column] != (0.0 if column == Column.HUE else 1.0)
        if gray and column in (Column.SATURATION, Column.HUE):
            active[:, number] = False
    order = rows[:, Column.ORDER_0 : Column.ORDER_3 + 1].astype(np.int64)
    active = np.take_along_axis(active, order, axis=1)  # by place from here on
    fields[:, Field.OPERATION : Field.AMOUNT] = np.where(active, order, NOTHING)
    fields[:, Field.AMOUNT : Field.CONTRAST_AT] = np.take_along_axis(amounts, order, axis=1)
    contrast = active & (order == CONTRAST)
    fields[:, Field.CONTRAST_AT] = np.where(contrast.any(axis=1), contrast.argmax(axis=1), PLACES)


def _pack_blur_(fields: Ints, rows: Floats) -> None:
    """The fixed-point weights of `blur.gaussian_blur`'s boxes, for the rows that blur."""
    which = rows[:, Column.BLUR] > 0
    boxes = box_radii(rows[which, Column.RADIUS])
    fields[which, Field.INNER], fields[which, Field.OUTER] = box_weights(boxes)
    fields[which, Field.REACH] = boxes.astype(np.int64)
    fields[:, Field.BLUR] = np.where(which, np.cumsum(which) - 1, NOTHING)


def _list_(fields: Ints, field: Field, which: Bools) -> int:
    """Write the rows where `which` [N] is true as a list into the first rows of `field`; its length."""
    chosen = np.flatnonzero(which)
    fields[: len(chosen), field] = chosen
    return len(chosen)

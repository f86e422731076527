"""Random erasing: a box of a finished view becomes noise. (Zhong et al. 2020, arXiv 1708.04896.)"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from belvedere.core.rng import generator
from belvedere.data.spec import Erasing
from belvedere.data.views.row import Column

Floats = NDArray[np.float64]

_ATTEMPTS = 10  # to find a box that fits, as for crops

# Columns of uniform numbers
_AREA = slice(0, _ATTEMPTS)
_ASPECT = slice(_ATTEMPTS, 2 * _ATTEMPTS)
_PLACE = slice(20, 22)
_APPLIED = 22
NUM_UNIFORMS = 23


def draw_boxes(spec: Erasing, px: int, u: Floats) -> Floats:
    """Top, left, height and width [R, 4] of the box to erase in each view of `px` pixels a side, from
    uniforms u [R, NUM_UNIFORMS]; all zero where nothing is erased.

    The first of ten boxes that is lower and narrower than the view.
    """
    low, high = np.log(spec.aspect[0]), np.log(spec.aspect[1])
    area = px * px * (spec.area[0] + u[:, _AREA] * (spec.area[1] - spec.area[0]))
    aspect = np.exp(low + u[:, _ASPECT] * (high - low))
    height, width = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))  # [R, attempts]
    fits = (height > 0) & (height < px) & (width > 0) & (width < px)
    first = fits.argmax(axis=1)[:, None]
    size = np.concatenate([np.take_along_axis(side, first, axis=1) for side in (height, width)], axis=1)
    start = np.floor(u[:, _PLACE] * (px - size + 1))
    erased = fits.any(axis=1) & (u[:, _APPLIED] < spec.p)
    boxes: Floats = np.where(erased[:, None], np.concatenate([start, size], axis=1), 0.0)
    return boxes


def erase_(
    views: Tensor, rows: Floats, *, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> None:
    """Put normalized noise into the boxes of normalized views [N, 3, px, px], as their rows [N, P] say.

    The noise is drawn on the CPU from each row's own number, so that it is the same on every device.
    """
    middle, spread = (np.array(values, dtype=np.float64)[:, None, None] for values in (mean, std))
    for number in np.flatnonzero(rows[:, Column.ERASE_HEIGHT] > 0):
        box = rows[number, Column.ERASE_TOP : Column.ERASE_WIDTH + 1].astype(np.int64).tolist()
        top, left, height, width = box
        noise = generator(int(rows[number, Column.NOISE]), "erase").standard_normal((3, height, width))
        noise -= middle
        noise /= spread
        place = views[int(number), :, top : top + height, left : left + width]
        place.copy_(torch.from_numpy(noise).to(views.dtype), non_blocking=True)

"""What happens to crops after their geometry, batched over views: flip, jitter, gray, blur, solarize.

Every operation follows Pillow's arithmetic on uint8, rounding where Pillow rounds, in whole numbers or in
float32 with one operation at a time, so that a CPU and a GPU give the same bytes. Parameters stay on the
CPU: which rows an operation touches is known without asking the device. Crops are [N, C, H, W] uint8; C = 1
stands for gray images, of which every channel would be the same.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from belvedere.data.views import native
from belvedere.data.views.blur import gaussian_blur
from belvedere.data.views.color import adjust_hue, adjust_saturation, blend, luma
from belvedere.data.views.row import Column

Floats = NDArray[np.float64]
_Adjust = Callable[[Tensor, Tensor], Tensor]

_SOLARIZE_FROM = 128


def photometry(crops: Tensor, rows: Floats) -> Tensor:
    """Crops [N, C, H, W] uint8 changed as their rows [N, P] say; the input is left alone.

    On the CPU by the compiled renderer where there is one.
    """
    if crops.device.type == "cpu" and native.available():
        return native.photometry(crops, rows)
    crops = crops.clone()
    gray = crops.shape[1] == 1
    _on_rows_(crops, rows[:, Column.FLIP] > 0, lambda part: part.flip(-1))
    _jitter_(crops, rows, gray=gray)
    if not gray:
        _on_rows_(crops, rows[:, Column.GRAY] > 0, lambda part: luma(part).to(torch.uint8).expand_as(part))
    _blur_(crops, rows)
    _on_rows_(
        crops, rows[:, Column.SOLARIZE] > 0, lambda part: torch.where(part < _SOLARIZE_FROM, part, 255 - part)
    )
    return crops


def normalize(
    crops: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float], dtype: torch.dtype
) -> Tensor:
    """Crops uint8 [..., C, H, W] as floats [..., 3, H, W]: scaled to [0, 1], minus mean, divided by std."""
    factor, offset = (part.to(crops.device, dtype).view(3, 1, 1) for part in normalization(mean, std))
    return crops.to(dtype) * factor + offset


def normalization(mean: tuple[float, float, float], std: tuple[float, float, float]) -> tuple[Tensor, Tensor]:
    """Factor and offset [3], float64, that normalize a uint8 pixel: one multiplication and one addition."""
    factor = 1.0 / (torch.tensor(std, dtype=torch.float64) * 255.0)
    return factor, -(torch.tensor(mean, dtype=torch.float64) * 255.0) * factor


def brightness(crops: Tensor, factors: Tensor) -> Tensor:
    """Blend [N, C, H, W] with black; factors [N]."""
    return blend(torch.zeros_like(crops), crops, factors)


def contrast(crops: Tensor, factors: Tensor) -> Tensor:
    """Blend [N, C, H, W] with each image's rounded mean gray; factors [N]."""
    gray = luma(crops)  # [N, 1, H, W]
    pixels = gray[0].numel()
    total = gray.sum(dim=(1, 2, 3), keepdim=True, dtype=torch.int64)
    mean = (2 * total + pixels).div(2 * pixels, rounding_mode="floor")  # [N, 1, 1, 1], halves up
    return blend(mean.to(torch.uint8).expand_as(crops), crops, factors)


_OPERATIONS: tuple[tuple[_Adjust, Column, bool], ...] = (
    (brightness, Column.BRIGHTNESS, True),
    (contrast, Column.CONTRAST, True),
    (adjust_saturation, Column.SATURATION, False),
    (adjust_hue, Column.HUE, False),
)
"""By its number in the order columns: what it does, its factor, whether it changes a gray image."""


def _jitter_(crops: Tensor, rows: Floats, *, gray: bool) -> None:
    """The four adjustments of each row, in its order."""
    applied = rows[:, Column.JITTER] > 0
    if not applied.any():
        return
    for place in range(Column.ORDER_0, Column.ORDER_3 + 1):
        for number, (operation, column, changes_gray) in enumerate(_OPERATIONS):
            if gray and not changes_gray:
                continue
            neutral = 0.0 if column == Column.HUE else 1.0
            which = applied & (rows[:, place] == number) & (rows[:, column] != neutral)
            _adjust_(crops, which, operation, rows[:, column])


def _adjust_(crops: Tensor, which: NDArray[np.bool_], operation: _Adjust, factors: Floats) -> None:
    chosen = torch.from_numpy(factors[which]).to(crops.device)
    _on_rows_(crops, which, lambda part: operation(part, chosen))


def _blur_(crops: Tensor, rows: Floats) -> None:
    which = rows[:, Column.BLUR] > 0
    _on_rows_(crops, which, lambda part: gaussian_blur(part, rows[which, Column.RADIUS]))


def _on_rows_(crops: Tensor, which: NDArray[np.bool_], change: Callable[[Tensor], Tensor]) -> None:
    """Replace the rows of `crops` where `which` [N] is true by what `change` makes of them."""
    if not which.any():
        return
    index = torch.from_numpy(np.flatnonzero(which)).to(crops.device)
    crops.index_copy_(0, index, change(crops.index_select(0, index)))

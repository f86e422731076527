"""Photometry and normalization fused into at most eight kernels, for CUDA devices.

The same bytes as `photometry.photometry` followed by `photometry.normalize`, which are some hundred kernels.
A crop is read as uint8 and written once as normalized floats; contrast reads it once more for its mean, and
a blur adds six passes over the uint8 views that blur. Parameters go to the device in one copy, and nothing
comes back: the device is never waited for.
"""

from __future__ import annotations

import shutil
import sysconfig
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from belvedere.data.views.fused_parameters import packed
from belvedere.data.views.photometry import normalization

Floats = NDArray[np.float64]
Triple = tuple[float, float, float]

DTYPES = (torch.float32, torch.bfloat16)
"""Types of views the kernels write; others are left to the torch operations."""

_LEAST_CAPABILITY = (8, 0)  # what Triton compiles for

# Pillow rounds each product and sum; a fused multiply-add would round once for both
LAUNCH = {"enable_fp_fusion": False}


def obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the fused renderer cannot make views of `dtype` on `device`, or None if it can."""
    if device.type != "cuda" or torch.version.hip is not None:
        return f"the kernels are for CUDA devices, not {device.type}"
    if dtype not in DTYPES:
        return f"the kernels write {' or '.join(map(str, DTYPES))}, not {dtype}"
    if find_spec("triton") is None:
        return "triton is not installed"
    if torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
        return f"{torch.cuda.get_device_name(device)} is older than what Triton compiles for"
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        return "Triton needs a C compiler, and there is none on the path"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Triton needs Python's C headers, which are not installed"
    return None


@cache
def renders(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the fused renderer makes views of `dtype` on `device`; cheap, as every batch asks."""
    return obstacle(device, dtype) is None


def finish(crops: Tensor, rows: Floats, *, mean: Triple, std: Triple, dtype: torch.dtype) -> Tensor:
    """Views [N, 3, H, W] of `dtype` from crops [N, C, H, W] uint8, C 1 or 3, as their rows [N, P] say."""
    from belvedere.data.views import fused_kernels as kernels  # not where Triton is not

    number, channels, height, width = crops.shape
    assert (crops.dtype, len(rows)) == (torch.uint8, number)
    assert channels in (1, 3)
    assert dtype in DTYPES
    views = crops.new_empty((number, 3, height, width), dtype=dtype)
    if views.numel() == 0:
        return views
    factor, offset = _scale(mean, std, dtype)
    numbers, with_contrast, with_blur = packed(rows, gray=channels == 1, factor=factor, offset=offset)
    batch = torch.from_numpy(numbers)
    with torch.cuda.device_of(crops):
        batch = batch.pin_memory().to(crops.device, non_blocking=True) if crops.is_cuda else batch
        _launch(kernels, crops.contiguous(), batch, views, with_contrast=with_contrast, with_blur=with_blur)
    return views


def _launch(
    kernels: ModuleType, crops: Tensor, batch: Tensor, views: Tensor, *, with_contrast: int, with_blur: int
) -> None:
    """Queue the kernels that fill `views`; batch: the array of `packed` on the crops' device."""
    number, channels, height, width = crops.shape
    tiles = -(-height // kernels.TILE) * -(-width // kernels.TILE)
    size, shared = (height, width, tiles), {"CHANNELS": channels, **LAUNCH}
    totals = crops.new_zeros(number, dtype=torch.int64)  # of gray levels, of each view
    one, other = (crops.new_empty((with_blur, channels, height, width)) for _ in range(2))
    if with_contrast:
        kernels.sum_luma[(with_contrast * tiles,)](crops, batch, totals, *size, **shared)
    kernels.color[(number * tiles,)](crops, batch, totals, one, views, *size, **shared)
    if with_blur:
        for down in (False, False, False, True, True):
            kernels.blur[(with_blur * channels * tiles,)](one, batch, other, *size, DOWN=down, **shared)
            one, other = other, one
        kernels.last_blur[(with_blur * tiles,)](one, batch, views, *size, **shared)


def _scale(mean: Triple, std: Triple, dtype: torch.dtype) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What `photometry.normalize` multiplies with and adds, each [3], rounded to `dtype` as it does."""
    factor, offset = (part.to(dtype).float().numpy() for part in normalization(mean, std))
    return factor, offset

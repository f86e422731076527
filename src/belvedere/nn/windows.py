"""Windows on a map of tokens: cutting and joining, shifted windows' mask, relative positions.

Everything that only depends on sizes is computed once for each and kept.

Legend: B images, R x C rows and columns of a map, W windows, w side of a window, T = w * w its tokens,
D width of a token, H heads, d width of one.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_APART = (
    -100.0
)  # added to the score of two tokens that are no neighbours; the published code's "minus infinity"


def whole(rows: int, columns: int, *, window: int) -> tuple[int, int]:
    """The least sides that hold a map of rows x columns and are whole numbers of windows."""
    return -(-rows // window) * window, -(-columns // window) * window


def cut(x: Tensor, *, window: int) -> Tensor:
    """The windows [B, W, T, D] of a map [B, R, C, D] that is whole windows, row by row."""
    batch, rows, columns, width = x.shape
    parts = x.view(batch, rows // window, window, columns // window, window, width)
    return parts.transpose(2, 3).reshape(batch, -1, window * window, width)


def join(windows: Tensor, rows: int, columns: int, *, window: int) -> Tensor:
    """The map [B, rows, columns, H * d] of windows as `cut` makes them, split by head [B, W, H, T, d]."""
    batch, heads = windows.shape[0], windows.shape[2]
    parts = windows.view(batch, rows // window, columns // window, heads, window, window, -1)
    return parts.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, rows, columns, -1)


@lru_cache(maxsize=64)
def relative_index(window: int, device: torch.device) -> Tensor:
    """Which row of a table of relative positions [(2w - 1)**2, H] two tokens of a window take: [T * T] int64.

    Row (r + w - 1) * (2w - 1) + c + w - 1, with r and c by how much the query lies below and right of the
    key. It is the published `relative_position_index`, which follows from the window and is not stored.
    """
    row, column = np.divmod(np.arange(window * window), window)
    below, right = (place[:, None] - place[None, :] + window - 1 for place in (row, column))
    return _constant(below * (2 * window - 1) + right, device).flatten()


@lru_cache(maxsize=64)
def shift_mask(
    rows: int, columns: int, window: int, shift: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """What is added to the scores within each window of a map rolled by `shift`: [W, T, T].

    0 for two tokens that were neighbours before, -100 for two that the roll brought together. rows, columns:
    of the padded map, whole windows. A map that is one window has a mask too.
    """
    bands = 3 * _bands(rows, window, shift)[:, None] + _bands(columns, window, shift)[None, :]  # [R, C]
    squares = bands.reshape(rows // window, window, columns // window, window).swapaxes(1, 2)
    labels = squares.reshape(-1, window * window)  # [W, T]
    return _constant(np.where(labels[:, :, None] == labels[:, None, :], 0.0, _APART), device, dtype)


def _bands(side: int, window: int, shift: int) -> NDArray[np.int64]:
    """Which of three bands each row lies in: whole windows, the rest of the last one, what was rolled in."""
    place = np.arange(side)
    return (place >= side - window).astype(np.int64) + (place >= side - shift)


def _constant(values: NDArray[np.generic], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor that training may use even where an evaluation was the first to ask for it."""
    with torch.inference_mode(mode=False):
        return torch.from_numpy(np.ascontiguousarray(values)).to(device=device, dtype=dtype)

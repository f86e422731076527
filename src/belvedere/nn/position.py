"""Resizing a table of position embeddings by a fixed matrix: exact, differentiable and the same every run."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

_A = -0.75  # Keys' cubic convolution parameter, torch's bicubic


def _cubic(x: float) -> float:
    x = abs(x)
    if x <= 1:
        return ((_A + 2) * x - (_A + 3)) * x * x + 1
    if x < 2:
        return (((x - 5) * x + 8) * x - 4) * _A
    return 0.0


@lru_cache(maxsize=256)
def bicubic_matrix(old: int, new: int, scale: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The [new, old] matrix of a bicubic resize whose sampling step is 1 / `scale`.

    Not antialiased, half-pixel centres, borders repeated; `scale` is used as given and not derived from the
    sizes again (MSN gives sqrt(patches / table size), Mugs adds 0.1 to a side).
    """
    matrix = [[0.0] * old for _ in range(new)]
    for row in range(new):
        centre = (row + 0.5) / scale - 0.5
        left = math.floor(centre)
        for tap in range(left - 1, left + 3):
            matrix[row][min(max(tap, 0), old - 1)] += _cubic(centre - tap)
    return torch.tensor(matrix, dtype=torch.float64).to(device=device, dtype=dtype)


def resize_position(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """The table [1, 1 + n*n, D] (class row first) for another `grid`: [1, 1 + rows*columns, D].

    The class row is left alone. MSN, `interpolate_pos_encoding`: the factor of a side is its exact ratio.
    """
    side = math.isqrt(table.shape[1] - 1)
    if grid == (side, side):
        return table
    rows, columns = (
        bicubic_matrix(side, new, new / side, table.device, table.dtype) for new in grid
    )  # [R, n], [C, n]
    square = table[0, 1:].view(side, side, -1)  # [n, n, D]
    resized = torch.einsum("rn,cm,nmd->rcd", rows, columns, square)
    return torch.cat([table[:, :1], resized.reshape(1, grid[0] * grid[1], -1)], dim=1)

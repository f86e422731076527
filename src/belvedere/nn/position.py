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
    with torch.inference_mode(False):  # training may use what an evaluation was the first to ask for
        return torch.tensor(matrix, dtype=torch.float64).to(device=device, dtype=dtype)


def resize_position(table: Tensor, grid: tuple[int, int], margin: float = 0.0) -> Tensor:
    """The table [1, 1 + n*n, D] (class row first) for another `grid`: [1, 1 + rows*columns, D].

    The class row is left alone. The factor of a side is (its patches + margin) / n: MSN's is the exact ratio,
    Mugs has a margin of 0.1, once meant to guard a rounding.
    """
    side = math.isqrt(table.shape[1] - 1)
    if all(isinstance(new, int) for new in grid) and grid == (side, side):
        return table
    rows, columns = (
        bicubic_matrix(side, new, (new + margin) / side, table.device, table.dtype)
        if isinstance(new, int)
        else _traced_matrix(side, new, _traced_margin(side, grid, margin, like=table))
        for new in grid
    )  # [R, n], [C, n]
    square = table[0, 1:].view(side, side, -1)  # [n, n, D]
    resized = torch.einsum("rn,cm,nmd->rcd", rows, columns, square)
    return torch.cat([table[:, :1], resized.reshape(1, grid[0] * grid[1], -1)], dim=1)


def _traced_margin(side: int, grid: tuple[int, int], margin: float, *, like: Tensor) -> Tensor:
    """`margin` for a graph whose image size is left open, or 0 at the size that needs no resize: []."""
    resized = [torch.full((), new, device=like.device, dtype=like.dtype) != side for new in grid]
    return (resized[0] | resized[1]).to(like.dtype) * margin


def _traced_matrix(old: int, new: int, margin: Tensor) -> Tensor:
    """`bicubic_matrix` as operations of tensors, for a graph whose image size is left open: [new, old]."""
    row = torch.arange(new, device=margin.device, dtype=margin.dtype)
    centre = (row + 0.5) * old / (margin + new) - 0.5
    left = centre.floor()
    column = torch.arange(old, device=margin.device, dtype=margin.dtype)
    matrix = margin.new_zeros(1, old)
    for tap in range(-1, 3):
        x = (centre - left - tap).abs()
        near = ((_A + 2) * x - (_A + 3)) * x * x + 1
        far = (((x - 5) * x + 8) * x - 4) * _A
        weight = torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))  # [new]
        place = (left + tap).clamp(0, old - 1)
        matrix = matrix + weight[:, None] * (place[:, None] == column)
    return matrix

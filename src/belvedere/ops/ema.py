"""Exponential moving averages of parameters."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def ema_(teacher: list[Tensor], student: list[Tensor], momentum: float) -> None:
    """Move every teacher tensor to momentum * teacher + (1 - momentum) * student, all in one pass."""
    torch._foreach_mul_(teacher, momentum)
    torch._foreach_add_(teacher, student, alpha=1 - momentum)

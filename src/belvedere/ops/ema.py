"""Exponential moving averages: of a student's parameters, and of the mean over batches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from belvedere.core import dist


@torch.no_grad()
def ema_(teacher: list[Tensor], student: list[Tensor], momentum: float) -> None:
    """Move every teacher tensor to momentum * teacher + (1 - momentum) * student, all in one pass."""
    torch._foreach_mul_(teacher, momentum)
    torch._foreach_add_(teacher, student, alpha=1 - momentum)


def follow_(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move all parameters of a teacher towards the student's of the same names; buffers stay its own."""
    theirs, own = dict(student.named_parameters()), dict(teacher.named_parameters())
    ema_(list(own.values()), [theirs[name] for name in own], momentum)


@torch.no_grad()
def center_(center: Tensor, newest: Tensor, momentum: float) -> None:
    """Move a center towards the newest one, which is averaged over processes in place. DINO, equation 4."""
    dist.average_([newest])
    center.lerp_(newest.to(center), 1 - momentum)

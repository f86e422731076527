"""Where numbers are bfloat16 and where they never are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["bf16", "float32", "float64"]


def parameter_dtype(precision: Precision) -> torch.dtype:
    """The type of parameters and views: float64 only where asked for, never bfloat16."""
    return torch.float64 if precision == "float64" else torch.float32


@contextmanager
def networks(precision: Precision, device: torch.device) -> Iterator[None]:
    """Run networks in bfloat16 where the precision says so.

    Open one per pass: autocast keeps its copies of weights for as long as it is open, and copies made
    without gradient must not serve a pass with gradient.
    """
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        yield


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Leave autocast for a loss."""
    with torch.autocast(device.type, enabled=False):
        yield


def at_least_float32(tensor: Tensor) -> Tensor:
    """`tensor` promoted to float32; float64 stays."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()

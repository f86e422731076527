"""Counts in a description, and how many numbers what it describes has: worked out, nothing is built.

A description can name any size. What it comes to is known before a network of it takes the memory.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated

from pydantic import Field

Count = Annotated[int, Field(ge=1)]

MODULE_BYTES = 4000
"""What Python keeps of one layer, beside the values of its parameters (measured: 3 to 5 kB)."""


def times(width: int, ratio: float) -> int:
    """`int(width * ratio)`, also where that is more than a float can hold."""
    if width < 1 << 53 and math.isfinite(width * ratio):
        return int(width * ratio)
    return int(width * Fraction(ratio))


def linear(before: int, after: int, *, bias: bool = True) -> int:
    """Parameters of a linear layer, or of a 1x1 convolution."""
    return before * after + (after if bias else 0)


def norm(width: int) -> int:
    """Parameters of a LayerNorm or BatchNorm."""
    return 2 * width


def mlp(width: int, hidden: int) -> int:
    """Parameters of two linear layers, to `hidden` columns and back."""
    return linear(width, hidden) + linear(hidden, width)

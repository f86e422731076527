"""Is what another library computes from the written files what this one computes?"""

from __future__ import annotations

import copy
import gc
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from belvedere.core.errors import WeightsError
from belvedere.zoo.write.target import Network, Side, square

EXACT = 1e-6
"""Tolerance where both sides compute in float64: far above its rounding, far below what another epsilon of a
norm, activation or order of tokens changes."""
ROUNDED = 5e-4
"""Tolerance where one side computes in float32, in its own order of operations."""
_NUM_RANDOM = 3

M = TypeVar("M", bound=nn.Module)


class Agreement(NamedTuple):
    """difference: the largest, in units of the root mean square of ours."""

    what: str
    images: str
    difference: float
    tolerance: float
    float64: bool

    @property
    def holds(self) -> bool:
        """False also where a number is not finite."""
        return self.difference <= self.tolerance

    def told(self) -> str:
        """`3e-13 (at most 1e-06, in float64)`."""
        dtype = "float64" if self.float64 else "float32"
        return f"{self.difference:.1e} (at most {self.tolerance:.0e}, in {dtype})"


def compare(side: Side, real: Mapping[str, Tensor]) -> list[Agreement]:
    """Differences on random images of each size, and on `real` images {name: [B, 3, H, W]}."""
    images = {f"random {height}x{width}": _random(height, width) for height, width in side.sizes} | dict(real)
    dtype = torch.float64 if side.float64 else torch.float32
    with torch.no_grad():
        found = []
        for name, batch in images.items():
            difference = _difference(side.ours(batch.to(dtype)), side.theirs(batch.to(dtype)))
            found.append(Agreement(side.what, name, difference, side.tolerance, side.float64))
    return found


def demand(agreements: list[Agreement], *, library: str) -> None:
    """Raise WeightsError if one of them does not hold."""
    failed = [f"{one.what}, {one.images} images: {one.told()}" for one in agreements if not one.holds]
    if failed:
        raise WeightsError(
            f"{library} computes something else from the exported files than belvedere from the backbone, so "
            "nothing was written; largest difference, in units of the root mean square:\n  "
            + "\n  ".join(failed)
        )


def doubled(module: M) -> M:
    """A copy in float64 and evaluation mode."""
    gc.collect()  # of two large networks in float64 the first may still be waiting in a cycle
    return copy.deepcopy(module).double().eval()


def same_network(written: nn.Module, read: nn.Module, px: int) -> Side:
    """What to compare where belvedere itself reads the result: pooled features. `read` becomes float64."""
    ours, theirs = _pooled(doubled(written)), _pooled(read.double().eval())
    return Side("pooled features", ours, theirs, (square(px),), EXACT, True)


def _pooled(backbone: nn.Module) -> Network:
    def rows(images: Tensor) -> Tensor:
        found: Tensor = backbone(images).pooled
        return found

    return rows


def _random(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height * 100003 + width)
    return torch.randn(_NUM_RANDOM, 3, height, width, generator=generator)


def _difference(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        raise WeightsError(
            f"the exported files give features of shape {list(theirs.shape)}, the backbone {list(ours.shape)}"
        )
    scale = ours.double().square().mean().sqrt().clamp_min(1e-12)
    return float((ours.double() - theirs.double()).abs().max() / scale)

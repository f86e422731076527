"""Sinkhorn-Knopp that no prototype can underflow in; the result equals the plain form, and costs as much.

Only the first masses of columns can be of any size, and are found in the log domain. From then on none is
below 1/K: a column of sum 1 has no entry above 1, so no row sum is above K, and division by it leaves a
column 1/K at least; further iterations only raise the smallest mass. So they are plain sums and products.
What is lost is an entry below the smallest float. An iteration multiplies an entry by at most B K, and in
float32 it would have to grow by 1e30 to count.

Legend: B rows of all processes, b of this one, K prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from belvedere.core import dist

_CACHED_SCORES = 1 << 18
"""Of rows worked on together on a CPU: 1 MiB of float32, which stays in a core's cache."""


@torch.no_grad()
def sinkhorn(log_p: Tensor, iterations: int) -> Tensor:
    """Balanced assignments from unbalanced ones: rows sum to 1, columns move towards equal mass.

    log_p [b, K] at least float32, logs of nonnegative numbers: this process's rows of the global batch. Each
    iteration gives every prototype (column) equal mass, then every sample (row) equal mass. Returns q [b, K].
    MSN and SwAV, `distributed_sinkhorn`.
    """
    if not iterations:
        return log_p.softmax(1)
    given = _in_cache(log_p)
    v = -log_mass(given, log_p.new_empty(log_p.shape[1]))  # [K]
    q = torch.empty_like(log_p)
    parts = _in_cache(q)
    for part, rows in zip(parts, given, strict=True):
        torch.add(rows, v, out=part)
        softmax_(part)
    for _ in range(iterations - 1):
        mass = torch.stack([part.sum(0) for part in parts]).sum(0)  # [K]
        dist.all_reduce_(mass)
        mass = mass.masked_fill(mass == 0, 1.0)
        for part in parts:
            part /= mass
            part /= part.sum(1, keepdim=True)
    return q


def softmax_(rows: Tensor) -> None:
    """Replace rows [., K] by their softmax, without gradient. On a CPU, whose own softmax takes rows one at a
    time, this is several times as fast."""
    rows -= rows.amax(1, keepdim=True)
    rows.exp_()
    rows /= rows.sum(1, keepdim=True)


def log_mass(parts: Iterable[Tensor], like: Tensor) -> Tensor:
    """The log of the sum of exp over the rows of all processes, of whatever size; 0 for a column of zeros.

    parts [., K]: the rows of this process. Returns [K], in the type and on the device of `like` [K].
    """
    mass = torch.full_like(like, -math.inf)
    for part in parts:
        mass = torch.logaddexp(mass, part.logsumexp(0).to(mass.dtype))
    if dist.world_size() > 1:
        top = mass.clone()
        dist.all_reduce_(top, op="max")
        top = top.clamp(min=torch.finfo(mass.dtype).min)
        total = (mass - top).exp()
        dist.all_reduce_(total)
        mass = top + total.log()
    return mass.masked_fill(mass == -math.inf, 0.0)


def _in_cache(x: Tensor) -> Sequence[Tensor]:
    """x [b, K] in parts of rows: on a CPU such that one stays in the cache, elsewhere whole."""
    rows = max(1, _CACHED_SCORES // x.shape[1]) if x.device.type == "cpu" else max(1, len(x))
    parts: Sequence[Tensor] = x.split(rows)
    return parts

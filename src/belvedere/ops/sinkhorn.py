"""Sinkhorn-Knopp in the log domain: no prototype can underflow, and the result equals the plain form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from belvedere.core import dist


def _log_sum_exp_over_rows(x: Tensor) -> Tensor:
    """log sum exp over the rows of all processes: [B, K] -> [1, K]; a column of zeros (-inf) gives 0."""
    if dist.world_size() == 1:
        total = x.logsumexp(0, keepdim=True)
    else:
        top = x.amax(0, keepdim=True)
        dist.all_reduce_(top, op="max")
        top = top.clamp(min=torch.finfo(x.dtype).min)
        mass = (x - top).exp().sum(0, keepdim=True)
        dist.all_reduce_(mass)
        total = top + mass.log()
    return total.masked_fill(total == -math.inf, 0.0)


@torch.no_grad()
def sinkhorn(log_p: Tensor, iterations: int) -> Tensor:
    """Balanced assignments from unbalanced ones: rows sum to 1, columns move towards equal mass.

    log_p [B, K] at least float32, logs of nonnegative numbers: this process's rows of the global batch. Each
    iteration gives every prototype (column) equal mass, then every sample (row) equal mass. Returns q [B, K].
    MSN and SwAV, `distributed_sinkhorn`.
    """
    q = log_p
    for _ in range(iterations):
        q = q - _log_sum_exp_over_rows(q)
        q = q - q.logsumexp(1, keepdim=True)
    return q.exp() if iterations else log_p.softmax(1)

"""Balanced assignments of a whole data set: Sinkhorn-Knopp over a memory bank, chunk by chunk.

The plan q [n, K] of a million embeddings and thousands of prototypes is never held. In the log domain it is
log q = scores / epsilon + u + v, with one number u per row and v per column; as rows are normalized last, u
follows from v. So v alone (the *potentials*) is kept, and scores are computed again in every iteration.
Memory beyond the embeddings is bounded by a chunk, and nothing can underflow.

Legend: n embeddings of this process, N of all, D columns, K prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from belvedere.core import dist

_SCORES_AT_ONCE = 1 << 22  # of a chunk: 16 MiB of float32


@torch.no_grad()
def potentials(
    bank: Tensor,
    prototypes: Tensor,
    *,
    epsilon: float,
    iterations: int,
    scores_at_once: int = _SCORES_AT_ONCE,
) -> Tensor:
    """What to add to scores over epsilon so that their softmax over prototypes is balanced: v [K] float64.

    bank [n, D]: this process's embeddings; prototypes [K, D], the same on every process. Each iteration gives
    every prototype equal mass over the embeddings of all processes, then every embedding. The result is that
    of `ops.sinkhorn` for all embeddings at once: its q is softmax(scores / epsilon + v). scores_at_once: how
    many scores a chunk has. SwAV, section 3.1, over a data set as in SeLa (Asano et al. 2020).
    """
    v = torch.zeros(len(prototypes), dtype=torch.float64, device=bank.device)
    for iteration in range(iterations):
        mass = torch.full_like(v, -math.inf)  # log of what each prototype has
        for logits in _chunks(bank, prototypes, v, epsilon=epsilon, scores_at_once=scores_at_once):
            log_q = logits.log_softmax(1) if iteration else logits
            mass = torch.logaddexp(mass, log_q.logsumexp(0).double())
        v -= _over_processes(mass)
    return v


@torch.no_grad()
def balanced_labels(
    bank: Tensor, prototypes: Tensor, v: Tensor, *, epsilon: float, scores_at_once: int = _SCORES_AT_ONCE
) -> Tensor:
    """The prototype that has most of each embedding [n] (int64), under `potentials` v [K]."""
    chunks = _chunks(bank, prototypes, v, epsilon=epsilon, scores_at_once=scores_at_once)
    none = torch.zeros(0, dtype=torch.int64, device=bank.device)
    return torch.cat([none, *(logits.max(1).indices for logits in chunks)])


@torch.no_grad()
def balanced_shares(z: Tensor, prototypes: Tensor, v: Tensor, *, epsilon: float) -> Tensor:
    """How much of each embedding z [b, D] every prototype has, under `potentials` v [K]: q [b, K]."""
    return _logits(z, prototypes, v, epsilon=epsilon).softmax(1)


def mean_over_assigned(losses: Tensor, assigned: Tensor) -> Tensor:
    """The mean of losses [R] over the rows of all processes that have an assignment; 0 where none has.

    assigned [R] bool. Differentiable: averaged over processes, value and gradient are the global mean's.
    """
    count = assigned.sum().to(losses.dtype)
    dist.all_reduce_(count)
    return torch.where(assigned, losses, 0.0).sum() * (dist.world_size() / count.clamp(min=1))


def _logits(rows: Tensor, prototypes: Tensor, v: Tensor, *, epsilon: float) -> Tensor:
    dtype = torch.promote_types(rows.dtype, torch.float32)
    scores = rows.to(dtype) @ prototypes.to(dtype).T  # [b, K]
    return scores / epsilon + v.to(dtype)


def _chunks(
    bank: Tensor, prototypes: Tensor, v: Tensor, *, epsilon: float, scores_at_once: int
) -> Iterator[Tensor]:
    rows = max(1, scores_at_once // len(prototypes))
    for start in range(0, len(bank), rows):
        yield _logits(bank[start : start + rows], prototypes, v, epsilon=epsilon)


def _over_processes(mass: Tensor) -> Tensor:
    """The log of a sum over processes of exp(mass) [K]; 0 for a prototype without any."""
    if dist.world_size() > 1:
        top = mass.clone()
        dist.all_reduce_(top, op="max")
        top = top.clamp(min=torch.finfo(mass.dtype).min)
        total = (mass - top).exp()
        dist.all_reduce_(total)
        mass = top + total.log()
    return mass.masked_fill(mass == -math.inf, 0.0)

"""Balanced assignments of a whole data set: Sinkhorn-Knopp over a memory bank, chunk by chunk.

The plan q [n, K] of a million embeddings and thousands of prototypes is never held: it is the softmax of
scores / epsilon + v, with one number v per column (rows are normalized last, so what scales them follows). So
v alone (the *potentials*) is kept, and scores are computed again in every iteration. Memory beyond the
embeddings is bounded by a chunk, and nothing can underflow.

Legend: n embeddings of this process, N of all, D columns, K prototypes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from belvedere.core import dist
from belvedere.ops.sinkhorn import log_mass, softmax_

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
        parts = _chunks(bank, prototypes, v, epsilon=epsilon, scores_at_once=scores_at_once)
        v -= _log_shares(parts, v) if iteration else log_mass(parts, v)
    return v


def _log_shares(parts: Iterable[Tensor], like: Tensor) -> Tensor:
    """The log of what each prototype has of the rows of all processes [K], each normalized; 0 where it has
    nothing. After a first iteration that is 1/K at least (see `ops.sinkhorn`), so that sums are plain."""
    share = torch.zeros_like(like)
    for part in parts:
        softmax_(part)
        share += part.sum(0)
    dist.all_reduce_(share)
    return share.masked_fill(share == 0, 1.0).log()


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
    """scores / epsilon + v [b, K]."""
    dtype = torch.promote_types(rows.dtype, torch.float32)
    return torch.addmm(v.to(dtype), rows.to(dtype), prototypes.to(dtype).T, alpha=1 / epsilon)


def _chunks(
    bank: Tensor, prototypes: Tensor, v: Tensor, *, epsilon: float, scores_at_once: int
) -> Iterator[Tensor]:
    rows = max(1, scores_at_once // len(prototypes))
    for start in range(0, len(bank), rows):
        yield _logits(bank[start : start + rows], prototypes, v, epsilon=epsilon)

"""How the prototypes are used by the global batch: numbers that say how a run is doing."""

from __future__ import annotations

import torch
from torch import Tensor

from belvedere.core import dist
from belvedere.engine.health import entropy


@torch.no_grad()
def mean_entropy(log_p: Tensor) -> Tensor:
    """The entropy of the mean of predictions log_p [V, B, K], in [0, ln K]: 0-d. It is 0 where one prototype
    takes all."""
    mean = log_p.exp().mean((0, 1))  # [K]
    dist.average_([mean])
    return entropy(mean)


@torch.no_grad()
def num_used(q: Tensor) -> Tensor:
    """How many prototypes are the first choice of a target q [..., K]: 0-d, of the type of q."""
    used = torch.zeros(q.shape[-1], dtype=q.dtype, device=q.device)
    used[q.argmax(-1).flatten()] = 1
    dist.all_reduce_(used, op="max")
    return used.sum()


@torch.no_grad()
def target_watch(q: Tensor) -> dict[str, Tensor]:
    """What is reported of targets q [..., K]: how many prototypes they use, and how sure they are."""
    return {
        "prototypes_used": num_used(q),
        "max_target": q.amax(-1).mean(),
        "min_target": q.amin(-1).mean(),
    }

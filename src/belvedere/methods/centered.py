"""What the methods share whose targets are centered, as DINO's (Caron et al. 2021): how sharp the targets
are, and what the watch is told of them.

Legend: B images of this process, V crops, O columns of a row, K prototypes.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from belvedere.core import dist
from belvedere.core.settings import Settings
from belvedere.engine.health import Health
from belvedere.engine.precision import at_least_float32, full_precision
from belvedere.methods.method import Losses


class TeacherTemperature(Settings):
    """Of the targets: from `start` to `final` over the first `warmup_epochs`, by equal steps an epoch."""

    start: Annotated[float, Field(gt=0.0)]
    final: Annotated[float, Field(gt=0.0)]
    warmup_epochs: Annotated[int, Field(ge=0)]

    def __call__(self, epoch: int) -> float:
        risen = self.start + epoch * (self.final - self.start) / max(1, self.warmup_epochs - 1)
        return risen if epoch < self.warmup_epochs else self.final


@torch.no_grad()
def observe(
    losses: Losses, z: Tensor, weight: Tensor, q: Tensor, *, temperature: float, cross_entropy: Tensor
) -> None:
    """Add to `losses` what the watch needs to know of the large crops: all of them would be gigabytes.

    z [V, B, O] of the student, its last layer's matrix [K, O], targets q [V, B, K]; cross_entropy 0-d.
    """
    with full_precision(z.device):
        scores = at_least_float32(z.detach() @ weight.detach().to(z.dtype).T) / temperature
        log_p = scores.log_softmax(-1)  # [V, B, K]
    mean = log_p.exp().mean((0, 1))
    dist.average_([mean])
    used = torch.zeros_like(mean)
    used[q.argmax(-1).flatten()] = 1
    dist.all_reduce_(used, op="max")
    losses.watch |= {
        "mean_entropy": -torch.xlogy(mean, mean).sum(),
        "prototypes_used": used.sum(),
        "max_target": q.amax(-1).mean(),
    }
    losses.health = Health(z=z.detach(), log_p=log_p, q=q.flatten(0, 1), cross_entropy=cross_entropy.detach())

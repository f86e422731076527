"""How well a run is, measured from tensors that its step has anyway. Knows no method.

Everything here happens at the interval at which numbers are logged, never in the step: a method hands over
references (`Health`), and `measure` turns them into a dozen numbers with one reduction and one read.

Legend: V views, B rows (images) of this process, D width of an embedding, K prototypes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from belvedere.core import dist
from belvedere.engine.precision import at_least_float32

MAX_ROWS = 256
"""Images of a process whose embeddings are looked at: enough for a rank, few enough to be free."""

NAMES = (
    "ln_k",
    "cross_entropy",
    "single_entropy",
    "effective_rank",
    "spread",
    "agreement",
    "prediction_entropy",
    "target_entropy",
    "top_share",
    "top_target",
    "prototypes_in_use",
)
"""What `measure` calls its numbers, in the record too."""


@dataclass(frozen=True)
class Health:
    """What a step computed, without gradient and not copied.

    z [V, B, D]: embeddings by view, before any normalization; log_p [V, B, K]: log predictions, as the loss
    sees them; q [A, K]: targets, any number of rows, each summing to 1, or None where a target is a label;
    cross_entropy: 0-d, the part of the loss that a uniform prediction brings to ln K.
    """

    z: Tensor
    log_p: Tensor
    cross_entropy: Tensor
    q: Tensor | None = None


@dataclass(frozen=True)
class Measures:
    """The numbers of one step over all processes, and how often each prototype was a row's first choice.

    numbers, by the names they have in the record:
    `ln_k`: the loss of a uniform prediction. `cross_entropy`: the loss to hold against it.
    `prediction_entropy`, `target_entropy`: of the mean prediction and the mean target, as shares of ln K:
    1 where all prototypes have equal mass, 0 where one has all. `top_share`, `top_target`: their largest
    parts. `single_entropy`: mean entropy of one prediction, a share of ln K. `prototypes_in_use`: how many
    are some row's first choice in this step. `effective_rank`: in [1, D]. `spread`: 0 where all embeddings
    point the same way, 1 where they cancel. `agreement`: mean cosine of views of one image.

    first_choices [K]: shares of rows, on the CPU; images: of the global batch.
    """

    numbers: dict[str, float]
    first_choices: Tensor
    images: int


@torch.no_grad()
def measure(health: Health) -> Measures:
    """Reduce a step's tensors over processes and read them. Every process calls this at the same steps."""
    z, log_p = at_least_float32(health.z.detach()), at_least_float32(health.log_p.detach())
    num_prototypes = log_p.shape[-1]
    ln_k = math.log(num_prototypes)
    log_p = log_p.flatten(0, -2)  # [V*B, K]
    p = log_p.exp()
    few = z[:, :MAX_ROWS]
    scalars = {
        "cross_entropy": health.cross_entropy.detach(),
        "single_entropy": _row_entropy(p, log_p).mean() / ln_k,
        "effective_rank": effective_rank(few.flatten(0, 1)[:MAX_ROWS]),
        "spread": spread(few.flatten(0, 1)),
        "agreement": agreement(few),
    }
    mean_q = p.new_zeros(0) if health.q is None else health.q.detach().to(p).mean(0)
    parts = [torch.stack([value.to(p) for value in scalars.values()]), p.mean(0), first_choices(p), mean_q]
    together = torch.cat(parts)
    dist.average_([together])
    read, mean_p, chosen, mean_q = together.cpu().split([len(part) for part in parts])
    numbers = {"ln_k": ln_k} | dict(zip(scalars, read.tolist(), strict=True))
    numbers |= {
        "prediction_entropy": entropy(mean_p).item() / ln_k,
        "top_share": mean_p.max().item(),
        "prototypes_in_use": int((chosen > 0).sum()),
    }
    if len(mean_q):
        numbers |= {"target_entropy": entropy(mean_q).item() / ln_k, "top_target": mean_q.max().item()}
    return Measures(numbers, chosen, health.z.shape[1] * dist.world_size())


def entropy(p: Tensor) -> Tensor:
    """Entropy of distributions [..., K] in nats, [...]; 0 ln 0 is 0."""
    return -torch.xlogy(p, p).sum(-1)


def _row_entropy(p: Tensor, log_p: Tensor) -> Tensor:
    return -torch.where(p > 0, p * log_p, 0.0).sum(-1)


def first_choices(p: Tensor) -> Tensor:
    """The share of rows [R, K] whose largest entry is each prototype: [K].

    A row that prefers none, because the largest entries are equal, counts for the first of them.
    """
    return torch.bincount(p.argmax(1), minlength=p.shape[1]).to(p) / len(p)


def effective_rank(z: Tensor) -> Tensor:
    """exp of the entropy of the normalized singular values of z [R, D]: 0-d, in [1, min(R, D)].

    Roy & Vetterli 2007; as a sign of collapse, RankMe (Garrido et al. 2023). Not centered, so that one point
    has rank 1. Zero for a matrix of zeros, NaN where z is not finite.
    """
    wide = z.double()
    finite = wide.isfinite().all()
    wide = torch.where(finite, wide, torch.zeros_like(wide))  # an eigenvalue solver refuses NaN by an error
    wide = wide / wide.abs().amax().clamp(min=torch.finfo(torch.float64).tiny)  # squares do not overflow
    gram = wide @ wide.T if len(wide) <= wide.shape[1] else wide.T @ wide
    values = torch.linalg.eigvalsh(gram).clamp(min=0)
    # Below the rounding of the Gram matrix an eigenvalue is noise, whose root would still count.
    floor = values.amax() * len(values) * torch.finfo(torch.float64).eps
    singular = torch.where(values > floor, values, 0.0).sqrt()
    total = singular.sum()
    share = singular / torch.where(total > 0, total, 1.0)
    rank = torch.where(total > 0, entropy(share).exp(), 0.0)
    return torch.where(finite, rank, torch.nan)


def spread(z: Tensor) -> Tensor:
    """1 minus the squared length of the mean direction of z [R, D]: 0-d, in [0, 1].

    Equal to 1 minus the mean cosine over all pairs of rows, a row with itself included.
    """
    return 1 - _directions(z).mean(0).square().sum()


def agreement(z: Tensor) -> Tensor:
    """Mean cosine over all pairs of different views of one image, z [V, B, D]: 0-d; 1 with a single view."""
    views = len(z)
    if views == 1:
        return z.new_ones(())
    # |sum of V directions| ** 2 = V + the cosines of all ordered pairs
    cosines = _directions(z).sum(0).square().sum(-1) - views  # [B]
    return cosines.mean() / (views * (views - 1))


def _directions(z: Tensor) -> Tensor:
    return torch.nn.functional.normalize(z, dim=-1, eps=1e-12)

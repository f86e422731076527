"""SGD with momentum under LARS (You et al. 2017), as DINO and EsViT can train.

Each matrix's step is in proportion to its own norm. Vectors (biases, norms) take plain steps without decay,
and so does a matrix that is zero, but with decay. A parameter without a gradient is left alone entirely: no
decay, and its momentum waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from belvedere.optim.momentum import ScaledMomentum, Term


@torch.no_grad()
def lars_factors(parameters: list[Tensor], updates: list[Tensor], *, trust: float) -> Tensor:
    """What each update (gradient and decay) is multiplied by [P]; nothing is read or sent by the host.

    trust * |p| / |u| of a matrix where both norms are not zero, else 1.
    """
    sizes = torch._foreach_norm(parameters)
    zero = torch.zeros_like(sizes[0])  # in place of a vector's norm: its factor is then 1
    size = torch.stack([zero if p.ndim == 1 else norm for p, norm in zip(parameters, sizes, strict=True)])
    slope = torch.stack(torch._foreach_norm(updates))  # [P]
    return torch.where((size > 0) & (slope > 0), trust * size / slope, 1.0)


class LARS(ScaledMomentum):
    """u = g + decay * p, v <- momentum * v + factor * u, p <- p - lr * v; v begins at 0.

    For a vector decay is 0 and factor 1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 0.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        super().__init__(params, defaults)

    def _terms(
        self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]
    ) -> Iterator[Term]:
        decay = group["weight_decay"]
        updates = [
            g.add(p, alpha=decay) if decay and p.ndim != 1 else g
            for p, g in zip(parameters, gradients, strict=True)
        ]
        yield updates, lars_factors(parameters, updates, trust=group["trust"])

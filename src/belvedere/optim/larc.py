"""SGD with momentum under LARC (You et al. 2017), as SwAV trains.

Each tensor's step is in proportion to its own norm. A tensor whose norm, or whose gradient's norm, is exactly
zero has no such proportion: it takes a plain step with its raw gradient, without decay. BatchNorm's biases
start like this. A parameter without a gradient is left alone entirely: no decay, and its momentum waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from belvedere.optim.momentum import ScaledMomentum, Term


class Scaled(NamedTuple):
    """factor [P]: what `gradient + decay * parameter` is multiplied by; decay [P]; adapted [P]: whether the
    tensor is scaled at all (where not, factor is 1 and decay 0)."""

    factor: Tensor
    decay: Tensor
    adapted: Tensor


@torch.no_grad()
def larc_scaled(
    parameters: list[Tensor], gradients: list[Tensor], *, trust: float, weight_decay: float, eps: float
) -> Scaled:
    """How LARC scales the step of every tensor, in its "scaling" mode; nothing is read by the host.

    factor = trust * |p| / (|g| + weight_decay * |p| + eps) where |p| and |g| are not zero.
    """
    size = torch.stack(torch._foreach_norm(parameters))  # [P]
    slope = torch.stack(torch._foreach_norm(gradients))  # [P]
    adapted = (size > 0) & (slope > 0)
    factor = torch.where(adapted, trust * size / (slope + weight_decay * size + eps), 1.0)
    return Scaled(factor, adapted.to(size.dtype) * weight_decay, adapted)


class LARC(ScaledMomentum):
    """v <- momentum * v + factor * (g + decay * p), p <- p - lr * v; the first v is that step's gradient."""

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 0.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
        eps: float = 1e-8,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "eps": eps}
        super().__init__(params, defaults)

    def _terms(
        self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]
    ) -> Iterator[Term]:
        decay = group["weight_decay"]
        scaled = larc_scaled(
            parameters, gradients, trust=group["trust"], weight_decay=decay, eps=group["eps"]
        )
        yield gradients, scaled.factor
        if decay:
            yield parameters, scaled.factor * scaled.decay

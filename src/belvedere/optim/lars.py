"""SGD with momentum under LARS (You et al. 2017), as DINO and EsViT can train.

Each matrix's step is in proportion to its own norm. Vectors (biases, norms) take plain steps without decay,
and so does a matrix that is zero, but with decay. A parameter without a gradient is left alone entirely: no
decay, and its momentum waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def lars_factors(parameters: list[Tensor], updates: list[Tensor], *, trust: float) -> Tensor:
    """What each update (gradient and decay) is multiplied by [P]; nothing is read by the host.

    trust * |p| / |u| of a matrix where both norms are not zero, else 1.
    """
    size = torch.stack(torch._foreach_norm(parameters))  # [P]
    slope = torch.stack(torch._foreach_norm(updates))  # [P]
    matrix = torch.tensor([p.ndim != 1 for p in parameters]).to(size.device, non_blocking=True)
    return torch.where(matrix & (size > 0) & (slope > 0), trust * size / slope, 1.0)


class LARS(torch.optim.Optimizer):
    """u = g + decay * p, v <- momentum * v + factor * u, p <- p - lr * v; v begins at 0.

    For a vector decay is 0 and factor 1. lr and weight_decay of a group are what `optim.groups.set_` writes
    in every step. State: `momentum_buffer`, and none for a parameter that never had a gradient.
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

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            if trained:
                self._step_of(trained, group)
        return loss

    def _step_of(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        decay = group["weight_decay"]
        updates = [
            p.grad.add(p, alpha=decay) if decay and p.ndim != 1 else p.grad
            for p in parameters
            if p.grad is not None
        ]
        factors = lars_factors(parameters, updates, trust=group["trust"])
        moments = [self._momentum_of(p) for p in parameters]
        torch._foreach_mul_(moments, group["momentum"])
        torch._foreach_add_(moments, torch._foreach_mul(updates, list(factors)))
        torch._foreach_add_(parameters, moments, alpha=-group["lr"])

    def _momentum_of(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer

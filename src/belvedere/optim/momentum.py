"""SGD with momentum whose steps are scaled tensor by tensor: what LARC and LARS have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Term = tuple[list[Tensor], Tensor]
"""Tensors, one for each parameter, and what each is multiplied by [P]."""


class ScaledMomentum(torch.optim.Optimizer, ABC):
    """v <- momentum * v + the sum of the step's terms, p <- p - lr * v; v begins at 0.

    A parameter without a gradient is left alone entirely. lr and weight_decay of a group are what
    `optim.groups.set_` writes in every step. State: `momentum_buffer`, and none for a parameter that never
    had a gradient.
    """

    @abstractmethod
    def _terms(
        self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]
    ) -> Iterator[Term]:
        """What is added to the moments of these parameters of a group, in this order."""

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
        gradients = [p.grad for p in parameters if p.grad is not None]
        moments = [self._momentum_of(p) for p in parameters]
        torch._foreach_mul_(moments, group["momentum"])
        for tensors, factors in self._terms(parameters, gradients, group):
            torch._foreach_add_(moments, torch._foreach_mul(tensors, list(factors)))
        torch._foreach_add_(parameters, moments, alpha=-group["lr"])

    def _momentum_of(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer

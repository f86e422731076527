"""Optimizers from a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn

from belvedere.optim.larc import LARC
from belvedere.optim.lars import LARS
from belvedere.optim.spec import AnyOptimSpec, LARCSpec, LARSSpec, SGDSpec


class ParameterGroup(Protocol):
    """What a method says of parameters it treats alike."""

    @property
    def name(self) -> str: ...
    @property
    def parameters(self) -> list[nn.Parameter]: ...
    @property
    def decay(self) -> bool: ...
    @property
    def lr_scale(self) -> float: ...


def build_optimizer(groups: Sequence[ParameterGroup], spec: AnyOptimSpec) -> torch.optim.Optimizer:
    """The recipe's optimizer over the method's groups; `set_` gives it its values every step."""
    sections = [
        {"params": group.parameters, "name": group.name, "decay": group.decay, "lr_scale": group.lr_scale}
        for group in groups
        if group.parameters
    ]
    if isinstance(spec, LARCSpec):
        return LARC(sections, momentum=spec.momentum, trust=spec.trust, eps=spec.eps)
    if isinstance(spec, LARSSpec):
        return LARS(sections, momentum=spec.momentum, trust=spec.trust)
    if isinstance(spec, SGDSpec):
        return torch.optim.SGD(sections, lr=0.0, momentum=spec.momentum)
    return torch.optim.AdamW(sections, lr=0.0, betas=spec.betas, eps=spec.eps, weight_decay=0.0, fused=True)


def set_(optimizer: torch.optim.Optimizer, *, lr: float, weight_decay: float) -> None:
    """Write this step's learning rate and weight decay into the groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
        group["weight_decay"] = weight_decay if group["decay"] else 0.0

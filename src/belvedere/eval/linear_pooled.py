"""The linear probe of SwAV's evaluation (specification B.6 and B.9, "Linear"), for ResNets.

Global average pooling -> linear layer; or averages of 6 x 6 cells of the last map, one cell apart, optionally
BatchNorm2d -> linear layer over all of them. SGD without Nesterov's method, weight decay on every tensor
(biases and BatchNorm too), a learning rate that changes with the epoch only and is not scaled by the batch.

Pooling has no parameters, so it is part of the features (`features.pool_map`, `extract(window=...)`) and the
probe starts behind it. B batch, D channels, h x w windows, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from belvedere.core.errors import EvaluationError
from belvedere.core.schedule import WarmupCosine
from belvedere.core.settings import Settings
from belvedere.eval.linear import BASE_BATCH, Count, ProbeSettings
from belvedere.nn.resnet import ResNet
from belvedere.nn.spec import FeatureSpec

WINDOW = 6
"""Published for maps of 7 x 7, of which it makes 2 x 2 averages."""


class EpochCosine(Settings):
    """Half a cosine over the epochs, from lr towards final_lr, which an epoch after the last would have."""

    name: Literal["cosine"] = "cosine"
    final_lr: Annotated[float, Field(ge=0.0)] = 0.0

    def rates(self, lr: float, *, epochs: int, planned: int) -> tuple[float, ...]:
        """The rate of every epoch."""
        cosine = WarmupCosine(start=lr, peak=lr, final=self.final_lr, warmup_steps=0, total_steps=epochs)
        return tuple(cosine(epoch) for epoch in range(epochs))


class EpochSteps(Settings):
    """gamma times the rate from each of decay_epochs on, counted from 0."""

    name: Literal["step"] = "step"
    decay_epochs: tuple[Annotated[int, Field(ge=0)], ...] = (60, 80)
    gamma: Annotated[float, Field(gt=0.0)] = 0.1

    def rates(self, lr: float, *, epochs: int, planned: int) -> tuple[float, ...]:
        """The rate of every epoch; where there are more than planned, decay_epochs move in proportion."""
        passed = (sum(at * epochs <= epoch * planned for at in self.decay_epochs) for epoch in range(epochs))
        return tuple(lr * self.gamma**decays for decays in passed)


class PooledProbeSettings(Settings):
    """SwAV's linear configuration.

    window: averages of window x window cells of the last map (published: 6), or None for the average of the
    whole map, which is a ResNet's feature; batch_norm: of the windows. An epoch sees every image, the last
    batch being smaller. min_steps adds epochs where the data is so small that the published 100 would be a
    handful of updates.
    """

    protocol: Literal["swav"] = "swav"
    lr: Annotated[float, Field(gt=0.0)] = 0.3
    epochs: Count = 100
    min_steps: Count = 2000
    batch: Count = BASE_BATCH
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-6
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    nesterov: bool = False
    window: Count | None = None
    batch_norm: bool = False
    schedule: Annotated[EpochCosine | EpochSteps, Field(discriminator="name")] = EpochCosine()

    @model_validator(mode="after")
    def _fits(self) -> PooledProbeSettings:
        if self.batch_norm and self.window is None:
            raise ValueError(
                f"batch_norm has no effect on the average of the whole map; set window (published: {WINDOW}) "
                f"or leave batch_norm out"
            )
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("nesterov has no effect with momentum 0; leave it out or set momentum")
        return self

    def epoch_steps(self, num_images: int) -> int:
        """Updates in an epoch, that of the smaller last batch included."""
        return math.ceil(num_images / self.batch)

    def probe(self, shape: Sequence[int], num_classes: int, *, generator: torch.Generator) -> PooledProbe:
        """A fresh probe for features [D], or [D, h, w] where there is a window."""
        if len(shape) != (1 if self.window is None else 3):
            wanted = "one row of features" if self.window is None else "windows [D, h, w] of the last map"
            raise EvaluationError(
                f"a linear probe with window {self.window} reads {wanted} per image; got {tuple(shape)}: "
                f"extract the features with the same window"
            )
        probe = PooledProbe(shape, num_classes, batch_norm=self.batch_norm)
        probe.initialize_(generator)
        return probe

    def rule(self, probe: nn.Module, *, batch: int, epoch_steps: int, epochs: int) -> EpochSGD:
        """SGD, with the rate as it is whatever the batch."""
        optimizer = torch.optim.SGD(
            probe.parameters(),
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )
        return EpochSGD(
            optimizer, self.schedule.rates(self.lr, epochs=epochs, planned=self.epochs), epoch_steps
        )


class PooledProbe(nn.Module):
    """features [B, D] or [B, D, h, w] -> logits [B, C]; names as published (`bn.*`, `linear.*`), weights N(0,
    0.01), biases 0."""

    def __init__(self, shape: Sequence[int], num_classes: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(shape[0]) if batch_norm else None
        self.linear = nn.Linear(math.prod(shape), num_classes)

    def initialize_(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.linear.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        h = features
        if self.bn is not None:
            if self.training and h.numel() == h.shape[1]:
                raise EvaluationError(
                    "batch_norm has no variance to divide by in a batch of one image with one window; choose "
                    "a batch that leaves no single image over, a smaller window, or no batch_norm"
                )
            h = self.bn(h)
        logits: Tensor = self.linear(h.flatten(1))  # [B, D * h * w] -> [B, C]
        return logits


@dataclass(frozen=True)
class EpochSGD:
    """SwAV's updates: torch's SGD, with one rate per epoch."""

    optimizer: torch.optim.SGD
    rates: tuple[float, ...]
    epoch_steps: int

    def lr(self, step: int) -> float:
        return self.rates[step // self.epoch_steps]

    def update_(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()


AnyProbeSettings = Annotated[ProbeSettings | PooledProbeSettings, Field(discriminator="protocol")]
"""The settings of any linear protocol, told apart by its name."""


def published_probe(backbone: nn.Module, spec: FeatureSpec) -> AnyProbeSettings:
    """The published linear protocol for a backbone and its feature: SwAV's for a ResNet's pooled output, else
    MSN's."""
    if isinstance(backbone, ResNet) and spec.source == "pooled":
        return PooledProbeSettings()
    return ProbeSettings()

"""The linear probe of MSN's evaluation (specification A.7, "Linear").

LayerNorm (trained) -> optional l2 normalization -> linear layer, by Nesterov's method with the learning rate
inside the velocity, a cosine to 0 without warm-up, weight decay on tensors of at least two dimensions.

Where the features are extracted once, every image is seen as its central crop only; the published recipe
crops and flips at random and runs the backbone in every epoch. B batch, D features, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from belvedere.core.errors import EvaluationError
from belvedere.core.rng import generator, torch_generator
from belvedere.core.settings import Settings

BASE_BATCH = 256
Count = Annotated[int, Field(ge=1)]
_MAX_SCORES = 100


class ProbeSettings(Settings):
    """MSN's linear configuration. lr is per 256 images (published: 6.4 for 32 processes of 256).

    min_steps adds epochs where the data is so small that the published 100 would be a handful of updates.
    """

    lr: Annotated[float, Field(gt=0.0)] = 0.2
    epochs: Count = 100
    min_steps: Count = 2000
    batch: Count = BASE_BATCH
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    normalize: bool = True


class ProbeStep(NamedTuple):
    """One update: the loss before it, logits [B, C] before it, and the learning rate used."""

    loss: Tensor
    logits: Tensor
    lr: float


class ProbeResult(NamedTuple):
    """The trained probe, and top-1 in [0, 1] on the scored set: last, and best over epochs (chosen on the
    very set that it is scored on, as published, so higher than an honest score)."""

    probe: LinearProbe
    last: float
    best: float
    predictions: Tensor


class LinearProbe(nn.Module):
    """features [B, D] -> logits [B, C]; names as published (`norm.*`, `linear.*`), weights N(0, 0.01), biases
    0."""

    def __init__(self, width: int, num_classes: int, *, normalize: bool) -> None:
        super().__init__()
        self.normalize = normalize
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.linear = nn.Linear(width, num_classes)

    def initialize_(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.linear.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        h = self.norm(features)
        if self.normalize:
            h = normalize(h, dim=1, eps=1e-12)
        logits: Tensor = self.linear(h)
        return logits


@torch.no_grad()
def nesterov_(
    parameters: list[nn.Parameter], velocity: list[Tensor], *, lr: float, momentum: float, weight_decay: float
) -> None:
    """v <- momentum v - lr (g + wd p), then p <- p - lr (g + wd p) + momentum v; velocity starts at 0.

    Not torch's Nesterov: there the learning rate stands outside the velocity, which differs when it changes.
    """
    for p, v in zip(parameters, velocity, strict=True):
        assert p.grad is not None
        decay = weight_decay if p.dim() >= 2 else 0.0
        pull = lr * (p.grad + decay * p)
        v.mul_(momentum).sub_(pull)
        p.add_(momentum * v - pull)


def probe_steps(
    probe: LinearProbe,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    lr: float,
    total_steps: int,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> Iterator[ProbeStep]:
    """Train on (features [B, D], labels [B]) batches; step i uses lr (1 + cos(pi i / total_steps)) / 2."""
    parameters = list(probe.parameters())
    velocity = [torch.zeros_like(p) for p in parameters]
    for step, (features, labels) in enumerate(batches):
        step_lr = lr * 0.5 * (1.0 + math.cos(math.pi * step / total_steps))
        logits = probe(features)
        loss = cross_entropy(logits, labels)
        probe.zero_grad()
        loss.backward()
        nesterov_(parameters, velocity, lr=step_lr, momentum=momentum, weight_decay=weight_decay)
        yield ProbeStep(loss.detach(), logits.detach(), step_lr)


def train_probe(
    train: tuple[Tensor, Tensor],
    scored: tuple[Tensor, Tensor],
    *,
    num_classes: int,
    settings: ProbeSettings,
    seed: int,
) -> ProbeResult:
    """Train a probe on extracted features; train and scored are (features [N, D], labels [N]).

    An epoch has floor(N / batch) whole batches, in an order that is a function of the seed and the epoch;
    with fewer images than `batch` the batch is all of them. lr is scaled to the batch used. The best score
    is over at most 100 evenly spaced epochs. Raises EvaluationError for an empty set or a loss not finite.
    """
    features, labels = train
    if len(labels) == 0 or len(scored[1]) == 0:
        raise EvaluationError(
            "a linear probe needs labelled images to train on and others to score; one set is empty"
        )
    batch = min(settings.batch, len(labels))
    epoch_steps = len(labels) // batch
    epochs = max(settings.epochs, math.ceil(settings.min_steps / epoch_steps))
    probe = LinearProbe(features.shape[1], num_classes, normalize=settings.normalize)
    probe.initialize_(torch_generator(seed, "linear"))
    probe.to(features.device)
    steps = probe_steps(
        probe,
        _batches(features, labels, batch=batch, epochs=epochs, seed=seed),
        lr=settings.lr * batch / BASE_BATCH,
        total_steps=epoch_steps * epochs,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    score_every = epoch_steps * math.ceil(epochs / _MAX_SCORES)
    best = 0.0
    for number, step in enumerate(steps, start=1):
        if number % score_every == 0:
            _check_finite(step, number)
            best = max(best, _accuracy(_predict(probe, scored[0]), scored[1]))
    _check_finite(step, number)
    predictions = _predict(probe, scored[0])
    last = _accuracy(predictions, scored[1])
    return ProbeResult(probe, last, max(best, last), predictions)


def _check_finite(step: ProbeStep, number: int) -> None:
    if not bool(torch.isfinite(step.loss)):
        raise EvaluationError(f"the linear probe's loss is {float(step.loss)} at step {number}; lower its lr")


def _accuracy(predictions: Tensor, labels: Tensor) -> float:
    return float((predictions == labels).double().mean())


def _batches(
    features: Tensor, labels: Tensor, *, batch: int, epochs: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    for epoch in range(epochs):
        order = torch.from_numpy(generator(seed, "linear", epoch).permutation(len(labels))).to(labels.device)
        for first in range(0, len(labels) - batch + 1, batch):
            rows = order[first : first + batch]
            yield features[rows], labels[rows]


@torch.no_grad()
def _predict(probe: LinearProbe, features: Tensor) -> Tensor:
    return torch.cat([probe(part).argmax(1) for part in torch.split(features, 65536)])

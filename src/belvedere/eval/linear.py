"""Training a linear classifier on frozen features, and the linear probe of MSN's evaluation.

The loop is one for every published protocol: `ProbeProtocol` is what it asks of a protocol's settings. Here
are those of MSN (specification A.7, "Linear"): LayerNorm (trained) -> optional l2 normalization -> linear
layer, by Nesterov's method with the learning rate inside the velocity, a cosine to 0 without warm-up, weight
decay on tensors of at least two dimensions. SwAV's are in `linear_pooled`.

Where the features are extracted once, every image is seen as its central crop only; the published recipes
crop and flip at random and run the backbone in every epoch. N images, B batch, D features, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from belvedere.core.errors import EvaluationError
from belvedere.core.rng import generator, torch_generator
from belvedere.core.schedule import WarmupCosine
from belvedere.core.settings import Settings
from belvedere.eval.linear_scores import EpochLog, ProbeStep, Scores, epoch_logs, score

BASE_BATCH = 256
Count = Annotated[int, Field(ge=1)]
_MAX_SCORES = 100


class ProbeResult(NamedTuple):
    """The trained probe, the scores after the last epoch, the best top-1 over epochs (chosen on the very set
    that it is scored on, as published, so higher than an honest score), and the epochs' log."""

    probe: nn.Module
    scores: Scores
    best: float
    log: tuple[EpochLog, ...]

    @property
    def last(self) -> float:
        """Top-1 in [0, 1] after the last epoch."""
        return self.scores.top1

    @property
    def predictions(self) -> Tensor:
        """The scored images' classes [N] after the last epoch."""
        return self.scores.predictions


class UpdateRule(Protocol):
    """How a probe is updated: the learning rate of a step (from 0), and the update from the gradients."""

    def lr(self, step: int) -> float: ...
    def update_(self, lr: float) -> None: ...


class ProbeProtocol(Protocol):
    """What training asks of a protocol's settings.

    window: of `features.extract`; None where the probe reads the card's feature. epoch_steps: updates in an
    epoch of num_images. probe: a fresh network for features of `shape` (without N). rule: its updates, for
    this batch and this many epochs (more than the published where data is small).
    """

    @property
    def epochs(self) -> int: ...
    @property
    def min_steps(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def window(self) -> int | None: ...
    def epoch_steps(self, num_images: int) -> int: ...
    def probe(self, shape: Sequence[int], num_classes: int, *, generator: torch.Generator) -> nn.Module: ...
    def rule(self, probe: nn.Module, *, batch: int, epoch_steps: int, epochs: int) -> UpdateRule: ...


class ProbeSettings(Settings):
    """MSN's linear configuration. lr is per 256 images (published: 6.4 for 32 processes of 256).

    min_steps adds epochs where the data is so small that the published 100 would be a handful of updates.
    An epoch has whole batches only.
    """

    protocol: Literal["msn"] = "msn"
    lr: Annotated[float, Field(gt=0.0)] = 0.2
    epochs: Count = 100
    min_steps: Count = 2000
    batch: Count = BASE_BATCH
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    normalize: bool = True

    @property
    def window(self) -> None:
        """None: it reads the card's feature."""

    def epoch_steps(self, num_images: int) -> int:
        """Updates in an epoch; images that fill no batch wait for another epoch."""
        return num_images // min(self.batch, num_images)

    def probe(self, shape: Sequence[int], num_classes: int, *, generator: torch.Generator) -> LinearProbe:
        """A fresh probe for features of one dimension."""
        if len(shape) != 1:
            raise EvaluationError(
                f"MSN's linear probe reads one row of features per image; these are maps, {tuple(shape)}"
            )
        probe = LinearProbe(shape[0], num_classes, normalize=self.normalize)
        probe.initialize_(generator)
        return probe

    def rule(self, probe: nn.Module, *, batch: int, epoch_steps: int, epochs: int) -> NesterovCosine:
        """Nesterov's method, with the rate scaled to the batch used."""
        return nesterov_cosine(
            probe,
            lr=self.lr * batch / BASE_BATCH,
            total_steps=epoch_steps * epochs,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )


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


@dataclass(frozen=True)
class NesterovCosine:
    """MSN's updates: `nesterov_` with a cosine to 0 over all steps."""

    parameters: list[nn.Parameter]
    velocity: list[Tensor]
    schedule: WarmupCosine
    momentum: float
    weight_decay: float

    def lr(self, step: int) -> float:
        return self.schedule(step)

    def update_(self, lr: float) -> None:
        nesterov_(
            self.parameters, self.velocity, lr=lr, momentum=self.momentum, weight_decay=self.weight_decay
        )


def nesterov_cosine(
    probe: nn.Module, *, lr: float, total_steps: int, momentum: float, weight_decay: float
) -> NesterovCosine:
    """MSN's updates of a probe; step i uses lr (1 + cos(pi i / total_steps)) / 2."""
    parameters = list(probe.parameters())
    velocity = [torch.zeros_like(p) for p in parameters]
    cosine = WarmupCosine(start=lr, peak=lr, final=0.0, warmup_steps=0, total_steps=total_steps)
    return NesterovCosine(parameters, velocity, cosine, momentum, weight_decay)


def train_steps(
    probe: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], rule: UpdateRule
) -> Iterator[ProbeStep]:
    """Train on (features [B, ...], labels [B]) batches, in training mode; the loop of every protocol."""
    probe.train()
    for step, (features, labels) in enumerate(batches):
        lr = rule.lr(step)
        logits = probe(features)
        loss = cross_entropy(logits, labels)
        probe.zero_grad()
        loss.backward()
        rule.update_(lr)
        yield ProbeStep(loss.detach(), logits.detach(), lr, labels)


def probe_steps(
    probe: LinearProbe,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    lr: float,
    total_steps: int,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> Iterator[ProbeStep]:
    """`train_steps` with MSN's updates, of which this many are planned."""
    rule = nesterov_cosine(
        probe, lr=lr, total_steps=total_steps, momentum=momentum, weight_decay=weight_decay
    )
    return train_steps(probe, batches, rule)


def train_probe(
    train: tuple[Tensor, Tensor],
    scored: tuple[Tensor, Tensor],
    *,
    num_classes: int,
    settings: ProbeProtocol,
    seed: int,
) -> ProbeResult:
    """Train a probe on extracted features; train and scored are (features [N, ...], labels [N]).

    An epoch's order is a function of the seed and the epoch; with fewer images than `batch` the batch is all
    of them. The best score is over at most 100 evenly spaced epochs and the last. Raises EvaluationError for
    an empty set or a loss not finite.
    """
    features, labels = train
    if len(labels) == 0 or len(scored[1]) == 0:
        raise EvaluationError(
            "a linear probe needs labelled images to train on and others to score; one set is empty"
        )
    batch = min(settings.batch, len(labels))
    epoch_steps = settings.epoch_steps(len(labels))
    epochs = max(settings.epochs, math.ceil(settings.min_steps / epoch_steps))
    probe = settings.probe(features.shape[1:], num_classes, generator=torch_generator(seed, "linear"))
    probe.to(features.device)
    steps = train_steps(
        probe,
        _batches(features, labels, batch=batch, epoch_steps=epoch_steps, epochs=epochs, seed=seed),
        settings.rule(probe, batch=batch, epoch_steps=epoch_steps, epochs=epochs),
    )
    score_every = math.ceil(epochs / _MAX_SCORES)
    best, log = 0.0, []
    for epoch in epoch_logs(steps, epoch_steps):
        if not math.isfinite(epoch.loss):
            raise EvaluationError(
                f"the linear probe's loss is {epoch.loss} in epoch {epoch.epoch}; lower its lr"
            )
        log.append(epoch)
        if len(log) % score_every == 0:
            best = max(best, score(probe, *scored).top1)
    last = score(probe, *scored)
    return ProbeResult(probe, last, max(best, last.top1), tuple(log))


def _batches(
    features: Tensor, labels: Tensor, *, batch: int, epoch_steps: int, epochs: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    for epoch in range(epochs):
        order = torch.from_numpy(generator(seed, "linear", epoch).permutation(len(labels))).to(labels.device)
        for first in range(0, batch * epoch_steps, batch):
            rows = order[first : first + batch]
            yield features[rows], labels[rows]

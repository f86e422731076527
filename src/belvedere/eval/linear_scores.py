"""What a linear probe's training shows: the epochs' means as its images were seen, and scores of a set.

N images, B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count, islice
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from belvedere.eval.features import evaluating

_TOP = 5
_SCORED_ROWS = 65536
_SCORED_VALUES = 2**27


class ProbeStep(NamedTuple):
    """One update: the loss before it, logits [B, C] before it, the learning rate used, and labels [B]."""

    loss: Tensor
    logits: Tensor
    lr: float
    labels: Tensor


class EpochLog(NamedTuple):
    """An epoch as it was seen: means over its training images, each before the update it took part in; shares
    in [0, 1]."""

    epoch: int
    loss: float
    top1: float
    top5: float


class Scores(NamedTuple):
    """A scored set: mean loss, shares in [0, 1], predictions [N]. top5 has all classes where there are
    fewer."""

    loss: float
    top1: float
    top5: float
    predictions: Tensor


def epoch_logs(steps: Iterable[ProbeStep], epoch_steps: int) -> Iterator[EpochLog]:
    """One log for every `epoch_steps` updates; reads the device once per epoch."""
    remaining = iter(steps)
    for epoch in count():
        num_images, sums = 0, []
        for step in islice(remaining, epoch_steps):
            num_images += len(step.labels)
            sums.append(_sums(step.logits, step.labels, step.loss.double() * len(step.labels)))
        if not sums:
            return
        loss, first, five = (torch.stack(sums).sum(0) / num_images).tolist()
        yield EpochLog(epoch, loss, first, five)


def score(probe: nn.Module, features: Tensor, labels: Tensor) -> Scores:
    """Score features [N, ...] with labels [N] (at least one) in evaluation mode; the probe's modes come
    back."""
    rows = max(1, min(_SCORED_ROWS, _SCORED_VALUES // max(1, features[0].numel())))
    predictions, sums = [], []
    with evaluating(probe), torch.no_grad():
        for x, y in zip(torch.split(features, rows), torch.split(labels, rows), strict=True):
            logits = probe(x)
            predictions.append(logits.argmax(1))
            sums.append(_sums(logits, y, cross_entropy(logits, y, reduction="sum")))
    loss, first, five = (torch.stack(sums).sum(0) / len(labels)).tolist()
    return Scores(loss, first, five, torch.cat(predictions))


def _sums(logits: Tensor, labels: Tensor, loss: Tensor) -> Tensor:
    """[loss, images whose label is the best, and among the five best, of the logits [B, C]] float64."""
    first = logits.argmax(1) == labels
    five = logits.topk(min(_TOP, logits.shape[1])).indices == labels[:, None]
    return torch.stack([loss.detach().double(), first.sum().double(), five.sum().double()])

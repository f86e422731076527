"""Labels for images that have none: a few-label answer."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from belvedere.core.files import write_bytes
from belvedere.eval import logistic
from belvedere.eval.classifier import fit_classifier
from belvedere.eval.labelled import Labelled

HEADER = ("file", "label", "probability")
_ROWS = 16384  # classified at a time


class Predictions(NamedTuple):
    """label [N], probability [N] of that label, the regularization used and the folds that chose it (0:
    fixed)."""

    label: NDArray[np.int64]
    probability: NDArray[np.float64]
    lambd: float
    folds: int


def predict(
    train: Labelled, features: Tensor, *, lambd: float | None = None, device: torch.device | None = None
) -> Predictions:
    """Labels for features [N, D] by logistic regression on all of `train`.

    lambd: the regularization; without it, chosen by inner cross-validation where a class has two labels, else
    published.
    """
    fitted = fit_classifier(train, lambd=lambd, device=device)
    weights = fitted.weights.to(device)
    best = []
    for part in torch.split(features.to(device), _ROWS):
        best.append(logistic.predict_proba(logistic.preprocess(part), weights).max(-1))
    label, probability = (torch.cat([getattr(b, name) for b in best]).cpu() for name in ("indices", "values"))
    return Predictions(label.numpy(), probability.numpy(), fitted.lambd, fitted.folds)


def write_predictions(
    path: Path, keys: Sequence[str], predictions: Predictions, *, classes: Sequence[str]
) -> None:
    """A CSV of file, label and probability (six decimals), in the order of the files; whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for key, label, probability in zip(keys, predictions.label, predictions.probability, strict=True):
        writer.writerow((key, classes[label], f"{probability:.6f}"))
    write_bytes(path, text.getvalue().encode("utf-8", "surrogateescape"))

"""Labels for images that have none: a few-label answer."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from belvedere.eval import logistic
from belvedere.eval.classifier import fit_classifier
from belvedere.eval.labelled import Labelled

NUM_BEST = 3
_ROWS = 16384  # classified at a time


class Predictions(NamedTuple):
    """labels [N, M] and their probabilities [N, M], the most probable first (M: three, or all classes where
    there are fewer), the regularization used and the folds that chose it (0: fixed)."""

    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    lambd: float
    folds: int

    @property
    def label(self) -> NDArray[np.int64]:
        """The most probable label [N]."""
        return self.labels[:, 0]

    @property
    def probability(self) -> NDArray[np.float64]:
        """Its probability [N]."""
        return self.probabilities[:, 0]

    def __repr__(self) -> str:
        return f"Predictions(images={len(self.labels)}, best={self.labels.shape[1]}, lambd={self.lambd})"


def predict(
    train: Labelled, features: Tensor, *, lambd: float | None = None, device: torch.device | None = None
) -> Predictions:
    """Labels for features [N, D] by logistic regression on all of `train`.

    lambd: the regularization; without it, chosen by inner cross-validation where a class has two labels, else
    published.
    """
    fitted = fit_classifier(train, lambd=lambd, device=device)
    weights = fitted.weights.to(device)
    labels, probabilities = [], []
    for part in torch.split(features.to(device), _ROWS):
        found = logistic.predict_proba(logistic.preprocess(part), weights)
        # stable: of equals the lower class
        best = found.argsort(dim=-1, descending=True, stable=True)[..., :NUM_BEST]
        labels.append(best.cpu())
        probabilities.append(found.gather(-1, best).cpu())
    return Predictions(
        torch.cat(labels).numpy(), torch.cat(probabilities).numpy(), fitted.lambd, fitted.folds
    )


def predictions_text(
    keys: Sequence[str],
    predictions: Predictions,
    *,
    classes: Sequence[str],
    true: Sequence[str] | None = None,
) -> bytes:
    """A CSV with the three best labels of each file and their probabilities (six decimals), in UTF-8.

    The first line names the columns: file, label, probability, label_2, probability_2, label_3, probability_3
    (empty where there are fewer classes), `true` where true labels [N] are given, and `predicted`, which is
    yes in every line. By that column a table of labels knows which of them no person gave, whatever the file
    is called.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    more = [f"{name}_{rank}" for rank in range(2, NUM_BEST + 1) for name in ("label", "probability")]
    writer.writerow(("file", "label", "probability", *more, *([] if true is None else ["true"]), "predicted"))
    for row, key in enumerate(keys):
        cells = [""] * (2 * NUM_BEST)
        pairs = zip(predictions.labels[row], predictions.probabilities[row], strict=True)
        for rank, (label, probability) in enumerate(pairs):
            cells[2 * rank : 2 * rank + 2] = classes[label], f"{probability:.6f}"
        writer.writerow((key, *cells, *([] if true is None else [true[row]]), "yes"))
    return text.getvalue().encode("utf-8", "surrogateescape")

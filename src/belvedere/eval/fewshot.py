"""Few labels per class: logistic regression on drawn splits, all splits of a column solved as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from belvedere.core.errors import EvaluationError
from belvedere.eval import logistic
from belvedere.eval.report import ShotScores, accuracy, confusion
from belvedere.eval.splits import Splits

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class FewShot:
    """Scores and regularization per split; folds of the inner cross-validation (0: lambda was fixed);
    confusion [C, C], label by prediction, summed over splits."""

    scores: ShotScores
    lambdas: tuple[float, ...]
    folds: int
    confusion: NDArray[np.int64]


def few_shot(
    features: Tensor,
    labels: Labels,
    splits: Splits,
    *,
    num_classes: int,
    scored: tuple[Tensor, Labels] | None = None,
    lambd: float | None = None,
    device: torch.device | None = None,
) -> dict[int, FewShot]:
    """{labels per class: scores}; features [N, D] raw, labels [N], scored: another set of (features, labels).

    Without `scored`, each split is scored on all images it does not hold. lambd: the fixed regularization;
    without it the published one for one label per class, and from two on one per split by inner
    cross-validation.
    """
    return {
        k: _column(
            features,
            labels,
            splits.shots[k],
            k,
            num_classes=num_classes,
            scored=scored,
            lambd=lambd,
            device=device,
        )
        for k in sorted(splits.shots)
    }


def regularization(
    x: Tensor, y: Tensor, shots: int, *, num_classes: int, lambd: float | None
) -> tuple[tuple[float, ...], int]:
    """Lambda per split for x [S, n, D], y [S, n], and the number of folds that chose it (0: fixed)."""
    if lambd is not None or shots == 1:
        return (logistic.PUBLISHED_LAMBDA if lambd is None else lambd,) * len(y), 0
    choice = logistic.choose_lambdas(x, y, num_classes=num_classes)
    return tuple(choice.lambd.tolist()), choice.folds


def _column(
    features: Tensor,
    labels: Labels,
    splits: Sequence[Labels],
    shots: int,
    *,
    num_classes: int,
    scored: tuple[Tensor, Labels] | None,
    lambd: float | None,
    device: torch.device | None,
) -> FewShot:
    # every split has the same number of images of each class, so they are problems of one shape
    x = logistic.preprocess(torch.stack([features[split] for split in splits]).to(device))  # [S, n, D]
    y = torch.stack([torch.from_numpy(labels[split]) for split in splits]).to(device)
    lambdas, folds = regularization(x, y, shots, num_classes=num_classes, lambd=lambd)
    weights = logistic.fit_splits(x, y, lambdas, num_classes=num_classes)
    test, truth = (features, labels) if scored is None else scored
    predictions = logistic.predict_each(test, weights).cpu().numpy()  # [S, M]
    counts = []
    for split, predicted in zip(splits, predictions, strict=True):
        unseen = truth >= 0
        if scored is None:
            unseen[split] = False
        if not unseen.any():
            raise EvaluationError(
                f"with {shots} labels per class every labelled image is in training and none is left to "
                f"score; give fewer --shots, more labels, or a scored set by --val"
            )
        counts.append(confusion(truth[unseen], predicted[unseen], num_classes))
    values = tuple(accuracy(count) for count in counts)
    return FewShot(ShotScores(values), lambdas, folds, np.sum(counts, axis=0))

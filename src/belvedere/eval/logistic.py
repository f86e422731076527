"""Logistic regression on frozen features, as MSN's low-shot evaluation states it (specification A.7).

Each row loses its own mean and is divided by its own l2 norm; then

    min_W  sum_i CE(x_i W, y_i) + (lambd / 2) |W|_F^2

with no intercept, solved to convergence in float64. The published code stops at a duality gap of 1e-3 and
divides the whole objective by n; both give the same classifier.

S splits (problems of equal shape), n rows, D features, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from belvedere.core.errors import EvaluationError
from belvedere.eval.solver import TOLERANCE, solve
from belvedere.eval.splits import stratified_folds

PUBLISHED_LAMBDA = 0.0025
"""The example of MSN's README (5 images per class), used wherever a fixed value is meant. 0.075 is the
published value for 1 % of ImageNet (msn issue 11, ViT-S/16: 67.2 %); 0.00025 is the default of the authors'
script."""

LAMBDAS = (1e-4, 1e-3, 1e-2, 1e-1, 1e0, 1e1, 1e2)
"""What inner cross-validation chooses from."""

CHOICE_TOLERANCE = 1e-6
"""Relative gap of the fits that only choose a regularization: a thousandth of the published solver's."""

MAX_FOLDS = 5
_ROWS = 16384  # scored at a time


class Choice(NamedTuple):
    """lambd [S]: the chosen value per split; accuracy [S, len(grid)]: of the held-out rows; folds: how
    many."""

    lambd: Tensor
    accuracy: Tensor
    folds: int


class _Rotated(NamedTuple):
    """rows [S, n, r] in principal axes, basis [S, D, r]: x = rows @ basis^T."""

    rows: Tensor
    basis: Tensor


def preprocess(x: Tensor) -> Tensor:
    """Rows [..., D] less their own mean, divided by their own l2 norm, float64; a constant row becomes
    zero."""
    x = x.double()
    centred = x - x.mean(-1, keepdim=True)
    norm = centred.norm(dim=-1, keepdim=True)
    # of a constant row rounding is left, which must not be blown up to length one
    rounding = 1e-12 * x.norm(dim=-1, keepdim=True)
    return torch.where(norm > rounding, centred / norm, torch.zeros_like(centred))


def fit(x: Tensor, y: Tensor, lambd: float, *, num_classes: int, tolerance: float = TOLERANCE) -> Tensor:
    """The minimizer W [D, C] for preprocessed rows x [n, D] and labels y [n] in 0..C-1."""
    weights = fit_splits(x[None], y[None], [lambd], num_classes=num_classes, tolerance=tolerance)
    return weights[0]


def fit_splits(
    x: Tensor, y: Tensor, lambds: Sequence[float], *, num_classes: int, tolerance: float = TOLERANCE
) -> Tensor:
    """The minimizers W [S, D, C] of S problems x [S, n, D], y [S, n], one regularization each."""
    _check(x, y, lambds, num_classes=num_classes)
    rotated = _rotate(x.double())
    lambd = torch.tensor(list(lambds), dtype=torch.float64, device=x.device)
    start = rotated.rows.new_zeros(x.shape[0], rotated.rows.shape[2], num_classes)
    solution = solve(rotated.rows, y, lambd=lambd, start=start, tolerance=tolerance)
    return rotated.basis @ solution.weights


def objective(x: Tensor, y: Tensor, weights: Tensor, lambd: float) -> float:
    """sum_i CE(x_i W, y_i) + (lambd / 2) |W|^2."""
    cross_entropy = torch.nn.functional.cross_entropy(x.double() @ weights, y, reduction="sum")
    return float(cross_entropy + 0.5 * lambd * weights.square().sum())


def predict(x: Tensor, weights: Tensor) -> Tensor:
    """Classes [n] of preprocessed rows; of equal logits the lower class."""
    return torch.cat([(part.double() @ weights).argmax(-1) for part in torch.split(x, _ROWS)])


def predict_each(features: Tensor, weights: Tensor) -> Tensor:
    """Classes [S, n] of raw features [n, D] by each of the classifiers [S, D, C], in little memory."""
    parts = []
    for part in torch.split(features, _ROWS):
        rows = preprocess(part.to(weights.device))
        parts.append(torch.stack([predict(rows, w) for w in weights]))
    return torch.cat(parts, 1)


def predict_proba(x: Tensor, weights: Tensor) -> Tensor:
    """Probabilities [n, C] of preprocessed rows."""
    return (x.double() @ weights).softmax(-1)


def choose_lambda(x: Tensor, y: Tensor, *, num_classes: int, grid: Sequence[float] = LAMBDAS) -> float:
    """One regularization for x [n, D], y [n] by inner cross-validation; see `choose_lambdas`."""
    return float(choose_lambdas(x[None], y[None], num_classes=num_classes, grid=grid).lambd[0])


def choose_lambdas(x: Tensor, y: Tensor, *, num_classes: int, grid: Sequence[float] = LAMBDAS) -> Choice:
    """The value of `grid` with the best accuracy on held-out folds, per split.

    Few labels decide between few accuracies, so ties are the rule: of equals, the one closest to
    `PUBLISHED_LAMBDA` (in its logarithm) is taken, the stronger of two equally close.

    x [S, n, D] preprocessed, y [S, n]. Folds are stratified and a function of the labels alone: as many as
    the rarest class has labels, at least 2 and at most 5; a class with one label is never held out. Where no
    class has two labels nothing can be held out, and the published value is returned.
    """
    grid = sorted(grid)
    _check(x, y, grid, num_classes=num_classes)
    num_splits = len(y)
    fold = torch.stack([torch.from_numpy(stratified_folds(row.numpy(), MAX_FOLDS)) for row in y.cpu()]).to(
        y.device
    )
    folds = int(fold.max()) + 1
    if folds == 0:
        fixed = torch.full((num_splits,), PUBLISHED_LAMBDA, dtype=torch.float64)
        return Choice(fixed, torch.full((num_splits, len(grid)), torch.nan, dtype=torch.float64), 0)
    held_out = fold[:, None, :] == torch.arange(folds, device=y.device)[None, :, None]  # [S, F, n]
    rows = _rotate(x.double()).rows
    correct = torch.zeros(num_splits, len(grid), dtype=torch.float64)
    for f in range(folds):  # fold by fold bounds memory; the splits are one batch
        correct += _held_out_correct(rows, y, held_out[:, f], grid, num_classes).cpu()
    accuracy = correct / (fold >= 0).sum(1, keepdim=True).cpu()
    far = [abs(math.log(lambd / PUBLISHED_LAMBDA)) for lambd in grid]
    preferred = sorted(range(len(grid)), key=lambda column: (round(far[column], 9), -grid[column]))
    best = accuracy[:, preferred].argmax(1)  # the first of equals
    return Choice(torch.tensor(grid, dtype=torch.float64)[preferred][best], accuracy, folds)


def _held_out_correct(
    rows: Tensor, y: Tensor, held_out: Tensor, grid: Sequence[float], num_classes: int
) -> Tensor:
    """How many held-out rows each regularization gets right [S, len(grid)], from strong to weak, each fit
    starting at the one before."""
    weights = rows.new_zeros(rows.shape[0], rows.shape[2], num_classes)
    correct = []
    for lambd in grid:
        lambds = rows.new_full((rows.shape[0],), lambd)
        train = (~held_out).to(rows.dtype)
        weights = solve(
            rows, y, lambd=lambds, start=weights, row_weight=train, tolerance=CHOICE_TOLERANCE
        ).weights
        right = (rows @ weights).argmax(-1) == y
        correct.append((right & held_out).sum(1))
    return torch.stack(correct, 1)


def _rotate(x: Tensor) -> _Rotated:
    """Rows in the principal axes of their span: r = min(n, D) columns instead of D, and nearly diagonal
    Hessians.

    Exact: the minimizer lies in the span of the rows, and the penalty does not see a rotation.
    """
    basis = torch.linalg.qr(x.mT).Q if x.shape[1] < x.shape[2] else None  # [S, D, n]
    rows = x if basis is None else x @ basis
    axes = torch.linalg.eigh(rows.mT @ rows).eigenvectors  # [S, r, r]
    return _Rotated(rows @ axes, axes if basis is None else basis @ axes)


def _check(x: Tensor, y: Tensor, lambds: Sequence[float], *, num_classes: int) -> None:
    if x.shape[-2] == 0:
        raise EvaluationError("logistic regression needs at least one labelled image; none was given")
    if not all(0.0 < lambd < float("inf") for lambd in lambds):
        raise EvaluationError(f"lambda must be a positive number; got {min(lambds):g} (--lambda)")
    if int(y.min()) < 0 or int(y.max()) >= num_classes:
        raise EvaluationError(f"labels must be 0..{num_classes - 1}; got {int(y.min())}..{int(y.max())}")
    if not bool(torch.isfinite(x).all()):
        raise EvaluationError(
            "features hold numbers that are not finite; the backbone is damaged or overflows in bf16"
        )

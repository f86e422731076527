from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from eval_fakes import clusters
from sklearn.linear_model import LogisticRegression

from belvedere.core.errors import EvaluationError
from belvedere.eval import logistic, solver


def _problem(counts: list[int], width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    features, labels = clusters(counts, width, seed=seed)
    return logistic.preprocess(features), torch.from_numpy(labels)


def test_preprocess_centres_and_scales_each_row_alone() -> None:
    rows = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    out = logistic.preprocess(rows)
    assert out.dtype == torch.float64
    expected = np.array([-1.0, 0.0, 1.0]) / np.sqrt(2.0)
    np.testing.assert_allclose(out.numpy(), [expected, expected], atol=1e-15)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e20])
def test_preprocess_of_a_constant_row_is_zero(constant: float) -> None:
    out = logistic.preprocess(torch.full((2, 7), constant))
    assert torch.equal(out, torch.zeros(2, 7, dtype=torch.float64))


@pytest.mark.parametrize("lambd", [1e-4, 0.0025, 0.075, 1.0, 100.0])
@pytest.mark.parametrize(("counts", "width"), [([5, 5, 5], 40), ([30, 7, 20], 6), ([1, 1], 5)])
def test_fit_agrees_with_an_independent_solver(counts: list[int], width: int, lambd: float) -> None:
    x, y = _problem(counts, width)
    weights = logistic.fit(x, y, lambd, num_classes=len(counts))
    if len(counts) == 2:
        # scikit-learn's two classes share one vector u = w1 - w0, and |w0|^2 + |w1|^2 = |u|^2 / 2
        reference = LogisticRegression(C=2.0 / lambd, fit_intercept=False, tol=1e-12, max_iter=10000)
        coef = reference.fit(x.numpy(), y.numpy()).coef_
        got = (weights[:, 1:] - weights[:, :1]).T.numpy()
    else:
        reference = LogisticRegression(C=1.0 / lambd, fit_intercept=False, tol=1e-12, max_iter=10000)
        coef, got = reference.fit(x.numpy(), y.numpy()).coef_, weights.T.numpy()
    np.testing.assert_allclose(got, coef, rtol=1e-3, atol=1e-3 * np.abs(coef).max())
    # and ours is at least as low
    theirs = (
        torch.from_numpy(coef.T) if len(counts) > 2 else torch.from_numpy(np.hstack([-coef.T, coef.T]) / 2)
    )
    assert logistic.objective(x, y, weights, lambd) <= logistic.objective(x, y, theirs, lambd) * (1 + 1e-9)


def test_the_gradient_vanishes_at_the_minimum() -> None:
    x, y = _problem([9, 4, 6], 30)
    weights = logistic.fit(x, y, 0.01, num_classes=3).requires_grad_()
    loss = torch.nn.functional.cross_entropy(x @ weights, y, reduction="sum") + 0.005 * weights.square().sum()
    (gradient,) = torch.autograd.grad(loss, weights)
    assert float(gradient.norm()) < 1e-5


def test_a_batch_of_problems_equals_each_alone() -> None:
    problems = [_problem([4, 4, 4], 20, seed) for seed in range(5)]
    x, y = torch.stack([p[0] for p in problems]), torch.stack([p[1] for p in problems])
    lambds = [1e-4, 10.0, 0.0025, 1.0, 0.1]
    together = logistic.fit_splits(x, y, lambds, num_classes=3)
    for i, lambd in enumerate(lambds):
        alone = logistic.fit(x[i], y[i], lambd, num_classes=3)
        np.testing.assert_allclose(together[i].numpy(), alone.numpy(), rtol=1e-3, atol=1e-4)


def test_large_batches_are_solved_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [_problem([3, 3], 8, seed) for seed in range(4)]
    x, y = torch.stack([p[0] for p in problems]), torch.stack([p[1] for p in problems])
    whole = logistic.fit_splits(x, y, [0.1] * 4, num_classes=2)
    monkeypatch.setattr(solver, "_ELEMENTS", 1)
    parts = logistic.fit_splits(x, y, [0.1] * 4, num_classes=2)
    np.testing.assert_allclose(parts.numpy(), whole.numpy(), rtol=1e-4, atol=1e-6)


def test_row_weight_zero_leaves_a_row_out() -> None:
    x, y = _problem([6, 6], 10)
    kept = torch.arange(12) % 3 != 0
    lambd, start = torch.tensor([0.05], dtype=torch.float64), torch.zeros(1, 10, 2, dtype=torch.float64)
    weighted = solver.solve(x[None], y[None], lambd=lambd, start=start, row_weight=kept[None].double())
    removed = logistic.fit(x[kept], y[kept], 0.05, num_classes=2)
    np.testing.assert_allclose(weighted.weights[0].numpy(), removed.numpy(), rtol=1e-3, atol=1e-4)
    assert float(weighted.gap) <= solver.TOLERANCE * 2


def test_a_fit_that_does_not_converge_is_an_error() -> None:
    x, y = _problem([5, 5], 10)
    lambd, start = torch.tensor([1e-3], dtype=torch.float64), torch.zeros(1, 10, 2, dtype=torch.float64)
    with pytest.raises(EvaluationError, match="did not converge: 1 of 1"):
        solver.solve(x[None], y[None], lambd=lambd, start=start, max_iterations=2)


def test_identical_zero_and_contradictory_rows() -> None:
    x = torch.zeros(6, 5, dtype=torch.float64)
    x[2:] = logistic.preprocess(torch.tensor([[1.0, 0, 0, 0, 0]]))
    y = torch.tensor([0, 1, 0, 1, 0, 1])
    weights = logistic.fit(x, y, 1e-4, num_classes=2)
    np.testing.assert_allclose(logistic.predict_proba(x, weights).numpy(), 0.5, atol=1e-6)


def test_a_class_without_rows_and_one_class_alone() -> None:
    x, y = _problem([4, 4], 6)
    weights = logistic.fit(x, y, 0.01, num_classes=3)
    assert not (logistic.predict(x, weights) == 2).any()
    only = logistic.fit(x, torch.zeros_like(y), 0.01, num_classes=1)
    assert torch.equal(only, torch.zeros(6, 1, dtype=torch.float64))


def test_mistakes_are_named() -> None:
    x, y = _problem([2, 2], 4)
    with pytest.raises(EvaluationError, match="lambda must be a positive number; got -1"):
        logistic.fit(x, y, -1.0, num_classes=2)
    with pytest.raises(EvaluationError, match=r"labels must be 0\.\.0"):
        logistic.fit(x, y, 1.0, num_classes=1)
    with pytest.raises(EvaluationError, match="not finite"):
        logistic.fit(x / 0.0, y, 1.0, num_classes=2)
    with pytest.raises(EvaluationError, match="at least one labelled image"):
        logistic.fit(x[:0], y[:0], 1.0, num_classes=2)


def test_choose_lambda_equals_folds_fit_one_by_one() -> None:
    features, labels = clusters([6, 6, 6], 12, spread=2.5)
    x, y = logistic.preprocess(features), torch.from_numpy(labels)
    grid = (0.001, 0.1, 10.0)
    choice = logistic.choose_lambdas(x[None], y[None], num_classes=3, grid=grid)
    assert choice.folds == 5
    fold = torch.from_numpy(logistic.stratified_folds(labels, 5))
    expected = []
    for lambd in grid:
        right = 0
        for f in range(5):
            weights = logistic.fit(x[fold != f], y[fold != f], lambd, num_classes=3)
            right += int((logistic.predict(x[fold == f], weights) == y[fold == f]).sum())
        expected.append(right / 18)
    np.testing.assert_allclose(choice.accuracy[0].numpy(), expected)
    assert logistic.choose_lambda(x, y, num_classes=3, grid=grid) == float(choice.lambd[0])
    best = max(expected)
    tied = [g for g, a in zip(grid, expected, strict=True) if a == best]
    assert float(choice.lambd[0]) == min(tied, key=lambda g: abs(math.log(g / logistic.PUBLISHED_LAMBDA)))


def test_ties_go_towards_the_published_regularization() -> None:
    x, y = _problem([4, 4], 50)
    x = x + 10 * torch.nn.functional.one_hot(y, 50)  # every value of the grid separates
    assert logistic.choose_lambda(x, y, num_classes=2) == 0.001
    even = (logistic.PUBLISHED_LAMBDA / 10, logistic.PUBLISHED_LAMBDA * 10)
    assert logistic.choose_lambda(x, y, num_classes=2, grid=even) == even[1], "of equally close, the stronger"


def test_choose_lambda_of_two_and_of_one_label_per_class() -> None:
    x, y = _problem([2, 2, 2], 9)
    assert logistic.choose_lambdas(x[None], y[None], num_classes=3).folds == 2
    x, y = _problem([1, 1, 1], 9)
    choice = logistic.choose_lambdas(x[None], y[None], num_classes=3)
    assert choice.folds == 0
    assert float(choice.lambd[0]) == logistic.PUBLISHED_LAMBDA


def test_the_same_numbers_twice() -> None:
    x, y = _problem([5, 5, 5], 30)
    assert torch.equal(logistic.fit(x, y, 0.0025, num_classes=3), logistic.fit(x, y, 0.0025, num_classes=3))

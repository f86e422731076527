"""Sinkhorn-Knopp over a data set, by hand, against the dense form, at its edges, over processes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.ops import assign
from belvedere.ops.assign import balanced_labels, balanced_shares, mean_over_assigned, potentials
from belvedere.ops.sinkhorn import sinkhorn
from processes import answers_of


def _unit(rows: int, width: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    noise = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(noise).to(dtype)


def test_by_hand() -> None:
    """Two embeddings, two prototypes, exp(score / epsilon) = [[4, 1], [2, 2]] (up to rounding of the logs).

    Columns to mass one: [[2/3, 1/3], [1/3, 2/3]]; rows then have mass one already. So v = -ln [6, 3].
    """
    bank = torch.eye(2, dtype=torch.float64)
    scores = torch.tensor([[4.0, 1.0], [2.0, 2.0]], dtype=torch.float64).log()
    prototypes = scores.T.contiguous() * 0.5  # bank @ prototypes.T / epsilon = scores, with epsilon 0.5
    v = potentials(bank, prototypes, epsilon=0.5, iterations=1)
    torch.testing.assert_close(v, -torch.tensor([6.0, 3.0], dtype=torch.float64).log())
    q = balanced_shares(bank, prototypes, v, epsilon=0.5)
    torch.testing.assert_close(q, torch.tensor([[2, 1], [1, 2]], dtype=torch.float64) / 3)
    assert balanced_labels(bank, prototypes, v, epsilon=0.5).tolist() == [0, 1]


def test_without_balance_the_second_embedding_would_be_undecided_and_the_first_prototype_take_more() -> None:
    bank = torch.eye(2, dtype=torch.float64)
    prototypes = torch.tensor([[4.0, 3.0], [1.0, 2.0]], dtype=torch.float64).log()
    none = torch.zeros(2, dtype=torch.float64)
    assert balanced_labels(bank, prototypes, none, epsilon=1.0).tolist() == [0, 0]
    v = potentials(bank, prototypes, epsilon=1.0, iterations=50)
    assert balanced_labels(bank, prototypes, v, epsilon=1.0).tolist() == [0, 1]


@pytest.mark.parametrize("iterations", [1, 2, 3, 10])
@pytest.mark.parametrize("scores_at_once", [1, 70, 1 << 22])
def test_chunks_equal_the_dense_form(iterations: int, scores_at_once: int) -> None:
    bank, prototypes = _unit(61, 5), _unit(7, 5, seed=1)
    v = potentials(bank, prototypes, epsilon=0.05, iterations=iterations, scores_at_once=scores_at_once)
    dense = sinkhorn(bank @ prototypes.T / 0.05, iterations)
    torch.testing.assert_close(balanced_shares(bank, prototypes, v, epsilon=0.05), dense, rtol=0, atol=1e-13)
    labels = balanced_labels(bank, prototypes, v, epsilon=0.05, scores_at_once=scores_at_once)
    assert torch.equal(labels, dense.argmax(1))


def test_many_iterations_reach_both_marginals() -> None:
    bank, prototypes = _unit(400, 8), _unit(16, 8, seed=1)
    v = potentials(bank, prototypes, epsilon=0.1, iterations=300)
    q = balanced_shares(bank, prototypes, v, epsilon=0.1)
    torch.testing.assert_close(q.sum(1), torch.ones(400, dtype=torch.float64))
    torch.testing.assert_close(q.sum(0), torch.full((16,), 25.0, dtype=torch.float64), rtol=1e-3, atol=0)


def test_ten_iterations_share_out_what_the_nearest_prototype_does_not() -> None:
    bank = F.normalize(_unit(600, 8) + 2 * _unit(1, 8, seed=5))  # all in one half of the sphere
    prototypes = _unit(12, 8, seed=1)
    plain = (bank @ prototypes.T).argmax(1).bincount(minlength=12)
    v = potentials(bank, prototypes, epsilon=0.05, iterations=10)
    sizes = balanced_labels(bank, prototypes, v, epsilon=0.05).bincount(minlength=12)
    assert plain.max() > 200
    assert sizes.min() > 25
    assert sizes.max() < 100


@pytest.mark.parametrize("epsilon", [1e-3, 1e-4])
def test_a_small_epsilon_overflows_nothing_in_float32(epsilon: float) -> None:
    bank, prototypes = _unit(64, 4, dtype=torch.float32), _unit(5, 4, seed=1, dtype=torch.float32)
    v = potentials(bank, prototypes, epsilon=epsilon, iterations=5)
    q = balanced_shares(bank, prototypes, v, epsilon=epsilon)
    assert v.isfinite().all()
    assert q.isfinite().all()
    torch.testing.assert_close(q.sum(1), torch.ones(64))
    exact = potentials(bank.double(), prototypes.double(), epsilon=epsilon, iterations=5)
    assert (v - exact).abs().max() < 1e-5 / epsilon


def test_float32_labels_are_those_of_float64() -> None:
    bank, prototypes = _unit(500, 16, dtype=torch.float32), _unit(40, 16, seed=1, dtype=torch.float32)
    found = [
        balanced_labels(b, p, potentials(b, p, epsilon=0.05, iterations=10), epsilon=0.05)
        for b, p in ((bank, prototypes), (bank.double(), prototypes.double()))
    ]
    assert (found[0] != found[1]).sum() <= 1


def test_the_plan_is_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    real = assign._logits

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal largest
        logits = real(*args, **kwargs)
        largest = max(largest, logits.numel())
        return logits

    monkeypatch.setattr(assign, "_logits", watched)
    bank, prototypes = _unit(3000, 4, dtype=torch.float32), _unit(50, 4, seed=1, dtype=torch.float32)
    v = potentials(bank, prototypes, epsilon=0.05, iterations=2, scores_at_once=5000)
    balanced_labels(bank, prototypes, v, epsilon=0.05, scores_at_once=5000)
    assert 0 < largest <= 5000


def test_the_same_bits_every_time() -> None:
    bank, prototypes = _unit(500, 16, dtype=torch.float32), _unit(40, 16, seed=1, dtype=torch.float32)
    first, again = (potentials(bank, prototypes, epsilon=0.05, iterations=3) for _ in range(2))
    assert torch.equal(first, again)


def test_a_prototype_that_nothing_touches_and_an_empty_bank() -> None:
    bank = torch.ones(3, 1)
    prototypes = torch.tensor([[1.0], [-math.inf]])
    v = potentials(bank, prototypes, epsilon=1.0, iterations=3)
    assert v[1] == 0
    assert balanced_labels(bank, prototypes, v, epsilon=1.0).tolist() == [0, 0, 0]
    assert balanced_labels(bank[:0], prototypes, v, epsilon=1.0).shape == (0,)
    assert potentials(bank[:0], prototypes, epsilon=1.0, iterations=3).tolist() == [0, 0]


# The mean over rows with an assignment


def test_the_mean_leaves_rows_without_assignment_out_of_value_and_gradient() -> None:
    losses = torch.tensor([1.0, 5.0, 9.0], requires_grad=True)
    mean = mean_over_assigned(losses, torch.tensor([True, False, True]))
    (gradient,) = torch.autograd.grad(mean, losses)
    assert float(mean.detach()) == 5.0
    assert gradient.tolist() == [0.5, 0.0, 0.5]


def test_the_mean_over_no_row_is_zero_with_zero_gradient() -> None:
    losses = torch.tensor([1.0, 5.0], requires_grad=True)
    mean = mean_over_assigned(losses, torch.tensor([False, False]))
    (gradient,) = torch.autograd.grad(mean, losses)
    assert float(mean.detach()) == 0.0
    assert gradient.tolist() == [0.0, 0.0]


# Two processes


def _answer(rank: int) -> Any:
    bank, prototypes = _unit(61, 5), _unit(7, 5, seed=1)
    found = []
    for mine in (bank[:20] if rank == 0 else bank[20:], bank if rank == 0 else bank[:0]):
        v = potentials(mine, prototypes, epsilon=0.05, iterations=4)
        found.append((v.numpy(), balanced_labels(mine, prototypes, v, epsilon=0.05).numpy()))
    losses = torch.tensor([[2.0, 4.0], [6.0, 8.0]])[rank].requires_grad_()
    mean = mean_over_assigned(losses, torch.tensor([[True, True], [False, True]])[rank])
    (gradient,) = torch.autograd.grad(mean, losses)
    return rank, found, float(mean.detach()), gradient.tolist()


def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    told = answers_of(_answer, tmp_path)
    bank, prototypes = _unit(61, 5), _unit(7, 5, seed=1)
    v = potentials(bank, prototypes, epsilon=0.05, iterations=4)
    labels = balanced_labels(bank, prototypes, v, epsilon=0.05)
    for split, parts in enumerate(((labels[:20], labels[20:]), (labels, labels[:0]))):
        for rank, found, _, _ in told:
            torch.testing.assert_close(torch.from_numpy(found[split][0]), v, rtol=0, atol=1e-12)
            assert torch.equal(torch.from_numpy(found[split][1]), parts[rank])
        assert (told[0][1][split][0] == told[1][1][split][0]).all(), "the processes differ"
    # Rows 2, 4 and 8 count: averaged over processes, value and gradient are those of their mean.
    assert sum(mean for *_, mean, _ in told) / 2 == pytest.approx(14 / 3)
    assert [gradient for *_, gradient in told] == [pytest.approx([2 / 3, 2 / 3]), pytest.approx([0, 2 / 3])]

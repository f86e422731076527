"""Sinkhorn, EMA, clipping, schedules: small functions with exact answers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from belvedere.core.schedule import Linear, WarmupCosine
from belvedere.ops.ema import center_, ema_, follow_
from belvedere.ops.sinkhorn import sinkhorn
from belvedere.optim.clip import clip_, gradient_norms
from belvedere.optim.spec import Clip


def test_sinkhorn_balances_columns_and_keeps_rows() -> None:
    q = sinkhorn(torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 200)
    torch.testing.assert_close(q.sum(1), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(q.sum(0), torch.full((4,), 3.0, dtype=torch.float64))


def test_sinkhorn_survives_what_underflows_as_a_probability() -> None:
    log_p = torch.tensor([[0.0, -2000.0, -1.0], [0.0, -3000.0, -2.0]])
    assert log_p.exp()[:, 1].sum() == 0, "the plain form divides zero by zero here"
    q = sinkhorn(log_p, 3)
    assert q.isfinite().all()
    torch.testing.assert_close(q.sum(1), torch.ones(2))


def test_sinkhorn_leaves_a_column_of_exact_zeros_empty() -> None:
    q = sinkhorn(torch.tensor([[0.0, -math.inf], [0.0, -math.inf]]), 3)
    assert torch.equal(q, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))


@pytest.mark.parametrize("iterations", [1, 2, 3, 50])
@pytest.mark.parametrize("spread", [20.0, 2000.0])
@pytest.mark.parametrize("shape", [(32, 64), (2000, 300)])
def test_sinkhorn_is_that_of_the_log_domain(iterations: int, spread: float, shape: tuple[int, int]) -> None:
    """Also where rows are worked on in several parts, and where a plain float32 form is not finite."""
    log_p = spread * torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = log_p
    for _ in range(iterations):
        expected = expected - expected.logsumexp(0)
        expected = expected - expected.logsumexp(1, keepdim=True)
    torch.testing.assert_close(sinkhorn(log_p, iterations), expected.exp(), rtol=1e-9, atol=1e-12)
    single = sinkhorn(log_p.float(), iterations)
    assert single.dtype == torch.float32
    # What rounding the input to float32 changes: half of 1.2e-4 at 2000, in an exponent.
    torch.testing.assert_close(single.double(), expected.exp(), rtol=0, atol=spread * 2e-7)


def test_sinkhorn_leaves_its_input_alone() -> None:
    log_p = torch.randn(6, 4)
    kept = log_p.clone()
    sinkhorn(log_p, 3)
    assert torch.equal(log_p, kept)


def test_no_iterations_leave_probabilities_as_they_are() -> None:
    p = torch.tensor([[0.2, 0.8], [0.5, 0.5]])
    torch.testing.assert_close(sinkhorn(p.log(), 0), p)


def test_ema_weighs_the_old_value() -> None:
    teacher, student = [torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 6.0])]
    ema_(teacher, student, 0.75)
    assert torch.equal(teacher[0], torch.tensor([1.5, 3.0]))


def test_a_teacher_follows_the_parameters_it_has_by_name_and_keeps_its_buffers() -> None:
    student = nn.ModuleDict({"extra": nn.Linear(2, 2), "norm": nn.BatchNorm1d(2)})
    teacher = nn.ModuleDict({"norm": nn.BatchNorm1d(2)})
    nn.init.constant_(student["norm"].weight, 5.0)
    student["norm"].running_mean.fill_(7.0)
    follow_(teacher, student, 0.75)
    assert teacher["norm"].weight.tolist() == [2.0, 2.0]  # 0.75 * 1 + 0.25 * 5
    assert teacher["norm"].running_mean.tolist() == [0.0, 0.0]


def test_a_center_moves_towards_the_newest() -> None:
    center = torch.tensor([[1.0, 2.0]])
    center_(center, torch.tensor([[3.0, 10.0]]), 0.75)
    assert center.tolist() == [[1.5, 4.0]]


def _with_gradients(*gradients: list[float] | None) -> list[torch.Tensor]:
    parameters = []
    for gradient in gradients:
        parameter = nn.Parameter(torch.zeros(2))
        parameter.grad = None if gradient is None else torch.tensor(gradient)
        parameters.append(parameter)
    return parameters  # type: ignore[return-value]


def test_clipping_by_the_total_norm() -> None:
    parameters = _with_gradients([3.0, 0.0], None, [0.0, 4.0])
    norms = gradient_norms(parameters)
    assert norms.tolist() == [3.0, -1.0, 4.0]
    clip_(parameters, norms, Clip(kind="total", norm=2.5))
    torch.testing.assert_close(parameters[0].grad, torch.tensor([1.5, 0.0]))
    torch.testing.assert_close(parameters[2].grad, torch.tensor([0.0, 2.0]))
    clip_(parameters, gradient_norms(parameters), Clip(kind="total", norm=100.0))
    torch.testing.assert_close(parameters[0].grad, torch.tensor([1.5, 0.0]))


def test_clipping_each_tensor_by_its_own_norm() -> None:
    parameters = _with_gradients([3.0, 0.0], [0.0, 0.5])
    clip_(parameters, gradient_norms(parameters), Clip(kind="per_tensor", norm=1.0))
    torch.testing.assert_close(parameters[0].grad, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(parameters[1].grad, torch.tensor([0.0, 0.5]))


def test_a_schedule_warms_up_peaks_and_ends() -> None:
    lr = WarmupCosine(0.0, 1.0, 0.1, 10, 110)
    assert [lr(0), lr(5), lr(10), lr(110)] == pytest.approx([0.0, 0.5, 1.0, 0.1])
    assert WarmupCosine(0.0, 1.0, 0.1, 10, 110, first=1)(9) == 1.0
    assert Linear(2.0, 1.0, 4.0)(2) == 1.5

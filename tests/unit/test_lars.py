"""LARS: tensors against the formula, one step at a time; what a vector, a zero and a frozen parameter get."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from belvedere.methods.method import Group
from belvedere.optim.groups import build_optimizer, set_
from belvedere.optim.lars import LARS, lars_factors
from belvedere.optim.spec import LARSSpec, SGDSpec

_COMMON = {
    "momentum": 0.9,
    "lr": {"start": 0.0, "peak": 1.0, "final": 0.0, "warmup_epochs": 1},
    "weight_decay": {"start": 0.1, "final": 0.1},
    "clip": None,
    "stretch": 1.0,
}


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_steps_follow_the_formula() -> None:
    matrix, vector = nn.Parameter(_normal(0, 3, 4)), nn.Parameter(_normal(1, 5))
    optimizer = LARS([{"params": [matrix, vector]}], lr=0.5, momentum=0.9, weight_decay=0.1, trust=0.01)
    expected = [matrix.detach().clone(), vector.detach().clone()]
    moments = [torch.zeros_like(p) for p in expected]
    for step in range(4):
        gradients = [_normal(10 + step, 3, 4), _normal(20 + step, 5)]
        for parameter, gradient in zip((matrix, vector), gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        update = gradients[0] + 0.1 * expected[0]
        update = update * (0.01 * expected[0].norm() / update.norm())
        for number, change in enumerate((update, gradients[1])):
            moments[number] = 0.9 * moments[number] + change
            expected[number] = expected[number] - 0.5 * moments[number]
        torch.testing.assert_close(matrix.detach(), expected[0], rtol=1e-12, atol=0)
        torch.testing.assert_close(vector.detach(), expected[1], rtol=1e-12, atol=0)


def test_vectors_are_not_adapted_and_not_decayed() -> None:
    vector = nn.Parameter(_normal(0, 4))
    before = vector.detach().clone()
    optimizer = LARS([vector], lr=1.0, weight_decay=10.0)
    vector.grad = torch.zeros_like(vector)
    optimizer.step()
    assert torch.equal(vector, before)


def test_a_zero_matrix_or_gradient_takes_a_plain_step() -> None:
    zeros, ones = torch.zeros(2, 2), torch.ones(2, 2)
    assert lars_factors([zeros, ones, ones], [ones, zeros, ones], trust=0.5).tolist() == [1.0, 1.0, 0.5]


def test_a_matrix_with_one_row_or_a_scalar_is_no_vector() -> None:
    assert lars_factors([torch.ones(1, 4)], [2 * torch.ones(1, 4)], trust=1.0).tolist() == [0.5]
    assert lars_factors([torch.ones(4)], [2 * torch.ones(4)], trust=1.0).tolist() == [1.0]


def test_a_parameter_without_gradient_is_left_alone() -> None:
    frozen, moving = nn.Parameter(_normal(0, 2, 2)), nn.Parameter(_normal(1, 2, 2))
    before = frozen.detach().clone()
    optimizer = LARS([frozen, moving], lr=1.0, weight_decay=0.1)
    moving.grad = torch.ones_like(moving)
    optimizer.step()
    assert torch.equal(frozen, before)
    assert frozen not in optimizer.state
    optimizer.zero_grad()
    optimizer.step()  # nothing has a gradient


def test_gradients_are_not_changed() -> None:
    matrix = nn.Parameter(_normal(0, 2, 2))
    matrix.grad = torch.ones_like(matrix)
    LARS([matrix], lr=1.0, weight_decay=0.1).step()
    assert torch.equal(matrix.grad, torch.ones_like(matrix))


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        (LARSSpec.model_validate({"name": "lars", "trust": 0.001, **_COMMON}), LARS),
        (SGDSpec.model_validate({"name": "sgd", **_COMMON}), torch.optim.SGD),
    ],
)
def test_a_recipe_names_them(spec: LARSSpec | SGDSpec, kind: type) -> None:
    matrix, vector = nn.Parameter(_normal(0, 2, 2)), nn.Parameter(_normal(1, 2))
    groups = [Group("decayed", [matrix], decay=True), Group("not decayed", [vector], decay=False)]
    optimizer = build_optimizer(groups, spec)
    assert type(optimizer) is kind
    set_(optimizer, lr=0.3, weight_decay=0.1)
    assert [(g["lr"], g["weight_decay"], g["momentum"]) for g in optimizer.param_groups] == [
        (0.3, 0.1, 0.9),
        (0.3, 0.0, 0.9),
    ]

"""LARC: what a step is, what it leaves alone, and that it can be saved."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from belvedere.engine.moments import flatten_optimizer, unflatten_optimizer_
from belvedere.methods.method import Group
from belvedere.optim.groups import build_optimizer, set_
from belvedere.optim.larc import LARC, larc_scaled
from belvedere.optim.spec import AnyOptimSpec, LARCSpec, OptimSpec

TRUST, DECAY, EPS, MOMENTUM = 0.02, 0.1, 1e-8, 0.9


def _parameters(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((4, 3, 2, 2), (5,), (6,), (3, 4))
    parameters = [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in shapes]
    with torch.no_grad():
        parameters[2].zero_()
    return parameters


def _gradients(step: int, parameters: list[nn.Parameter]) -> list[Tensor | None]:
    """None for the last parameter in the first two steps."""
    generator = torch.Generator().manual_seed(100 + step)
    drawn = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    return [None if number == 3 and step < 2 else g for number, g in enumerate(drawn)]


def _larc(parameters: list[nn.Parameter], **changes: Any) -> LARC:
    values = {"lr": 0.5, "momentum": MOMENTUM, "weight_decay": DECAY, "trust": TRUST, "eps": EPS}
    return LARC(parameters, **(values | changes))


def _take(optimizer: LARC, parameters: list[nn.Parameter], step: int) -> None:
    for parameter, gradient in zip(parameters, _gradients(step, parameters), strict=True):
        parameter.grad = gradient
    optimizer.step()


def _plainly(parameters: list[nn.Parameter], steps: int, lr: float) -> None:
    """The rule written out around torch's own SGD."""
    inner = torch.optim.SGD(parameters, lr=lr, momentum=MOMENTUM, weight_decay=0.0)
    for step in range(steps):
        for parameter, gradient in zip(parameters, _gradients(step, parameters), strict=True):
            parameter.grad = gradient
            if gradient is None:
                continue
            size, slope = parameter.detach().norm(), gradient.norm()
            if size > 0 and slope > 0:
                ratio = TRUST * size / (slope + DECAY * size + EPS)
                parameter.grad = ratio * (gradient + DECAY * parameter.detach())
        inner.step()


def test_steps_are_those_of_the_rule_around_sgd() -> None:
    ours, plain = _parameters(), _parameters()
    optimizer = _larc(ours)
    for step in range(5):
        _take(optimizer, ours, step)
    _plainly(plain, 5, 0.5)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_a_tensor_of_zeros_takes_its_raw_gradient() -> None:
    parameters = _parameters()
    _take(_larc(parameters), parameters, 0)
    gradient = _gradients(0, parameters)[2]
    assert gradient is not None
    torch.testing.assert_close(parameters[2].detach(), -0.5 * gradient)


def test_a_gradient_of_zeros_decays_nothing() -> None:
    parameters = _parameters()
    before = parameters[0].detach().clone()
    parameters[0].grad = torch.zeros_like(parameters[0])
    _larc(parameters).step()
    assert torch.equal(parameters[0], before)


def test_a_parameter_without_gradient_is_left_alone_and_its_momentum_waits() -> None:
    parameters = _parameters()
    optimizer = _larc(parameters)
    for step in range(3):
        _take(optimizer, parameters, step)
    before, moment = (
        t.detach().clone() for t in (parameters[3], optimizer.state[parameters[3]]["momentum_buffer"])
    )
    parameters[3].grad = None
    optimizer.step()
    assert torch.equal(parameters[3], before)
    assert torch.equal(optimizer.state[parameters[3]]["momentum_buffer"], moment)


def test_a_parameter_that_never_had_a_gradient_has_no_state() -> None:
    parameters = _parameters()
    optimizer = _larc(parameters)
    _take(optimizer, parameters, 0)
    assert parameters[3] not in optimizer.state
    assert {tuple(state) for state in optimizer.state.values()} == {("momentum_buffer",)}


def test_gradients_stay_as_they_were() -> None:
    parameters = _parameters()
    _take(_larc(parameters), parameters, 2)
    for parameter, gradient in zip(parameters, _gradients(2, parameters), strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)  # type: ignore[arg-type]


@pytest.mark.parametrize("through", ["state_dict", "checkpoint"])
def test_training_continues_bitwise_after_saving(through: str) -> None:
    parameters = _parameters()
    optimizer = _larc(parameters)
    for step in range(2):
        _take(optimizer, parameters, step)
    again = [nn.Parameter(p.detach().clone()) for p in parameters]
    other = _larc(again)
    if through == "state_dict":
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    else:
        saved = flatten_optimizer(optimizer, {p: f"p{i}" for i, p in enumerate(parameters)})
        assert set(saved) == {f"optim/p{i}/momentum_buffer" for i in range(3)}
        unflatten_optimizer_(other, {p: f"p{i}" for i, p in enumerate(again)}, saved)
    for step in range(2, 5):
        _take(optimizer, parameters, step)
        _take(other, again, step)
    assert all(torch.equal(a, b) for a, b in zip(parameters, again, strict=True))


def test_nothing_is_done_where_no_parameter_has_a_gradient() -> None:
    parameters = _parameters()
    before = [p.detach().clone() for p in parameters]
    _larc(parameters).step()
    assert all(torch.equal(a, b) for a, b in zip(parameters, before, strict=True))


def test_what_is_scaled_is_told() -> None:
    parameters = [p.detach() for p in _parameters()[:3]]
    gradients = [
        torch.ones_like(parameters[0]),
        torch.zeros_like(parameters[1]),
        torch.ones_like(parameters[2]),
    ]
    scaled = larc_scaled(parameters, gradients, trust=TRUST, weight_decay=DECAY, eps=EPS)
    assert scaled.adapted.tolist() == [True, False, False]
    assert scaled.factor[1:].tolist() == [1.0, 1.0]
    assert scaled.decay.tolist() == [DECAY, 0.0, 0.0]
    size = parameters[0].norm()
    expected = TRUST * size / (gradients[0].norm() + DECAY * size + EPS)
    torch.testing.assert_close(scaled.factor[0], expected)


def test_a_step_reads_nothing_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = _parameters()
    optimizer = _larc(parameters)

    def read(*_: Any) -> None:
        raise AssertionError("a tensor's value was read")

    for name in ("item", "tolist", "__float__", "__bool__", "__int__", "cpu", "numpy"):
        monkeypatch.setattr(Tensor, name, read)
    _take(optimizer, parameters, 0)


_SECTION = {
    "lr": {"start": 0.3, "peak": 4.8, "final": 0.0048, "warmup_epochs": 10},
    "weight_decay": {"start": 1e-6, "final": 1e-6},
    "clip": None,
    "stretch": 1.0,
}


def test_a_recipe_names_its_optimizer() -> None:
    of = TypeAdapter(AnyOptimSpec)
    larc = of.validate_python(_SECTION | {"name": "larc", "momentum": 0.9, "trust": 1e-3, "eps": 1e-8})
    adamw = of.validate_python(_SECTION | {"name": "adamw", "betas": (0.9, 0.95), "eps": 1e-8})
    assert isinstance(larc, LARCSpec)
    assert isinstance(adamw, OptimSpec)
    for wrong in ({"name": "sgd"}, {"name": "larc", "momentum": 0.9, "trust": 0.0, "eps": 1e-8}):
        with pytest.raises(ValidationError):
            of.validate_python(_SECTION | wrong)
    weight, bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    groups = [Group("all", [weight], decay=True), Group("rest", [bias], decay=False, lr_scale=0.5)]
    optimizer = build_optimizer([*groups, Group("none", [], decay=True)], larc)
    assert isinstance(optimizer, LARC)
    set_(optimizer, lr=2.0, weight_decay=0.1)
    shown = [
        {k: g[k] for k in ("lr", "weight_decay", "momentum", "trust", "eps")} for g in optimizer.param_groups
    ]
    common = {"momentum": 0.9, "trust": 1e-3, "eps": 1e-8}
    assert shown == [common | {"lr": 2.0, "weight_decay": 0.1}, common | {"lr": 1.0, "weight_decay": 0.0}]
    assert isinstance(build_optimizer(groups, adamw), torch.optim.AdamW)

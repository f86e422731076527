"""BatchNorm that keeps its statistics aside."""

from __future__ import annotations

import copy

import torch
from torch import nn

from belvedere.nn.norm import GlobalBatchNorm, commit_, discard_, globalize_


def _pair(channels: int, norm: type[nn.Module]) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    plain = nn.Sequential(norm(channels))
    nn.init.uniform_(plain[0].weight)
    other = copy.deepcopy(plain)
    globalize_(other)
    assert isinstance(other[0], GlobalBatchNorm)
    return plain, other


def test_equals_torch_in_training_and_evaluation() -> None:
    for norm, shape in ((nn.BatchNorm1d, (16, 5)), (nn.BatchNorm2d, (4, 5, 3, 3))):
        plain, ours = _pair(5, norm)
        for _ in range(3):
            x = torch.randn(shape)
            a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
            torch.testing.assert_close(plain(a), ours(b))
            plain(a).square().sum().backward()
            discard_(ours)
            ours(b).square().sum().backward()
            torch.testing.assert_close(a.grad, b.grad)
            commit_(ours)
        # torch counted both of its forwards of a step, we one: set equal, then one more each
        ours.load_state_dict(plain.state_dict())
        x = torch.randn(shape)
        plain(x), ours(x)
        commit_(ours)
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, msg=name)
        torch.testing.assert_close(plain.eval()(x), ours.eval()(x))


def test_a_forward_changes_no_state_until_it_is_committed() -> None:
    _, ours = _pair(5, nn.BatchNorm1d)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    ours(torch.randn(8, 5))
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
    discard_(ours)
    commit_(ours)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
    ours(torch.randn(8, 5))
    commit_(ours)
    assert not torch.equal(ours.state_dict()["0.running_mean"], before["0.running_mean"])
    assert int(ours.state_dict()["0.num_batches_tracked"]) == 1

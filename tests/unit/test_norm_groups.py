"""BatchNorm over groups of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from belvedere.core import dist
from belvedere.nn.norm import GlobalBatchNorm, commit_, globalize_
from processes import answers_of

_WORLD, _GROUP, _ROWS, _CHANNELS = 4, 2, 3, 5


def _rows() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(_WORLD * _ROWS, _CHANNELS, generator=generator, dtype=torch.float64)


def _network(group: int | None) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(_CHANNELS, _CHANNELS), nn.BatchNorm1d(_CHANNELS)).double()
    globalize_(network, group=group)
    return network


def _answer(rank: int) -> Any:
    told: dict[str, Any] = {}
    for group in (1, _GROUP, _WORLD, None):
        network = _network(group)
        out = network(_rows()[rank * _ROWS : (rank + 1) * _ROWS])
        (out.square() * out.sigmoid()).mean().backward()
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        dist.average_(gradients)
        commit_(network)
        buffers = [network[1].running_mean, network[1].running_var]
        told[str(group)] = [t.detach().numpy() for t in (out, *gradients, *buffers)]
    try:
        _network(3)(_rows()[:_ROWS])
    except ValueError as error:
        told["refusal"] = str(error)
    return told


def _expected(group: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """One process: each group's rows through torch's own BatchNorm; gradients of the mean over all rows."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(_CHANNELS, _CHANNELS), nn.BatchNorm1d(_CHANNELS)).double()
    start = [network[1].running_mean.clone(), network[1].running_var.clone()]
    outs, means = [], [torch.zeros(_CHANNELS).double() for _ in start]
    for rows in _rows().split(group * _ROWS):
        network[1].running_mean, network[1].running_var = (value.clone() for value in start)
        outs.append(network(rows))
        for mean, value in zip(means, (network[1].running_mean, network[1].running_var), strict=True):
            mean += value * group / _WORLD
    out = torch.cat(outs)
    (out.square() * out.sigmoid()).mean().backward()
    return out, [p.grad for p in network.parameters() if p.grad is not None], means


def test_groups_of_processes_share_their_statistics(tmp_path: Path) -> None:
    told = answers_of(_answer, tmp_path, count=_WORLD)
    for group in (1, _GROUP, _WORLD):
        out, gradients, buffers = _expected(group)
        for rank in range(_WORLD):
            theirs = [torch.from_numpy(array) for array in told[rank][str(group)]]
            expected = [out[rank * _ROWS : (rank + 1) * _ROWS].detach(), *gradients, *buffers]
            for mine, other in zip(theirs, expected, strict=True):
                torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-13)
            if group == _WORLD:
                for mine, other in zip(told[rank]["None"], theirs, strict=True):
                    torch.testing.assert_close(torch.from_numpy(mine), other, rtol=1e-12, atol=1e-13)
    assert "groups of 3 needs a multiple of that; got 4" in told[0]["refusal"]


@pytest.mark.parametrize("group", [None, 1, 8])
def test_one_process_is_its_own_group(group: int | None) -> None:
    network = _network(group)
    assert isinstance(network[1], GlobalBatchNorm)
    out = network(_rows())
    torch.testing.assert_close(out.mean(0), torch.zeros(_CHANNELS).double(), rtol=0, atol=1e-12)
    commit_(network)
    assert not network[1].running_mean.eq(0).any()


# Collectives, and numbers that cancel

_SHAPE = (6, 4, 3, 3)  # of each of two processes
_NAMES = [
    name for name in dir(torch.distributed) if name.startswith(("all_", "reduce", "broadcast", "gather"))
]


def _counted() -> list[str]:
    """Every collective that is called from now on, by name."""
    calls: list[str] = []

    def watch(name: str) -> None:
        real = getattr(torch.distributed, name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return real(*args, **kwargs)

        setattr(torch.distributed, name, noted)

    for name in _NAMES:
        watch(name)
    return calls


def _shifted(rank: int) -> Tensor:
    """Channels whose mean is up to a million deviations from zero, and differs between processes."""
    generator = torch.Generator().manual_seed(rank)
    mean = torch.tensor([0.0, 1e2, -1e4, 1e6]).view(1, -1, 1, 1)
    return torch.randn(_SHAPE, generator=generator) + mean + rank * mean.abs().sqrt() / 100


def _answer_once(rank: int) -> Any:
    calls = _counted()
    told: dict[str, Any] = {}
    for group in (None, 1):
        torch.manual_seed(0)
        norm = GlobalBatchNorm(_SHAPE[1], group=group)
        x = _shifted(rank).requires_grad_()
        out = norm(x)
        forward = list(calls)
        calls.clear()
        (out * _shifted(5)[:, [0]]).sum().backward()
        assert x.grad is not None
        told[str(group)] = (forward, list(calls))
        calls.clear()
        if group is None:
            told["arrays"] = [t.detach().numpy() for t in (out, x.grad, *norm.pending[0])]
    frozen = GlobalBatchNorm(_SHAPE[1])
    frozen.weight.requires_grad_(False)
    calls.clear()
    frozen(_shifted(rank)).sum().backward()
    told["no input gradient"] = list(calls)
    assert frozen.weight.grad is None
    assert frozen.bias.grad is not None
    return told


def test_one_collective_forward_one_backward_and_nothing_cancels(tmp_path: Path) -> None:
    told = answers_of(_answer_once, tmp_path)
    x = torch.cat([_shifted(0), _shifted(1)]).double().requires_grad_()
    plain = nn.BatchNorm2d(_SHAPE[1], momentum=1.0).double()
    out = plain(x)
    (out * _shifted(5)[:, [0]].repeat(2, 1, 1, 1)).sum().backward()
    assert x.grad is not None
    for rank in (0, 1):
        assert told[rank]["None"] == (["all_reduce"], ["all_reduce"])
        assert told[rank]["1"] == ([], [])
        assert told[rank]["no input gradient"] == ["all_reduce"]
        mine = slice(rank * _SHAPE[0], (rank + 1) * _SHAPE[0])
        expected = (out[mine].detach(), x.grad[mine], plain.running_mean, plain.running_var)
        for theirs, wanted in zip(told[rank]["arrays"], expected, strict=True):
            theirs_wide = torch.from_numpy(theirs).double()
            torch.testing.assert_close(theirs_wide, wanted, rtol=2e-6, atol=1e-5)
    assert (told[0]["arrays"][2] == told[1]["arrays"][2]).all(), "the processes differ"
    assert (told[0]["arrays"][3] == told[1]["arrays"][3]).all(), "the processes differ"


def test_low_precision_rows_are_normalized_in_float32(tmp_path: Path) -> None:
    for rank, (kind, out, gradient) in enumerate(answers_of(_answer_low, tmp_path)):
        assert kind == ("torch.bfloat16", "torch.bfloat16")
        x = torch.cat([_shifted(0), _shifted(1)])[:, :2].bfloat16().float().requires_grad_()
        expected = nn.BatchNorm2d(2)(x)
        (expected * _weights().repeat(2, 1, 1, 1)).sum().backward()
        assert x.grad is not None
        mine = slice(rank * _SHAPE[0], (rank + 1) * _SHAPE[0])
        torch.testing.assert_close(torch.from_numpy(out), expected[mine].detach(), rtol=8e-3, atol=1e-6)
        largest = float(x.grad.abs().max())
        torch.testing.assert_close(torch.from_numpy(gradient), x.grad[mine], rtol=2e-2, atol=1e-2 * largest)


def _weights() -> Tensor:
    return _shifted(5)[:, [0]].bfloat16().float()


def _answer_low(rank: int) -> Any:
    norm = GlobalBatchNorm(2)
    x = _shifted(rank)[:, :2].bfloat16().requires_grad_()
    out = norm(x)
    (out.float() * _weights()).sum().backward()
    assert x.grad is not None
    kinds = (str(out.dtype), str(x.grad.dtype))
    return kinds, out.detach().float().numpy(), x.grad.float().numpy()

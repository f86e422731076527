"""BatchNorm over groups of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from processes import answers_of
from torch import Tensor, nn

from belvedere.core import dist
from belvedere.nn.norm import GlobalBatchNorm, commit_, globalize_

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

"""The optimizer's state as named tensors, beside the method's own: `optim/<parameter>/exp_avg` and so on.

torch's own state-dict helpers number parameters and fail on one that never had a gradient; here a parameter
without state has no entry in the file and none after loading.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from belvedere.core.errors import CheckpointError
from belvedere.core.match import mismatches

PREFIX = "optim/"
_STEP = "step"


def flatten_optimizer(optimizer: Optimizer, names_by_param: Mapping[nn.Parameter, str]) -> dict[str, Tensor]:
    """The optimizer's tensors by name; they share memory with the optimizer, nothing is copied.

    names_by_param: the name of every parameter that the optimizer holds. Schedules write the learning rate
    and decay of the groups in every step, so these are no state.
    """
    flat: dict[str, Tensor] = {}
    for parameter in _parameters(optimizer):
        for key, value in optimizer.state.get(parameter, {}).items():
            assert isinstance(value, Tensor), f"optimizer state {key} is no tensor"
            flat[f"{PREFIX}{names_by_param[parameter]}/{key}"] = value
    return flat


def unflatten_optimizer_(
    optimizer: Optimizer, names_by_param: Mapping[nn.Parameter, str], tensors: Mapping[str, Tensor]
) -> None:
    """Put the entries of `tensors` under `optim/` into the optimizer, replacing all the state it has.

    Other entries are ignored. Raises `CheckpointError` for state of a parameter that the optimizer does not
    hold, or of another shape than its parameter; nothing is changed then.
    """
    by_name = {names_by_param[parameter]: parameter for parameter in _parameters(optimizer)}
    states: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(PREFIX):
            owner, _, key = name.removeprefix(PREFIX).rpartition("/")
            states.setdefault(owner, {})[key] = tensor
    _refuse_unfit(by_name, states)
    placed = _placement(optimizer)
    optimizer.state.clear()
    for owner, state in states.items():
        parameter = by_name[owner]
        optimizer.state[parameter] = {
            key: _placed(key, value, parameter, step_on_device=placed[parameter])
            for key, value in state.items()
        }


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _placement(optimizer: Optimizer) -> dict[nn.Parameter, bool]:
    """Whether each parameter's step count lives on its device: fused and capturable AdamW, else the CPU."""
    return {
        parameter: bool(group.get("fused") or group.get("capturable"))
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def _placed(key: str, value: Tensor, parameter: nn.Parameter, *, step_on_device: bool) -> Tensor:
    """A copy of `value` where, and laid out as, the optimizer keeps it."""
    if key == _STEP:
        return value.detach().to(parameter.device if step_on_device else "cpu", copy=True)
    target = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
    return target.copy_(value)


def _refuse_unfit(by_name: Mapping[str, nn.Parameter], states: Mapping[str, Mapping[str, Any]]) -> None:
    found = {
        f"{owner}/{key}": tuple(value.shape)
        for owner, state in states.items()
        for key, value in state.items()
        if key != _STEP
    }
    expected = {
        f"{owner}/{key}": tuple(by_name[owner].shape)
        for owner, state in states.items()
        if owner in by_name
        for key in state
        if key != _STEP
    }
    if wrong := mismatches(expected, found):
        raise CheckpointError("the optimizer's state does not fit its parameters\n  " + "\n  ".join(wrong))

"""The optimizer's moments of a published training file, from its numbers back to names.

torch numbers parameters in the order of the groups they were given in. Which names these are follows from the
rule by which a system's code makes groups, and from the order of the state dict, which is that of the
parameters. What is found is held against the parameters' shapes; where anything does not fit, nothing is
taken, and the reason is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from belvedere.engine.moments import PREFIX

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_ADAM = ("exp_avg", "exp_avg_sq")
_MOMENTUM = ("momentum_buffer",)
_STEP = "step"


def parameters_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a state dict that are trained, in its order: all but statistics and counts."""
    return {name: tensor for name, tensor in state.items() if name.rpartition(".")[2] not in _BUFFERS}


def vectors_apart(parameters: Mapping[str, Tensor]) -> list[list[str]]:
    """EsViT's groups: matrices, then vectors and biases."""
    plain = {name for name, tensor in parameters.items() if tensor.ndim == 1 or name.endswith(".bias")}
    return [
        [name for name in parameters if name not in plain],
        [name for name in parameters if name in plain],
    ]


def moments_with_or_without_lengths(
    stored: Any,
    group: Callable[[Mapping[str, Tensor]], list[list[str]]],
    state: Mapping[str, Tensor],
    ours: Callable[[str], str],
) -> tuple[dict[str, Tensor], str]:
    """`moments_of` a student whose last layers' lengths (`weight_g`) the optimizer has, or, with
    `norm_last_layer`, has not. group: the names of given parameters by group; state: the student's."""
    parameters = parameters_of(state)
    for lengths in (True, False):
        trained = {name: p for name, p in parameters.items() if lengths or not name.endswith("weight_g")}
        moments, reason = moments_of(stored, group(trained), trained, ours)
        if not reason:
            break
    return moments, reason


def moments_of(
    stored: Any, groups: Sequence[Sequence[str]], parameters: Mapping[str, Tensor], ours: Callable[[str], str]
) -> tuple[dict[str, Tensor], str]:
    """A stored optimizer's moments as `optim/<parameter>/<moment>`, and why there are none ("" if there are).

    groups: names as published, by group; parameters: the tensors they belong to; ours: a published name's
    name in the method's state.
    """
    sections = stored.get("param_groups") if isinstance(stored, Mapping) else None
    states = stored.get("state") if isinstance(stored, Mapping) else None
    if not isinstance(sections, list) or not isinstance(states, Mapping) or not states:
        return {}, "it has no state: the optimizer begins anew"
    counts = [len(section.get("params", ())) for section in sections if isinstance(section, Mapping)]
    if counts != [len(group) for group in groups]:
        expected = [len(group) for group in groups]
        return {}, f"its groups have {counts} parameters, must be {expected}: the optimizer begins anew"
    named: dict[str, Tensor] = {}
    for section, group in zip(sections, groups, strict=True):
        for number, name in zip(section["params"], group, strict=True):
            moments = states.get(number)
            if moments is None:  # never trained: a frozen layer
                continue
            found = _checked(moments, parameters[name])
            if found is None:
                return {}, f"number {number} is not of the shape of {name}: the optimizer begins anew"
            named |= {f"{PREFIX}{ours(name)}/{key}": tensor for key, tensor in found.items()}
    return named, ""


def _checked(moments: Any, parameter: Tensor) -> dict[str, Tensor] | None:
    """One parameter's moments, finite and of its shape; None for anything else."""
    if not isinstance(moments, Mapping):
        return None
    kinds: Iterable[str] = _ADAM if _ADAM[0] in moments else _MOMENTUM
    found: dict[str, Tensor] = {}
    for kind in kinds:
        value = moments.get(kind)
        if (
            not isinstance(value, Tensor)
            or value.shape != parameter.shape
            or not bool(value.isfinite().all())
        ):
            return None
        found[kind] = value.detach().float()
    if kinds is _ADAM:
        found[_STEP] = torch.as_tensor(moments.get(_STEP, 0), dtype=torch.float32).reshape(())
    return found

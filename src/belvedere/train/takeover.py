"""`init`: a run that goes on where another one was, with another task and a fresh optimizer.

Several published models were trained so: EsViT's regions were added to a run that had seen whole crops alone.
What the method names as `afresh` begins anew; all else must be there, name by name and shape by shape.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from belvedere.core.errors import CheckpointError, RecipeError
from belvedere.core.match import mismatches
from belvedere.engine.agreement import agree
from belvedere.engine.manifest import UnsoundError, checkpoints, verify
from belvedere.engine.storage import read_tensors
from belvedere.recipe.schema import InitSpec
from belvedere.train.session import METHOD_PREFIX, Session
from belvedere.train.weights_start import start_with_weights
from belvedere.zoo.continuing import holds_weights


def take_over(session: Session) -> None:
    """Begin with what the run named by `init.from` had at `init.start_epoch`, or with the imported weights
    there (`weights_start`); nothing without an `init`.

    Moves the session's step there and adds to its notes what to tell. The other run is only read. Raises
    `CheckpointError` if it has no sound checkpoint of that epoch, or its tensors do not fit, listed by name.
    """
    init = session.recipe.init
    if init is None:
        return
    if agree(lambda: holds_weights(init.directory), only_main=True)[0]:
        start_with_weights(session, init)
        return
    start_epoch = _of_a_run(session, init)
    path, manifest = agree(lambda: _checkpoint(init.directory, start_epoch), only_main=True)[0]
    own = session.method.state_dict()
    fresh = agree(lambda: _fresh(path, own, _shapes(manifest), session.method.afresh or ()))[0]
    tensors = {
        name: torch.empty(entry["shape"], dtype=getattr(torch, entry["dtype"]))
        for name, entry in manifest["tensors"].items()
        if name.startswith(METHOD_PREFIX)
    }
    agree(lambda: read_tensors(path, tensors))
    taken = {name.removeprefix(METHOD_PREFIX): tensor for name, tensor in tensors.items()}
    session.method.load_state_dict(own | taken)
    session.step = start_epoch * session.plan.steps_per_epoch
    session.notes.append(_told(session, path, fresh))


def _of_a_run(session: Session, init: InitSpec) -> int:
    """`init.start_epoch`. Raises RecipeError if it is not given, or the method cannot start from a run."""
    name = session.recipe.method.name
    if session.method.afresh is None:
        raise RecipeError(
            f"init: is not allowed; {name} cannot start from another run, and {init.directory} holds no "
            "imported weights (belvedere import); write init: null"
        )
    if init.start_epoch is None:
        raise RecipeError(
            f"init.start_epoch: is missing; {init.directory} holds no imported weights, and of a run it says "
            "at which of its epochs this one goes on"
        )
    return init.start_epoch


def _checkpoint(directory: Path, start_epoch: int) -> tuple[Path, dict[str, Any]]:
    """The checkpoint of the epoch asked for, and its manifest."""
    there = checkpoints(directory)
    if not there:
        raise CheckpointError(f"init.from: {directory} is no run with checkpoints; give a run's directory")
    steps = _steps_per_epoch(directory)
    for path in there:
        if int(path.name) == start_epoch * steps:
            try:
                return path, verify(path)
            except UnsoundError as error:
                raise CheckpointError(f"init.from: {path} cannot be used: {error}") from error
    listed = ", ".join(f"{int(path.name) / steps:g}" for path in there)
    raise CheckpointError(
        f"init.start_epoch: {directory} has no checkpoint of epoch {start_epoch}; it has those of "
        f"{listed}. Give one of these, or keep more of them there with run.milestone_epochs"
    )


def _steps_per_epoch(directory: Path) -> int:
    """How many steps an epoch of the run in `directory` has, by its plan."""
    try:
        steps: int = json.loads((directory / "plan.json").read_text())["steps_per_epoch"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"init.from: {directory / 'plan.json'} cannot be read ({error})") from error
    return steps


def _shapes(manifest: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of what the other run's method held, by name."""
    return {
        name.removeprefix(METHOD_PREFIX): tuple(entry["shape"])
        for name, entry in manifest["tensors"].items()
        if name.startswith(METHOD_PREFIX)
    }


def _fresh(
    path: Path, own: Mapping[str, Tensor], found: Mapping[str, tuple[int, ...]], afresh: tuple[str, ...]
) -> list[str]:
    """The names that begin anew, all of a part or none. Raises `CheckpointError` if anything else differs."""
    absent = tuple(part for part in afresh if not any(name.startswith(part) for name in found))
    fresh = [name for name in own if name.startswith(absent)] if absent else []
    expected = {name: tuple(tensor.shape) for name, tensor in own.items() if name not in fresh}
    if wrong := mismatches(expected, found):
        lines = "\n  ".join(wrong)
        raise CheckpointError(
            f"init.from: {path} does not fit this recipe (method, backbone or head differ)\n  {lines}"
        )
    return fresh


def _told(session: Session, path: Path, fresh: list[str]) -> str:
    parts = dict.fromkeys(".".join(name.split(".")[:2]) for name in fresh)
    anew = f"{', '.join(parts)} and the optimizer begin" if parts else "the optimizer begins"
    plan, epoch = session.plan, session.step // session.plan.steps_per_epoch
    return (
        f"starting from {path}: all else as it was there, {anew} anew; the run and its schedules go on at "
        f"epoch {epoch} of {session.recipe.train.epochs} (step {session.step:,} of {plan.total_steps:,})"
    )

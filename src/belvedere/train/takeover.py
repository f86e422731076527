"""`init`: what a run begins with instead of fresh parameters.

Without `init.start_epoch` a run of its own begins with weights (`weights_start`): those of a run, finished or
not, or of a folder with a card. With it a run goes on where another one was, its schedules too, with another
task and a fresh optimizer: several published models were trained so (EsViT's regions were added to a run that
had seen whole crops alone). What the method names as `afresh` then begins anew; all else must be there, name
by name and shape by shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from belvedere.core import dist
from belvedere.core.errors import CheckpointError, RecipeError
from belvedere.core.files import read_json
from belvedere.core.match import mismatches
from belvedere.engine import state
from belvedere.engine.agreement import agree
from belvedere.engine.manifest import MANIFEST_NAME
from belvedere.engine.state import Found
from belvedere.recipe.schema import InitSpec
from belvedere.train.run_state import entries, foreign
from belvedere.train.session import Session
from belvedere.train.weights_start import start_with_run, start_with_weights
from belvedere.zoo.cards import WEIGHTS_NAME
from belvedere.zoo.continuing import holds_weights
from belvedere.zoo.load import BACKBONE_FOLDER


def take_over(session: Session) -> None:
    """Begin with what `init.from` names: a run's weights, or all that it had at `init.start_epoch`; imported
    or exported weights. Nothing without an `init`.

    Fills the method, moves the session's step to the epoch and adds to its notes what to tell. What it takes
    from is only read. Raises `CheckpointError` if there is nothing to take, or its tensors do not fit, listed
    by name.
    """
    init = session.recipe.init
    if init is None:
        return
    folder, is_run = agree(lambda: _place(init, session.directory), only_main=True)[0]
    if not is_run:
        start_with_weights(session, init, folder)
    elif init.start_epoch is None:
        found = state.find(folder)
        assert found is not None, "a run that has no checkpoint is no run to begin from"
        start_with_run(session, init, found)
    else:
        _go_on(session, init, folder, init.start_epoch)


def _place(init: InitSpec, own: Path) -> tuple[Path, bool]:
    """The folder to take from, and whether it is a run's, with checkpoints, or one of weights with a card."""
    path = init.directory
    told = f"init.from: {path}"
    if own.resolve() in (path.resolve(), *path.resolve().parents):
        raise CheckpointError(
            f"{told} is this run's own directory, and a run cannot begin from itself; choose another "
            "directory for the new run with run.dir=NEW"
        )
    if path.is_file():
        if path.name == WEIGHTS_NAME and holds_weights(path.parent):
            return path.parent, False
        raise CheckpointError(
            f"{told} is a file; convert it first (belvedere import {path} --out DIR) and give that DIR"
        )
    if (path / MANIFEST_NAME).is_file():
        raise CheckpointError(
            f"{told} is one checkpoint of a run; give the run's directory, {path.parent.parent}: its newest "
            "checkpoint is taken, or that of init.start_epoch"
        )
    is_weights, is_run = holds_weights(path), bool(state.checkpoints(path))
    if is_weights and is_run:
        raise CheckpointError(
            f"{told} has weights with a card and the checkpoints of a run as well; give a directory that has "
            "one of them"
        )
    if is_weights or is_run:
        return path, is_run
    if init.start_epoch is None and holds_weights(path / BACKBONE_FOLDER):
        return path / BACKBONE_FOLDER, False
    raise CheckpointError(
        f"{told} is no run with checkpoints, nor a folder of weights with a card; give a run's directory, "
        f"its {BACKBONE_FOLDER} folder, or what `belvedere import` wrote"
    )


# Going on at an epoch of another run


def _go_on(session: Session, init: InitSpec, directory: Path, start_epoch: int) -> None:
    """Take all the state that the run in `directory` had at `start_epoch`, but its optimizer's."""
    if init.take != "all":
        raise RecipeError(
            f"init.take: {init.take} has no effect with init.start_epoch, where {directory} goes on with all "
            "its state; leave one of them out"
        )
    found = _checkpoint(directory, start_epoch)
    own, names = session.method.state_dict(), entries(session, found)
    tensors = found.manifest["tensors"]
    shapes = {name: tuple(tensors[stored]["shape"]) for name, stored in names.items()}
    fresh = agree(lambda: _fresh(session, found, own, shapes))[0]
    read = state.read(found, [stored for name, stored in names.items() if name not in fresh])
    taken = {name: read[stored] for name, stored in names.items() if stored in read}
    session.method.load_state_dict(own | taken)
    session.step = start_epoch * session.plan.steps_per_epoch
    session.notes.append(_told(session, found.path, fresh))


def _checkpoint(directory: Path, start_epoch: int) -> Found:
    """The checkpoint of the epoch asked for."""
    steps = agree(lambda: _steps_per_epoch(directory), only_main=True)[0]
    found = state.find(directory, step=start_epoch * steps)
    if found is not None:
        return found
    listed = ", ".join(f"{int(path.name) / steps:g}" for path in state.checkpoints(directory))
    raise CheckpointError(
        f"init.start_epoch: {directory} has no checkpoint of epoch {start_epoch}; it has those of "
        f"{listed}. Give one of these, or keep more of them there with run.milestone_epochs; without "
        "init.start_epoch a run of its own begins with the newest one's weights"
    )


def _steps_per_epoch(directory: Path) -> int:
    """How many steps an epoch of the run in `directory` has, by its plan."""
    file = directory / "plan.json"
    try:
        steps = read_json(file)["steps_per_epoch"]
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps_per_epoch is {steps!r}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"init.from: {file} cannot be read ({error})") from error
    return steps


def _fresh(
    session: Session, found: Found, own: Mapping[str, Tensor], there: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """The names that begin anew, all of a part or none. Raises `CheckpointError` if anything else differs."""
    method = session.method
    absent = tuple(part for part in method.afresh if not any(name.startswith(part) for name in there))
    of_images = {name: tuple(own[name].shape) for name in own if name.startswith(method.of_images)}
    if foreign(session, found) or any(there.get(name) != shape for name, shape in of_images.items()):
        absent += method.of_images
    fresh = [name for name in own if name.startswith(absent)] if absent else []
    expected = {name: tuple(tensor.shape) for name, tensor in own.items() if name not in fresh}
    wrong = mismatches(expected, {name: shape for name, shape in there.items() if name not in fresh})
    if wrong:
        lines = "\n  ".join(wrong)
        before = found.manifest["world_size"]
        others = f" It had {before} processes, this one has {dist.world_size()}." * (
            before != dist.world_size()
        )
        raise CheckpointError(
            f"init.from: {found.path} does not fit this recipe (method, backbone or head differ).{others} "
            f"Without init.start_epoch what fits is taken\n  {lines}"
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

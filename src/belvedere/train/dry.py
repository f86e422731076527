"""`--dry-run`: everything a run could trip over in its first minutes, in seconds and without writing."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from belvedere.core import dist
from belvedere.core.errors import CheckpointError, UsageError
from belvedere.core.files import free_bytes, readable_size
from belvedere.core.log import say, table
from belvedere.methods.method import Method
from belvedere.recipe.estimate import estimate
from belvedere.recipe.schema import Recipe
from belvedere.train.loop import StepReport, steps
from belvedere.train.run import begin, open_session
from belvedere.train.session import Session, choose_device

_TRIAL_BATCH = 2


def dry_run(recipe: Recipe) -> StepReport | None:
    """Check recipe, images, directory, memory and disk, print the plan, and take one real step.

    The step has the planned batch on the planned device if that is an accelerator; else it has 2 images on
    the CPU, and says so. It is the run's next step: from its checkpoint, or what `init` names. None if the
    run is complete. Raises what the run would raise.
    """
    wanted = recipe.run.device
    absent = wanted == "cuda" and not torch.cuda.is_available()
    device = torch.device("cpu") if absent else choose_device(wanted)
    real = open_session(recipe, device)
    begin(real, read_only=True)
    table("plan", real.plan.table())
    if real.report.num_unreadable:
        say(f"{real.report.num_unreadable} of {real.report.num_tried} images tried cannot be read")
    for warning in real.plan.warnings:
        say(f"warning: {warning}")
    for remark in [*real.notes, *real.loader().remarks]:
        say(remark)
    _check_directory(real)
    if real.step >= real.plan.total_steps:
        say(f"{real.directory} is complete: {real.step} steps; there is no step to try")
        return None
    trial = real if device.type != "cpu" else _trial(recipe, device)
    if trial is not real:
        real.hand_on_(trial)
    if absent:
        say("run.device is cuda, and there is none here: the step below has 2 images on the CPU")
    elif device.type == "cpu":
        say(f"the step below has {_TRIAL_BATCH} images; the run will have {real.plan.batch}")
    started = time.monotonic()
    report = _one_step(trial)
    seconds = time.monotonic() - started
    terms = ", ".join(f"{name} {float(value):.4f}" for name, value in report.losses.terms.items())
    say(f"one step: {seconds:.1f} s with loading; loss {float(report.losses.total):.4f} ({terms})")
    if type(trial.method).start_epoch is not Method.start_epoch:
        say("assignments are made at an epoch's start, which this left out: the loss says nothing yet")
    if device.type == "cuda":
        say(f"device memory at its peak: {readable_size(torch.cuda.max_memory_allocated(device))}")
    say(f"nothing was written; start with: belvedere pretrain {recipe.name}, and the same overrides")
    return report


def _check_directory(session: Session) -> None:
    """The run directory can be written, and its disk holds the run's checkpoints."""
    trained = sum(p.numel() for _, p in session.spread.trained)
    networks = session.method.networks()
    teacher = sum(p.numel() for p in networks["teacher"].parameters()) if "teacher" in networks else 0
    needs = estimate(
        session.recipe,
        session.plan,
        trained=trained,
        teacher=teacher,
        backbone=sum(p.numel() for p in session.method.export().backbone.parameters()),
        own_bytes=sum(buffer.nbytes for buffer in session.own_state().values()),
        shared_bytes=sum(buffer.nbytes for buffer in session.shared_state().values()),
    )
    table("needs", needs.table())
    first = _first_that_exists(session.directory)
    if not os.access(first, os.W_OK):
        raise UsageError(f"{session.directory} cannot be written: {first} is read-only; set run.dir=DIR")
    free = free_bytes(first)
    if free < needs.disk:
        raise CheckpointError(
            f"{session.directory} has {readable_size(free)} free and the run needs "
            f"{readable_size(needs.disk)}; "
            "free some, set run.dir=DIR, or lower run.keep_last"
        )


def _first_that_exists(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _trial(recipe: Recipe, device: torch.device) -> Session:
    """The same run with the smallest batch that BatchNorm allows, on one process."""
    batch = _TRIAL_BATCH * dist.world_size()
    changed = {
        "train": recipe.train.model_copy(update={"global_batch": batch}),
        "run": recipe.run.model_copy(update={"device": None, "micro_batch": None, "workers": 0}),
    }
    return open_session(recipe.model_copy(update=changed), device)


def _one_step(session: Session) -> StepReport:
    with session.loader(workers=0) as loader:
        run = (session.method, session.optimizer, loader, session.plan, session.spread)
        return next(iter(steps(*run, start_step=session.step)))

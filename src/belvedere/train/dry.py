"""`--dry-run`: everything a run could trip over in its first minutes, in seconds and without writing."""

from __future__ import annotations

import torch

from belvedere.core import dist
from belvedere.core.files import readable_size
from belvedere.core.log import say, table
from belvedere.data.room import loading_remark
from belvedere.engine.progress import spoken
from belvedere.methods.method import Method
from belvedere.recipe.schema import Recipe
from belvedere.train.disk import needs_of, refuse_full_disk
from belvedere.train.forecast import ending, show_notes, show_plan
from belvedere.train.loop import StepReport
from belvedere.train.run import begin, open_session
from belvedere.train.session import Session, choose_device
from belvedere.train.trial import Trial, predicted_step_s, try_step


def dry_run(recipe: Recipe) -> StepReport | None:
    """Check recipe, images, directory, memory and disk, print the plan, and take the run's next step.

    The step has the state that the run would have (`init`, or the checkpoint it continues from) and its own
    images: the whole batch where that takes seconds, else as many of its first images as are computed in that
    time, and says so; None if the run is complete. It also tells how long the run will take. Raises what the
    run would raise.
    """
    wanted = recipe.run.device
    absent = wanted == "cuda" and not torch.cuda.is_available()
    device = torch.device("cpu") if absent else choose_device(wanted)
    joined_here = dist.start(device)
    try:
        if recipe.run.threads is not None:
            torch.set_num_threads(recipe.run.threads)
        return _dry_run(recipe, device, absent=absent)
    finally:
        if joined_here:
            dist.stop()


def _dry_run(recipe: Recipe, device: torch.device, *, absent: bool) -> StepReport | None:
    session = open_session(recipe, device, planned=show_plan)
    begin(session, read_only=True)
    show_notes(session)
    for remark in session.loader().remarks:
        say(remark)
    table("needs", needs_of(session).table())
    refuse_full_disk(session)
    if session.step >= session.plan.total_steps:
        say(f"{session.directory} is complete: {session.step} steps; there is no step to try")
        return None
    if absent:
        say("run.device is cuda, and there is none here: the step below is computed on the CPU")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    trial = try_step(session)
    _tell_step(session, trial)
    if not absent:
        _tell_time(session, trial)
    say("nothing was written")
    return trial.report


def _tell_step(session: Session, trial: Trial) -> None:
    losses, batch = trial.report.losses, session.plan.batch
    terms = ", ".join(f"{name} {float(value):.4f}" for name, value in losses.terms.items())
    of = f"its {batch:,} images" if trial.whole else f"the first {trial.rows:,} of its {batch:,} images"
    say(f"step {session.step:,} with {of}: loss {float(losses.total):.4f} ({terms})")
    if type(session.method).start_epoch is not Method.start_epoch:
        say("assignments are made at an epoch's start, which this left out: the loss says nothing yet")
    if session.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(session.device)
        say(f"device memory at its peak: {readable_size(peak)}")


def _tell_time(session: Session, trial: Trial) -> None:
    """How long a step and the run will take, what was measured, and how the one follows from the other."""
    plan = session.plan
    step_s = predicted_step_s(session, trial)
    parts = f" in micro-batches of {trial.micro_batch}" if trial.micro_batch < trial.rows else ""
    scaled = "" if trial.whole else f", times {plan.batch / trial.rows:.3g} for the batch of {plan.batch:,}"
    say(
        f"measured: {trial.rows:,} images{parts} take {_short(trial.step_s)}{scaled}; one thread makes their "
        f"views in {_short(trial.load_s)}, and there will be {max(1, session.recipe.run.workers)}"
    )
    waiting = loading_remark(trial.load_s, trial.step_s, session.recipe.run.workers)
    if waiting is not None:
        say(waiting)
    left_s = step_s * (plan.total_steps - session.step)
    without = ""
    if type(session.method).start_epoch is not Method.start_epoch:
        without = ", not counting the assignments at the start of every epoch"
    say(f"a step will take about {_short(step_s)}: {ending(plan, session.step, left_s)}{without}")


def _short(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else spoken(seconds)

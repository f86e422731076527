"""What a run tells of itself at its start: the plan, and after its first steps when it will end."""

from __future__ import annotations

from datetime import datetime, timedelta

from belvedere.core.log import say, table
from belvedere.engine.progress import Pace, spoken
from belvedere.recipe.durations import in_epochs
from belvedere.recipe.plan import Plan
from belvedere.train.session import Session

_STEPS = 5  # after the first, which compiles and fills the workers
_LONG_S = 20.0  # of so long a time fewer steps say enough


def show_plan(plan: Plan) -> None:
    """Print what the run will be, before its networks are built, and what of it is probably not meant."""
    table("plan", plan.table())
    for warning in plan.warnings:
        say(f"warning: {warning}")


def show_notes(session: Session) -> None:
    """Print what is to be known of a run's images and of the state that it begins with."""
    if session.report.num_unreadable:
        say(f"{session.report.num_unreadable} of {session.report.num_tried} images tried cannot be read")
    for note in session.notes:
        say(note)


def ending(plan: Plan, step: int, left_s: float, *, now: datetime | None = None) -> str:
    """`60,000 images x 22 epochs = 10,296 steps, about 17 min 2 s, ends about 14:20`; of a run that goes on
    at `step`, how many steps are left."""
    now = now or datetime.now()
    end = now + timedelta(seconds=min(left_s, 3e9))
    when = f"{end:%H:%M}" if end.date() == now.date() else f"{end:%Y-%m-%d %H:%M}"
    seen = plan.steps_per_epoch * plan.recipe.train.global_batch
    left = f" for the {plan.total_steps - step:,} that are left" if step else ""
    return (
        f"{seen:,} images x {in_epochs(plan.recipe.train.epochs)} = {plan.total_steps:,} steps, "
        f"about {spoken(left_s)}{left}, ends about {when}"
    )


class Forecast:
    """Says once, after a few real steps, when the run will end."""

    def __init__(self, plan: Plan, start_step: int) -> None:
        self._plan, self._start, self._said = plan, start_step, False

    def told(self, step: int, pace: Pace | None, elapsed_s: float) -> str | None:
        """What to say when `step` steps are finished, if it is time. elapsed_s: since the first began."""
        done, left = step - self._start, self._plan.total_steps - step
        enough = done > _STEPS or (done >= 1 and elapsed_s >= _LONG_S)
        if self._said or pace is None or not enough or left <= 0:
            return None
        self._said = True
        return ending(self._plan, step, pace.eta_s)

"""The watch of a run: what it knows when the run begins or continues, and how it ends one."""

from __future__ import annotations

from belvedere.core.errors import CollapseError
from belvedere.engine.diagnosis import Patience
from belvedere.engine.watch import Watch
from belvedere.train.record import METRICS_NAME, read_metrics
from belvedere.train.session import Session


def open_watch(session: Session) -> Watch:
    """A watch that has seen the run's record of the steps before."""
    plan, recipe = session.plan, session.recipe
    patience = Patience.of(
        total_steps=plan.total_steps,
        steps_per_epoch=plan.steps_per_epoch,
        warmup_steps=plan.warmup_steps,
        log_every_steps=recipe.run.log_every_steps,
    )
    watch = Watch(patience, recipe.method.remedies(plan.extent), recipe.model_dump())
    record = session.directory / METRICS_NAME
    if record.exists():
        watch.replay(read_metrics(record), until=session.step)
    return watch


def gave_up(watch: Watch, session: Session) -> CollapseError:
    """What to raise when `run.on_collapse: stop` ended the run."""
    assert watch.finding is not None
    return CollapseError(
        f"{watch.words(watch.finding)}\n"
        f"  stopped by run.on_collapse: stop; the state of step {session.step} is saved. Start another run "
        "with the change and run.dir=NEW, or continue this one with run.on_collapse=warn"
    )

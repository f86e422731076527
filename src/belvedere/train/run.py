"""`pretrain`: a recipe in, a backbone out; stopped and continued as often as one likes."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from belvedere.core import dist
from belvedere.core.errors import DataError, NonFiniteError
from belvedere.core.files import DirectoryLock, write_json
from belvedere.core.log import say
from belvedere.data.batch import Batch
from belvedere.data.loader import Loader
from belvedere.data.sources import check_sample, remarks
from belvedere.engine.agreement import agree
from belvedere.engine.health import measure
from belvedere.engine.progress import Progress
from belvedere.engine.watch import Watch
from belvedere.methods.method import Clock
from belvedere.recipe.plan import Plan, run_dir
from belvedere.recipe.plan import plan as make_plan
from belvedere.recipe.room import memory_here, refuse_too_large
from belvedere.recipe.schema import Recipe
from belvedere.train.dataset_pass import StoppedInPassError, epoch_batches
from belvedere.train.directory import anew, compare_recipe, write_recipe
from belvedere.train.disk import refuse_full_disk
from belvedere.train.export import export_backbone
from belvedere.train.forecast import Forecast, show_notes, show_plan
from belvedere.train.images import open_images, take_images
from belvedere.train.loop import BadStepError, StepReport, Wish, steps
from belvedere.train.record import METRICS_NAME, Metrics
from belvedere.train.rescue import save_bad_step
from belvedere.train.roster import as_begun, keep_roster
from belvedere.train.session import Session, choose_device
from belvedere.train.signals import StopRequest, stop_request
from belvedere.train.sinks import open_sinks
from belvedere.train.start_checks import check_start
from belvedere.train.takeover import take_over
from belvedere.train.watching import gave_up, open_watch

_TOLD = 8  # remarks on the images, of those that data_report.json lists


@dataclass(frozen=True)
class Outcome:
    """How a call of `pretrain` ended. step: finished steps; stopped: somebody asked it to, and the same call
    continues; seconds: of this call."""

    directory: Path
    step: int
    total_steps: int
    stopped: bool
    seconds: float


def pretrain(recipe: Recipe, *, images: Any = None, ends_process: bool = False) -> Outcome:
    """Train until the recipe's end, or until SIGINT or SIGTERM; continues a run that its directory holds. The
    first signal ends the run after the step under way, saved; a second one raises KeyboardInterrupt, or, with
    `ends_process` and in a step that does not return, ends the process with status 130.

    images: a source, or a map-style torch.utils.data.Dataset, in place of what `data.path` names, which is
    null then; to continue such a run, hand them over again.

    Writes to `run.dir` (default `runs/<name>`): `recipe.yaml`, `plan.json`, `metrics.jsonl`,
    `data_report.json`, `checkpoints/` and `backbone/`. Under torchrun every process calls this.

    Raises `BelvedereError` of the kind that fits: a recipe, data, a lock, a checkpoint, a step that is not
    finite. What was trained until then is on disk.
    """
    started = time.monotonic()
    device = choose_device(recipe.run.device)
    joined_here = dist.start(device)
    try:
        if recipe.run.threads is not None:
            torch.set_num_threads(recipe.run.threads)
        session = open_session(recipe, device, images=images, planned=show_plan)
        with _locked(session.directory):
            resumed = begin(session)
            agree(lambda: refuse_full_disk(session), only_main=True)
            agree(lambda: write_recipe(session.recipe, session.directory), only_main=True)
            agree(lambda: keep_roster(session.source, session.directory, anew=not resumed), only_main=True)
            stopped = _train(session, resumed=resumed, ends_process=ends_process)
        seconds = time.monotonic() - started
        return Outcome(session.directory, session.step, session.plan.total_steps, stopped, seconds)
    finally:
        if joined_here:
            dist.stop()


def begin(session: Session, *, read_only: bool = False) -> bool:
    """Bring the session to the run's first step: where its directory's checkpoint stands, or what `init`
    names, or fresh parameters. True if it continues a run. Adds to the session's notes what to tell.

    read_only: change nothing on disk, as a dry run does; else the remains of interrupted saves are removed.
    Raises `CheckpointError` for a directory that holds another run, images that changed, or an `init` that
    does not fit.
    """
    recipe, directory, steps = session.recipe, session.directory, session.plan.steps_per_epoch
    notes = agree(lambda: compare_recipe(recipe, directory, steps_per_epoch=steps), only_main=True)[0]
    session.notes += notes
    resumed = session.resume(read_only=read_only)
    if not resumed:
        take_over(session)
    return resumed


def _unseen(plan: Plan) -> None: ...


def open_session(
    recipe: Recipe, device: torch.device, *, images: Any = None, planned: Callable[[Plan], None] = _unseen
) -> Session:
    """Meet reality: check the start, find the images, lay out the plan, build the method. Writes nothing."""
    agree(lambda: check_start(recipe), only_main=True)
    recipe, source, notes = open_images(recipe) if images is None else take_images(recipe, images)
    source, gone = as_begun(source, run_dir(recipe))
    report = check_sample(source, seed=recipe.seed)
    elsewhere = recipe.run.device == "cuda" and device.type == "cpu"
    world_size, kind = dist.world_size(), device.type
    plan = make_plan(recipe, num_images=len(source), world_size=world_size, device=kind, elsewhere=elsewhere)
    notes += agree(
        lambda: refuse_too_large(recipe, plan, memory_here(device.type), elsewhere=elsewhere), only_main=False
    )[dist.rank()]
    planned(plan)  # before networks are built, which takes a while where they are large
    session = Session.start(recipe, plan, source, report, device)
    told = remarks(source)
    gone += [f"data: {remark}" for remark in told[:_TOLD]]
    if len(told) > _TOLD:
        gone.append(f"data: {len(told) - _TOLD} more remarks are in data_report.json")
    session.notes += notes + gone
    return session


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the run directory, through rank 0, for all processes.

    What fails before anything is written there leaves no directory behind, if there was none before.
    """
    lock = DirectoryLock(directory)
    new = not directory.exists()
    agree(lock.acquire, only_main=True)
    try:
        yield
    except BaseException:
        if new and dist.is_main():
            lock.remove_if_alone()
        raise
    finally:
        lock.release()


def _train(session: Session, *, resumed: bool, ends_process: bool) -> bool:
    """Train to the plan's end, saving and reporting on the way; true if a signal ended it before. resumed:
    whether the state it begins with is on disk."""
    plan = session.plan
    show_notes(session)
    if dist.is_main():
        write_json(session.directory / "plan.json", plan.to_dict())
    if session.step >= plan.total_steps:
        export_backbone(session)
        say(
            f"{session.directory} is complete: {session.step} of {plan.total_steps} steps; to train longer, "
            "begin a new run with its weights and its schedules laid out anew: the overrides "
            f"train.epochs=N {shlex.join(anew(session.directory, session.recipe))}"
        )
        return False
    loader = session.loader()
    for remark in loader.remarks:
        say(remark)
    stops = stop_request(ends_process=ends_process)
    with stops as request, _metrics(session) as metrics, _progress(session) as progress, loader:
        request.finished, request.saved = session.step, session.step if resumed else None
        watch = open_watch(session)
        keeper = _Keeper(session, loader, request, watch)
        try:
            stopped = _drain(session, loader, keeper, metrics, progress)
            waiting = loader.waiting_remark()
            if waiting is not None:
                progress.say(waiting)
        except BadStepError as bad:
            keeper.save()
            where = save_bad_step(session.directory, bad)
            told = f"{bad}. The batch is in {where}; the state of step {session.step} is saved"
            raise NonFiniteError(f"{told}\n  {watch.not_finite(bad.at.step)}") from bad
        except DataError as error:
            # Other processes wait in a collective call that this one will not make; they cannot save with it.
            if dist.world_size() > 1:
                raise
            keeper.save()
            if not request.asked:
                raise
            progress.say(f"stopped on request, while: {error}")  # a worker that starts hears the signal too
            stopped = True
    if stopped and keeper.gives_up:
        raise gave_up(watch, session)
    return stopped


def _drain(session: Session, loader: Loader, keeper: _Keeper, metrics: Metrics, progress: Progress) -> bool:
    session.spread.on_part = progress.part
    request = keeper.request
    passes = epoch_batches(
        session,
        asked=lambda: request.asked,
        say=progress.say,
        doing=lambda what: setattr(request, "doing", what),
    )
    request.begins()
    reports = steps(
        session.method,
        session.optimizer,
        _announced(session, loader, progress),
        session.plan,
        session.spread,
        start_step=session.step,
        wish=keeper.wish,
        epoch_batches=passes,
    )
    try:
        return _report(session, reports, loader, keeper, metrics, progress)
    except StoppedInPassError:  # nothing is lost: the epoch's start is a function of the checkpoint before it
        return True


def _announced(session: Session, loader: Loader, progress: Progress) -> Iterator[Batch]:
    """The batches; what the run is doing, for whoever waits for a long step."""
    plan = session.plan
    parts = f" in {plan.micro_batches} micro-batches" if plan.micro_batches > 1 else ""
    progress.begin("preparing the first batch")
    for number, batch in enumerate(loader):
        which = "first step" if number == 0 else "this step"
        progress.begin(f"{which}: {plan.recipe.train.global_batch:,} images{parts}")
        yield batch
        progress.begin("waiting for the next batch")


def _report(
    session: Session,
    reports: Iterator[StepReport],
    loader: Loader,
    keeper: _Keeper,
    metrics: Metrics,
    progress: Progress,
) -> bool:
    """Drain the steps, saving and reporting on the way; true if somebody asked to stop before the end."""
    waited_s, forecast = 0.0, Forecast(session.plan, session.step)
    for report in reports:
        session.step = report.at.step + 1
        keeper.request.ended(session.step)
        shown = numbers = _numbers(report) if _is_logged(session, report) else {}
        if numbers and report.losses.health is not None:
            measures = measure(report.losses.health)
            numbers = shown | measures.numbers  # all of them for the record, and a line that can be read
            for told in keeper.watch.feed(report.at.step, measures, grad_norm=numbers["grad_norm"]):
                progress.say(told)
        if numbers and dist.is_main():
            metrics.write(report.at.step, numbers)
        progress.update(session.step, shown, waited_s=loader.waited_s - waited_s)
        waited_s = loader.waited_s
        if (ending := forecast.told(session.step, progress.pace(), progress.elapsed_s)) is not None:
            progress.say(ending)
        if (waiting := loader.early_remark()) is not None:
            progress.say(waiting)
        if report.save or report.stop:
            keeper.save()
        keeper.request.begins()
        if report.stop:
            return session.step < session.plan.total_steps
    return False


def _progress(session: Session) -> Progress:
    return Progress(
        session.plan.total_steps,
        start_step=session.step,
        images_per_step=session.recipe.train.global_batch,
        title=session.recipe.name,
        show=dist.is_main(),
    )


def _metrics(session: Session) -> Metrics:
    """The run's record, cut back to the step it continues from; only rank 0 writes to it."""
    if not dist.is_main():
        return Metrics(session.directory / METRICS_NAME)
    recipe = session.recipe
    sinks = open_sinks(
        recipe.run.sinks,
        session.directory,
        run_name=recipe.name,
        start_step=session.step,
        settings=recipe.model_dump(),
    )
    metrics = Metrics(session.directory / METRICS_NAME, sinks=sinks)
    metrics.cut_back(session.step)
    return metrics


def _is_logged(session: Session, report: StepReport) -> bool:
    last = session.step == session.plan.total_steps
    return session.step % session.recipe.run.log_every_steps == 0 or last or report.stop


def _numbers(report: StepReport) -> dict[str, float]:
    """What is recorded of a step: tensors averaged over processes, then read together."""
    losses = report.losses
    on_device = {"loss": losses.total, **losses.terms, **losses.watch, "grad_norm": report.total_norm}
    together = torch.stack([value.detach().float() for value in on_device.values()])
    dist.average_([together])
    numbers = dict(zip(on_device, together.tolist(), strict=True))
    epoch = (report.at.step + 1) / report.at.steps_per_epoch
    return (
        {"epoch": epoch} | numbers | {"lr": report.lr, "weight_decay": report.weight_decay} | report.scheduled
    )


class _Keeper:
    """Decides when to save, and saves: state, backbone and data report."""

    def __init__(self, session: Session, loader: Loader, request: StopRequest, watch: Watch) -> None:
        self.session, self.loader, self.request, self.watch = session, loader, request, watch
        self.saved_at = time.monotonic()
        self.saved_step = -1

    @property
    def gives_up(self) -> bool:
        """Whether the run has collapsed and is to stop then."""
        return self.session.recipe.run.on_collapse == "stop" and self.watch.finding is not None

    def wish(self, at: Clock) -> Wish:
        """Rank 0's clock decides about minutes; the rest follows from the step, the same on every process."""
        run, done = self.session.recipe.run, at.step + 1
        due = done == self.session.plan.total_steps or self._is_milestone(done)
        if run.save_every_steps is not None:
            due = due or done % run.save_every_steps == 0
        if run.save_every_minutes is not None and dist.is_main():
            due = due or time.monotonic() - self.saved_at >= 60 * run.save_every_minutes
        return Wish(stop=self.request.asked or self.gives_up, save=due)

    def _is_milestone(self, done: int) -> bool:
        epochs = self.session.recipe.run.milestone_epochs
        return epochs is not None and done % (epochs * self.session.plan.steps_per_epoch) == 0

    def save(self) -> None:
        """Save everything of the finished steps; does nothing if they are saved already."""
        session = self.session
        if session.step == self.saved_step:
            return
        session.replaced = dict(self.loader.replaced)
        for each in dist.gather_objects(self.loader.report):
            session.report.merge(each)
        session.save(milestone=self._is_milestone(session.step))
        export_backbone(session)
        if dist.is_main():
            write_json(session.directory / "data_report.json", session.report.to_json(session.source))
        self.saved_step, self.saved_at = session.step, time.monotonic()
        self.request.saved = session.step

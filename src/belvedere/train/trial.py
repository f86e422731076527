"""A step tried out on a run's own images and state, in bounded time: its losses, and how long steps take."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from belvedere.core import dist, machine
from belvedere.data.batch import Batch
from belvedere.optim.clip import gradient_norms
from belvedere.train.loop import StepReport, gradients, steps
from belvedere.train.session import Session

BUDGET_S = 20.0
"""Of the passes that are timed. A step that takes longer is timed with fewer images."""
_PROBE = 2  # images of the first, smallest pass: as few as BatchNorm allows
_WORTH_REPEATING_S = 3.0


@dataclass(frozen=True)
class Trial:
    """What was tried and measured. rows: images of the step on this process; micro_batch: of them at a time;
    whole: whether that is the run's whole first step, its update included; step_s: of networks, loss and
    backward pass; load_s: of making its views in one thread."""

    report: StepReport
    rows: int
    micro_batch: int
    whole: bool
    step_s: float
    load_s: float


def try_step(session: Session, *, budget_s: float = BUDGET_S) -> Trial:
    """The run's next step, or where it takes too long the gradients of as many of its first images as
    `budget_s` allows. Every process of a run calls this."""
    plan, per_row_s = session.plan, 0.0
    if plan.batch > _PROBE:
        probe, _ = _fetched(session, _PROBE)
        per_row_s = _timed(session, probe, repeat=True) / _PROBE
    most = _least(session, budget_s / per_row_s if per_row_s else float(plan.batch))
    rows, micro_batch = _affordable(plan.batch, plan.micro_batch, most)
    batch, load_s = _fetched(session, rows)
    session.spread.micro_batch = micro_batch
    try:
        return _tried(session, batch, load_s, micro_batch)
    finally:
        session.spread.micro_batch = session.recipe.run.micro_batch


def predicted_step_s(session: Session, trial: Trial) -> float:
    """Seconds of one of the run's steps: what was measured, for as many images as a step has.

    Loading goes on beside it, in the workers: a step takes as long as the slower of the two, and on a CPU no
    less than all of the work takes that its cores share.
    """
    share = session.plan.batch / trial.rows
    step_s, load_s = trial.step_s * share, trial.load_s * share
    slowest = max(step_s, load_s / max(1, session.recipe.run.workers))
    if session.device.type != "cpu":
        return slowest
    cpus = machine.cpu_count()
    work_s = step_s * min(torch.get_num_threads(), cpus) + load_s
    return max(slowest, work_s / cpus)


def _least(session: Session, number: float) -> float:
    """The smallest of all processes' numbers."""
    if dist.world_size() == 1:
        return number
    least = torch.tensor(-number, device=session.device)
    dist.all_reduce_(least, op="max")
    return -float(least)


def _affordable(batch: int, micro_batch: int, most: float) -> tuple[int, int]:
    """(images, images at a time) of a step of at most so many images: the whole batch, two micro-batches, or
    the largest power of two."""
    if most >= batch:
        return batch, micro_batch
    if micro_batch < batch and most >= 2 * micro_batch:
        return 2 * micro_batch, micro_batch
    rows = _PROBE
    while 2 * rows <= min(most, batch):
        rows *= 2
    return rows, rows if micro_batch == batch else max(_PROBE, rows // 2)


def _fetched(session: Session, rows: int) -> tuple[Batch, float]:
    """The first rows of the next step's batch, and the seconds that it took to make them."""
    with session.loader(workers=0, rows=rows) as loader:
        started = time.perf_counter()
        batch = next(iter(loader))
        return batch, time.perf_counter() - started


def _timed(session: Session, batch: Batch, *, repeat: bool) -> float:
    """Seconds of the gradients of a batch; the first pass of a shape prepares kernels, so a short one is
    repeated. Changes nothing but gradients, which the next step drops."""
    at = session.plan.clock(session.step)
    seconds = 0.0
    for _ in range(2 if repeat else 1):
        started = time.perf_counter()
        losses = gradients(session.method, session.spread, batch, at)[1]
        float(losses.total)  # waits for the device
        seconds = time.perf_counter() - started
        session.spread.discard()
        session.optimizer.zero_grad(set_to_none=True)
        if seconds > _WORTH_REPEATING_S:
            break
    return seconds


def _tried(session: Session, batch: Batch, load_s: float, micro_batch: int) -> Trial:
    """Take the step on this batch."""
    rows, plan = len(batch.rows), session.plan
    whole = rows == plan.batch
    started = time.perf_counter()
    report = _whole_step(session, batch) if whole else _part_of_step(session, batch)
    float(report.losses.total)
    step_s = time.perf_counter() - started
    if whole and step_s < _WORTH_REPEATING_S and dist.world_size() == 1:
        step_s = min(step_s, _timed(session, batch, repeat=True))
    return Trial(report, rows, micro_batch, whole, step_s, load_s)


def _whole_step(session: Session, batch: Batch) -> StepReport:
    run = (session.method, session.optimizer, [batch], session.plan, session.spread)
    return next(iter(steps(*run, start_step=session.step)))


def _part_of_step(session: Session, batch: Batch) -> StepReport:
    """Losses and gradients of some of a batch's images; nothing is updated."""
    method, spread, plan, step = session.method, session.spread, session.plan, session.step
    at = plan.clock(step)
    method.start_step(at)
    _, losses = gradients(method, spread, batch, at)
    norms = gradient_norms(list(spread.inside))
    scheduled, total = method.scheduled(at), norms.clamp(min=0).norm()
    rates = (plan.lr(step), plan.weight_decay(step))
    return StepReport(at, losses, (), norms, total, *rates, scheduled, stop=False, save=False)

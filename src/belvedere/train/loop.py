"""The training loop: one generator that the command, the demo, the tests and every golden run drain.

It knows no method. State changes at two places only, both after the vote: the optimizer's update and the
method's `after_update`. So a step that is not finite, or that a signal interrupts, leaves everything as the
last step did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from belvedere.core import dist, rng
from belvedere.core.errors import NonFiniteError
from belvedere.data.batch import Batch
from belvedere.engine.parallel import Spread, backward_in_parts, rows_together
from belvedere.methods.method import Clock, Encoded, Losses, Method
from belvedere.optim.clip import clip_, gradient_norms
from belvedere.optim.groups import set_
from belvedere.recipe.plan import Plan

Encode = Callable[[nn.Module, Batch], Encoded]
Head = Callable[[nn.Module, Encoded], Tensor]


@dataclass(frozen=True)
class Wish:
    """What this process wants after the step under way: to stop, to save."""

    stop: bool = False
    save: bool = False


@dataclass(frozen=True)
class StepReport:
    """One finished step. losses: this process's; norms: of each student gradient before clipping [P], in the
    order of `names`; total_norm: of all of them. stop, save: what the processes agreed on."""

    at: Clock
    losses: Losses
    names: tuple[str, ...]
    norms: Tensor
    total_norm: Tensor
    lr: float
    weight_decay: float
    scheduled: dict[str, float]
    stop: bool
    save: bool


class BadStepError(NonFiniteError):
    """A step that was not finite, with what is needed to look at it: the batch and the step's number."""

    def __init__(self, message: str, *, batch: Batch, at: Clock) -> None:
        super().__init__(message)
        self.batch, self.at = batch, at


def _no_wish(at: Clock) -> Wish:
    return Wish()


def steps(
    method: Method,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    plan: Plan,
    spread: Spread,
    *,
    start_step: int = 0,
    wish: Callable[[Clock], Wish] = _no_wish,
    epoch_batches: Callable[[Clock], Iterable[Batch]] | None = None,
) -> Iterator[StepReport]:
    """Train from `start_step` to the plan's end, yielding after every update.

    epoch_batches: this process's batches of the epoch that begins at a step, from its first one on, once
    more: what a method goes over in `start_epoch`. Without it `start_epoch` is not called, as for the single
    step of a trial.

    Raises `BadStepError` before an update that would not be finite.
    """
    student = {id(p) for p in spread.inside}
    names = tuple(name for name, p in spread.trained if id(p) in student)
    for step, batch in zip(range(start_step, plan.total_steps), batches, strict=False):
        at = plan.clock(step)
        if step % at.steps_per_epoch == 0 and epoch_batches is not None:
            method.start_epoch(at, partial(_embedded, spread, epoch_batches, at))
        method.start_step(at)
        optimizer.zero_grad(set_to_none=True)
        encoded, losses = gradients(method, spread, batch, at)
        method.before_update(at)
        norms = gradient_norms(list(spread.inside))
        total_norm = norms.clamp(min=0).norm()
        outside = gradient_norms(list(spread.outside)) if spread.outside else norms
        ask = _vote(losses.total, torch.stack([total_norm, outside.norm()]), wish(at))
        if ask.bad:
            raise BadStepError(_first_bad(losses, spread, batch, at), batch=batch, at=at)

        clip = plan.recipe.optim.clip
        if clip is not None and at.epoch >= clip.from_epoch:
            clip_(list(spread.inside), norms, clip.at(at.epoch))
        lr, weight_decay = plan.lr(step), plan.weight_decay(step)
        set_(optimizer, lr=lr, weight_decay=weight_decay)
        optimizer.step()
        method.after_update(encoded, losses, at)
        spread.commit()
        yield StepReport(
            at, losses, names, norms, total_norm, lr, weight_decay, method.scheduled(at), ask.stop, ask.save
        )


def gradients(method: Method, spread: Spread, batch: Batch, at: Clock) -> tuple[Encoded, Losses]:
    """What a step computes before anything changes: features, losses, and gradients on the parameters, added
    to those that are there."""
    if not batch.draws:
        drawn = method.draws(rng.torch_generator(spread.seed, "draws", at.step), batch)
        batch.draws = {name: draw.to(spread.device) for name, draw in drawn.items()}
    spread.discard()
    return _gradients(method, spread, batch, at)


def _embedded(
    spread: Spread, epoch_batches: Callable[[Clock], Iterable[Batch]], at: Clock, encode: Encode, head: Head
) -> Iterator[tuple[Batch, Tensor]]:
    """Each batch of the epoch that begins at `at`, and what the student makes of it: `embed_dataset`.

    encode(student, batch): backbone features, view-major, for each micro-batch; head(student, encoded): the
    result, once for all rows. Both run in train mode without gradient, in the scope and precision
    of the step. Running statistics stay as they are, so that going over the data once more gives the same.
    """
    for step, batch in enumerate(epoch_batches(at), at.step):
        parts = [batch.part(start, stop) for start, stop in spread.cuts(batch)]
        encoded = []
        with torch.no_grad():
            for part in parts:
                with spread.scope(part, step, "embed"):
                    encoded.append(encode(spread.student, part))
            with spread.scope(batch, step, "embed head"):
                z = head(spread.student, rows_together(encoded))
        spread.discard()
        yield batch, z


def _gradients(method: Method, spread: Spread, batch: Batch, at: Clock) -> tuple[Encoded, Losses]:
    """Encode, take the loss over all rows of this process, and leave averaged gradients on the parameters."""

    def encode(part: Batch) -> Encoded:
        with spread.scope(part, at.step, "student"):
            return method.encode_student(spread.student, part, at)

    def encode_teacher(part: Batch) -> Encoded:
        with torch.no_grad(), spread.scope(part, at.step, "teacher"):
            return method.encode_teacher(part, at)

    def loss(encoded: Encoded, target: Encoded) -> Losses:
        with spread.scope(batch, at.step, "loss"):
            return method.loss(spread.student, encoded, target, batch, at)

    if len(spread.cuts(batch)) > 1:
        return _gradients_in_parts(spread, batch, encode, encode_teacher, loss)
    target = encode_teacher(batch)
    encoded = encode(batch)
    losses = loss(encoded, target)
    losses.total.backward()
    losses.total = losses.total.detach()
    spread.average_gradients(all_of_them=False)
    return encoded, losses


def _gradients_in_parts(
    spread: Spread,
    batch: Batch,
    encode: Callable[[Batch], Encoded],
    encode_teacher: Callable[[Batch], Encoded],
    loss: Callable[[Encoded, Encoded], Losses],
) -> tuple[Encoded, Losses]:
    """The same by micro-batches: three passes over them, the student's twice and the teacher's."""
    cuts = spread.cuts(batch)
    parts, done = [batch.part(start, stop) for start, stop in cuts], 0

    def count() -> None:
        nonlocal done
        done += 1
        spread.part_done(done, 3 * len(parts))

    def counted(encode: Callable[[Batch], Encoded], part: Batch) -> Encoded:
        encoded = encode(part)
        count()
        return encoded

    with torch.no_grad():
        encoded = rows_together([counted(encode, part) for part in parts])
    spread.discard()  # the backbone's BatchNorm counts the pass with gradient
    target = rows_together([counted(encode_teacher, part) for part in parts])
    encoded = {name: h.detach().requires_grad_() for name, h in encoded.items()}
    with spread.unsynchronized():
        losses = loss(encoded, target)
        losses.total.backward()
        losses.total = losses.total.detach()
        gradient = {name: h.grad for name, h in encoded.items() if h.grad is not None}
        backward_in_parts(encode, batch, cuts, gradient, count)
    spread.average_gradients(all_of_them=True)
    return encoded, losses


@dataclass(frozen=True)
class _Outcome:
    bad: bool
    stop: bool
    save: bool


def _vote(total: Tensor, norms: Tensor, wish: Wish) -> _Outcome:
    """What all processes agree on: one small tensor, reduced and read once; a single wish is enough."""
    bad = ~(total.detach().isfinite() & norms.isfinite().all())
    ballot = torch.stack([bad.float(), bad.new_tensor(wish.stop).float(), bad.new_tensor(wish.save).float()])
    dist.all_reduce_(ballot, op="max")
    bad_, stop, save = (value > 0 for value in ballot.tolist())
    return _Outcome(bad_, stop, save)


def _first_bad(losses: Losses, spread: Spread, batch: Batch, at: Clock) -> str:
    """Which tensor went bad first, in the order of a step: parameters, views, loss, gradients."""
    found = [f"parameter {name!r}" for name, p in spread.trained if not p.detach().isfinite().all()]
    found += [f"the views {role!r}" for role, views in batch.views.items() if not views.isfinite().all()]
    found += [f"loss term {name!r}" for name, term in losses.terms.items() if not term.isfinite().all()]
    found += [
        f"the gradient of {name!r}"
        for name, p in spread.trained
        if p.grad is not None and not p.grad.isfinite().all()
    ]
    first = found[0] if found else "nothing of this process's; another process reported it"
    return (
        f"step {at.step} is not finite: first, {first}. Nothing was updated. Try a smaller optim.lr.peak, "
        "a longer optim.lr.warmup_epochs, an optim.clip, or train.precision: float32"
    )

"""SwAV: Swapping Assignments between Views (Caron et al. 2020, arXiv 2006.09882).

Every view of an image predicts to which prototypes another view of it was assigned. Assignments share the
prototypes out equally among all samples of a batch (Sinkhorn), which is what keeps the embedding from being
constant. There is no teacher and nothing is contrasted; a queue of recent embeddings stands in for samples
where the batch is small.

Departures from the authors' code, and why:
- Scores, targets and loss are computed in at least float32 and Sinkhorn in the log domain: equal, and no
  epsilon overflows. The code scores in half precision under mixed precision.
- The queue is pushed after the update instead of before the loss that does not see the push: equal, and a
  step that is not finite leaves it alone.
- Whether the queue is used follows from the step. The code looks whether its last row is still zero: equal.
- `bf16` runs the networks under autocast; the code has float16 with a scaled loss.
- BatchNorm spans all processes. The code has groups of 8 where more than one machine trains
  (`train.batch_norm_group`), so that results depend on how many rows a process has.

Legend: B images of this process, V views, A assigned views, D columns of an embedding, K prototypes, L rows
of this process's queue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from belvedere.core import dist, rng
from belvedere.core.settings import Settings
from belvedere.data.batch import Batch
from belvedere.engine.health import Health
from belvedere.engine.precision import at_least_float32, full_precision
from belvedere.engine.remedy import (
    STEADIER,
    Kind,
    Remedy,
    larger_steps,
    smaller_steps,
    softer_crops,
    weaker_decay,
)
from belvedere.methods.crops import ROLES, embeddings, encode_views, unit
from belvedere.methods.method import Clock, Encoded, Extent, Group, Kept, Losses, Method, MethodOptions
from belvedere.nn.heads import Projector, initialize_linears_
from belvedere.nn.resnet import ResNet
from belvedere.nn.spec import MLPHeadSpec
from belvedere.nn.vit import ViT
from belvedere.ops.sinkhorn import sinkhorn

Count = Annotated[int, Field(ge=1)]
PUBLISHED_EPSILON = 0.05


class Queue(Settings):
    """length: embeddings kept of each assigned view, over all processes; rounded down to whole batches.
    start_epoch: when it begins to fill; it is used once it is full."""

    length: Count
    start_epoch: Annotated[int, Field(ge=0)]

    def kept(self, global_batch: int) -> int:
        """`length` in whole batches."""
        return self.length // global_batch * global_batch


class Options(MethodOptions):
    """assign: the views that give targets, by number (from 0, global views first). temperature: of every
    prediction. epsilon: of Sinkhorn; smaller is sharper. freeze_prototypes_steps: how many steps leave the
    prototypes as they began, but for their length."""

    name: Literal["swav"]
    prototypes: Annotated[int, Field(ge=2)]
    assign: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    temperature: Annotated[float, Field(gt=0.0)]
    epsilon: Annotated[float, Field(gt=0.0)]
    sinkhorn_iterations: Count
    freeze_prototypes_steps: Annotated[int, Field(ge=0)]
    queue: Queue | None
    head: MLPHeadSpec

    def mistakes(self, views: Mapping[str, tuple[int, int]]) -> list[tuple[str, str]]:
        """Two views at least, and each of `assign` is one of them and named once."""
        found = []
        total = sum(count for count, _ in views.values())
        if "global" in views and total < 2:
            found.append(("views.global.count", "one view has no other to predict; SwAV needs at least 2"))
        given = ", ".join(map(str, self.assign))
        if len(set(self.assign)) < len(self.assign):
            found.append(("method.assign", f"[{given}] names a view twice; name each once"))
        if "global" in views and max(self.assign) >= max(total, 2):
            words = f"[{given}] names a view that is not there; the {total} views are 0 to {total - 1}"
            found.append(("method.assign", words))
        return found

    def misfits(self, extent: Extent) -> list[tuple[str, str]]:
        """The queue holds a whole batch, and begins before the run ends."""
        if self.queue is None:
            return []
        batch, start, kept = extent.global_batch, self.queue.start_epoch, self.queue.kept(extent.global_batch)
        if not kept:
            words = f"{self.queue.length} is less than one batch, and whole batches are kept; set it to "
            words += f"{batch} (train.global_batch) or a multiple, or write method.queue: null"
            return [("method.queue.length", words)]
        if start >= extent.epochs:
            words = f"{start} is never reached with train.epochs {extent.epochs}; give a smaller one "
            return [("method.queue.start_epoch", words + "or write method.queue: null")]
        return []

    def remarks(self, extent: Extent) -> list[tuple[str, str]]:
        """How long the queue is and when it is used."""
        if self.queue is None:
            return []
        kept = self.queue.kept(extent.global_batch)
        rounded = f"; {self.queue.length:,} rounded down" if kept != self.queue.length else ""
        words = f"{kept:,} embeddings ({kept // extent.global_batch} whole batches{rounded}) "
        first = self._first_use(self.queue, extent)
        return [("queue", words + f"from epoch {self.queue.start_epoch}, used from step {first:,}")]

    @staticmethod
    def _first_use(queue: Queue, extent: Extent) -> int:
        """The first step that the queue is full for."""
        batches = queue.kept(extent.global_batch) // extent.global_batch
        return queue.start_epoch * extent.steps_per_epoch + batches

    def doubts(self, extent: Extent) -> list[str]:
        """More prototypes than samples to share them; a queue never full; prototypes that never learn."""
        found = []
        kept = self.queue.kept(extent.global_batch) if self.queue else 0
        if self.queue and kept != self.queue.length:
            found.append(
                f"method.queue.length: {self.queue.length} is no whole number of batches of "
                f"{extent.global_batch} (train.global_batch); {kept} embeddings are kept"
            )
        if self.queue and self._first_use(self.queue, extent) >= extent.total_steps:
            found.append(
                f"method.queue.length: {self.queue.length} embeddings from epoch {self.queue.start_epoch} on "
                f"are not reached in {extent.total_steps} steps: the queue is never used; make it shorter, "
                "start it earlier, or write method.queue: null"
            )
        samples = extent.global_batch + kept
        if self.prototypes > samples:
            found.append(
                f"method.prototypes: Sinkhorn shares {self.prototypes} prototypes out among {samples} "
                "samples (batch and queue), less than one each, so that similar images need not meet; use "
                "fewer prototypes, a larger train.global_batch or a longer method.queue"
            )
        if self.freeze_prototypes_steps >= extent.total_steps:
            found.append(
                f"method.freeze_prototypes_steps: {self.freeze_prototypes_steps} steps of a run of "
                f"{extent.total_steps}: the prototypes never learn; the published number is one epoch of "
                f"ImageNet, which here is {extent.steps_per_epoch}"
            )
        return found

    def remedies(self, extent: Extent) -> Sequence[Remedy]:
        """For each kind: first what no published run has, then the authors' advice, then smaller steps."""
        return (*self._balance(extent), *self._spread(), *self._leave_ln_k(extent), *STEADIER)

    def _balance(self, extent: Extent) -> Sequence[Remedy]:
        """Against one prototype that takes all, and dead ones: neither lasts under balanced assignments."""
        takes_all: Kind = "one prototype takes all"
        dead: Kind = "dead prototypes"
        return tuple(
            remedy
            for kind in (takes_all, dead)
            for remedy in (
                *smaller_steps(kind, "steps of this size silence a network"),
                Remedy(kind, "method.temperature", "raise", 0.1, "predictions this sharp chase a few"),
                *self._calmer_queue(kind, extent),
                Remedy(kind, "method.epsilon", "raise", 0.05, "sharper assignments are less balanced"),
                Remedy(kind, "method.sinkhorn_iterations", "raise", 3, "assignments then share them out"),
                *self._fewer_prototypes(kind, extent),
                Remedy(kind, "optim.lr.peak", "scale", 0.3, "large steps let a few prototypes win"),
            )
        )

    def _spread(self) -> Sequence[Remedy]:
        """Against embeddings that point one way. BatchNorm in the head is no remedy here: where steps, decay
        or assignments silence the network, it does so with BatchNorm too, and learns without it."""
        constant: Kind = "constant embedding"
        return (
            *smaller_steps(constant, "steps of this size silence a network"),
            *weaker_decay(constant, "decay this strong outweighs what the loss asks for"),
            Remedy(constant, "method.epsilon", "lower", 0.03, "assignments this soft are alike"),
            Remedy(
                constant, "method.temperature", "raise", 0.1, "predictions this sharp punish any difference"
            ),
            *softer_crops(constant),
            Remedy(constant, "optim.lr.peak", "scale", 0.3, "large steps can silence a network"),
        )

    def _leave_ln_k(self, extent: Extent) -> Sequence[Remedy]:
        """Against a loss that stays at ln K: the authors' advice in the order of what it costs."""
        uniform: Kind = "uniform assignment"
        epoch = extent.steps_per_epoch
        soft = Remedy(uniform, "method.epsilon", "lower", 0.03, "assignments this soft are uniform")
        small = "steps of this size change nothing in time"
        return (
            *smaller_steps(uniform, "steps of this size undo each other"),
            *larger_steps(uniform, small, total_steps=extent.total_steps),
            Remedy(uniform, "method.temperature", "lower", 0.1, "predictions this soft stay uniform"),
            Remedy(uniform, "method.temperature", "raise", 0.1, "predictions this sharp punish any guess"),
            *weaker_decay(uniform, "decay this strong outweighs what the loss asks for"),
            *([soft] if self.epsilon > PUBLISHED_EPSILON else []),
            *self._calmer_queue(uniform, extent),
            *softer_crops(uniform),
            soft,
            *self._fewer_prototypes(uniform, extent),
            Remedy(uniform, "method.freeze_prototypes_steps", "raise", epoch, "embeddings settle first"),
            Remedy(uniform, "method.epsilon", "lower", 0.01, "assignments are then all but hard"),
            Remedy(uniform, "method.head.batch_norm", "set", False, "small batches have noisy statistics"),
            Remedy(uniform, "method.queue", "set", None, "old embeddings may disturb the assignment"),
            Remedy(uniform, "optim.lr.peak", "scale", 0.3, "large steps undo each other"),
        )

    def _calmer_queue(self, kind: Kind, extent: Extent) -> Sequence[Remedy]:
        """Later, then smaller; nothing without a queue."""
        if self.queue is None:
            return ()
        later = max(1, min(15, extent.epochs // 2))
        batches = self.queue.kept(extent.global_batch) // extent.global_batch
        half = max(1, batches // 2) * extent.global_batch
        return (
            Remedy(kind, "method.queue.start_epoch", "raise", later, "a queue needs embeddings that settled"),
            Remedy(kind, "method.queue.length", "lower", half, "its oldest embeddings are then newer"),
        )

    def _fewer_prototypes(self, kind: Kind, extent: Extent) -> Sequence[Remedy]:
        """For prototypes that never learn, the learning; else four images of a batch for each, then half."""
        few = max(2, extent.global_batch // 4)
        remedies = (
            Remedy(kind, "method.prototypes", "lower", few, "each then has four images of a batch"),
            Remedy(
                kind, "method.prototypes", "lower", max(2, self.prototypes // 2), "images are less unlike"
            ),
        )
        if 2 * self.freeze_prototypes_steps < extent.total_steps:
            return remedies
        learn, epoch = "prototypes that do not learn stay where no image is", extent.steps_per_epoch
        return (Remedy(kind, "method.freeze_prototypes_steps", "lower", epoch, learn), *remedies)


class SwAV(Method):
    """Student and prototypes. Views: `global` ones and, optionally, `local` ones; numbered in this order."""

    roles = ROLES
    optional_roles = ("local",)
    peak_twice = True
    per_rank_state = ("queue",)
    queue: Tensor | None

    def __init__(self, options: Options, backbone: ViT | ResNet, *, seed: int) -> None:
        super().__init__()
        self.options = options
        self.student: Projector = Projector(backbone, backbone.width, options.head)
        backbone.initialize_(rng.torch_generator(seed, "backbone"))
        initialize_linears_(self.student.projection_head, rng.torch_generator(seed, "head"))
        self.prototypes = nn.Linear(options.head.out, options.prototypes, bias=False)
        initialize_linears_(self.prototypes, rng.torch_generator(seed, "prototypes"))
        self.register_buffer("queue", None)

    def allocate(self, extent: Extent) -> None:
        """The queue [A, L, D], zeros."""
        if self.options.queue is not None:
            rows = self.options.queue.kept(extent.global_batch) // extent.world_size
            self.queue = torch.zeros(len(self.options.assign), rows, self.options.head.out)

    def groups(self) -> list[Group]:
        """All parameters alike: biases and BatchNorm are decayed too."""
        return [Group("all", list(self.parameters()), decay=True)]

    @torch.no_grad()
    def start_step(self, at: Clock) -> None:
        """Prototypes back onto the sphere, which the last update left; frozen ones too."""
        self.prototypes.weight.copy_(unit(self.prototypes.weight))

    # 3.2 Multi-crop

    def encode_student(self, student: nn.Module, batch: Batch, at: Clock) -> Encoded:
        """One pass per run of equal sizes, each with its own BatchNorm statistics."""
        return encode_views(student, batch)

    # 3.1 Online clustering

    def loss(self, student: nn.Module, encoded: Encoded, target: Encoded, batch: Batch, at: Clock) -> Losses:
        z = embeddings(student, encoded)  # [V, B, D]
        with full_precision(z.device):
            prototypes = at_least_float32(self.prototypes.weight)
            queue = self.full_queue(at, z.shape[1])
            queued = None if queue is None else queue @ prototypes.detach().T
            losses = swav_loss(z @ prototypes.T, queued, options=self.options)
        losses.kept["z"] = z.detach()
        losses.health = Health(
            z=losses.kept["z"],
            log_p=losses.kept.pop("log_p"),
            q=losses.kept["targets"].flatten(0, 1),
            cross_entropy=losses.total.detach(),
        )
        return losses

    def full_queue(self, at: Clock, batch: int) -> Tensor | None:
        """The queue [A, L, D] if it is in use: every batch since it began was pushed, and they fill it."""
        if self.options.queue is None:
            return None
        assert self.queue is not None, "allocate makes the queue"
        pushed = at.step - self.options.queue.start_epoch * at.steps_per_epoch
        return self.queue if pushed * batch >= self.queue.shape[1] else None

    def before_update(self, at: Clock) -> None:
        """Frozen prototypes have no gradient, so that the optimizer leaves them and their momentum alone."""
        if at.step < self.options.freeze_prototypes_steps:
            self.prototypes.weight.grad = None

    def after_update(self, encoded: Encoded, losses: Losses, at: Clock) -> None:
        """This step's embeddings into the queue."""
        if self.options.queue is not None and at.epoch >= self.options.queue.start_epoch:
            assert self.queue is not None, "allocate makes the queue"
            push_(self.queue, losses.kept["z"][list(self.options.assign)])

    def export(self) -> Kept:
        heads = {"projection_head": self.student.projection_head, "prototypes": self.prototypes}
        return Kept(self.student.backbone, heads)


build = SwAV


def push_(queue: Tensor, newest: Tensor) -> None:
    """Put a batch [A, B, D] in front of the queue [A, L, D]; the oldest batch falls out."""
    queue.copy_(torch.cat([newest, queue[:, : -newest.shape[1]]], dim=1))


def swav_loss(scores: Tensor, queued: Tensor | None, *, options: Options) -> Losses:
    """The cross-entropy of every view's prediction to the assignment of each assigned one that is not itself.

    scores [V, B, K]: cosines of embeddings and prototypes; queued [A, L, K]: those of the queue, or None. For
    each assigned view: mean over images, then over the other views; mean over assigned views. Kept: `targets`
    [A, B, K]. Watch: `mean_entropy` (of the mean prediction, in [0, ln K]), `prototypes_used`, `max_target`,
    `min_target`. SwAV, section 3.1 and equation 2.
    """
    log_p = (scores / options.temperature).log_softmax(2)  # [V, B, K]
    targets = assignments(scores[list(options.assign)].detach(), queued, options=options)
    total = log_p.new_zeros(())
    for view, q in zip(options.assign, targets, strict=True):
        others = [other for other in range(len(scores)) if other != view]
        total = total - (q * log_p[others]).sum(2).mean()
    total = total / len(options.assign)
    watch = _watch(log_p.detach(), targets)
    return Losses(
        total,
        terms={"swapped": total.detach()},
        watch=watch,
        kept={"targets": targets, "log_p": log_p.detach()},
    )


@torch.no_grad()
def assignments(scores: Tensor, queued: Tensor | None, *, options: Options) -> Tensor:
    """Balanced assignments q [A, B, K] of the assigned views' scores [A, B, K].

    Sinkhorn runs for each view over the rows of all processes, those of the queue [A, L, K] before the
    batch's. SwAV, section 3.1, "Computing codes online", and "Working with small batches".
    """
    q = []
    for view, rows in enumerate(scores):
        samples = rows if queued is None else torch.cat([queued[view], rows])  # [L + B, K]
        q.append(sinkhorn(samples / options.epsilon, options.sinkhorn_iterations)[-len(rows) :])
    return torch.stack(q)


def _watch(log_p: Tensor, targets: Tensor) -> dict[str, Tensor]:
    mean = log_p.exp().mean((0, 1))  # [K]
    dist.average_([mean])
    used = torch.zeros_like(mean)
    used[targets.argmax(2).flatten()] = 1
    dist.all_reduce_(used, op="max")
    return {
        "mean_entropy": -torch.xlogy(mean, mean).sum(),
        "prototypes_used": used.sum(),
        "max_target": targets.amax(2).mean(),
        "min_target": targets.amin(2).mean(),
    }

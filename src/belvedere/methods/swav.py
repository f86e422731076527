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

import torch
from torch import Tensor, nn

from belvedere.core import rng
from belvedere.data.batch import Batch
from belvedere.engine.health import Health
from belvedere.engine.precision import at_least_float32, full_precision
from belvedere.methods.method import Clock, Encoded, Extent, Group, Kept, Losses, Method
from belvedere.methods.options.swav import Options
from belvedere.methods.shared.crops import ROLES, embeddings, kept, onto_sphere_, projector
from belvedere.methods.shared.usage import mean_entropy, target_watch
from belvedere.methods.shared.views import encode_views
from belvedere.nn.build import Backbone
from belvedere.nn.heads import Projector, initialize_linears_
from belvedere.ops.sinkhorn import sinkhorn

__all__ = ["Options", "SwAV", "assignments", "build", "push_", "swav_loss"]


class SwAV(Method):
    """Student and prototypes. Views: `global` ones and, optionally, `local` ones; numbered in this order."""

    roles = ROLES
    optional_roles = ("local",)
    peak_twice = True
    per_rank_state = ("queue",)
    queue: Tensor | None

    def __init__(self, options: Options, backbone: Backbone, *, seed: int) -> None:
        super().__init__()
        self.options = options
        self.student: Projector = projector(backbone, options.head, seed=seed)
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

    # 3.2 Multi-crop

    def encode_student(self, student: nn.Module, batch: Batch, at: Clock) -> Encoded:
        return encode_views(student, batch, ROLES)

    # 3.1 Online clustering

    def start_step(self, at: Clock) -> None:
        """Prototypes back onto the sphere, which the last update left; frozen ones too."""
        onto_sphere_(self.prototypes)

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
        if at.step < self.options.frozen_steps(at.steps_per_epoch):
            self.prototypes.zero_grad(set_to_none=True)

    def after_update(self, encoded: Encoded, losses: Losses, at: Clock) -> None:
        """This step's embeddings into the queue."""
        if self.options.queue is not None and at.epoch >= self.options.queue.start_epoch:
            assert self.queue is not None, "allocate makes the queue"
            push_(self.queue, losses.kept["z"][list(self.options.assign)])

    def export(self) -> Kept:
        return kept(self.student, self.prototypes)


build = SwAV


def push_(queue: Tensor, newest: Tensor) -> None:
    """Put a batch [A, B, D] in front of the queue [A, L, D]; the oldest batch falls out."""
    queue.copy_(torch.cat([newest, queue[:, : -newest.shape[1]]], dim=1))


def swav_loss(scores: Tensor, queued: Tensor | None, *, options: Options) -> Losses:
    """The cross-entropy of every view's prediction to the assignment of each assigned one that is not itself.

    scores [V, B, K]: cosines of embeddings and prototypes; queued [A, L, K]: those of the queue, or None. For
    each assigned view: mean over images, then over the other views; mean over assigned views. Kept: `targets`
    [A, B, K]. SwAV, section 3.1 and equation 2.
    """
    log_p = (scores / options.temperature).log_softmax(2)  # [V, B, K]
    targets = assignments(scores[list(options.assign)].detach(), queued, options=options)
    total = log_p.new_zeros(())
    for view, q in zip(options.assign, targets, strict=True):
        others = [other for other in range(len(scores)) if other != view]
        total = total - (q * log_p[others]).sum(2).mean()
    total = total / len(options.assign)
    return Losses(
        total,
        terms={"swapped": total.detach()},
        watch={"mean_entropy": mean_entropy(log_p.detach()), **target_watch(targets)},
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

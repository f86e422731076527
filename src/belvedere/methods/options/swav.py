"""What a recipe says of SwAV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from belvedere.core.settings import Settings
from belvedere.engine.remedy import Remedy
from belvedere.methods.method import Extent, Held
from belvedere.methods.options.assigned import Assign, assign_mistakes
from belvedere.methods.options.frozen import FrozenPrototypes
from belvedere.methods.options.ranges import Count, Epochs, Positive, Prototypes
from belvedere.methods.remedies.swav import against_collapse
from belvedere.nn.spec import BackboneSpec, MLPHeadSpec


class Queue(Settings):
    """length: embeddings kept of each assigned view, over all processes; rounded down to whole batches.
    start_epoch: when it begins to fill; it is used once it is full."""

    length: Count
    """Embeddings kept of each assigned view, over all processes; rounded down to whole batches."""
    start_epoch: Epochs
    """The epoch, from 0, that it begins to fill in; it is used once it is full."""

    def kept(self, global_batch: int) -> int:
        """`length` in whole batches."""
        return self.length // global_batch * global_batch

    def first_use(self, extent: Extent) -> int:
        """The first step that it is full for."""
        batches = self.kept(extent.global_batch) // extent.global_batch
        return self.start_epoch * extent.steps_per_epoch + batches


class Options(FrozenPrototypes):
    """assign: the views that give targets, by number (from 0, global views first). temperature: of every
    prediction. epsilon: of Sinkhorn; smaller is sharper. freeze_prototypes_steps: how many steps leave the
    prototypes as they began, but for their length."""

    head_views: ClassVar[int] = 2

    name: Literal["swav"]
    """The method."""
    prototypes: Prototypes
    """How many prototypes."""
    assign: Assign
    """The views that give targets, by number (from 0, global views first)."""
    temperature: Positive
    """Temperature of every prediction."""
    epsilon: Positive
    """Sinkhorn's entropy weight; smaller is sharper."""
    sinkhorn_iterations: Annotated[int, Field(ge=1, le=10_000)]
    """Iterations of Sinkhorn."""
    queue: Queue | None
    """Embeddings of earlier batches that take part in the assignment (null: none)."""
    head: MLPHeadSpec
    """The projection head."""

    def mistakes(self, views: Mapping[str, tuple[int, int]]) -> list[tuple[str, str]]:
        """Two views at least, and each of `assign` is one of them and named once."""
        found = assign_mistakes(self.assign, views, least=2)
        if "global" in views and sum(count for count, _ in views.values()) < 2:
            words = "one view has no other to predict; SwAV needs at least 2"
            return [("views.global.count", words), *found]
        return found

    def misfits(self, extent: Extent) -> list[tuple[str, str]]:
        """The queue holds a whole batch, and begins before the run ends."""
        if self.queue is None:
            return []
        batch, start = extent.global_batch, self.queue.start_epoch
        if not self.queue.kept(batch):
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
        kept, first = self.queue.kept(extent.global_batch), self.queue.first_use(extent)
        rounded = f"; {self.queue.length:,} rounded down" if kept != self.queue.length else ""
        words = f"{kept:,} embeddings ({kept // extent.global_batch} whole batches{rounded}) "
        return [("queue", words + f"from epoch {self.queue.start_epoch}, used from step {first:,}")]

    def doubts(self, extent: Extent) -> list[str]:
        """More prototypes than samples to share them; a queue never full; prototypes that never learn."""
        found = []
        kept = self.queue.kept(extent.global_batch) if self.queue else 0
        if self.queue and kept != self.queue.length:
            found.append(
                f"method.queue.length: {self.queue.length} is no whole number of batches of "
                f"{extent.global_batch} (train.global_batch); {kept} embeddings are kept"
            )
        if self.queue and self.queue.first_use(extent) >= extent.total_steps:
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
        return found + self.frozen_for_good(extent, number="the published number")

    def held(self, backbone: BackboneSpec, extent: Extent) -> list[Held]:
        found = [
            Held("backbone", backbone.num_parameters, layers=backbone.num_layers),
            Held("method.head", self.head.num_parameters(backbone.out_width), layers=self.head.num_layers),
            Held("method.prototypes", self.prototypes * self.head.out),
        ]
        if self.queue is not None:
            rows = self.queue.kept(extent.global_batch) // extent.world_size
            found.append(Held("method.queue.length", own_bytes=len(self.assign) * rows * 4 * self.head.out))
        return found

    def loss_values(self, backbone: BackboneSpec, views: Mapping[str, tuple[int, int]]) -> int:
        """Of predictions there are scores, log-probabilities, one more of each view for each that is
        assigned, and the gradients of these."""
        rows = sum(count for count, _ in views.values())
        tables = (4 + len(self.assign)) * rows
        return rows * self.head.kept_values(backbone.out_width) + tables * self.prototypes

    def remedies(self, extent: Extent) -> Sequence[Remedy]:
        return against_collapse(
            extent,
            prototypes=self.prototypes,
            epsilon=self.epsilon,
            queued=self.queue.kept(extent.global_batch) if self.queue else None,
            frozen_steps=self.frozen_steps(extent.steps_per_epoch),
        )

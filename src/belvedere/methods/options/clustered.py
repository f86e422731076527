"""What a recipe says of DeepCluster-v2 and SeLa-v2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from belvedere.engine.remedy import Remedy
from belvedere.methods.method import Extent, Held, MethodOptions
from belvedere.methods.options.assigned import Assign, assign_mistakes
from belvedere.methods.options.frozen import FrozenPrototypes
from belvedere.methods.options.ranges import Count, Positive, Prototypes
from belvedere.methods.remedies.clustered import against_collapse, against_unbalanced
from belvedere.nn.spec import BackboneSpec, MLPHeadSpec


class ClusteredOptions(MethodOptions):
    """prototypes: of each head. assign: the views whose embeddings are kept for the next epoch's labels, by
    number (from 0, global views first); head h takes those of the h-th, and of the first again after the
    last. temperature: of every prediction."""

    prototypes: Annotated[tuple[Prototypes, ...], Field(min_length=1)]
    """Clusters of each head; the list has an entry for each head."""
    assign: Assign
    """The views whose embeddings are kept for the next epoch's labels, by number (from 0, global views
    first)."""
    temperature: Positive
    """Temperature of every prediction."""

    def mistakes(self, views: Mapping[str, tuple[int, int]]) -> list[tuple[str, str]]:
        """Each of `assign` is a view, is named once, and has a head."""
        found = assign_mistakes(self.assign, views)
        if len(self.assign) > len(self.prototypes):
            given, heads = ", ".join(map(str, self.assign)), len(self.prototypes)
            words = f"[{given}] has {len(self.assign)} views for {heads} heads (method.prototypes), and a "
            words += "view without a head has no effect; name fewer views or add heads"
            found.append(("method.assign", words))
        return found

    def misfits(self, extent: Extent) -> list[tuple[str, str]]:
        """No head has more prototypes than an epoch has images."""
        rows, most = extent.steps_per_epoch * extent.global_batch, max(self.prototypes)
        if most <= rows:
            return []
        if rows < 2:
            words = f"{most} prototypes for 1 image: there must be at least 2 of both; give more images"
            return [("method.prototypes", words)]
        words = f"{most} prototypes cannot be shared out among the {rows} images of an epoch; set each to "
        return [("method.prototypes", words + f"at most {rows}, or give more images")]

    def _held(
        self, head: MLPHeadSpec, backbone: BackboneSpec, extent: Extent, *, trained: bool
    ) -> list[Held]:
        """What both methods hold. trained: whether prototypes are."""
        rows, prototypes = extent.steps_per_epoch * extent.batch, sum(self.prototypes) * head.out
        labels = 4 * len(self.prototypes) * extent.images
        bank = 4 * len(self.assign) * rows * head.out + 8 * rows
        return [
            Held("backbone", backbone.num_parameters, layers=backbone.num_layers),
            Held("method.head", head.num_parameters(backbone.out_width), layers=head.num_layers),
            Held(
                "method.prototypes",
                prototypes if trained else 0,
                shared_bytes=0 if trained else 4 * prototypes,
            ),
            Held("method.head.out", own_bytes=bank, shared_bytes=labels),
        ]

    def _loss_values(
        self, head: MLPHeadSpec, backbone: BackboneSpec, views: Mapping[str, tuple[int, int]]
    ) -> int:
        """Of each head's predictions there are scores, log-probabilities and their gradient."""
        rows = sum(count for count, _ in views.values())
        return rows * (head.kept_values(backbone.out_width) + 4 * sum(self.prototypes))


class DeepClusterOptions(ClusteredOptions):
    """prototypes: clusters of each head. kmeans_iterations: how often centroids move."""

    name: Literal["deepcluster"]
    """The method."""
    kmeans_iterations: Annotated[int, Field(ge=1, le=10_000)]
    """How often k-means moves the centroids."""
    head: MLPHeadSpec
    """The projection head."""

    def held(self, backbone: BackboneSpec, extent: Extent) -> list[Held]:
        return self._held(self.head, backbone, extent, trained=False)

    def loss_values(self, backbone: BackboneSpec, views: Mapping[str, tuple[int, int]]) -> int:
        return self._loss_values(self.head, backbone, views)

    def remedies(self, extent: Extent) -> Sequence[Remedy]:
        return against_collapse(extent, prototypes=self.prototypes)


class SeLaOptions(ClusteredOptions, FrozenPrototypes):
    """epsilon: of Sinkhorn; smaller is sharper. refresh_epochs: from one assignment to the next.
    freeze_prototypes_steps: how many steps leave the prototypes as they began, but for their length."""

    name: Literal["sela"]
    """The method."""
    epsilon: Positive
    """Sinkhorn's entropy weight; smaller is sharper."""
    sinkhorn_iterations: Annotated[int, Field(ge=1, le=10_000)]
    """Iterations of Sinkhorn."""
    targets: Literal["hard", "soft"]
    """Whether an image is assigned to its best prototype (`hard`) or shared out (`soft`)."""
    refresh_epochs: Count
    """Epochs from one assignment to the next."""
    head: MLPHeadSpec
    """The projection head."""

    def unfit_start(self, epoch: int, *, epochs: int) -> list[tuple[str, str]]:
        """Assignments are in no published file, and are made every `refresh_epochs` alone."""
        below = epoch - epoch % self.refresh_epochs
        if epoch == below:
            return []
        near = [str(at) for at in (below, below + self.refresh_epochs) if 0 < at < epochs]
        told = f"the nearest {'is' if len(near) == 1 else 'are'} {' and '.join(near)}"
        remedy = told if near else "no epoch of this run is; leave init.start_epoch out"
        words = (
            f"{epoch} is no multiple of method.refresh_epochs, {self.refresh_epochs}: images get assignments "
            f"in such epochs alone, and weights bring none; {remedy}, or change method.refresh_epochs"
        )
        return [("init.start_epoch", words)]

    def doubts(self, extent: Extent) -> list[str]:
        """Prototypes that never learn; assignments that stay those of an untrained network."""
        found = self.frozen_for_good(extent, number="SwAV's number")
        if extent.epochs > 1 and self.refresh_epochs >= extent.epochs:
            found.append(
                f"method.refresh_epochs: {self.refresh_epochs} covers the run of {extent.epochs} epochs: "
                "all of it learns the assignments of an untrained network; give a smaller one"
            )
        return found

    def held(self, backbone: BackboneSpec, extent: Extent) -> list[Held]:
        """With soft targets also the bank and the prototypes of the last assignment."""
        found = self._held(self.head, backbone, extent, trained=True)
        if self.targets == "hard":
            return found
        *networks, bank = found
        rows, most = extent.steps_per_epoch * extent.batch, max(self.prototypes)
        snapshot = 4 * len(self.assign) * rows * self.head.out + 4 * extent.images
        then = 4 * (sum(self.prototypes) * self.head.out + len(self.prototypes) * most)
        return [*networks, Held(bank.key, own_bytes=bank.own_bytes + snapshot, shared_bytes=then)]

    def loss_values(self, backbone: BackboneSpec, views: Mapping[str, tuple[int, int]]) -> int:
        soft = sum(self.prototypes) * sum(count for count, _ in views.values())
        return self._loss_values(self.head, backbone, views) + (soft if self.targets == "soft" else 0)

    def remedies(self, extent: Extent) -> Sequence[Remedy]:
        frozen_steps = self.frozen_steps(extent.steps_per_epoch)
        return against_unbalanced(extent, prototypes=self.prototypes, frozen_steps=frozen_steps)

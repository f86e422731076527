"""SeLa-v2 (Caron et al. 2020, arXiv 2006.09882, table 3; after Asano et al. 2020, arXiv 1911.05371).

At the start of an epoch all images, by their embeddings as the last epoch saw them (the memory bank), are
shared out equally among the prototypes by Sinkhorn-Knopp; every view of an image then learns to predict the
prototype that it was given. The prototypes learn with the network.

The authors published weights and no code. One of them said how it is made: DeepCluster-v2 with Sinkhorn-Knopp
over the memory bank in place of k-means, and with prototypes that are learned by SGD as in SwAV and not
overwritten by centroids. So what is not listed here is DeepCluster-v2's (its page tells how that departs from
its authors' code), and what neither sentence settles is a key of the recipe:

- `prototypes`, default [3000, 3000, 3000]: DeepCluster-v2's heads, and `assign`, its views, banks in turn.
- `epsilon`, default 0.05: SwAV's. SeLa's own is 0.04 (lambda 25).
- `sinkhorn_iterations`, default 10: SwAV takes 3, in every step; once an epoch ten cost little and balance
  better. SeLa iterates until nothing changes.
- `targets`, default hard: SeLa's and DeepCluster-v2's labels are hard. Soft ones are worked out for a batch
  from the embeddings and prototypes of the epoch's start, which takes a second copy of the bank; all N x K
  never exist.
- `refresh_epochs`, default 1: assignments are new in every epoch, as DeepCluster-v2's are.
- `freeze_prototypes_steps`, default 313: SwAV's first epoch of ImageNet at batch 4096.

Prototypes are normalized before every forward, as in SwAV. Assignments are made from normalized ones.

Legend: B images of this process, V views, A assigned views, H heads, D columns of an embedding, K prototypes
of a head, N images of the data set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from belvedere.core import rng
from belvedere.data.batch import Batch
from belvedere.engine.precision import full_precision
from belvedere.engine.remedy import STEADIER, Kind, Remedy
from belvedere.methods.crops import ROLES, embeddings, encode_views, unit
from belvedere.methods.deepcluster import (
    Heads,
    Views,
    against_collapse,
    assign_mistakes,
    averaged_over_heads,
    deepcluster_loss,
    fill_,
    health_of,
    too_many_prototypes,
)
from belvedere.methods.method import Clock, Encoded, Extent, Group, Kept, Losses, Method, MethodOptions
from belvedere.nn.heads import Projector, PrototypeHeads, initialize_linears_
from belvedere.nn.resnet import ResNet
from belvedere.nn.spec import MLPHeadSpec
from belvedere.nn.vit import ViT
from belvedere.ops.assign import balanced_labels, balanced_shares, mean_over_assigned, potentials
from belvedere.ops.bank import UNSEEN, Bank, Snapshot

Count = Annotated[int, Field(ge=1)]


class Options(MethodOptions):
    """prototypes: of each head. assign: the views whose embeddings are shared out, by number (from 0, global
    views first); head h takes those of the h-th, and of the first again after the last. temperature: of every
    prediction. epsilon: of Sinkhorn; smaller is sharper. refresh_epochs: from one assignment to the next.
    freeze_prototypes_steps: how many steps leave the prototypes as they began, but for their length."""

    name: Literal["sela"]
    prototypes: Heads
    assign: Views
    temperature: Annotated[float, Field(gt=0.0)]
    epsilon: Annotated[float, Field(gt=0.0)]
    sinkhorn_iterations: Count
    targets: Literal["hard", "soft"]
    refresh_epochs: Count
    freeze_prototypes_steps: Annotated[int, Field(ge=0)]
    head: MLPHeadSpec

    def mistakes(self, views: Mapping[str, tuple[int, int]]) -> list[tuple[str, str]]:
        """Each of `assign` is a view, is named once, and has a head."""
        return assign_mistakes(self.assign, self.prototypes, views)

    def misfits(self, extent: Extent) -> list[tuple[str, str]]:
        """No head has more prototypes than an epoch has images."""
        return too_many_prototypes(self.prototypes, extent)

    def remedies(self, extent: Extent) -> Sequence[Remedy]:
        """Learned and frozen prototypes and Sinkhorn's own, where they are off; then DeepCluster-v2's."""
        learn, epoch = "prototypes that do not learn stay where no image is", extent.steps_per_epoch
        frozen = 2 * self.freeze_prototypes_steps >= extent.total_steps
        uniform: Kind = "uniform assignment"
        balance: tuple[Kind, ...] = ("one prototype takes all", "dead prototypes")
        thaw = (Remedy("dead prototypes", "method.freeze_prototypes_steps", "lower", epoch, learn),)
        return (
            *(
                Remedy(kind, "method.sinkhorn_iterations", "raise", 10, "assignments then share them out")
                for kind in balance
            ),
            *(thaw if frozen else ()),
            Remedy(uniform, "method.refresh_epochs", "lower", 1, "it learns assignments of an older network"),
            Remedy(uniform, "method.epsilon", "lower", 0.05, "assignments this soft are uniform"),
            *against_collapse(self.prototypes, extent),
            *STEADIER,
        )

    def doubts(self, extent: Extent) -> list[str]:
        """Prototypes that never learn; assignments that stay those of an untrained network."""
        found = []
        if self.freeze_prototypes_steps >= extent.total_steps:
            found.append(
                f"method.freeze_prototypes_steps: {self.freeze_prototypes_steps} steps of a run of "
                f"{extent.total_steps}: the prototypes never learn; SwAV's number is one epoch of ImageNet, "
                f"which here is {extent.steps_per_epoch}"
            )
        if extent.epochs > 1 and self.refresh_epochs >= extent.epochs:
            found.append(
                f"method.refresh_epochs: {self.refresh_epochs} covers the run of {extent.epochs} epochs: "
                "all of it learns the assignments of an untrained network; give a smaller one"
            )
        return found


class SeLa(Method):
    """Student, memory bank and learned prototypes. Views: `global` ones and, optionally, `local` ones;
    numbered in this order."""

    roles = ROLES
    optional_roles = ("local",)
    peak_twice = True
    per_rank_state: tuple[str, ...] = ("bank.embeddings", "bank.index")

    def __init__(self, options: Options, backbone: ViT | ResNet, *, seed: int) -> None:
        super().__init__()
        self.options = options
        self.student: Projector = Projector(backbone, backbone.width, options.head)
        backbone.initialize_(rng.torch_generator(seed, "backbone"))
        initialize_linears_(self.student.projection_head, rng.torch_generator(seed, "head"))
        self.prototypes = PrototypeHeads(options.head.out, options.prototypes)
        initialize_linears_(self.prototypes, rng.torch_generator(seed, "prototypes"))
        self.bank = Bank(len(options.assign), options.head.out)
        self.assignments: SoftAssignments | HardAssignments = HardAssignments(options)
        if options.targets == "soft":
            self.assignments = SoftAssignments(options)
            self.per_rank_state += ("assignments.snapshot.embeddings", "assignments.snapshot.row")

    def allocate(self, extent: Extent) -> None:
        """The bank, a row for each image of an epoch, and what gives every image its assignment."""
        self.bank.allocate(steps=extent.steps_per_epoch, batch=extent.batch)
        self.assignments.allocate(extent)

    def groups(self) -> list[Group]:
        """All parameters alike: biases and BatchNorm are decayed too."""
        return [Group("all", list(self.student.parameters()) + self.prototypes.weights(), decay=True)]

    # Assigning the memory, at the start of an epoch

    @torch.no_grad()
    def start_epoch(self, at: Clock, embed_dataset: Callable[..., Iterable[Any]]) -> None:
        """Share the images of the bank out among the prototypes as they now are, for every head."""
        if not self.bank.is_full():
            fill_(self.bank, embed_dataset, self.options.assign)
        if at.epoch % self.options.refresh_epochs == 0:
            self.assignments.take_(self.bank, [unit(w) for w in self.prototypes.weights()])

    # A step

    @torch.no_grad()
    def start_step(self, at: Clock) -> None:
        """Prototypes back onto the sphere, which the last update left; frozen ones too."""
        for weight in self.prototypes.weights():
            weight.copy_(unit(weight))

    def encode_student(self, student: nn.Module, batch: Batch, at: Clock) -> Encoded:
        return encode_views(student, batch)

    def loss(self, student: nn.Module, encoded: Encoded, target: Encoded, batch: Batch, at: Clock) -> Losses:
        z = embeddings(student, encoded)  # [V, B, D]
        with full_precision(z.device):
            scores = self.prototypes(z.flatten(0, 1))  # H of [V*B, K]
            losses = self.assignments.loss(scores, batch.index)
        losses.kept |= {"z": z.detach(), "index": batch.index}
        losses.health = health_of(losses, z.detach())
        return losses

    def before_update(self, at: Clock) -> None:
        """Frozen prototypes have no gradient, so that the optimizer leaves them and their momentum alone."""
        if at.step < self.options.freeze_prototypes_steps:
            for weight in self.prototypes.weights():
                weight.grad = None

    def after_update(self, encoded: Encoded, losses: Losses, at: Clock) -> None:
        """This step's embeddings into the bank, for the next epoch."""
        z = losses.kept["z"][list(self.options.assign)]  # [A, B, D]
        self.bank.write_(at.step % at.steps_per_epoch, z, losses.kept["index"])

    def export(self) -> Kept:
        heads = {"projection_head": self.student.projection_head, "prototypes": self.prototypes}
        return Kept(self.student.backbone, heads)


build = SeLa


class HardAssignments(nn.Module):
    """labels [H, N] int32: the prototype that has most of each image, for every head."""

    labels: Tensor

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options
        self.register_buffer("labels", torch.zeros(len(options.prototypes), 0, dtype=torch.int32))

    def allocate(self, extent: Extent) -> None:
        self.labels = self.labels.new_full((len(self.labels), extent.images), UNSEEN)

    def take_(self, bank: Bank, prototypes: Sequence[Tensor]) -> None:
        """Assign what is in the bank now. prototypes: H of [K, D], unit rows."""
        epsilon, iterations = self.options.epsilon, self.options.sinkhorn_iterations
        for head, weight in enumerate(prototypes):
            rows = bank.embeddings[head % len(bank.embeddings)]
            v = potentials(rows, weight, epsilon=epsilon, iterations=iterations)
            labels = balanced_labels(rows, weight, v, epsilon=epsilon)
            self.labels[head] = bank.by_image(labels, self.labels.shape[1])

    def loss(self, scores: Sequence[Tensor], index: Tensor) -> Losses:
        """scores: H of [V*B, K]; index [B]: the images."""
        return deepcluster_loss(scores, self.labels[:, index].long(), temperature=self.options.temperature)


class SoftAssignments(nn.Module):
    """What gives every image its share of each prototype: bank, prototypes and potentials of the epoch's
    start. potentials [H, largest K]."""

    potentials: Tensor

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options
        self.snapshot = Snapshot(len(options.assign), options.head.out)
        self.prototypes = PrototypeHeads(options.head.out, options.prototypes)
        for weight in self.prototypes.weights():
            nn.init.zeros_(weight)
        self.prototypes.requires_grad_(False)
        self.register_buffer("potentials", torch.zeros(len(options.prototypes), max(options.prototypes)))

    def allocate(self, extent: Extent) -> None:
        self.snapshot.allocate(rows=extent.steps_per_epoch * extent.batch, images=extent.images)

    def take_(self, bank: Bank, prototypes: Sequence[Tensor]) -> None:
        """Keep the bank as it is now, and balance it. prototypes: H of [K, D], unit rows."""
        self.snapshot.take_(bank)
        epsilon, iterations = self.options.epsilon, self.options.sinkhorn_iterations
        for head, (kept, weight) in enumerate(zip(self.prototypes.weights(), prototypes, strict=True)):
            kept.copy_(weight)
            rows = bank.embeddings[head % len(bank.embeddings)]
            v = potentials(rows, weight, epsilon=epsilon, iterations=iterations)
            self.potentials[head, : len(v)] = v

    def loss(self, scores: Sequence[Tensor], index: Tensor) -> Losses:
        """scores: H of [V*B, K]; index [B]: the images."""
        then, seen = self.snapshot.of_images(index)  # [A, B, D], [B]
        q = [
            balanced_shares(
                then[head % len(then)], kept, self.potentials[head, : len(kept)], epsilon=self.options.epsilon
            )
            for head, kept in enumerate(self.prototypes.weights())
        ]
        return soft_loss(scores, q, seen, temperature=self.options.temperature)


def soft_loss(scores: Sequence[Tensor], q: Sequence[Tensor], seen: Tensor, *, temperature: float) -> Losses:
    """The cross-entropy of every view's prediction to its image's shares, averaged over heads.

    scores: H of [V*B, K], view-major; q: H of [B, K]; seen [B] bool: the images that have shares. Watch: see
    `label_watch`, by the prototype that has most of an image.
    """
    log_p = [(logits / temperature).log_softmax(1) for logits in scores]  # H of [V*B, K]
    means = []
    for predicted, shares in zip(log_p, q, strict=True):
        views = len(predicted) // len(shares)
        losses = -(shares.repeat(views, 1) * predicted).sum(1)  # [V*B]
        means.append(mean_over_assigned(losses, seen.repeat(views)))
    labels = torch.stack([shares.argmax(1).where(seen, UNSEEN) for shares in q])  # [H, B]
    weights = seen.to(q[0]) / seen.sum().clamp(min=1)  # [B]
    return averaged_over_heads(means, log_p, labels, first_shares=weights @ q[0])

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

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from belvedere.methods.deepcluster import deepcluster_loss
from belvedere.methods.method import Clock, Extent, Group, Losses
from belvedere.methods.options.clustered import SeLaOptions as Options
from belvedere.methods.shared.clustered import Clustered, averaged_over_heads
from belvedere.methods.shared.crops import onto_sphere_, unit
from belvedere.nn.build import Backbone
from belvedere.nn.heads import PrototypeHeads
from belvedere.ops.assign import balanced_labels, balanced_shares, mean_over_assigned, potentials
from belvedere.ops.bank import UNSEEN, Bank, Snapshot

__all__ = ["HardAssignments", "Options", "SeLa", "SoftAssignments", "build", "soft_loss"]


class SeLa(Clustered):
    """Student, memory bank, learned prototypes, and what gives every image its assignment."""

    def __init__(self, options: Options, backbone: Backbone, *, seed: int) -> None:
        super().__init__(options, backbone, head=options.head, seed=seed)
        self.options = options
        self.assignments: SoftAssignments | HardAssignments = HardAssignments(options)
        if options.targets == "soft":
            self.assignments = SoftAssignments(options)
            self.per_rank_state += ("assignments.snapshot.embeddings", "assignments.snapshot.row")

    def allocate(self, extent: Extent) -> None:
        """The bank, and room for the assignment of every image."""
        super().allocate(extent)
        self.assignments.allocate(extent)

    def groups(self) -> list[Group]:
        """All parameters alike: biases and BatchNorm are decayed too."""
        return [Group("all", list(self.student.parameters()) + self.prototypes.weights(), decay=True)]

    # Assigning the memory, at the start of an epoch

    def assign_(self, at: Clock) -> None:
        """Share the images of the bank out among the prototypes as they now are, for every head."""
        if at.epoch % self.options.refresh_epochs == 0:
            self.assignments.take_(self.bank, [unit(w) for w in self.prototypes.weights()])

    # Predicting an image's assignment from each of its views

    def start_step(self, at: Clock) -> None:
        """Prototypes back onto the sphere, which the last update left; frozen ones too."""
        onto_sphere_(self.prototypes)

    def assigned_loss(self, scores: Sequence[Tensor], index: Tensor) -> Losses:
        return self.assignments.loss(scores, index)

    def before_update(self, at: Clock) -> None:
        """Frozen prototypes have no gradient, so that the optimizer leaves them and their momentum alone."""
        if at.step < self.options.frozen_steps(at.steps_per_epoch):
            self.prototypes.zero_grad(set_to_none=True)


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

    scores: H of [V*B, K], view-major; q: H of [B, K]; seen [B] bool: the images that have shares. In what is
    reported an image has the label of the prototype that has most of it.
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

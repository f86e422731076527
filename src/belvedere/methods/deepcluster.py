"""DeepCluster-v2 (Caron et al. 2020, arXiv 2006.09882, section 4.1 and appendix; after Caron et al. 2018).

At the start of every epoch the embeddings of all images, as the last epoch saw them (the memory bank), are
clustered by spherical k-means. The centroids are the epoch's prototypes, an image's cluster is its label, and
every view of the image learns to predict it. Several heads cluster with other first centroids, and other
numbers of clusters, and their losses are averaged.

Departures from the authors' code, and why:
- First centroids are drawn from the rows of all processes; the code takes rank 0's. So ranks agree with one
  large batch.
- The loss is the mean over the rows of the global batch that have a label. The code takes each process's mean
  and averages those, which differs where processes have unlike numbers of unseen images.
- Of several rows with one image (an unreadable one was replaced) the last in the order of the epoch gives the
  label, not the last of the highest rank.
- Before epoch 0 the bank is filled from the very views that epoch 0 trains on, and the pass leaves
  BatchNorm's running statistics alone; the code draws other views and moves the statistics. So an epoch's
  start that is repeated, as after a stop at its edge, is the same to the bit.
- A batch in which every image is unseen has loss 0; the code divides zero by zero.
- BatchNorm spans all processes. The code has groups of 8 of 64 (`train.batch_norm_group`), so that results
  depend on how many rows a process has.
- `bf16` runs the networks under autocast; the code has float32 only. Bank, clustering and loss are float32.

Legend: B images of this process, V views, A assigned views, H heads, D columns of an embedding, K clusters of
a head, N images of the data set.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.core import dist, rng
from belvedere.methods.method import Clock, Extent, Group, Losses
from belvedere.methods.options.clustered import DeepClusterOptions as Options
from belvedere.methods.shared.clustered import Clustered, averaged_over_heads, sizes_of
from belvedere.nn.build import Backbone
from belvedere.ops.assign import mean_over_assigned
from belvedere.ops.bank import UNSEEN
from belvedere.ops.kmeans import cluster

__all__ = ["DeepCluster", "Options", "build", "deepcluster_loss"]


class DeepCluster(Clustered):
    """Student, memory bank, and prototypes that only clustering moves. assignments [H, N] int32: the label of
    every image for every head, which outlives the rows it was found from: the epoch overwrites them."""

    assignments: Tensor

    def __init__(self, options: Options, backbone: Backbone, *, seed: int) -> None:
        super().__init__(options, backbone, head=options.head, seed=seed)
        self.options, self.seed = options, seed
        self.prototypes.requires_grad_(False)
        self.register_buffer("assignments", torch.zeros(len(options.prototypes), 0, dtype=torch.int32))

    def allocate(self, extent: Extent) -> None:
        """The bank, and room for the label of every image."""
        super().allocate(extent)
        self.assignments = self.assignments.new_full((len(self.options.prototypes), extent.images), UNSEEN)

    def groups(self) -> list[Group]:
        """All parameters but the prototypes, alike: biases and BatchNorm are decayed too."""
        return [Group("all", list(self.student.parameters()), decay=True)]

    # Clustering the memory, at the start of every epoch

    def assign_(self, at: Clock) -> None:
        """Cluster the bank for every head: its centroids become the prototypes, its clusters the labels."""
        for head, weight in enumerate(self.prototypes.weights()):
            centroids, labels = cluster(
                self.bank.embeddings[head % len(self.assign)],
                start=self.first_centroids(at, head),
                positions=self.bank.positions(),
                iterations=self.options.kmeans_iterations,
            )
            weight.copy_(centroids)
            self.assignments[head] = self.bank.by_image(labels, self.assignments.shape[1])

    def first_centroids(self, at: Clock, head: int) -> Tensor:
        """Which embeddings are a head's first centroids [K], by position among those of all processes."""
        generator = rng.torch_generator(self.seed, "clusters", at.epoch, head)
        rows = len(self.bank.index) * dist.world_size()
        return torch.randperm(rows, generator=generator)[: self.options.prototypes[head]]

    # Predicting an image's cluster from each of its views

    def assigned_loss(self, scores: Sequence[Tensor], index: Tensor) -> Losses:
        labels = self.assignments[:, index].long()  # [H, B]
        return deepcluster_loss(scores, labels, temperature=self.options.temperature)


build = DeepCluster


def deepcluster_loss(scores: Sequence[Tensor], labels: Tensor, *, temperature: float) -> Losses:
    """The cross-entropy of every view's prediction to its image's cluster, averaged over heads.

    scores: H of [V*B, K], view-major; labels [H, B] int64, `UNSEEN` where an image has none. SwAV,
    appendix on DeepCluster-v2.
    """
    log_p = [(logits / temperature).log_softmax(1) for logits in scores]  # H of [V*B, K]
    means = []
    for predicted, q in zip(log_p, labels, strict=True):
        tiled = q.repeat(len(predicted) // len(q))  # [V*B]
        losses = F.nll_loss(predicted, tiled, ignore_index=UNSEEN, reduction="none")
        means.append(mean_over_assigned(losses, tiled != UNSEEN))
    sizes = sizes_of(labels[0], scores[0].shape[1])[:-1].to(scores[0])  # [K]
    return averaged_over_heads(means, log_p, labels, first_shares=sizes / sizes.sum().clamp(min=1))

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

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from belvedere.core import dist, rng
from belvedere.data.batch import Batch
from belvedere.engine.health import Health
from belvedere.engine.precision import full_precision
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
from belvedere.nn.heads import Projector, PrototypeHeads, initialize_linears_
from belvedere.nn.resnet import ResNet
from belvedere.nn.spec import MLPHeadSpec
from belvedere.nn.vit import ViT
from belvedere.ops.assign import mean_over_assigned
from belvedere.ops.bank import UNSEEN, Bank
from belvedere.ops.kmeans import cluster

Views = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
Heads = Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1)]


class Options(MethodOptions):
    """prototypes: how many clusters each head has. assign: the views whose embeddings are clustered, by
    number (from 0, global views first); head h clusters those of the h-th, and of the first again after the
    last. temperature: of every prediction. kmeans_iterations: how often centroids move."""

    name: Literal["deepcluster"]
    prototypes: Heads
    assign: Views
    temperature: Annotated[float, Field(gt=0.0)]
    kmeans_iterations: Annotated[int, Field(ge=1)]
    head: MLPHeadSpec

    def mistakes(self, views: Mapping[str, tuple[int, int]]) -> list[tuple[str, str]]:
        """Each of `assign` is a view, is named once, and has a head."""
        return assign_mistakes(self.assign, self.prototypes, views)

    def misfits(self, extent: Extent) -> list[tuple[str, str]]:
        """No head has more clusters than an epoch has images."""
        return too_many_prototypes(self.prototypes, extent)

    def remedies(self, extent: Extent) -> Sequence[Remedy]:
        """Nothing balances clusters, so that what makes embeddings alike comes first whatever the kind."""
        return (*against_collapse(self.prototypes, extent), *STEADIER)


class DeepCluster(Method):
    """Student, memory bank, and prototypes that only clustering moves. Views: `global` ones and, optionally,
    `local` ones; numbered in this order."""

    roles = ROLES
    optional_roles = ("local",)
    peak_twice = True
    per_rank_state = ("bank.embeddings", "bank.index")
    assignments: Tensor

    def __init__(self, options: Options, backbone: ViT | ResNet, *, seed: int) -> None:
        super().__init__()
        self.options, self.seed = options, seed
        self.student: Projector = Projector(backbone, backbone.width, options.head)
        backbone.initialize_(rng.torch_generator(seed, "backbone"))
        initialize_linears_(self.student.projection_head, rng.torch_generator(seed, "head"))
        self.prototypes = PrototypeHeads(options.head.out, options.prototypes)
        initialize_linears_(self.prototypes, rng.torch_generator(seed, "prototypes"))
        self.prototypes.requires_grad_(False)
        self.bank = Bank(len(options.assign), options.head.out)
        self.register_buffer("assignments", torch.zeros(len(options.prototypes), 0, dtype=torch.int32))

    def allocate(self, extent: Extent) -> None:
        """The bank, a row for each image of an epoch, and the label of every image for every head [H, N]: it
        outlives the rows it was found from, which the epoch overwrites."""
        self.bank.allocate(steps=extent.steps_per_epoch, batch=extent.batch)
        self.assignments = self.assignments.new_full((len(self.options.prototypes), extent.images), UNSEEN)

    def groups(self) -> list[Group]:
        """All parameters but the prototypes, alike: biases and BatchNorm are decayed too."""
        return [Group("all", list(self.student.parameters()), decay=True)]

    # Clustering the memory, at the start of every epoch

    @torch.no_grad()
    def start_epoch(self, at: Clock, embed_dataset: Callable[..., Iterable[Any]]) -> None:
        """Cluster the bank for every head: its centroids become the prototypes, its clusters the labels."""
        if not self.bank.is_full():
            fill_(self.bank, embed_dataset, self.options.assign)
        for head, weight in enumerate(self.prototypes.weights()):
            centroids, labels = cluster(
                self.bank.embeddings[head % len(self.options.assign)],
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

    # A step

    def encode_student(self, student: nn.Module, batch: Batch, at: Clock) -> Encoded:
        return encode_views(student, batch)

    def loss(self, student: nn.Module, encoded: Encoded, target: Encoded, batch: Batch, at: Clock) -> Losses:
        z = embeddings(student, encoded)  # [V, B, D]
        with full_precision(z.device):
            scores = self.prototypes(z.flatten(0, 1))  # H of [V*B, K]
            labels = self.assignments[:, batch.index].long()  # [H, B]
            losses = deepcluster_loss(scores, labels, temperature=self.options.temperature)
        losses.kept |= {"z": z.detach(), "index": batch.index}
        losses.health = health_of(losses, z.detach())
        return losses

    def after_update(self, encoded: Encoded, losses: Losses, at: Clock) -> None:
        """This step's embeddings into the bank, for the next epoch."""
        z = losses.kept["z"][list(self.options.assign)]  # [A, B, D]
        self.bank.write_(at.step % at.steps_per_epoch, z, losses.kept["index"])

    def export(self) -> Kept:
        heads = {"projection_head": self.student.projection_head, "prototypes": self.prototypes}
        return Kept(self.student.backbone, heads)


build = DeepCluster


def deepcluster_loss(scores: Sequence[Tensor], labels: Tensor, *, temperature: float) -> Losses:
    """The cross-entropy of every view's prediction to its image's cluster, averaged over heads.

    scores: H of [V*B, K], view-major; labels [H, B] int64, `UNSEEN` where an image has none. Watch: see
    `label_watch`. SwAV, appendix on DeepCluster-v2.
    """
    log_p = [(logits / temperature).log_softmax(1) for logits in scores]  # H of [V*B, K]
    means = []
    for predicted, q in zip(log_p, labels, strict=True):
        tiled = q.repeat(len(predicted) // len(q))  # [V*B]
        losses = F.nll_loss(predicted, tiled, ignore_index=UNSEEN, reduction="none")
        means.append(mean_over_assigned(losses, tiled != UNSEEN))
    sizes = sizes_of(labels[0], scores[0].shape[1])[:-1].to(scores[0])  # [K]
    return averaged_over_heads(means, log_p, labels, first_shares=sizes / sizes.sum().clamp(min=1))


def averaged_over_heads(
    means: Sequence[Tensor], log_p: Sequence[Tensor], labels: Tensor, *, first_shares: Tensor
) -> Losses:
    """The losses of H heads, each 0-d, as one; log_p: H of [V*B, K]; labels [H, B].

    first_shares [K]: of the first head's targets, each prototype's. Kept for `health_of`: what of the first.
    """
    total = sum(means[1:], means[0]) / len(means)
    return Losses(
        total,
        terms={"cross_entropy": total.detach()},
        watch=label_watch(labels, [predicted.shape[1] for predicted in log_p]),
        kept={
            "targets": labels,
            "first_loss": means[0].detach(),
            "first_log_p": log_p[0].detach(),
            "first_shares": first_shares,
        },
    )


def health_of(losses: Losses, z: Tensor) -> Health:
    """What the watch measures; z [V, B, D]. The first head stands for all: they share an embedding, and may
    differ in K. Its targets are their mean, one row."""
    kept = losses.kept
    return Health(
        z=z,
        log_p=kept.pop("first_log_p").unflatten(0, z.shape[:2]),
        q=kept.pop("first_shares").unsqueeze(0),
        cross_entropy=kept.pop("first_loss"),
    )


@torch.no_grad()
def label_watch(labels: Tensor, counts: Sequence[int]) -> dict[str, Tensor]:
    """How a global batch is spread over prototypes, averaged over heads; labels [H, B], counts: K of each.

    `mean_entropy` of the share of images that each prototype has, in [0, ln K]: it falls to 0 where one takes
    all; `prototypes_used`; `unseen`, the share of images without a label.
    """
    entropy, used, unseen = [], [], []
    for q, count in zip(labels, counts, strict=True):
        sizes = sizes_of(q, count)
        dist.all_reduce_(sizes)
        share = sizes[:count].double() / sizes[:count].sum().clamp(min=1)
        entropy.append(-torch.xlogy(share, share).sum())
        used.append((share > 0).sum().double())
        unseen.append(sizes[count] / sizes.sum())
    named = {"mean_entropy": entropy, "prototypes_used": used, "unseen": unseen}
    return {name: torch.stack(values).mean() for name, values in named.items()}


def sizes_of(labels: Tensor, count: int) -> Tensor:
    """How many of labels [B] each of `count` prototypes has, and last how many are `UNSEEN`: [count + 1]."""
    sizes = labels.new_zeros(count + 1)  # bincount would wait for the device
    return sizes.scatter_add_(0, labels.where(labels != UNSEEN, count), torch.ones_like(labels))


# What SeLa-v2 does alike


def fill_(bank: Bank, embed_dataset: Callable[..., Iterable[Any]], assign: Sequence[int]) -> None:
    """Write every row of the bank from the batches of one epoch: one assigned view at a time, each with its
    own BatchNorm statistics."""

    def encode(student: nn.Module, batch: Batch) -> Encoded:
        views = [view for run in batch.runs(ROLES) for view in run]  # V of [B, 3, H, W]
        return {f"view_{number}": student(views[number], part="backbone").unsqueeze(0) for number in assign}

    def project(student: nn.Module, encoded: Encoded) -> Tensor:
        return torch.stack([unit(student(h[0], part="head")) for h in encoded.values()])  # [A, B, D]

    for step, (batch, z) in enumerate(embed_dataset(encode, project)):
        bank.write_(step, z, batch.index)
    assert bank.is_full(), "the pass over the data set gave fewer batches than an epoch has"


def against_collapse(prototypes: Sequence[int], extent: Extent) -> Sequence[Remedy]:
    """What to change first against each kind of collapse but values that are not finite.

    One prototype that takes all, dead prototypes and embeddings that point one way are one failure here:
    images that look alike have one cluster.
    """
    uniform: Kind = "uniform assignment"
    alike: tuple[Kind, ...] = ("one prototype takes all", "constant embedding", "dead prototypes")
    return (
        *(remedy for kind in alike for remedy in _tell_apart(kind, prototypes, extent)),
        *smaller_steps(uniform, "steps of this size undo each other"),
        *larger_steps(uniform, "steps of this size change nothing in time", total_steps=extent.total_steps),
        Remedy(uniform, "method.temperature", "lower", 0.1, "predictions this soft stay uniform"),
        *weaker_decay(uniform, "decay this strong outweighs what the loss asks for"),
        *softer_crops(uniform),
        *_fewer(uniform, prototypes, extent),
        Remedy(uniform, "optim.lr.peak", "scale", 0.3, "labels of the last epoch then still fit"),
    )


def _tell_apart(kind: Kind, prototypes: Sequence[int], extent: Extent) -> Sequence[Remedy]:
    return (
        *smaller_steps(kind, "steps of this size silence a network"),
        *weaker_decay(kind, "decay this strong outweighs what the loss asks for"),
        Remedy(kind, "method.head.batch_norm", "set", True, "it removes what all images share"),
        Remedy(kind, "method.temperature", "raise", 0.1, "predictions this sharp chase a few"),
        *_fewer(kind, prototypes, extent),
        Remedy(kind, "optim.lr.peak", "scale", 0.3, "large steps can silence a network"),
    )


def _fewer(kind: Kind, prototypes: Sequence[int], extent: Extent) -> Sequence[Remedy]:
    """Ten images of an epoch for each prototype (ImageNet has 427), then half as many."""
    most = max(2, extent.steps_per_epoch * extent.global_batch // 10)
    few, half = tuple(min(k, most) for k in prototypes), tuple(max(2, k // 2) for k in prototypes)
    return (
        Remedy(kind, "method.prototypes", "lower", few, "each then has ten images of an epoch"),
        Remedy(kind, "method.prototypes", "lower", half, "there are fewer kinds of images"),
    )


def assign_mistakes(
    assign: Sequence[int], prototypes: Sequence[int], views: Mapping[str, tuple[int, int]]
) -> list[tuple[str, str]]:
    """What is wrong with the numbers of assigned views, as `MethodOptions.mistakes` tells it."""
    found, given = [], ", ".join(map(str, assign))
    total = sum(count for count, _ in views.values())
    if len(set(assign)) < len(assign):
        found.append(("method.assign", f"[{given}] names a view twice; name each once"))
    if "global" in views and max(assign) >= total:
        words = f"[{given}] names a view that is not there; the {total} views are 0 to {total - 1}"
        found.append(("method.assign", words))
    if len(assign) > len(prototypes):
        words = f"[{given}] has {len(assign)} views for {len(prototypes)} heads (method.prototypes), and a "
        words += "view without a head has no effect; name fewer views or add heads"
        found.append(("method.assign", words))
    return found


def too_many_prototypes(prototypes: Sequence[int], extent: Extent) -> list[tuple[str, str]]:
    """Whether a head has more prototypes than the bank has rows, as `MethodOptions.misfits` tells it."""
    rows = extent.steps_per_epoch * extent.global_batch
    if max(prototypes) <= rows:
        return []
    words = (
        f"{max(prototypes)} prototypes cannot be shared out among the {rows} images of an epoch; set each to "
        f"at most {rows}, or give more images"
    )
    return [("method.prototypes", words)]

"""What DeepCluster-v2 and SeLa-v2 share: a memory bank whose images are given labels when an epoch begins.

Legend: B images of this process, V views, A assigned views, H heads, D columns of an embedding, K prototypes
of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from belvedere.core import dist, rng
from belvedere.data.batch import Batch
from belvedere.engine.health import Health, entropy
from belvedere.engine.precision import full_precision
from belvedere.methods.method import Clock, Encoded, Extent, Kept, Losses, Method
from belvedere.methods.options.clustered import ClusteredOptions
from belvedere.methods.shared.crops import ROLES, embeddings, kept, projector, unit
from belvedere.methods.shared.views import encode_views
from belvedere.nn.build import Backbone
from belvedere.nn.heads import Projector, PrototypeHeads, initialize_linears_
from belvedere.nn.spec import MLPHeadSpec
from belvedere.ops.bank import UNSEEN, Bank


class Clustered(Method):
    """Student, prototypes of every head, and memory bank. Views: `global` ones and, optionally, `local` ones;
    numbered in this order. A page says how images are assigned to prototypes (`assign_`), and what is asked
    of the scores of a step (`assigned_loss`)."""

    roles = ROLES
    optional_roles = ("local",)
    peak_twice = True
    per_rank_state: tuple[str, ...] = ("bank.embeddings", "bank.index")

    def __init__(
        self, options: ClusteredOptions, backbone: Backbone, *, head: MLPHeadSpec, seed: int
    ) -> None:
        super().__init__()
        self.assign = list(options.assign)
        self.student: Projector = projector(backbone, head, seed=seed)
        self.prototypes = PrototypeHeads(head.out, options.prototypes)
        initialize_linears_(self.prototypes, rng.torch_generator(seed, "prototypes"))
        self.bank = Bank(len(self.assign), head.out)

    def allocate(self, extent: Extent) -> None:
        """The bank: a row for each image of an epoch."""
        self.bank.allocate(steps=extent.steps_per_epoch, batch=extent.batch)

    def assign_(self, at: Clock) -> None:
        """Assign the images of the bank to prototypes, for every head."""
        raise NotImplementedError

    def assigned_loss(self, scores: Sequence[Tensor], index: Tensor) -> Losses:
        """What a step asks for. scores: H of [V*B, K], view-major; index [B]: the images."""
        raise NotImplementedError

    @torch.no_grad()
    def start_epoch(self, at: Clock, embed_dataset: Callable[..., Iterable[Any]]) -> None:
        if not self.bank.is_full():
            fill_(self.bank, embed_dataset, self.assign)
        self.assign_(at)

    def encode_student(self, student: nn.Module, batch: Batch, at: Clock) -> Encoded:
        return encode_views(student, batch, ROLES)

    def loss(self, student: nn.Module, encoded: Encoded, target: Encoded, batch: Batch, at: Clock) -> Losses:
        z = embeddings(student, encoded)  # [V, B, D]
        with full_precision(z.device):
            losses = self.assigned_loss(self.prototypes(z.flatten(0, 1)), batch.index)
        losses.kept |= {"z": z.detach(), "index": batch.index}
        losses.health = health_of(losses, z.detach())
        return losses

    def after_update(self, encoded: Encoded, losses: Losses, at: Clock) -> None:
        """This step's embeddings into the bank, for the next epoch."""
        z = losses.kept["z"][self.assign]  # [A, B, D]
        self.bank.write_(at.step % at.steps_per_epoch, z, losses.kept["index"])

    def export(self) -> Kept:
        return kept(self.student, self.prototypes)


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


def averaged_over_heads(
    means: Sequence[Tensor], log_p: Sequence[Tensor], labels: Tensor, *, first_shares: Tensor
) -> Losses:
    """The losses of H heads, each 0-d, as one; log_p: H of [V*B, K]; labels [H, B].

    first_shares [K]: of the first head's targets, each prototype's. Kept for `health_of`: what of the first.
    Watch: see `label_watch`.
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
    first = {name: losses.kept.pop(f"first_{name}") for name in ("log_p", "shares", "loss")}
    log_p, q = first["log_p"].unflatten(0, z.shape[:2]), first["shares"].unsqueeze(0)
    return Health(z=z, log_p=log_p, q=q, cross_entropy=first["loss"])


@torch.no_grad()
def label_watch(labels: Tensor, counts: Sequence[int]) -> dict[str, Tensor]:
    """How a global batch is spread over prototypes, averaged over heads; labels [H, B], counts: K of each.

    `mean_entropy` of the share of images that each prototype has, in [0, ln K]: it falls to 0 where one takes
    all; `prototypes_used`; `unseen`, the share of images without a label.
    """
    found: dict[str, list[Tensor]] = {"mean_entropy": [], "prototypes_used": [], "unseen": []}
    for q, count in zip(labels, counts, strict=True):
        sizes = sizes_of(q, count)
        dist.all_reduce_(sizes)
        share = sizes[:count].double() / sizes[:count].sum().clamp(min=1)
        found["mean_entropy"].append(entropy(share))
        found["prototypes_used"].append((share > 0).sum().double())
        found["unseen"].append(sizes[count] / sizes.sum())
    return {name: torch.stack(values).mean() for name, values in found.items()}


def sizes_of(labels: Tensor, count: int) -> Tensor:
    """How many of labels [B] each of `count` prototypes has, and last how many are `UNSEEN`: [count + 1]."""
    sizes = labels.new_zeros(count + 1)  # bincount would wait for the device
    return sizes.scatter_add_(0, labels.where(labels != UNSEEN, count), torch.ones_like(labels))

"""MSN: Masked Siamese Networks (Assran et al. 2022, arXiv 2204.07141).

Several *anchor* views of an image, the large ones with most patches dropped and the *focal* ones small, are
matched to the prototypes that the image's whole *target* view is matched to by a slowly moving copy of the
network. Nothing is reconstructed and nothing is contrasted: the mean prediction's entropy is kept high
(me-max), which with balanced targets (Sinkhorn) keeps the prototypes in use.

Departures from the authors' code, and why:
- Prototype gradients are averaged over processes where the code sums them, so that ranks agree with one
  large batch. AdamW cannot tell the difference but by its epsilon.
- Targets and Sinkhorn are computed in the log domain: equal, and a prototype that no sample of the batch
  touches no longer divides zero by zero.
- The cross-entropy is sum(-t log p) where the code writes log(p ** -t), which overflows where p underflows.
- The last block computes its class token alone, since nothing else of it is read.
- `bf16` precision runs the networks under autocast; the code has float32 only. The loss is float32 in both.

Legend: B images of this process, V views, D width, O head columns, K prototypes, N patches of a large view.
"""

from __future__ import annotations

import copy
import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from belvedere.core import dist, rng
from belvedere.core.schedule import Linear
from belvedere.data.batch import Batch
from belvedere.engine.health import Health
from belvedere.engine.precision import at_least_float32, full_precision
from belvedere.methods.method import Clock, Encoded, Group, Kept, Losses, Method
from belvedere.methods.options.msn import Options
from belvedere.methods.shared.usage import target_watch
from belvedere.nn.heads import ProjectionHead
from belvedere.nn.vit import ViT
from belvedere.ops.ema import follow_
from belvedere.ops.sinkhorn import sinkhorn

__all__ = ["MSN", "Encoder", "Options", "build", "msn_loss"]


class Encoder(nn.Module):
    """A backbone and its projection head; `forward` reaches either, so that a wrapper sees every use."""

    def __init__(self, backbone: ViT, head: ProjectionHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x: Tensor, *, part: Literal["backbone", "head"], keep: Tensor | None = None) -> Tensor:
        """`backbone`: images [R, 3, H, W] -> h [R, D]; `head`: h [R, D] -> z [R, O]."""
        if part == "head":
            z: Tensor = self.head(x)
            return z
        pooled: Tensor = self.backbone(x, keep=keep, regions=False).pooled
        return pooled


class MSN(Method):
    """Student, teacher and prototypes. Views: one `target`, `anchor`s and, optionally, `focal`s."""

    roles = ("target", "anchor", "focal")
    optional_roles = ("focal",)
    teacher_roles = ("target",)
    backbones = ("vit",)  # patches of the anchors are dropped
    schedule_first = 1  # learning rate and decay advance before the update

    def __init__(self, options: Options, backbone: ViT, *, seed: int) -> None:
        super().__init__()
        self.options = options
        self.student: Encoder = Encoder(backbone, ProjectionHead(backbone.width, options.head))
        self.student.backbone.initialize_(rng.torch_generator(seed, "backbone"))
        self.student.head.initialize_(rng.torch_generator(seed, "head"))
        self.teacher: Encoder = copy.deepcopy(self.student)
        self.teacher.requires_grad_(False)
        bound = math.sqrt(1 / options.head.out)
        prototypes = torch.empty(options.prototypes, options.head.out)
        prototypes.uniform_(-bound, bound, generator=rng.torch_generator(seed, "prototypes"))
        self.prototypes = nn.Parameter(prototypes)

    def groups(self) -> list[Group]:
        """Decayed matrices (class token and position table among them), the rest, the prototypes."""
        named = list(self.student.named_parameters())
        decayed = [p for name, p in named if p.ndim != 1 and "bias" not in name and "bn" not in name]
        kept = {id(p) for p in decayed}
        return [
            Group("decayed", decayed, decay=True),
            Group("not decayed", [p for _, p in named if id(p) not in kept], decay=False),
            Group("prototypes", [self.prototypes], decay=False),
        ]

    def scheduled(self, at: Clock) -> dict[str, float]:
        momentum, sharpen = self.options.momentum, self.options.sharpen
        return {
            "momentum": Linear(momentum.start, momentum.final, at.schedule_steps)(at.step),
            "sharpen": Linear(sharpen.start, sharpen.final, at.schedule_steps)(at.step),
        }

    # 3. Masked Siamese Networks: input views, patchify and mask, encode

    def draws(self, generator: torch.Generator, batch: Batch) -> dict[str, Tensor]:
        """The order of patches, shared by all images and large anchors of a step; the first ones stay."""
        patches = self.student.backbone.num_patches(batch.views["anchor"].shape[-1])
        return {"patch_order": torch.randperm(patches, generator=generator)}  # [N]

    def encode_student(self, student: nn.Module, batch: Batch, at: Clock) -> Encoded:
        """One pass per run of equal sizes; only the first (the large anchors) loses patches."""
        keep = self._kept(batch.draws["patch_order"])
        encoded: Encoded = {}
        for number, views in enumerate(batch.runs(("anchor", "focal"))):  # [V, B, 3, H, W]
            h = student(views.flatten(0, 1), part="backbone", keep=keep if number == 0 else None)
            encoded[f"anchors_{number}"] = h.unflatten(0, views.shape[:2])  # [V, B, D]
        return encoded

    def encode_teacher(self, batch: Batch, at: Clock) -> Encoded:
        views = batch.views["target"]
        h = self.teacher(views.flatten(0, 1), part="backbone")
        return {"target": h.unflatten(0, views.shape[:2])}  # [1, B, D]

    def _kept(self, order: Tensor) -> Tensor | None:
        if self.options.patch_drop == 0:
            return None
        return order[: self.options.num_kept(len(order))]

    # 3. Similarity metric and predictions; objective (equation 1)

    def loss(self, student: nn.Module, encoded: Encoded, target: Encoded, batch: Batch, at: Clock) -> Losses:
        # Each run of sizes has its own BatchNorm statistics, as it had its own pass.
        z = torch.cat([student(h.flatten(0, 1), part="head") for h in encoded.values()])  # [V*B, O]
        with torch.no_grad():
            h = self.teacher(target["target"].flatten(0, 1), part="head")  # [B, O]
        with full_precision(z.device):
            losses = msn_loss(
                at_least_float32(z),
                at_least_float32(h),
                at_least_float32(self.prototypes),
                options=self.options,
                sharpen=self.scheduled(at)["sharpen"],
            )
        losses.kept |= {"z": z.detach(), "h": h}
        rows = (-1, len(h))
        losses.health = Health(
            z=z.detach().unflatten(0, rows),
            log_p=losses.kept.pop("log_p").unflatten(0, rows),
            q=losses.kept["targets"],
            cross_entropy=losses.terms["ploss"],
        )
        return losses

    def after_update(self, encoded: Encoded, losses: Losses, at: Clock) -> None:
        """The teacher follows all parameters of the student, head included; buffers stay its own."""
        follow_(self.teacher, self.student, self.scheduled(at)["momentum"])

    def export(self) -> Kept:
        return Kept(
            self.teacher.backbone, {"head": self.teacher.head, "prototypes": self.prototypes.detach()}
        )


build = MSN


def msn_loss(
    anchors: Tensor, targets: Tensor, prototypes: Tensor, *, options: Options, sharpen: float
) -> Losses:
    """The cross-entropy of anchors to their image's target, minus the entropy of the mean prediction.

    anchors [V*B, O] view-major, targets [B, O] without gradient, prototypes [K, O]; sharpen is T. Terms:
    `ploss`, `me_max` (in [0, ln K]), `ent`. Watch: `prototypes_used`, `max_target`, `min_target`,
    `mean_entropy`. MSN, section 3 and appendix A.
    """
    log_p = _log_predictions(anchors, prototypes, options)  # [V*B, K]
    p = log_p.exp()
    with torch.no_grad():
        sharpened = (_log_predictions(targets, prototypes, options) / sharpen).log_softmax(1)
        q = sinkhorn(sharpened, options.sinkhorn_iterations)  # [B, K]
    repeated = q.repeat(len(anchors) // len(targets), 1)  # [V*B, K]
    ploss = -(repeated * log_p).sum(1).mean()

    mean = dist.averaged(p.mean(0))  # [K], over the global batch
    mean_entropy = -torch.xlogy(mean, mean).sum()
    me_max = math.log(options.prototypes) - mean_entropy
    ent = -(p * log_p).sum(1).mean()
    total = ploss
    if options.memax_weight:
        total = total + options.memax_weight * me_max
    if options.entropy_weight:
        total = total + options.entropy_weight * ent
    return Losses(
        total,
        terms={"ploss": ploss.detach(), "me_max": me_max.detach(), "ent": ent.detach()},
        watch={"mean_entropy": mean_entropy.detach(), **target_watch(q)},
        kept={"targets": q, "log_p": log_p.detach()},
    )


def _log_predictions(z: Tensor, prototypes: Tensor, options: Options) -> Tensor:
    """log softmax of cosine similarities over the temperature [R, K], with smoothed prototype labels."""
    cosine = F.normalize(z, dim=1, eps=1e-12) @ F.normalize(prototypes, dim=1, eps=1e-12).T
    log_p = (cosine / options.temperature).log_softmax(1)
    if options.label_smoothing == 0:
        return log_p
    smoothing = options.label_smoothing
    return (log_p.exp() * (1 - smoothing) + smoothing / options.prototypes).log()

"""EsViT: Efficient self-supervised Vision Transformers (Li et al. 2022, arXiv 2106.09785).

A student predicts, from every crop of an image, what a slowly moving teacher makes of the two large ones.
*View* task (DINO, Caron et al. 2021): a prediction for the whole crop. *Region* task: one for every region of
the last map, and the target of a region is that of the region of the other view which is most like it. The
teacher's targets are kept from being all alike by centering and by a low temperature.

Departures from the authors' code, and why:
- Logits of regions are computed in chunks of images and never held together: equal (`ops.cross_entropy`).
- The center of a batch is taken as the logits of its mean row: equal, since the last layer is linear.
- Two large crops without small ones, and several sizes of small ones, are allowed with the region task too;
  the code fails there.
- Mixup pairs neighbours instead of both ends of a process's batch (`ops.mixup`), and its soft targets are
  read by the mixed student image. It is refused with the region task, where the code ignores its targets.
- Gradients of frozen last layers are dropped before their norms are clipped instead of after: equal.
- `bf16` precision runs the networks under autocast; the code has float16 with a scaled loss. Probabilities
  and losses are float32 in both.

Legend: B images of this process, V crops, N regions of a crop, D width, O bottleneck columns, K prototypes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from belvedere.core import rng
from belvedere.data.batch import Batch
from belvedere.engine.precision import full_precision
from belvedere.methods.method import Clock, Encoded, Group, Kept, Losses, Method
from belvedere.methods.options.esvit import Options
from belvedere.methods.shared.centered import (
    decayed_and_not,
    freeze_last_layers_,
    observe,
    teacher_momentum,
    teacher_of,
)
from belvedere.methods.shared.views import all_views, encode_views, runs_of, through_last_layer
from belvedere.nn.build import Backbone
from belvedere.nn.heads import TaskHeads
from belvedere.ops.ema import center_, follow_
from belvedere.ops.mixup import mixed_views
from belvedere.ops.view_losses import Regions, centered_targets, mean_logits, region_loss, view_loss

__all__ = ["EsViT", "Options", "build"]

_LARGE = ("global", "global_2")
ROLES = (*_LARGE, "local", "local_2", "local_3")
"""The crops, numbered in this order. Consecutive ones of one size share a pass. The teacher sees two, which
are both `global`, or one of them `global_2` where their colours are treated differently, as published."""


class EsViT(Method):
    """Student, teacher and centers. Crops: two large ones and, optionally, `local` ones of up to three sizes.
    center, center_grid [1, K]: of the view's and the regions' logits, named as published."""

    roles = ROLES
    optional_roles = ROLES[1:]
    peak_twice = True
    afresh = ("student.head_dense.", "teacher.head_dense.", "center_grid")
    center: Tensor
    center_grid: Tensor

    def __init__(self, options: Options, backbone: Backbone, *, seed: int) -> None:
        super().__init__()
        self.options = options
        self.student: TaskHeads = TaskHeads(backbone, backbone.width, options.head, regions=options.region)
        backbone.initialize_(rng.torch_generator(seed, "backbone"))
        self.student.head.initialize_(rng.torch_generator(seed, "head"))
        if self.student.head_dense is not None:
            self.student.head_dense.initialize_(rng.torch_generator(seed, "head_dense"))
        self.teacher: TaskHeads = teacher_of(self.student)
        self.register_buffer("center", torch.zeros(1, options.head.out))
        if options.region:
            self.register_buffer("center_grid", torch.zeros(1, options.head.out))

    def groups(self) -> list[Group]:
        """Biases and vectors are not decayed."""
        return list(decayed_and_not(self.student.named_parameters()))

    def scheduled(self, at: Clock) -> dict[str, float]:
        return {
            "momentum": teacher_momentum(self.options.momentum, at),
            "teacher_temperature": self.options.teacher_temperature(at.epoch),
        }

    # Views: crops of an image, mixed or not

    def draws(self, generator: torch.Generator, batch: Batch) -> dict[str, Tensor]:
        """With mixup, the student's crops of this process by role, mixed [V, B, 3, H, W], and how much of
        each image each of them is [V, B, B]."""
        mixup = self.options.mixup
        if mixup is None:
            return {}
        seed = int(torch.randint(1 << 62, (), generator=generator))
        crops = {role: batch.views[role] for role in ROLES if role in batch.views}
        mixed, shares = mixed_views(crops, seed, **mixup.model_dump())
        return {f"mixed_{role}": views for role, views in mixed.items()} | {"shares": shares}

    def _students(self, batch: Batch) -> Batch:
        """What the student sees of a batch or a micro-batch."""
        if "shares" not in batch.draws:
            return batch
        views = {}
        for role in batch.views:
            mixed = batch.draws[f"mixed_{role}"]
            first = batch.rows.start % mixed.shape[1]  # a process has whole batches of rows
            views[role] = mixed[:, first : first + len(batch.rows)]
        return Batch(views, batch.index, batch.label, batch.rows)

    def encode_student(self, student: nn.Module, batch: Batch, at: Clock) -> Encoded:
        return encode_views(student, self._students(batch), ROLES)

    def encode_teacher(self, batch: Batch, at: Clock) -> Encoded:
        return encode_views(self.teacher, batch, _LARGE)

    # View-level and region-level prediction (3.2)

    def loss(self, student: nn.Module, encoded: Encoded, target: Encoded, batch: Batch, at: Clock) -> Losses:
        """The mean of the tasks' losses."""
        losses, temperature = Losses(torch.zeros(())), self.scheduled(at)["teacher_temperature"]
        seen = (student, encoded, target)
        losses.total = self._view(*seen, losses, temperature, shares=batch.draws.get("shares"))
        if self.options.region:
            losses.total = (losses.total + self._region(*seen, losses, temperature)) / 2
        return losses

    def _view(
        self,
        student: nn.Module,
        encoded: Encoded,
        target: Encoded,
        losses: Losses,
        temperature: float,
        *,
        shares: Tensor | None,
    ) -> Tensor:
        """The cross-entropy to what the teacher makes of a whole crop. shares [V, B, B]: of what the
        student's crops are mixed. temperature: of the targets."""
        h, h_teacher = all_views(encoded), all_views(target)  # [V, B, D], [2, B, D]
        z, weight = through_last_layer(student, "head", h)  # [V, B, O]
        with torch.no_grad():
            z_teacher, teacher_weight = through_last_layer(self.teacher, "head", h_teacher)  # [2, B, O]
        with full_precision(z.device):
            q = centered_targets(z_teacher, teacher_weight, self.center, temperature)  # [2, B, K]
            loss = view_loss(z, weight, q, temperature=self.options.temperature, shares=shares)
            losses.kept["center"] = mean_logits([z_teacher], teacher_weight)
        losses.terms["view"] = loss.detach()
        observe(losses, z[: len(q)], weight, q, temperature=self.options.temperature, cross_entropy=loss)
        return loss

    def _region(
        self, student: nn.Module, encoded: Encoded, target: Encoded, losses: Losses, temperature: float
    ) -> Tensor:
        """The cross-entropy to what the teacher makes of the region most like one's own."""
        regions = _regions(student, encoded)
        with torch.no_grad():
            z, weight, h = _regions(self.teacher, target)
            of_teacher = Regions([torch.cat(z)], weight, [torch.cat(h)])
        with full_precision(weight.device):
            temperatures = {"temperature": self.options.temperature, "teacher_temperature": temperature}
            loss = region_loss(regions, of_teacher, self.center_grid, **temperatures)
            losses.kept["center_grid"] = mean_logits(of_teacher.z, weight)
        losses.terms["region"] = loss.detach()
        return loss

    # Updates

    def before_update(self, at: Clock) -> None:
        if at.epoch < self.options.freeze_last_layer_epochs:
            freeze_last_layers_(self.student)

    def after_update(self, encoded: Encoded, losses: Losses, at: Clock) -> None:
        """The teacher follows all parameters, its buffers stay its own; the centers take in this step."""
        follow_(self.teacher, self.student, self.scheduled(at)["momentum"])
        for name, center in self.named_buffers(recurse=False):
            center_(center, losses.kept[name], self.options.center_momentum)

    def export(self) -> Kept:
        heads: dict[str, nn.Module | Tensor] = {"head": self.teacher.head, "center": self.center}
        if self.teacher.head_dense is not None:
            heads |= {"head_dense": self.teacher.head_dense, "center_grid": self.center_grid}
        return Kept(self.teacher.backbone, heads)


build = EsViT


def _regions(network: nn.Module, encoded: Encoded) -> Regions:
    """The regions of all crops, through `head_dense` at once."""
    runs = runs_of(encoded, "regions")
    z, weight = network(torch.cat([h.flatten(0, 2) for h in runs]), part="head_dense")
    rows = z.split([h[..., 0].numel() for h in runs])
    parts = [part.view(*h.shape[:3], -1) for part, h in zip(rows, runs, strict=True)]
    return Regions(parts, weight, [h.detach() for h in runs])

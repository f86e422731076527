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

import copy
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from belvedere.core import dist, rng
from belvedere.core.schedule import WarmupCosine
from belvedere.core.settings import Settings
from belvedere.data.batch import Batch
from belvedere.engine.precision import full_precision
from belvedere.engine.remedy import STEADIER, Kind, Remedy, larger_steps, smaller_steps, softer_crops
from belvedere.methods.centered import TeacherTemperature, observe
from belvedere.methods.method import Clock, Encoded, Extent, Group, Kept, Losses, Method, MethodOptions
from belvedere.nn.heads import TaskHeads
from belvedere.nn.spec import WeightNormHeadSpec
from belvedere.nn.vit import DropPath
from belvedere.ops.ema import ema_
from belvedere.ops.mixup import blended, draw_blend, shares
from belvedere.ops.view_losses import Regions, centered_targets, mean_logits, region_loss, view_loss
from belvedere.optim.spec import Range

_LARGE = ("global", "global_2")
ROLES = (*_LARGE, "local", "local_2", "local_3")
"""The crops, numbered in this order. Consecutive ones of one size share a pass. The teacher sees two, which
are both `global`, or one of them `global_2` where their colours are treated differently, as published."""
_TEACHERS = 2


class Mixup(Settings):
    """Mixing of the student's first `views` crops: CutMix with probability `cutmix_p`, else mixup; alpha,
    cutmix_alpha: of the Beta distributions of their shares."""

    alpha: Annotated[float, Field(gt=0.0)]
    cutmix_alpha: Annotated[float, Field(gt=0.0)]
    cutmix_p: Annotated[float, Field(ge=0.0, le=1.0)]
    views: Annotated[int, Field(ge=1)]


class Options(MethodOptions):
    """region: whether the region task is added to the view task, each with half of the weight. temperature:
    of the student's predictions. center_momentum: of the mean of the teacher's logits. momentum: of the
    teacher. freeze_last_layer_epochs: how many epochs leave the heads' last layers as they began. head: one
    for each task."""

    name: Literal["esvit"]
    region: bool
    temperature: Annotated[float, Field(gt=0.0)]
    teacher_temperature: TeacherTemperature
    center_momentum: Annotated[float, Field(ge=0.0, le=1.0)]
    momentum: Range
    freeze_last_layer_epochs: Annotated[int, Field(ge=0)]
    mixup: Mixup | None
    head: WeightNormHeadSpec

    @property
    def prototypes(self) -> int:
        return self.head.out

    def mistakes(self, views: Mapping[str, tuple[int, int]]) -> list[tuple[str, str]]:
        """Two crops for the teacher, regions to match, and no mixing of what is matched region by region."""
        found = []
        large = [views[role] for role in _LARGE if role in views]
        if large and sum(count for count, _ in large) != _TEACHERS:
            words = (
                f"{large[0][0]} is not allowed; EsViT's teacher sees 2 views, both global, or one global and "
            )
            found.append(
                ("views.global.count", words + "one global_2; others of any size belong under local")
            )
        if self.region and self.mixup is not None:
            words = "has no targets for regions, which are matched one by one; write method.mixup: null, or "
            found.append(("method.mixup", words + "method.region: false"))
        regions = [count for _, count in large] if self.region else []
        if regions and regions[0] == 1:
            words = "leaves a single region, which every region would be matched to; make it larger, or set "
            found.append(("views.global.px", words + "method.region to false"))
        if len(set(regions)) > 1:
            words = f"gives {regions[1]} regions and views.global.px {regions[0]}; make both sizes the same"
            found.append(("views.global_2.px", words))
        return found

    def misfits(self, extent: Extent) -> list[tuple[str, str]]:
        """Warm-up and freezing end within the run; mixup pairs images of one process."""
        found, epochs = [], extent.epochs
        warmup = self.teacher_temperature.warmup_epochs
        if warmup > epochs:
            words = f"{warmup} is longer than the run, train.epochs {epochs}; give at most that"
            found.append(("method.teacher_temperature.warmup_epochs", words))
        if self.mixup is not None and extent.batch % 2:
            words = f"{extent.global_batch} leaves a process {extent.batch} images, and mixup pairs them; "
            words += f"give a multiple of {2 * extent.world_size}, or write method.mixup: null"
            found.append(("train.global_batch", words))
        return found

    def doubts(self, extent: Extent) -> list[str]:
        """Last layers that never learn."""
        frozen = self.freeze_last_layer_epochs
        if frozen < extent.epochs:
            return []
        words = f"method.freeze_last_layer_epochs: {frozen} of {extent.epochs} epochs: the heads' last "
        return [words + "layers never learn; the published number is 1 of 300"]

    def remedies(self, extent: Extent) -> Sequence[Remedy]:
        """Centering spreads the targets, a low temperature sharpens them; then what steadies the last layer,
        which is the authors' advice for a loss that does not fall; then the size of a step."""
        few = max(2, extent.global_batch)
        takes_all: Kind = "one prototype takes all"
        constant: Kind = "constant embedding"
        uniform: Kind = "uniform assignment"
        dead: Kind = "dead prototypes"
        final, start = "method.teacher_temperature.final", "method.teacher_temperature.start"
        frozen = "method.freeze_last_layer_epochs"
        return (
            Remedy(takes_all, "method.center_momentum", "lower", 0.9, "the center follows sooner"),
            Remedy(takes_all, start, "raise", 0.04, "targets this sharp run ahead of the center"),
            Remedy(takes_all, frozen, "raise", 1, "the center is there before prototypes move"),
            Remedy(takes_all, "method.head.norm_last_layer", "set", True, "no prototype outgrows the others"),
            *smaller_steps(takes_all, "no published run has larger steps"),
            Remedy(takes_all, final, "scale", 1.5, "softer targets share the prototypes out"),
            Remedy(takes_all, "optim.lr.peak", "scale", 0.3, "large steps let the first prototype win"),
            *smaller_steps(constant, "steps of this size silence a network"),
            Remedy(constant, frozen, "raise", 1, "the network moves before its prototypes"),
            Remedy(constant, final, "lower", 0.04, "soft targets are alike"),
            Remedy(constant, "optim.lr.peak", "scale", 0.3, "large steps can silence a network"),
            Remedy(uniform, final, "lower", 0.07, "no published run has softer targets"),
            Remedy(uniform, start, "lower", 0.04, "no published run begins with softer targets"),
            Remedy(uniform, frozen, "raise", 1, "the network moves before its prototypes"),
            Remedy(uniform, "method.temperature", "lower", 0.1, "predictions this soft stay uniform"),
            Remedy(uniform, final, "lower", 0.04, "sharper targets tell images apart sooner"),
            *smaller_steps(uniform, "steps of this size undo each other"),
            *larger_steps(
                uniform, "steps of this size change nothing in time", total_steps=extent.total_steps
            ),
            Remedy(uniform, "method.head.norm_last_layer", "set", True, "all prototypes then weigh the same"),
            Remedy(uniform, "method.head.out", "lower", few, "a batch can then use them all"),
            *softer_crops(uniform),
            Remedy(uniform, "optim.lr.peak", "scale", 0.3, "large steps undo each other"),
            Remedy(dead, "method.head.norm_last_layer", "set", True, "no prototype outgrows the others"),
            Remedy(dead, "method.head.out", "lower", few, "a batch can then use them all"),
            Remedy(dead, "method.head.out", "scale", 0.5, "there are fewer kinds of images"),
            Remedy("non-finite values", "optim.clip", "set", _CLIP, "one tensor's gradient cannot run away"),
            *STEADIER,
        )


_CLIP: Mapping[str, float | int | str] = {"kind": "per_tensor", "norm": 3.0, "from_epoch": 0}


class EsViT(Method):
    """Student, teacher and centers. Crops: two large ones and, optionally, `local` ones of up to three sizes.
    center, center_grid [1, K]: of the view's and the regions' logits, named as published."""

    roles = ROLES
    optional_roles = ROLES[1:]
    backbones = ("vit", "resnet", "swin", "cvt", "vil")
    peak_twice = True
    afresh = ("student.head_dense.", "teacher.head_dense.", "center_grid")
    center: Tensor
    center_grid: Tensor

    def __init__(self, options: Options, backbone: Any, *, seed: int) -> None:
        super().__init__()
        self.options = options
        self.student: TaskHeads = TaskHeads(backbone, backbone.width, options.head, regions=options.region)
        backbone.initialize_(rng.torch_generator(seed, "backbone"))
        self.student.head.initialize_(rng.torch_generator(seed, "head"))
        if self.student.head_dense is not None:
            self.student.head_dense.initialize_(rng.torch_generator(seed, "head_dense"))
        self.teacher: TaskHeads = copy.deepcopy(self.student)
        self.teacher.requires_grad_(False)
        for module in self.teacher.modules():
            if isinstance(module, DropPath):
                module.rate = 0.0
        self.register_buffer("center", torch.zeros(1, options.head.out))
        if options.region:
            self.register_buffer("center_grid", torch.zeros(1, options.head.out))

    def groups(self) -> list[Group]:
        """Matrices, and all else that has more than one dimension (tables, class tokens, `weight_g`), are
        decayed; biases and vectors are not."""
        named = [(name, p) for name, p in self.student.named_parameters() if p.requires_grad]
        vectors = {name for name, p in named if p.ndim == 1 or name.endswith(".bias")}
        return [
            Group("decayed", [p for name, p in named if name not in vectors], decay=True),
            Group("not decayed", [p for name, p in named if name in vectors], decay=False),
        ]

    def scheduled(self, at: Clock) -> dict[str, float]:
        start, final = self.options.momentum.start, self.options.momentum.final
        return {
            "momentum": WarmupCosine(start, start, final, 0, int(at.schedule_steps))(at.step),
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
        drawn, matrices, number = {}, [], 0
        for role in (role for role in ROLES if role in batch.views):
            mixed = []
            for crops in batch.views[role]:  # [B, 3, H, W]
                blend = None
                if number < mixup.views:
                    settings = mixup.model_dump(exclude={"views"})
                    blend = draw_blend(seed, number, crops.shape[-1], **settings)
                mixed.append(crops if blend is None else blended(crops, blend))
                matrices.append(shares(blend, crops, len(crops)))
                number += 1
            drawn[f"mixed_{role}"] = torch.stack(mixed)
        return {**drawn, "shares": torch.stack(matrices)}

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
        """One pass per run of equal sizes, each with its own BatchNorm statistics."""
        encoded: Encoded = {}
        for number, views in enumerate(self._students(batch).runs(ROLES)):  # [V, B, 3, H, W]
            encoded |= _encoded(student, views, number)
        return encoded

    def encode_teacher(self, batch: Batch, at: Clock) -> Encoded:
        encoded: Encoded = {}
        for number, views in enumerate(batch.runs(_LARGE)):  # [V, B, 3, H, W]
            encoded |= _encoded(self.teacher, views, number)
        return encoded

    # View-level and region-level prediction (3.2)

    def loss(self, student: nn.Module, encoded: Encoded, target: Encoded, batch: Batch, at: Clock) -> Losses:
        options, temperature = self.options, self.scheduled(at)["teacher_temperature"]
        z, weight = _view_rows(student, encoded)  # [V, B, O]
        with torch.no_grad():
            z_teacher, teacher_weight = _view_rows(self.teacher, target)  # [2, B, O]
        with full_precision(z.device):
            q = centered_targets(z_teacher, teacher_weight, self.center, temperature)  # [2, B, K]
            drawn = batch.draws.get("shares")
            view = view_loss(z, weight, q, temperature=options.temperature, shares=drawn)
            losses = Losses(view, terms={"view": view.detach()})
            losses.kept["center"] = mean_logits([z_teacher], teacher_weight)
        if options.region:
            regions = _region_rows(student, encoded)
            with torch.no_grad():
                z_regions, region_weight, h_regions = _region_rows(self.teacher, target)
                of_teacher = Regions([torch.cat(z_regions)], region_weight, [torch.cat(h_regions)])
            with full_precision(z.device):
                temperatures = {"temperature": options.temperature, "teacher_temperature": temperature}
                region = region_loss(regions, of_teacher, self.center_grid, **temperatures)
                losses.kept["center_grid"] = mean_logits(of_teacher.z, of_teacher.weight)
            losses.total = (view + region) / 2
            losses.terms["region"] = region.detach()
        heads = (z[:_TEACHERS], weight, q)
        observe(losses, *heads, temperature=options.temperature, cross_entropy=losses.terms["view"])
        return losses

    def before_update(self, at: Clock) -> None:
        """Frozen last layers have no gradient, so that the optimizer leaves them and their moments alone."""
        if at.epoch < self.options.freeze_last_layer_epochs:
            for name, parameter in self.student.named_parameters():
                if ".last_layer." in name:
                    parameter.grad = None

    def after_update(self, encoded: Encoded, losses: Losses, at: Clock) -> None:
        """The teacher follows all parameters, its buffers stay its own; the centers take in this step."""
        ema_(list(self.teacher.parameters()), list(self.student.parameters()), self.scheduled(at)["momentum"])
        for name, center in self.named_buffers(recurse=False):
            newest = losses.kept[name]
            dist.average_([newest])
            center.lerp_(newest.to(center), 1 - self.options.center_momentum)

    def export(self) -> Kept:
        heads: dict[str, nn.Module | Tensor] = {"head": self.teacher.head, "center": self.center}
        if self.teacher.head_dense is not None:
            heads |= {"head_dense": self.teacher.head_dense, "center_grid": self.center_grid}
        return Kept(self.teacher.backbone, heads)


build = EsViT


def _encoded(network: nn.Module, views: Tensor, number: int) -> Encoded:
    """Backbone features of a run of views [V, B, 3, H, W]."""
    features = network(views.flatten(0, 1), part="backbone")
    names = (f"pooled_{number}", f"regions_{number}")
    return {n: h.unflatten(0, views.shape[:2]) for n, h in zip(names, features, strict=False)}


def _of(encoded: Encoded, name: str) -> list[Tensor]:
    return [h for key, h in encoded.items() if key.startswith(name)]


def _view_rows(network: nn.Module, encoded: Encoded) -> tuple[Tensor, Tensor]:
    """What the last layer of `head` reads [V, B, O], and that layer: the head sees all crops at once."""
    h = torch.cat(_of(encoded, "pooled_"))  # [V, B, D]
    z, weight = network(h.flatten(0, 1), part="head")
    return z.unflatten(0, h.shape[:2]), weight


def _region_rows(network: nn.Module, encoded: Encoded) -> Regions:
    """The regions of all crops, through `head_dense` at once."""
    runs = _of(encoded, "regions_")
    z, weight = network(torch.cat([h.flatten(0, 2) for h in runs]), part="head_dense")
    rows = z.split([h[..., 0].numel() for h in runs])
    parts = [part.view(*h.shape[:3], -1) for part, h in zip(rows, runs, strict=True)]
    return Regions(parts, weight, [h.detach() for h in runs])

"""What a recipe says of EsViT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from belvedere.core.settings import Settings
from belvedere.engine.remedy import Remedy
from belvedere.methods.method import Extent, Held, MethodOptions
from belvedere.methods.options.centered import TeacherTemperature
from belvedere.methods.options.ranges import Count, Epochs, Positive, Share
from belvedere.methods.remedies.centered import of_crops_and_regions
from belvedere.nn.spec import BackboneSpec, WeightNormHeadSpec
from belvedere.optim.spec import Range

_TARGETS = 5
"""Tables [images, prototypes] of a large crop: the teacher's logits and targets, what the watch is told."""


class Mixup(Settings):
    """Mixing of the student's first `views` crops: CutMix with probability `cutmix_p`, else mixup; alpha,
    cutmix_alpha: of the Beta distributions of their shares."""

    alpha: Positive
    """Parameter of the Beta distribution of mixup's shares."""
    cutmix_alpha: Positive
    """Parameter of the Beta distribution of CutMix's shares."""
    cutmix_p: Share
    """Probability of CutMix in place of mixup."""
    views: Count
    """How many of the student's views are mixed, the first ones."""


class Options(MethodOptions):
    """region: whether the region task is added to the view task, each with half of the weight. temperature:
    of the student's predictions. center_momentum: of the mean of the teacher's logits. momentum: of the
    teacher. freeze_last_layer_epochs: how many epochs leave the heads' last layers as they began. head: one
    for each task."""

    prototypes_key: ClassVar[str] = "method.head.out"
    head_views: ClassVar[int] = 2
    chunk_tables: ClassVar[int] = 4

    name: Literal["esvit"]
    """The method."""
    region: bool
    """Whether the region task is added to the view task, each with half of the weight."""
    temperature: Positive
    """Temperature of the student's predictions."""
    teacher_temperature: TeacherTemperature
    """Temperature of the targets."""
    center_momentum: Share
    """How much of the center stays when a batch's mean is added."""
    momentum: Range
    """How much of the teacher stays at a step, from start to final."""
    freeze_last_layer_epochs: Epochs
    """How many epochs leave the heads' last layers as they began."""
    mixup: Mixup | None
    """Mixing of the student's views (null: none)."""
    head: WeightNormHeadSpec
    """The projection head, one for each task."""

    @property
    def prototypes(self) -> int:
        return self.head.out

    def mistakes(self, views: Mapping[str, tuple[int, int]]) -> list[tuple[str, str]]:
        """Two crops for the teacher, regions to match, and no mixing of what is matched region by region."""
        found = []
        large = [views[role] for role in ("global", "global_2") if role in views]
        if large and sum(count for count, _ in large) != 2:
            words = f"{large[0][0]} is not allowed; EsViT's teacher sees 2 views, both global, or one global "
            words += "and one global_2; others of any size belong under local"
            found.append(("views.global.count", words))
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
        """The warm-up ends within the run; mixup pairs images of one process."""
        found = self.teacher_temperature.misfits(extent, at="method")
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

    def held(self, backbone: BackboneSpec, extent: Extent) -> list[Held]:
        network, width, tasks = backbone.num_parameters, backbone.out_width, 1 + self.region
        trained, whole = self.head.num_trained(width), self.head.num_parameters(width)
        centers = 4 * tasks * self.head.out + 4 * tasks * (whole - trained)
        return [
            Held("backbone", network, network, layers=2 * backbone.num_layers),
            Held(
                "method.head",
                tasks * trained,
                tasks * whole,
                shared_bytes=centers,
                layers=2 * tasks * self.head.num_layers,
            ),
        ]

    def loss_values(self, backbone: BackboneSpec, views: Mapping[str, tuple[int, int]]) -> int:
        """Rows of crops and, for regions, of all cells; the targets of two crops; logits are in chunks."""
        width, rows = backbone.out_width, sum(count for count, _ in views.values())
        regions = sum(count * cells for count, cells in views.values()) if self.region else 0
        large = sum(views[role][1] * views[role][0] for role in ("global", "global_2") if role in views)
        of_teacher = large * (width + 2 * self.head.bottleneck) if self.region else 0
        each = self.head.kept_values(width) + 3 * width
        return (rows + regions) * each + of_teacher + 2 * _TARGETS * self.head.out

    def remedies(self, extent: Extent) -> Sequence[Remedy]:
        return of_crops_and_regions(extent)

"""What a recipe says of Mugs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from belvedere.core.settings import Settings
from belvedere.data.spec import ViewSpec
from belvedere.engine.remedy import Remedy
from belvedere.methods.method import Extent, Held, MethodOptions
from belvedere.methods.options.centered import TeacherTemperature
from belvedere.methods.options.ranges import Count, Epochs, Positive, Share, Weight
from belvedere.methods.remedies.centered import of_granularities
from belvedere.nn.spec import BackboneSpec, ContrastiveHeadSpec, ViTSpec, WeightNormHeadSpec
from belvedere.optim.spec import Range

_TARGETS = 5
"""Tables [images, prototypes] of a large view: the teacher's logits and targets, what the watch is told."""


class Instance(Settings):
    """weight: of its loss in the mean of the three; 0 turns it off. queue: keys of earlier images, two of
    each, over all processes."""

    weight: Weight
    """Weight of this loss in the mean of the three; 0 turns it off."""
    temperature: Positive
    """Temperature of the predictions."""
    queue: Count
    """Keys of earlier images, of each of two, over all processes."""
    head: ContrastiveHeadSpec
    """The projection head."""

    @property
    def wanted(self) -> ContrastiveHeadSpec | None:
        """The head, where it has a loss."""
        return self.head if self.weight else None


class LocalGroup(Instance):
    """As for instances, and: memory, images that neighbours are looked up among, over all processes;
    neighbours, how many of them make a local group with an image."""

    memory: Count
    """Images that neighbours are looked up among, over all processes."""
    neighbours: Count
    """How many of them make a local group with an image."""


class Groups(Settings):
    """temperature: of the student's predictions. center_momentum: of the mean of the teacher's logits.
    freeze_last_layer_epochs: how many epochs leave the head's last layer as it began."""

    weight: Weight
    """Weight of this loss in the mean of the three; 0 turns it off."""
    temperature: Positive
    """Temperature of the student's predictions."""
    teacher_temperature: TeacherTemperature
    """Temperature of the targets."""
    center_momentum: Share
    """How much of the center stays when a batch's mean is added."""
    freeze_last_layer_epochs: Epochs
    """How many epochs leave the head's last layer as it began."""
    head: WeightNormHeadSpec
    """The projection head."""

    @property
    def wanted(self) -> WeightNormHeadSpec | None:
        """The head, where it has a loss."""
        return self.head if self.weight else None


class Options(MethodOptions):
    """Three supervisions, each with a weight; momentum: of the teacher; patch_embed_lr: times the learning
    rate, for the layer that embeds patches."""

    prototypes_key: ClassVar[str] = "method.group.head.out"
    head_views: ClassVar[int] = 2
    chunk_tables: ClassVar[int] = 4

    name: Literal["mugs"]
    """The method."""
    instance: Instance
    """Telling images apart."""
    local_group: LocalGroup
    """Telling an image with its neighbours apart."""
    group: Groups
    """Assigning images to prototypes."""
    momentum: Range
    """How much of the teacher stays at a step, from start to final."""
    patch_embed_lr: Positive
    """What the learning rate of the patch embedding is multiplied by."""

    @property
    def prototypes(self) -> int:
        return self.group.head.out if self.group.weight else 0

    @property
    def weights(self) -> dict[str, float]:
        """Those that are not 0, by the supervision's name."""
        given = {
            "instance": self.instance.weight,
            "local_group": self.local_group.weight,
            "group": self.group.weight,
        }
        return {name: weight for name, weight in given.items() if weight}

    @property
    def head(self) -> ContrastiveHeadSpec | WeightNormHeadSpec:
        """One that has a BatchNorm, if any has."""
        wanted = (self.instance.wanted, self.local_group.wanted, self.group.wanted)
        return max(
            (head for head in wanted if head), key=lambda head: head.batch_norm, default=self.group.head
        )

    def mistakes(self, views: Mapping[str, tuple[int, int]]) -> list[tuple[str, str]]:
        """Two views for the teacher and two large ones for the student, something to learn, and neighbours
        that there are."""
        found = []
        for first, second, who in (("target", "target_2", "teacher"), ("global", "global_2", "student")):
            count = sum(views[role][0] for role in (first, second) if role in views)
            if first in views and count != 2:
                words = f"{views[first][0]} is not allowed; Mugs' {who} sees 2 large views, both {first}, or "
                found.append((f"views.{first}.count", words + f"one {first} and one {second}"))
        if not self.weights:
            words = "0 leaves nothing to learn, as the weights of local_group and group are 0 too; give 1.0"
            found.append(("method.instance.weight", words))
        few, many = self.local_group.memory, self.local_group.neighbours
        if self.local_group.weight and many > few:
            words = f"{many} is more than the memory has slots, method.local_group.memory: {few}; give fewer"
            found.append(("method.local_group.neighbours", words))
        return found

    def unfit_views(self, views: Mapping[str, ViewSpec]) -> list[tuple[str, str]]:
        """The teacher's views are weak; whether the student's large ones are is one toss for an image, which
        decides whether its memory takes the image in."""
        found = []
        for role, view in views.items():
            if role in ("target", "target_2") and view.strong is not None:
                words = "is not allowed; the views that Mugs' teacher sees are weak ones: leave it out"
                found.append((f"views.{role}.strong", words))
            elif role in ("global", "global_2") and view.strong is not None and view.strong.coin != "image":
                words = "view is not allowed; Mugs tosses one coin for an image's large views: write image"
                found.append((f"views.{role}.strong.coin", words))
        return found

    def misfits(self, extent: Extent) -> list[tuple[str, str]]:
        """Queues and memory hold a whole batch, and the warm-up ends within the run."""
        batch, found = extent.global_batch, []
        sizes = {
            "instance": {"queue": self.instance.queue},
            "local_group": {"queue": self.local_group.queue, "memory": self.local_group.memory},
        }
        for section in sizes.keys() & self.weights:
            for name, size in sizes[section].items():
                if size < batch:
                    words = f"{size} is less than one batch; give at least {batch} (train.global_batch), or "
                    found.append((f"method.{section}.{name}", words + f"set method.{section}.weight to 0"))
        if self.group.weight:
            found += self.group.teacher_temperature.misfits(extent, at="method.group")
        return sorted(found)

    def doubts(self, extent: Extent) -> list[str]:
        """A last layer that never learns."""
        frozen = self.group.freeze_last_layer_epochs
        if not self.group.weight or frozen < extent.epochs:
            return []
        words = f"method.group.freeze_last_layer_epochs: {frozen} of {extent.epochs} epochs: the head's last "
        return [words + "layer never learns; the published number is 1 of 100"]

    def held(self, backbone: BackboneSpec, extent: Extent) -> list[Held]:
        network, width = backbone.num_parameters, backbone.out_width
        found = [Held("backbone", network, network, layers=2 * backbone.num_layers)]
        for name, part in (("instance", self.instance), ("local_group", self.local_group)):
            if not part.weight:
                continue
            student, teacher = (part.head.num_parameters(width, predictor=own) for own in (True, False))
            layers = 2 * part.head.num_layers
            found.append(Held(f"method.{name}.head", student, teacher, layers=layers))
            queue = 4 * part.queue * part.head.out + 8
            found.append(Held(f"method.{name}.queue", shared_bytes=queue))
        if self.local_group.weight:
            block = backbone.block_parameters if isinstance(backbone, ViTSpec) else 0
            found.append(Held("backbone", block, block, layers=20))
            memory = 2 * (2 * 4 * self.local_group.memory * width + 8)
            found.append(Held("method.local_group.memory", shared_bytes=memory))
        if self.group.weight:
            head = self.group.head
            trained, whole = head.num_trained(width), head.num_parameters(width)
            rest = 4 * (head.out + whole - trained)
            found.append(
                Held("method.group.head", trained, whole, shared_bytes=rest, layers=2 * head.num_layers)
            )
        return found

    def loss_values(self, backbone: BackboneSpec, views: Mapping[str, tuple[int, int]]) -> int:
        """Of every student's view its features and heads; of local groups the neighbours' tokens, keys and
        values; of groups the targets of two views. Logits are in chunks."""
        width = backbone.out_width
        rows = sum(count for role, (count, _) in views.items() if not role.startswith("target"))
        each, local = 6 * width, self.local_group
        if self.instance.weight:
            each += self.instance.head.kept_values(width)
        if local.weight:
            each += local.head.kept_values(width) + 5 * width * (1 + local.neighbours)
        if self.group.weight:
            each += self.group.head.kept_values(width)
        return rows * each + (2 * _TARGETS * self.group.head.out if self.group.weight else 0)

    def remedies(self, extent: Extent) -> Sequence[Remedy]:
        return of_granularities(extent, wanted=self.weights)

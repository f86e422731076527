"""Mugs: a multi-granular self-supervised learning framework (Zhou et al. 2022, arXiv 2203.14415).

A student predicts, from every view of an image, what a slowly moving teacher makes of two others, at three
granularities. *Instance* discrimination: an embedding is like the teacher's of the same image and unlike
those of earlier images. *Local-group* discrimination: the same for an image taken together with the images of
a memory that are most like it, which a transformer block (the relation block) makes one feature of. *Group*
discrimination: an image belongs to the prototypes that the teacher assigns it to, under centering.

Departures from the authors' code, and why:
- Weights weigh: the loss is a weighted mean. The code adds every loss as it is and divides the sum by that of
  the weights: equal for weights of 1, with which all published runs were made.
- With weight 0 a supervision's head, queue and memories do not exist; the code fails without the local-group
  one. No small views are allowed too: then large ones alone count.
- Queues and memories are stored to after the update instead of before the backward pass: equal, since each
  loss reads them as they were before the step, and a step that is not finite leaves them alone.
- They are drawn from one seed and equal on all processes. In the code they are so as long as all processes
  have the same random state.
- A third copy of each memory (`queue_v`), which nothing reads, is left out.
- The mean patch of any large view can be stored; in the code "large" is "224 pixels wide".
- The relation block computes its first token alone, since nothing else of it is read.
- Logits of the queue and of prototypes are computed in chunks and never held together: equal (`ops.contrast`,
  `ops.cross_entropy`). The center of a batch is taken as the logits of its mean row: equal.
- Gradients of the frozen last layer are dropped before norms are clipped instead of after: equal, since each
  is clipped on its own.
- Steps of an epoch are whole global batches; the code rounds per process.
- `bf16` precision runs the networks under autocast; the published runs are float32. Look-ups, probabilities
  and losses are float32 in both.

Legend: B images of this process, V views of the student, of which the first 2 are large, n neighbours, D
width, O columns of an embedding, K prototypes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from belvedere.core import dist, rng
from belvedere.core.schedule import WarmupCosine
from belvedere.core.settings import Settings
from belvedere.data.batch import Batch
from belvedere.data.spec import ViewSpec
from belvedere.engine.health import Health
from belvedere.engine.precision import full_precision
from belvedere.engine.remedy import STEADIER, Kind, Remedy, larger_steps, smaller_steps, softer_crops
from belvedere.methods.centered import TeacherTemperature, observe
from belvedere.methods.method import Clock, Encoded, Extent, Group, Kept, Losses, Method, MethodOptions
from belvedere.nn.granular import GranularNetwork
from belvedere.nn.spec import ContrastiveHeadSpec, WeightNormHeadSpec
from belvedere.nn.vit import DropPath, ViT
from belvedere.ops.contrast import contrastive_loss
from belvedere.ops.ema import ema_
from belvedere.ops.memory import KeyQueue, Memory
from belvedere.ops.view_losses import centered_targets, halved_view_loss, mean_logits
from belvedere.optim.spec import Range

Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0.0)]
Temperature = Annotated[float, Field(gt=0.0)]
TEACHERS = ("target", "target_2")
STUDENTS = ("global", "global_2", "local")
_LARGE = 2


class Instance(Settings):
    """weight: of its loss in the mean of the three; 0 turns it off. queue: keys of earlier images, two of
    each, over all processes."""

    weight: Weight
    temperature: Temperature
    queue: Count
    head: ContrastiveHeadSpec

    @property
    def wanted(self) -> ContrastiveHeadSpec | None:
        """The head, where it has a loss."""
        return self.head if self.weight else None


class LocalGroup(Instance):
    """As for instances, and: memory, images that neighbours are looked up among, over all processes;
    neighbours, how many of them make a local group with an image."""

    memory: Count
    neighbours: Count


class Groups(Settings):
    """temperature: of the student's predictions. center_momentum: of the mean of the teacher's logits.
    freeze_last_layer_epochs: how many epochs leave the head's last layer as it began."""

    weight: Weight
    temperature: Temperature
    teacher_temperature: TeacherTemperature
    center_momentum: Annotated[float, Field(ge=0.0, le=1.0)]
    freeze_last_layer_epochs: Annotated[int, Field(ge=0)]
    head: WeightNormHeadSpec

    @property
    def wanted(self) -> WeightNormHeadSpec | None:
        """The head, where it has a loss."""
        return self.head if self.weight else None


class Options(MethodOptions):
    """Three supervisions, each with a weight; momentum: of the teacher; patch_embed_lr: times the learning
    rate, for the layer that embeds patches."""

    name: Literal["mugs"]
    instance: Instance
    local_group: LocalGroup
    group: Groups
    momentum: Range
    patch_embed_lr: Annotated[float, Field(gt=0.0)]

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
            if first in views and count != _LARGE:
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
            if role in TEACHERS and view.strong is not None:
                words = "is not allowed; the views that Mugs' teacher sees are weak ones: leave it out"
                found.append((f"views.{role}.strong", words))
            elif role in STUDENTS[:_LARGE] and view.strong is not None and view.strong.coin != "image":
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
        warmup = self.group.teacher_temperature.warmup_epochs
        if self.group.weight and warmup > extent.epochs:
            words = f"{warmup} is longer than the run, train.epochs {extent.epochs}; give at most that"
            found.append(("method.group.teacher_temperature.warmup_epochs", words))
        return sorted(found)

    def doubts(self, extent: Extent) -> list[str]:
        """A last layer that never learns."""
        frozen = self.group.freeze_last_layer_epochs
        if not self.group.weight or frozen < extent.epochs:
            return []
        words = f"method.group.freeze_last_layer_epochs: {frozen} of {extent.epochs} epochs: the head's last "
        return [words + "layer never learns; the published number is 1 of 100"]

    def remedies(self, extent: Extent) -> Sequence[Remedy]:
        """Where groups collapse, the other supervisions hold against it; centering and a low temperature keep
        targets apart; then what steadies the last layer, then the size of a step."""
        few = max(2, extent.global_batch)
        takes_all: Kind = "one prototype takes all"
        constant: Kind = "constant embedding"
        uniform: Kind = "uniform assignment"
        dead: Kind = "dead prototypes"
        final, start = "method.group.teacher_temperature.final", "method.group.teacher_temperature.start"
        frozen, prototypes = "method.group.freeze_last_layer_epochs", "method.group.head.out"
        scales, apart = "method.group.head.norm_last_layer", "what tells images apart cannot be constant"
        of_groups = (
            Remedy(takes_all, "method.group.center_momentum", "lower", 0.9, "the center follows sooner"),
            Remedy(takes_all, start, "raise", 0.04, "targets this sharp run ahead of the center"),
            Remedy(takes_all, frozen, "raise", 1, "the center is there before prototypes move"),
            Remedy(takes_all, scales, "set", True, "no prototype outgrows the others"),
            Remedy(takes_all, final, "scale", 1.5, "softer targets share the prototypes out"),
            Remedy(constant, final, "lower", 0.04, "soft targets are alike"),
            Remedy(uniform, final, "lower", 0.07, "no published run has softer targets"),
            Remedy(uniform, start, "lower", 0.04, "no published run begins with softer targets"),
            Remedy(uniform, frozen, "raise", 1, "the network moves before its prototypes"),
            Remedy(uniform, "method.group.temperature", "lower", 0.1, "predictions this soft stay uniform"),
            Remedy(uniform, final, "lower", 0.04, "sharper targets tell images apart sooner"),
            Remedy(uniform, scales, "set", True, "all prototypes then weigh the same"),
            Remedy(uniform, prototypes, "lower", few, "a batch can then use them all"),
            Remedy(dead, scales, "set", True, "no prototype outgrows the others"),
            Remedy(dead, prototypes, "lower", few, "a batch can then use them all"),
            Remedy(dead, prototypes, "scale", 0.5, "there are fewer kinds of images"),
        )
        small = "steps of this size change nothing in time"
        return (
            *(
                Remedy(kind, f"method.{name}.weight", "raise", 1.0, apart)
                for kind in (constant, takes_all)
                for name in ("instance", "local_group")
            ),
            *smaller_steps(constant, "steps of this size silence a network"),
            *(
                Remedy(constant, f"method.{name}.head.batch_norm", "set", True, "it removes what all share")
                for name in self.weights
            ),
            *(of_groups if self.group.weight else ()),
            *smaller_steps(takes_all, "no published run has larger steps"),
            *smaller_steps(uniform, "steps of this size undo each other"),
            *larger_steps(uniform, small, total_steps=extent.total_steps),
            *softer_crops(uniform),
            *(
                Remedy(kind, "optim.lr.peak", "scale", 0.3, "large steps leave no time to spread")
                for kind in (takes_all, constant, uniform, dead)
            ),
            Remedy("non-finite values", "optim.clip", "set", _CLIP, "one tensor's gradient cannot run away"),
            *STEADIER,
        )


_CLIP: Mapping[str, float | int | str] = {"kind": "per_tensor", "norm": 3.0, "from_epoch": 0}


class Mugs(Method):
    """Student, teacher, two queues, two memories and a center [1, K]. The teacher's views are `target` and
    `target_2`; the student's `global` and `global_2`, which are as large, and optionally `local`."""

    roles = (*TEACHERS, *STUDENTS)
    optional_roles = ("target_2", "global_2", "local")
    teacher_roles = TEACHERS
    backbones = ("vit",)  # the relation block is one of its own
    peak_twice = True
    center: Tensor

    def __init__(self, options: Options, backbone: ViT, *, seed: int) -> None:
        super().__init__()
        self.options = options
        instance, local, group = options.instance, options.local_group, options.group
        self.student: GranularNetwork = GranularNetwork(
            backbone, instance=instance.wanted, local_group=local.wanted, group=group.wanted
        )
        self.student.initialize_(seed)
        self.teacher: GranularNetwork = copy.deepcopy(self.student)
        self.teacher.drop_predictors_()
        self.teacher.requires_grad_(False)
        for module in self.teacher.modules():
            if isinstance(module, DropPath):
                module.rate = 0.0
        if instance.weight:
            of_queue = rng.torch_generator(seed, "instance_queue")
            self.instance_queue = KeyQueue(instance.queue, instance.head.out, of_queue)
        if local.weight:
            of_queue = rng.torch_generator(seed, "local_group_queue")
            self.local_group_queue = KeyQueue(local.queue, local.head.out, of_queue)
            of_student, of_teacher = (
                rng.torch_generator(seed, f"{who}_memory") for who in ("student", "teacher")
            )
            self.student_memory = Memory(local.memory, backbone.width, of_student)
            self.teacher_memory = Memory(local.memory, backbone.width, of_teacher)
        if group.weight:
            self.register_buffer("center", torch.zeros(1, group.head.out))

    def groups(self) -> list[Group]:
        """All but vectors and biases is decayed (class token, positions and `weight_g` too); the layer that
        embeds patches learns more slowly."""
        named = [(name, p) for name, p in self.student.named_parameters() if p.requires_grad]

        def these(*, patches: bool, vectors: bool) -> list[nn.Parameter]:
            chosen = [(n, p) for n, p in named if ("patch_embed" in n) == patches]
            return [p for n, p in chosen if (p.ndim == 1 or n.endswith(".bias")) == vectors]

        slow = self.options.patch_embed_lr
        return [
            Group("decayed", these(patches=False, vectors=False), decay=True),
            Group("patches, decayed", these(patches=True, vectors=False), decay=True, lr_scale=slow),
            Group("not decayed", these(patches=False, vectors=True), decay=False),
            Group("patches, not decayed", these(patches=True, vectors=True), decay=False, lr_scale=slow),
        ]

    def scheduled(self, at: Clock) -> dict[str, float]:
        start, final = self.options.momentum.start, self.options.momentum.final
        values = {"momentum": WarmupCosine(start, start, final, 0, int(at.schedule_steps))(at.step)}
        if self.options.group.weight:
            values["teacher_temperature"] = self.options.group.teacher_temperature(at.epoch)
        return values

    # Overall framework

    def encode_student(self, student: nn.Module, batch: Batch, at: Clock) -> Encoded:
        """One pass per run of equal sizes."""
        return _encoded(student, batch, STUDENTS)

    def encode_teacher(self, batch: Batch, at: Clock) -> Encoded:
        return _encoded(self.teacher, batch, TEACHERS)

    def loss(self, student: nn.Module, encoded: Encoded, target: Encoded, batch: Batch, at: Clock) -> Losses:
        """The weighted mean of the supervisions' losses."""
        losses, weights = Losses(torch.zeros(())), self.options.weights
        pair = (student, encoded, target)
        if "instance" in weights:
            losses.terms["instance"] = self._instance(*pair, losses)
        if "local_group" in weights:
            losses.terms["local_group"] = self._local_group(*pair, losses)
            if "weak" in batch.flags:  # else no view of this batch could be strong
                losses.kept["weak"] = batch.flags["weak"]
        if "group" in weights:
            losses.terms["group"] = self._group(*pair, losses, self.scheduled(at)["teacher_temperature"])
        weighted = [weight * losses.terms[name] for name, weight in weights.items()]
        losses.total = torch.stack(weighted).sum() / sum(weights.values())
        losses.terms = {name: term.detach() for name, term in losses.terms.items()}
        return losses

    # Instance discrimination supervision

    def _instance(self, student: nn.Module, encoded: Encoded, target: Encoded, losses: Losses) -> Tensor:
        """Class tokens, told apart from those of earlier images."""
        h, h_teacher = _views(encoded, "cls"), _views(target, "cls")  # [V, B, D], [2, B, D]
        return self._contrast(student, "instance", h, h_teacher, losses)

    def _contrast(
        self, student: nn.Module, name: str, h: Tensor, h_teacher: Tensor, losses: Losses
    ) -> Tensor:
        """InfoNCE of features [V, B, D] and the teacher's [2, B, D], whose keys are kept for the queue."""
        temperature, queue = getattr(self.options, name).temperature, getattr(self, f"{name}_queue").queue
        z = _head(student, f"{name}_head", h)  # [V, B, O]
        with torch.no_grad():
            keys = _head(self.teacher, f"{name}_head", h_teacher)  # [2, B, O]
        with full_precision(z.device):
            loss = contrastive_loss(z, keys, queue, temperature=temperature)
        losses.kept[f"{name}_keys"] = keys
        if not self.options.group.weight and losses.health is None:
            _observe_images(losses, z.detach()[:_LARGE], keys, temperature)
        return loss

    # Local-group discrimination supervision

    def _local_group(self, student: nn.Module, encoded: Encoded, target: Encoded, losses: Losses) -> Tensor:
        """As for instances, of an image together with its neighbours in a memory of each network's own."""
        h = self._related(student, encoded, self.student_memory)  # [V, B, D]
        with torch.no_grad():
            h_teacher = self._related(self.teacher, target, self.teacher_memory)  # [2, B, D]
        losses.kept["student_patches"] = encoded["patches_0"][0].detach()  # [B, D], of the first large view
        losses.kept["teacher_patches"] = target["patches_0"][0]
        return self._contrast(student, "local_group", h, h_teacher, losses)

    def _related(self, network: nn.Module, encoded: Encoded, memory: Memory) -> Tensor:
        """One feature [V, B, D] of each view and its neighbours, by the relation block."""
        query = _views(encoded, "query")  # [V, B, D]
        rows = query.flatten(0, 1)
        neighbours = memory.neighbours(rows, self.options.local_group.neighbours)  # [V*B, n, D]
        related: Tensor = network(torch.cat([rows.unsqueeze(1), neighbours.to(rows)], 1), part="relation")
        return torch.unflatten(related, 0, query.shape[:2])

    # Group discrimination supervision

    def _group(
        self, student: nn.Module, encoded: Encoded, target: Encoded, losses: Losses, temperature: float
    ) -> Tensor:
        """The cross-entropy to the prototypes that the teacher assigns an image to. temperature: of those."""
        options, h, h_teacher = self.options.group, _views(encoded, "cls"), _views(target, "cls")
        rows, weight = student(h.flatten(0, 1), part="group_head")
        z = rows.unflatten(0, h.shape[:2])  # [V, B, O]
        with torch.no_grad():
            rows, teacher_weight = self.teacher(h_teacher.flatten(0, 1), part="group_head")
            z_teacher = rows.unflatten(0, h_teacher.shape[:2])  # [2, B, O]
        with full_precision(z.device):
            q = centered_targets(z_teacher, teacher_weight, self.center, temperature)  # [2, B, K]
            loss = halved_view_loss(z, weight, q, temperature=options.temperature)
            losses.kept["center"] = mean_logits([z_teacher], teacher_weight)
        observe(losses, z[:_LARGE], weight, q, temperature=options.temperature, cross_entropy=loss)
        return loss

    # Updates

    def before_update(self, at: Clock) -> None:
        """A frozen last layer has no gradient, so that the optimizer leaves it and its moments alone."""
        if at.epoch < self.options.group.freeze_last_layer_epochs:
            for name, parameter in self.student.named_parameters():
                if ".last_layer." in name:
                    parameter.grad = None

    def after_update(self, encoded: Encoded, losses: Losses, at: Clock) -> None:
        """The teacher follows all parameters it has, its buffers stay its own; what was seen is stored."""
        student, kept = dict(self.student.named_parameters()), losses.kept
        teacher = dict(self.teacher.named_parameters())
        ema_(list(teacher.values()), [student[name] for name in teacher], self.scheduled(at)["momentum"])
        for name in [name for name in self.options.weights if name != "group"]:
            queue: KeyQueue = getattr(self, f"{name}_queue")
            for keys in kept[f"{name}_keys"]:  # those of the first view, then those of the second
                queue.push_(dist.gathered(keys))
        if self.options.local_group.weight:
            weak = dist.gathered(kept["weak"]) if "weak" in kept else None
            self.student_memory.push_(dist.gathered(kept["student_patches"]), weak)
            self.teacher_memory.push_(dist.gathered(kept["teacher_patches"]))
        if self.options.group.weight:
            dist.average_([kept["center"]])
            self.center.lerp_(kept["center"].to(self.center), 1 - self.options.group.center_momentum)

    def export(self) -> Kept:
        teacher = self.teacher
        parts = {name: part for name, part in teacher.named_children() if name != "backbone"}
        heads: dict[str, nn.Module | Tensor] = {n: p for n, p in parts.items() if list(p.parameters())}
        return Kept(teacher.backbone, heads | ({"center": self.center} if self.options.group.weight else {}))


build = Mugs


def _encoded(network: nn.Module, batch: Batch, roles: Sequence[str]) -> Encoded:
    """Features [V, B, D] of each run of views of equal size, by name and number of the run."""
    encoded: Encoded = {}
    for number, views in enumerate(batch.runs(roles)):  # [V, B, 3, H, W]
        features: dict[str, Tensor] = network(views.flatten(0, 1), part="backbone")
        encoded |= {f"{name}_{number}": h.unflatten(0, views.shape[:2]) for name, h in features.items()}
    return encoded


def _views(encoded: Encoded, name: str) -> Tensor:
    """One feature of all views [V, B, D]."""
    return torch.cat([h for key, h in encoded.items() if key.startswith(f"{name}_")])


def _head(network: nn.Module, part: str, h: Tensor) -> Tensor:
    """Unit embeddings [V, B, O] of features [V, B, D]: the head sees all views at once."""
    z: Tensor = network(h.flatten(0, 1), part=part)
    return torch.unflatten(z, 0, h.shape[:2])


@torch.no_grad()
def _observe_images(losses: Losses, z: Tensor, keys: Tensor, temperature: float) -> None:
    """What the watch needs to know where there are no prototypes: how well the images of a batch are told
    apart, each being a class of its own. z [2, B, O], keys [2, B, O]."""
    batch = z.shape[1]
    if batch < 2:
        return
    with full_precision(z.device):
        log_p = (z @ keys.flip(0).transpose(1, 2) / temperature).log_softmax(-1)  # [2, B, B]
    mean, own = log_p.exp().mean((0, 1)), torch.eye(batch, dtype=log_p.dtype, device=log_p.device)
    losses.watch["mean_entropy"] = -torch.xlogy(mean, mean).sum()
    cross_entropy = -log_p.diagonal(dim1=1, dim2=2).mean()
    losses.health = Health(z=z, log_p=log_p, q=own, cross_entropy=cross_entropy)

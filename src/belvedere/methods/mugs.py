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

import torch
from torch import Tensor, nn

from belvedere.core import dist, rng
from belvedere.data.batch import Batch
from belvedere.engine.precision import full_precision
from belvedere.methods.method import Clock, Encoded, Group, Kept, Losses, Method
from belvedere.methods.options.mugs import Options
from belvedere.methods.shared.centered import (
    decayed_and_not,
    freeze_last_layers_,
    observe,
    observe_images,
    teacher_momentum,
    teacher_of,
)
from belvedere.methods.shared.views import all_views, encode_views, through_head, through_last_layer
from belvedere.nn.granular import GranularNetwork
from belvedere.nn.vit import ViT
from belvedere.ops.contrast import contrastive_loss
from belvedere.ops.ema import center_, follow_
from belvedere.ops.memory import KeyQueue, Memory
from belvedere.ops.view_losses import centered_targets, halved_view_loss, mean_logits

__all__ = ["Mugs", "Options", "build"]

TEACHERS = ("target", "target_2")
STUDENTS = ("global", "global_2", "local")
_LARGE = 2


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
        self.teacher: GranularNetwork = teacher_of(self.student)
        self.teacher.drop_predictors_()

        def stream(name: str) -> torch.Generator:
            return rng.torch_generator(seed, name)

        if instance.weight:
            self.instance_queue = KeyQueue(instance.queue, instance.head.out, stream("instance_queue"))
        if local.weight:
            self.local_group_queue = KeyQueue(local.queue, local.head.out, stream("local_group_queue"))
            self.student_memory = Memory(local.memory, backbone.width, stream("student_memory"))
            self.teacher_memory = Memory(local.memory, backbone.width, stream("teacher_memory"))
        if group.weight:
            self.register_buffer("center", torch.zeros(1, group.head.out))

    def groups(self) -> list[Group]:
        """Biases and vectors are not decayed; the layer that embeds patches learns more slowly."""
        named, slow = dict(self.student.named_parameters()), self.options.patch_embed_lr
        patches = {name: named.pop(name) for name in list(named) if "patch_embed" in name}
        decayed, rest = decayed_and_not(named.items())
        slow_decayed, slow_rest = decayed_and_not(patches.items(), of="patches, ", lr_scale=slow)
        return [decayed, slow_decayed, rest, slow_rest]

    def scheduled(self, at: Clock) -> dict[str, float]:
        values = {"momentum": teacher_momentum(self.options.momentum, at)}
        if self.options.group.weight:
            values["teacher_temperature"] = self.options.group.teacher_temperature(at.epoch)
        return values

    # Overall framework

    def encode_student(self, student: nn.Module, batch: Batch, at: Clock) -> Encoded:
        return encode_views(student, batch, STUDENTS)

    def encode_teacher(self, batch: Batch, at: Clock) -> Encoded:
        return encode_views(self.teacher, batch, TEACHERS)

    def loss(self, student: nn.Module, encoded: Encoded, target: Encoded, batch: Batch, at: Clock) -> Losses:
        """The weighted mean of the supervisions' losses."""
        losses, weights = Losses(torch.zeros(())), self.options.weights
        seen = (student, encoded, target)
        if "instance" in weights:
            losses.terms["instance"] = self._instance(*seen, losses)
        if "local_group" in weights:
            losses.terms["local_group"] = self._local_group(*seen, losses)
            if "weak" in batch.flags:  # else no view of this batch could be strong
                losses.kept["weak"] = batch.flags["weak"]
        if "group" in weights:
            losses.terms["group"] = self._group(*seen, losses, self.scheduled(at)["teacher_temperature"])
        weighted = [weight * losses.terms[name] for name, weight in weights.items()]
        losses.total = torch.stack(weighted).sum() / sum(weights.values())
        losses.terms = {name: term.detach() for name, term in losses.terms.items()}
        return losses

    # Instance discrimination supervision

    def _instance(self, student: nn.Module, encoded: Encoded, target: Encoded, losses: Losses) -> Tensor:
        """Class tokens, told apart from those of earlier images."""
        h, h_teacher = all_views(encoded, "cls"), all_views(target, "cls")  # [V, B, D], [2, B, D]
        return self._contrast(student, "instance", h, h_teacher, losses)

    def _contrast(
        self, student: nn.Module, name: str, h: Tensor, h_teacher: Tensor, losses: Losses
    ) -> Tensor:
        """InfoNCE of features [V, B, D] and the teacher's [2, B, D], whose keys are kept for the queue."""
        temperature, queue = getattr(self.options, name).temperature, self._queue(name).queue
        z = through_head(student, f"{name}_head", h)  # [V, B, O]
        with torch.no_grad():
            keys = through_head(self.teacher, f"{name}_head", h_teacher)  # [2, B, O]
        with full_precision(z.device):
            loss = contrastive_loss(z, keys, queue, temperature=temperature)
        losses.kept[f"{name}_keys"] = keys
        if not self.options.group.weight and losses.health is None:
            observe_images(losses, z.detach()[:_LARGE], keys, temperature=temperature)
        return loss

    def _queue(self, name: str) -> KeyQueue:
        queue: KeyQueue = getattr(self, f"{name}_queue")
        return queue

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
        query = all_views(encoded, "query")  # [V, B, D]
        rows = query.flatten(0, 1)
        neighbours = memory.neighbours(rows, self.options.local_group.neighbours)  # [V*B, n, D]
        related: Tensor = network(torch.cat([rows.unsqueeze(1), neighbours.to(rows)], 1), part="relation")
        return torch.unflatten(related, 0, query.shape[:2])

    # Group discrimination supervision

    def _group(
        self, student: nn.Module, encoded: Encoded, target: Encoded, losses: Losses, temperature: float
    ) -> Tensor:
        """The cross-entropy to the prototypes that the teacher assigns an image to. temperature: of those."""
        options, h, h_teacher = self.options.group, all_views(encoded, "cls"), all_views(target, "cls")
        z, weight = through_last_layer(student, "group_head", h)  # [V, B, O]
        with torch.no_grad():
            z_teacher, teacher_weight = through_last_layer(self.teacher, "group_head", h_teacher)  # [2, B, O]
        with full_precision(z.device):
            q = centered_targets(z_teacher, teacher_weight, self.center, temperature)  # [2, B, K]
            loss = halved_view_loss(z, weight, q, temperature=options.temperature)
            losses.kept["center"] = mean_logits([z_teacher], teacher_weight)
        observe(losses, z[:_LARGE], weight, q, temperature=options.temperature, cross_entropy=loss)
        return loss

    # Updates

    def before_update(self, at: Clock) -> None:
        if at.epoch < self.options.group.freeze_last_layer_epochs:
            freeze_last_layers_(self.student)

    def after_update(self, encoded: Encoded, losses: Losses, at: Clock) -> None:
        """The teacher follows all parameters it has, its buffers stay its own; what was seen is stored."""
        weights, kept = self.options.weights, losses.kept
        follow_(self.teacher, self.student, self.scheduled(at)["momentum"])
        for name in [name for name in weights if name != "group"]:
            for keys in kept[f"{name}_keys"]:  # those of the first view, then those of the second
                self._queue(name).push_(dist.gathered(keys))
        if "local_group" in weights:
            weak = dist.gathered(kept["weak"]) if "weak" in kept else None
            self.student_memory.push_(dist.gathered(kept["student_patches"]), weak)
            self.teacher_memory.push_(dist.gathered(kept["teacher_patches"]))
        if "group" in weights:
            center_(self.center, kept["center"], self.options.group.center_momentum)

    def export(self) -> Kept:
        parts = {name: part for name, part in self.teacher.named_children() if name != "backbone"}
        heads: dict[str, nn.Module | Tensor] = {n: p for n, p in parts.items() if list(p.parameters())}
        center = {"center": self.center} if self.options.group.weight else {}
        return Kept(self.teacher.backbone, heads | center)


build = Mugs

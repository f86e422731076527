"""What a run needs before it starts: memory of one process, and disk. Nothing is built to find out.

Parameters, gradients, moments and checkpoints are exact counts. The rest is an estimate: what a backbone
keeps for its backward pass (and, in bf16, autocast's copies of the parameters), the batches that are there at
once, features, heads and loss of the whole batch, and what the process takes for itself. A compiler's savings
are left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from belvedere.core.files import readable_size
from belvedere.data.room import AHEAD
from belvedere.methods.method import Held
from belvedere.methods.pages import page
from belvedere.nn.spec import ViTSpec
from belvedere.nn.spec.count import MODULE_BYTES
from belvedere.optim.spec import OptimSpec
from belvedere.recipe.plan import Plan
from belvedere.recipe.schema import Recipe

_WIDTHS = 8
"""Values kept per token and block, in widths: the block's input, its two normed inputs, queries, keys and
values, the attention's output, the input of the second half; the MLP's hidden layer is kept twice (before and
after its activation) and counted apart."""
_PROCESS_BYTES = {"cpu": 860 << 20, "cuda": 600 << 20}
"""Libraries on a CPU; what CUDA takes of a device's memory for a process."""
_IN_PASSING = 1.25
"""The peak of a step against what is kept for its backward pass: gradients and intermediate results come and
go beside it, and an allocator wastes some (measured, docs/results.md)."""
CHUNK = 1 << 24
"""Logits of a chunk, where a loss takes them so (`ops.cross_entropy`)."""
_LAST_WIDTHS = 4
"""The last block computes the class token alone: its input, the normed input, keys and values."""


@dataclass(frozen=True)
class Estimate:
    """Bytes. Exact counts, but for `activations`, `views`, `loss` and `process`. own_state: buffers beside
    the networks (a queue, a bank); views: the batches that are there at once; loss: features, heads and loss
    of a process's whole batch; process: libraries, and what Python keeps of layers; disk is what all
    checkpoints of a whole run take. apart: whether the loss is done with before activations are kept, as it
    is with micro-batches."""

    parameters: int
    gradients: int
    moments: int
    moments_name: str
    teacher: int
    own_state: int
    activations: int
    checkpoint: int
    checkpoints: int
    backbone: int
    views: int = 0
    loss: int = 0
    process: int = 0
    apart: bool = False

    @property
    def held(self) -> int:
        """What a process holds from its first step to its last, whatever the batch."""
        return self.parameters + self.gradients + self.moments + self.teacher + self.own_state

    @property
    def estimated(self) -> int:
        """What comes to it at the peak of a step."""
        peak = max(self.loss, self.activations) if self.apart else self.loss + self.activations
        return self.views + self.process + int(_IN_PASSING * peak)

    @property
    def memory(self) -> int:
        """What one process holds at the peak of a step."""
        return self.held + self.estimated

    @property
    def disk(self) -> int:
        """All checkpoints at once, one more while it is being written, and the exported backbone."""
        return self.checkpoint * self.checkpoints + self.backbone

    def table(self) -> list[tuple[str, str]]:
        """(what, size) rows, to be printed as one table."""
        return [
            ("parameters", readable_size(self.parameters)),
            ("gradients", readable_size(self.gradients)),
            (self.moments_name, readable_size(self.moments)),
            *([("teacher", readable_size(self.teacher))] if self.teacher else []),
            *([("queue or bank", readable_size(self.own_state))] if self.own_state else []),
            ("batches of views", f"about {readable_size(self.views)}"),
            ("activations (an estimate)", f"about {readable_size(self.activations)}"),
            ("heads and loss", f"about {readable_size(self.loss)}"),
            ("the process itself", f"about {readable_size(self.process)}"),
            ("memory per process", f"about {readable_size(self.memory)} (an estimate)"),
            ("one checkpoint", readable_size(self.checkpoint)),
            ("disk", f"{readable_size(self.disk)} for {self.checkpoints} checkpoints and the backbone"),
        ]


def estimate(
    recipe: Recipe,
    plan: Plan,
    *,
    trained: int | None = None,
    teacher: int | None = None,
    backbone: int | None = None,
    own_bytes: int | None = None,
    shared_bytes: int | None = None,
) -> Estimate:
    """The needs of a run, by its description.

    Counts of a method that is built stand in for those of the description: trained, teacher, backbone: how
    many parameters the optimizer updates, the teacher has and one backbone has; own_bytes: state that each
    process has to itself; shared_bytes: other buffers, which all processes hold alike and a checkpoint once.
    """
    held = recipe.method.held(recipe.backbone, plan.extent)
    size = value_bytes(plan.precision)
    trained = _sum(held, "trained") if trained is None else trained
    teacher = _sum(held, "teacher") if teacher is None else teacher
    backbone = recipe.backbone.num_parameters if backbone is None else backbone
    own_bytes = _sum(held, "own_bytes") * size // 4 if own_bytes is None else own_bytes
    shared_bytes = _sum(held, "shared_bytes") * size // 4 if shared_bytes is None else shared_bytes
    milestones = recipe.train.epochs // recipe.run.milestone_epochs if recipe.run.milestone_epochs else 0
    moments, name = num_moments(recipe)
    return Estimate(
        parameters=trained * size,
        gradients=trained * size,
        moments=moments * trained * size,
        moments_name=name,
        teacher=teacher * size,
        own_state=own_bytes + shared_bytes,
        activations=_activations(recipe, plan) + (2 * trained if plan.precision == "bf16" else 0),
        checkpoint=((1 + moments) * trained + teacher) * size + own_bytes * plan.world_size + shared_bytes,
        checkpoints=min(recipe.run.keep_last + milestones, plan.total_steps) + 1,  # a step saves one
        backbone=backbone * size,
        views=_views(recipe, plan),
        loss=_loss(recipe, plan),
        process=_PROCESS_BYTES[plan.device] + _sum(held, "layers") * MODULE_BYTES + _constants(recipe),
        apart=plan.micro_batches > 1,
    )


def value_bytes(precision: str) -> int:
    """Bytes of a parameter."""
    return 8 if precision == "float64" else 4


def num_moments(recipe: Recipe) -> tuple[int, str]:
    """How many values the optimizer keeps of a parameter, and what they are called."""
    optim = recipe.optim
    return (2, "AdamW moments") if isinstance(optim, OptimSpec) else (1, f"{optim.name.upper()} momentum")


def with_micro_batch(recipe: Recipe, plan: Plan, micro_batch: int) -> Estimate:
    """The needs of the same run with so many rows encoded at a time."""
    parts = -(-plan.batch // micro_batch)
    return estimate(recipe, dataclasses.replace(plan, micro_batch=micro_batch, micro_batches=parts))


def _sum(held: Sequence[Held], name: str) -> int:
    return sum(getattr(part, name) for part in held)


def view_bytes(recipe: Recipe, plan: Plan) -> int:
    """Bytes of the views of one image, ready for the networks."""
    return sum(3 * view.count * view.px**2 for view in recipe.views.values()) * value_bytes(plan.precision)


def _views(recipe: Recipe, plan: Plan) -> int:
    """On a CPU those prepared ahead, the one in use and those being made; on a device those in use."""
    workers = recipe.run.workers
    copies = 2 if plan.device != "cpu" else (AHEAD + 1) * max(1, workers) + 1
    return min(copies, plan.total_steps) * plan.batch * view_bytes(recipe, plan)


def _loss(recipe: Recipe, plan: Plan) -> int:
    backbone, build = recipe.backbone, page(recipe.method.name).build
    sizes = {
        role: (view.count, backbone.num_patches(view.px))
        for role, view in recipe.views.items()
        if role in build.roles
    }
    values = plan.batch * recipe.method.loss_values(backbone, sizes)
    logits = plan.batch * sum(count for count, _ in sizes.values()) * _prototypes(recipe)
    values += recipe.method.chunk_tables * min(CHUNK, logits)
    return values * value_bytes(plan.precision)


def _prototypes(recipe: Recipe) -> int:
    number = getattr(recipe.method, "prototypes", 0)
    return number if isinstance(number, int) else max(number)


def _constants(recipe: Recipe) -> int:
    sizes = {view.px for view in recipe.views.values()}
    return 4 * sum(recipe.backbone.num_constants(px) for px in sizes)


def _activations(recipe: Recipe, plan: Plan) -> int:
    """The student's views of one micro-batch through all blocks; the teacher keeps nothing."""
    backbone, method = recipe.backbone, page(recipe.method.name).build
    seen = {role: view for role, view in recipe.views.items() if role not in method.teacher_roles}
    size = {"bf16": 2, "float32": 4, "float64": 8}[plan.precision]
    if not isinstance(backbone, ViTSpec):
        values = sum(view.count * backbone.kept_values(view.px) for view in seen.values())
        return plan.micro_batch * values * size
    tokens = 0
    for role, view in seen.items():
        tokens += view.count * (recipe.method.num_seen(role, backbone.num_patches(view.px)) + 1)
    return int(plan.micro_batch * tokens * _values_per_token(backbone, plan.precision) * size)


def _values_per_token(vit: ViTSpec, precision: str) -> float:
    """What a ViT keeps of one token, over all blocks."""
    sums = 2 if precision == "bf16" else 0  # the two residual sums stay float32: twice the size
    widths = (vit.depth - 1) * (_WIDTHS + sums + 2 * vit.mlp_ratio) + _LAST_WIDTHS + sums / 2
    return vit.width * widths

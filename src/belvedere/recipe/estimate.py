"""What a run needs before it starts: memory of one process, and disk.

Parameters, gradients, moments and checkpoints are exact counts. Activations are an estimate: what a backbone
keeps for its backward pass (and, in bf16, autocast's copies of the parameters), without the allocator's own
waste, the projection head and a compiler's savings.
"""

from __future__ import annotations

from dataclasses import dataclass

from belvedere.core.files import readable_size
from belvedere.methods.pages import page
from belvedere.nn.spec import ViTSpec
from belvedere.optim.spec import OptimSpec
from belvedere.recipe.plan import Plan
from belvedere.recipe.schema import Recipe

_WIDTHS = 8
"""Values kept per token and block, in widths: the block's input, its two normed inputs, queries, keys and
values, the attention's output, the input of the second half; the MLP's hidden layer is kept twice (before and
after its activation) and counted apart."""
_LAST_WIDTHS = 4
"""The last block computes the class token alone: its input, the normed input, keys and values."""


@dataclass(frozen=True)
class Estimate:
    """Bytes. All but `activations` are exact counts. own_state: buffers beside the networks (a queue, a
    bank); disk is what all checkpoints of a whole run take."""

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

    @property
    def memory(self) -> int:
        """What one process holds at the peak of a step."""
        held = self.parameters + self.gradients + self.moments + self.teacher + self.own_state
        return held + self.activations

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
            ("activations (an estimate)", f"about {readable_size(self.activations)}"),
            ("memory per process", f"about {readable_size(self.memory)}"),
            ("one checkpoint", readable_size(self.checkpoint)),
            ("disk", f"{readable_size(self.disk)} for {self.checkpoints} checkpoints and the backbone"),
        ]


def estimate(
    recipe: Recipe,
    plan: Plan,
    *,
    trained: int,
    teacher: int,
    backbone: int,
    own_bytes: int = 0,
    shared_bytes: int = 0,
) -> Estimate:
    """The needs of a run. trained, teacher, backbone: how many parameters the optimizer updates, the teacher
    has and one backbone has; own_bytes: state that each process has to itself; shared_bytes: other buffers,
    which all processes hold alike and a checkpoint once."""
    size = 8 if plan.precision == "float64" else 4
    milestones = recipe.train.epochs // recipe.run.milestone_epochs if recipe.run.milestone_epochs else 0
    optim = recipe.optim
    of_one = (1, f"{optim.name.upper()} momentum")
    moments, name = (2, "AdamW moments") if isinstance(optim, OptimSpec) else of_one
    return Estimate(
        parameters=trained * size,
        gradients=trained * size,
        moments=moments * trained * size,
        moments_name=name,
        teacher=teacher * size,
        own_state=own_bytes + shared_bytes,
        activations=_activations(recipe, plan) + (2 * trained if plan.precision == "bf16" else 0),
        checkpoint=((1 + moments) * trained + teacher) * size + own_bytes * plan.world_size + shared_bytes,
        checkpoints=recipe.run.keep_last + 1 + milestones,
        backbone=backbone * size,
    )


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

"""What a run needs before it starts: memory of one process, and disk.

Parameters, gradients, moments and checkpoints are exact counts. Activations are an estimate: what a ViT keeps
for its backward pass (and, in bf16, autocast's copies of the parameters), without the allocator's own waste,
the projection head and a compiler's savings.
"""

from __future__ import annotations

from dataclasses import dataclass

from belvedere.core.files import readable_size
from belvedere.recipe.plan import Plan
from belvedere.recipe.schema import Recipe

_TEACHER_ONLY = "target"
_MASKED = "anchor"
_WIDTHS = 8
"""Values kept per token and block, in widths: the block's input, its two normed inputs, queries, keys and
values, the attention's output, the input of the second half; the MLP's hidden layer is kept twice (before and
after its activation) and counted apart."""
_LAST_WIDTHS = 4
"""The last block computes the class token alone: its input, the normed input, keys and values."""


@dataclass(frozen=True)
class Estimate:
    """Bytes. All but `activations` are exact counts; disk is what all checkpoints of a whole run take."""

    parameters: int
    gradients: int
    moments: int
    teacher: int
    activations: int
    checkpoint: int
    checkpoints: int
    backbone: int

    @property
    def memory(self) -> int:
        """What one process holds at the peak of a step."""
        return self.parameters + self.gradients + self.moments + self.teacher + self.activations

    @property
    def disk(self) -> int:
        """All checkpoints at once, one more while it is being written, and the exported backbone."""
        return self.checkpoint * self.checkpoints + self.backbone

    def table(self) -> list[tuple[str, str]]:
        """(what, size) rows, to be printed as one table."""
        return [
            ("parameters", readable_size(self.parameters)),
            ("gradients", readable_size(self.gradients)),
            ("AdamW moments", readable_size(self.moments)),
            ("teacher", readable_size(self.teacher)),
            ("activations (an estimate)", f"about {readable_size(self.activations)}"),
            ("memory per process", f"about {readable_size(self.memory)}"),
            ("one checkpoint", readable_size(self.checkpoint)),
            ("disk", f"{readable_size(self.disk)} for {self.checkpoints} checkpoints and the backbone"),
        ]


def estimate(recipe: Recipe, plan: Plan, *, trained: int, teacher: int, backbone: int) -> Estimate:
    """The needs of a run. trained, teacher, backbone: how many parameters the optimizer updates, the teacher
    has and one backbone has."""
    size = 8 if plan.precision == "float64" else 4
    milestones = recipe.train.epochs // recipe.run.milestone_epochs if recipe.run.milestone_epochs else 0
    return Estimate(
        parameters=trained * size,
        gradients=trained * size,
        moments=2 * trained * size,
        teacher=teacher * size,
        activations=_activations(recipe, plan) + (2 * trained if plan.precision == "bf16" else 0),
        checkpoint=(3 * trained + teacher) * size,
        checkpoints=recipe.run.keep_last + 1 + milestones,
        backbone=backbone * size,
    )


def _activations(recipe: Recipe, plan: Plan) -> int:
    """The student's views of one micro-batch through all blocks; the teacher keeps nothing."""
    backbone = recipe.backbone
    tokens = 0
    for role, view in recipe.views.items():
        if role == _TEACHER_ONLY:
            continue
        patches = (view.px // backbone.patch_px) ** 2
        if role == _MASKED:
            patches = int(patches * (1 - getattr(recipe.method, "patch_drop", 0.0)))
        tokens += view.count * (patches + 1)
    size = {"bf16": 2, "float32": 4, "float64": 8}[plan.precision]
    sums = 2 if plan.precision == "bf16" else 0  # the two residual sums stay float32: twice the size
    widths = (backbone.depth - 1) * (_WIDTHS + sums + 2 * backbone.mlp_ratio) + _LAST_WIDTHS + sums / 2
    return int(plan.micro_batch * tokens * backbone.width * widths * size)

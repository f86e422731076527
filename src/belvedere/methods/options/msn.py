"""What a recipe says of MSN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from belvedere.engine.remedy import Remedy
from belvedere.methods.method import Extent, Held, MethodOptions
from belvedere.methods.options.ranges import Positive, Prototypes, Weight
from belvedere.methods.remedies.msn import against_collapse
from belvedere.nn.spec import BackboneSpec, HeadSpec
from belvedere.optim.spec import Range

_PREDICTIONS = 6
"""Tables [rows, prototypes] at the loss's peak: scores, (log-)probabilities, targets, products."""


class Options(MethodOptions):
    """temperature: tau, of every prediction. sharpen: the target's extra exponent 1/T, and T's course.
    momentum: of the teacher. Sinkhorn is off with 0 iterations, me-max with weight 0, the entropy term
    with weight 0. patch_drop: the share of a large anchor's patches that are dropped."""

    name: Literal["msn"]
    """The method."""
    prototypes: Prototypes
    """How many prototypes."""
    temperature: Positive
    """Temperature of every prediction."""
    sharpen: Range
    """Temperature of the targets beside that: they are raised to the power 1/T, from start to final."""
    momentum: Range
    """How much of the teacher stays at a step, from start to final."""
    sinkhorn_iterations: Annotated[int, Field(ge=0, le=10_000)]
    """Iterations of Sinkhorn on the targets (0: off)."""
    memax_weight: Weight
    """Weight of the mean entropy maximization (0: off)."""
    entropy_weight: Weight
    """Weight of the entropy of each prediction (0: off)."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)]
    """Share of a target that is spread over all prototypes."""
    patch_drop: Annotated[float, Field(ge=0.0, lt=1.0)]
    """Share of a large anchor's patches that are dropped."""
    head: HeadSpec
    """The projection head."""

    def num_kept(self, patches: int) -> int:
        """How many of an anchor's patches the student sees: the product cut, as the authors cut it."""
        return int(patches * (1 - self.patch_drop))

    def num_seen(self, role: str, patches: int) -> int:
        return self.num_kept(patches) if role == "anchor" else patches

    def mistakes(self, views: Mapping[str, tuple[int, int]]) -> list[tuple[str, str]]:
        """One target per image, and at least one patch left of a large anchor."""
        found = []
        if "target" in views and views["target"][0] != 1:
            found.append(("views.target.count", f"{views['target'][0]} is not allowed; MSN has 1 target"))
        patches = views["anchor"][1] if "anchor" in views else 0
        if patches and self.num_kept(patches) < 1:
            words = f"{self.patch_drop:g} leaves nothing of an anchor's {patches} patches"
            found.append(("method.patch_drop", words))
        return found

    def held(self, backbone: BackboneSpec, extent: Extent) -> list[Held]:
        network, head = backbone.num_parameters, self.head.num_parameters(backbone.out_width)
        return [
            Held("backbone", network, network, layers=2 * backbone.num_layers),
            Held("method.head", head, head, layers=2 * self.head.num_layers),
            Held("method.prototypes", self.prototypes * self.head.out),
        ]

    def loss_values(self, backbone: BackboneSpec, views: Mapping[str, tuple[int, int]]) -> int:
        rows = sum(count for role, (count, _) in views.items() if role != "target")
        return rows * (self.head.kept_values(backbone.out_width) + _PREDICTIONS * self.prototypes)

    def remedies(self, extent: Extent) -> Sequence[Remedy]:
        return against_collapse(extent)

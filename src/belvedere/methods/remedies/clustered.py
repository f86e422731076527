"""What to change first when DeepCluster-v2 or SeLa-v2 collapses."""

from __future__ import annotations

from collections.abc import Sequence

from belvedere.engine.remedy import (
    STEADIER,
    Kind,
    Remedy,
    larger_steps,
    smaller_steps,
    softer_crops,
    weaker_decay,
)
from belvedere.methods.method import Extent
from belvedere.methods.remedies.kinds import CONSTANT, DEAD, TAKES_ALL, UNIFORM
from belvedere.methods.remedies.swav import learning_prototypes


def against_collapse(extent: Extent, *, prototypes: Sequence[int]) -> Sequence[Remedy]:
    """DeepCluster-v2's. Nothing balances clusters, so that one prototype that takes all, dead prototypes and
    embeddings that point one way are one failure here: images that look alike have one cluster."""
    alike = (TAKES_ALL, CONSTANT, DEAD)
    return (
        *(remedy for kind in alike for remedy in _tell_apart(kind, prototypes, extent)),
        *smaller_steps(UNIFORM, "steps of this size undo each other"),
        *larger_steps(UNIFORM, "steps of this size change nothing in time", total_steps=extent.total_steps),
        Remedy(UNIFORM, "method.temperature", "lower", 0.1, "predictions this soft stay uniform"),
        *weaker_decay(UNIFORM, "decay this strong outweighs what the loss asks for"),
        *softer_crops(UNIFORM),
        *_fewer(UNIFORM, prototypes, extent),
        Remedy(UNIFORM, "optim.lr.peak", "scale", 0.3, "labels of the last epoch then still fit"),
        *STEADIER,
    )


def against_unbalanced(extent: Extent, *, prototypes: Sequence[int], frozen_steps: int) -> Sequence[Remedy]:
    """SeLa-v2's: learned prototypes and Sinkhorn's own, where they are off; then DeepCluster-v2's."""
    shared = "assignments then share them out"
    older = "it learns assignments of an older network"
    return (
        Remedy(TAKES_ALL, "method.sinkhorn_iterations", "raise", 10, shared),
        Remedy(DEAD, "method.sinkhorn_iterations", "raise", 10, shared),
        *learning_prototypes(DEAD, frozen_steps, extent),
        Remedy(UNIFORM, "method.refresh_epochs", "lower", 1, older),
        Remedy(UNIFORM, "method.epsilon", "lower", 0.05, "assignments this soft are uniform"),
        *against_collapse(extent, prototypes=prototypes),
    )


def _tell_apart(kind: Kind, prototypes: Sequence[int], extent: Extent) -> Sequence[Remedy]:
    return (
        *smaller_steps(kind, "steps of this size silence a network"),
        *weaker_decay(kind, "decay this strong outweighs what the loss asks for"),
        Remedy(kind, "method.head.batch_norm", "set", True, "it removes what all images share"),
        Remedy(kind, "method.temperature", "raise", 0.1, "predictions this sharp chase a few"),
        *_fewer(kind, prototypes, extent),
        Remedy(kind, "optim.lr.peak", "scale", 0.3, "large steps can silence a network"),
    )


def _fewer(kind: Kind, prototypes: Sequence[int], extent: Extent) -> Sequence[Remedy]:
    """Ten images of an epoch for each prototype (ImageNet has 427), then half as many."""
    most = max(2, extent.steps_per_epoch * extent.global_batch // 10)
    few, half = tuple(min(k, most) for k in prototypes), tuple(max(2, k // 2) for k in prototypes)
    return (
        Remedy(kind, "method.prototypes", "lower", few, "each then has ten images of an epoch"),
        Remedy(kind, "method.prototypes", "lower", half, "there are fewer kinds of images"),
    )

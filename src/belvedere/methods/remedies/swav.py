"""What to change first when SwAV collapses."""

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

PUBLISHED_EPSILON = 0.05


def against_collapse(
    extent: Extent, *, prototypes: int, epsilon: float, queued: int | None, frozen_steps: int
) -> Sequence[Remedy]:
    """For each kind: first what no published run has, then the authors' advice, then smaller steps.

    queued: how many embeddings the queue holds, None without one; frozen_steps: how many steps leave the
    prototypes as they began.
    """
    queue = {kind: _calmer_queue(kind, queued, extent) for kind in (TAKES_ALL, DEAD, UNIFORM)}
    fewer = {kind: _fewer_prototypes(kind, prototypes, frozen_steps, extent) for kind in queue}
    return (
        *(remedy for kind in (TAKES_ALL, DEAD) for remedy in _balance(kind, queue[kind], fewer[kind])),
        *_spread(),
        *_leave_ln_k(extent, epsilon, queue[UNIFORM], fewer[UNIFORM]),
        *STEADIER,
    )


def _balance(kind: Kind, queue: Sequence[Remedy], fewer: Sequence[Remedy]) -> Sequence[Remedy]:
    """Against one prototype that takes all, and dead ones: neither lasts under balanced assignments."""
    return (
        *smaller_steps(kind, "steps of this size silence a network"),
        Remedy(kind, "method.temperature", "raise", 0.1, "predictions this sharp chase a few"),
        *queue,
        Remedy(kind, "method.epsilon", "raise", 0.05, "sharper assignments are less balanced"),
        Remedy(kind, "method.sinkhorn_iterations", "raise", 3, "assignments then share them out"),
        *fewer,
        Remedy(kind, "optim.lr.peak", "scale", 0.3, "large steps let a few prototypes win"),
    )


def _spread() -> Sequence[Remedy]:
    """Against embeddings that point one way. BatchNorm in the head is no remedy here: where steps, decay or
    assignments silence the network, it does so with BatchNorm too, and learns without it."""
    sharp = "predictions this sharp punish any difference"
    return (
        *smaller_steps(CONSTANT, "steps of this size silence a network"),
        *weaker_decay(CONSTANT, "decay this strong outweighs what the loss asks for"),
        Remedy(CONSTANT, "method.epsilon", "lower", 0.03, "assignments this soft are alike"),
        Remedy(CONSTANT, "method.temperature", "raise", 0.1, sharp),
        *softer_crops(CONSTANT),
        Remedy(CONSTANT, "optim.lr.peak", "scale", 0.3, "large steps can silence a network"),
    )


def _leave_ln_k(
    extent: Extent, epsilon: float, queue: Sequence[Remedy], fewer: Sequence[Remedy]
) -> Sequence[Remedy]:
    """Against a loss that stays at ln K: the authors' advice in the order of what it costs."""
    epoch = extent.steps_per_epoch
    soft = Remedy(UNIFORM, "method.epsilon", "lower", 0.03, "assignments this soft are uniform")
    small = "steps of this size change nothing in time"
    return (
        *smaller_steps(UNIFORM, "steps of this size undo each other"),
        *larger_steps(UNIFORM, small, total_steps=extent.total_steps),
        Remedy(UNIFORM, "method.temperature", "lower", 0.1, "predictions this soft stay uniform"),
        Remedy(UNIFORM, "method.temperature", "raise", 0.1, "predictions this sharp punish any guess"),
        *weaker_decay(UNIFORM, "decay this strong outweighs what the loss asks for"),
        *([soft] if epsilon > PUBLISHED_EPSILON else []),
        *queue,
        *softer_crops(UNIFORM),
        soft,
        *fewer,
        Remedy(UNIFORM, "method.freeze_prototypes_steps", "raise", epoch, "embeddings settle first"),
        Remedy(UNIFORM, "method.freeze_prototypes_epochs", "raise", 1.0, "embeddings settle first"),
        Remedy(UNIFORM, "method.epsilon", "lower", 0.01, "assignments are then all but hard"),
        Remedy(UNIFORM, "method.head.batch_norm", "set", False, "small batches have noisy statistics"),
        Remedy(UNIFORM, "method.queue", "set", None, "old embeddings may disturb the assignment"),
        Remedy(UNIFORM, "optim.lr.peak", "scale", 0.3, "large steps undo each other"),
    )


def _calmer_queue(kind: Kind, queued: int | None, extent: Extent) -> Sequence[Remedy]:
    """Later, then smaller; nothing without a queue."""
    if queued is None:
        return ()
    later = max(1, min(15, extent.epochs // 2))
    half = max(1, queued // extent.global_batch // 2) * extent.global_batch
    return (
        Remedy(kind, "method.queue.start_epoch", "raise", later, "a queue needs embeddings that settled"),
        Remedy(kind, "method.queue.length", "lower", half, "its oldest embeddings are then newer"),
    )


def _fewer_prototypes(kind: Kind, prototypes: int, frozen_steps: int, extent: Extent) -> Sequence[Remedy]:
    """For prototypes that never learn, the learning; else four images of a batch for each, then half."""
    few, half = max(2, extent.global_batch // 4), max(2, prototypes // 2)
    return (
        *learning_prototypes(kind, frozen_steps, extent),
        Remedy(kind, "method.prototypes", "lower", few, "each then has four images of a batch"),
        Remedy(kind, "method.prototypes", "lower", half, "images are less unlike"),
    )


def learning_prototypes(kind: Kind, frozen_steps: int, extent: Extent) -> Sequence[Remedy]:
    """For prototypes that stay as they began for half of the run or more."""
    if 2 * frozen_steps < extent.total_steps:
        return ()
    learn, epoch = "prototypes that do not learn stay where no image is", extent.steps_per_epoch
    return (  # a recipe has one of the two
        Remedy(kind, "method.freeze_prototypes_steps", "lower", epoch, learn),
        Remedy(kind, "method.freeze_prototypes_epochs", "lower", 1.0, learn),
    )

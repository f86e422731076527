"""What a recipe says about the optimizer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from belvedere.core.settings import Settings

NonNegative = Annotated[float, Field(ge=0.0)]


class LearningRate(Settings):
    """Linear from `start` to `peak` over `warmup_epochs`, then a cosine to `final`. Absolute values."""

    start: NonNegative
    peak: NonNegative
    final: NonNegative
    warmup_epochs: NonNegative


class Range(Settings):
    """A value that moves from `start` to `final`."""

    start: float
    final: float


class DecayRange(Range):
    """Weight decay: a cosine from `start` to `final`."""

    start: NonNegative
    final: NonNegative


class Clip(Settings):
    """Gradient clipping of the student: one norm over all its tensors, or each tensor by its own norm."""

    kind: Literal["total", "per_tensor"]
    norm: Annotated[float, Field(gt=0.0)]
    from_epoch: Annotated[int, Field(ge=0)] = 0


class OptimSpec(Settings):
    """AdamW with decoupled decay. stretch: every schedule is laid out over this many times the run, so that a
    run ends before its schedules do (MSN: 1.25)."""

    name: Literal["adamw"]
    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]]
    eps: Annotated[float, Field(gt=0.0)]
    lr: LearningRate
    weight_decay: DecayRange
    clip: Clip | None
    stretch: Annotated[float, Field(ge=1.0)]


class LARCSpec(Settings):
    """SGD with momentum whose step is, tensor by tensor, the learning rate times `trust` of the tensor's norm
    (SwAV). eps: what keeps the division by a gradient's norm finite. stretch: as for AdamW."""

    name: Literal["larc"]
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)]
    trust: Annotated[float, Field(gt=0.0)]
    eps: NonNegative
    lr: LearningRate
    weight_decay: DecayRange
    clip: Clip | None
    stretch: Annotated[float, Field(ge=1.0)]


AnyOptimSpec = Annotated[OptimSpec | LARCSpec, Field(discriminator="name")]
"""Any optimizer of a recipe, told apart by its name."""

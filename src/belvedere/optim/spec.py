"""What a recipe says about the optimizer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from belvedere.core.settings import Contradictions, Settings

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


class LaterClip(Settings):
    """Another norm, from an epoch on."""

    norm: Annotated[float, Field(gt=0.0)]
    from_epoch: Annotated[int, Field(ge=1)]


class Clip(Settings):
    """Gradient clipping of the student: one norm over all its tensors, or each tensor by its own norm.
    later: the norm that takes over in the course of the run (null: none does)."""

    kind: Literal["total", "per_tensor"]
    norm: Annotated[float, Field(gt=0.0)]
    from_epoch: Annotated[int, Field(ge=0)] = 0
    later: LaterClip | None = None

    @model_serializer(mode="wrap")
    def _without_unused(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = written(self)
        return {name: value for name, value in values.items() if name != "later" or value is not None}

    def contradictions(self) -> Contradictions:
        if self.later is not None and self.later.from_epoch <= self.from_epoch:
            yield ("", f"later.from_epoch {self.later.from_epoch} is not after from_epoch {self.from_epoch}")

    def at(self, epoch: int) -> Clip:
        """The clipping of this epoch."""
        if self.later is None or epoch < self.later.from_epoch:
            return self
        return Clip(kind=self.kind, norm=self.later.norm, from_epoch=self.later.from_epoch)


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


class SGDSpec(Settings):
    """SGD with momentum; weight decay is added to the gradient. stretch: as for AdamW."""

    name: Literal["sgd"]
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)]
    lr: LearningRate
    weight_decay: DecayRange
    clip: Clip | None
    stretch: Annotated[float, Field(ge=1.0)]


class LARSSpec(Settings):
    """SGD with momentum whose step is, matrix by matrix, the learning rate times `trust` of the matrix's norm
    (You et al. 2017); vectors take plain steps. stretch: as for AdamW."""

    name: Literal["lars"]
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)]
    trust: Annotated[float, Field(gt=0.0)]
    lr: LearningRate
    weight_decay: DecayRange
    clip: Clip | None
    stretch: Annotated[float, Field(ge=1.0)]


AnyOptimSpec = Annotated[OptimSpec | LARCSpec | SGDSpec | LARSSpec, Field(discriminator="name")]
"""Any optimizer of a recipe, told apart by its name."""

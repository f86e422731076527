"""What a recipe says about the optimizer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from belvedere.core.settings import Contradictions, Settings

NonNegative = Annotated[float, Field(ge=0.0)]


class LearningRate(Settings):
    """Linear from `start` to `peak` over `warmup_epochs`, then a cosine to `final`. Absolute values."""

    start: NonNegative
    """Learning rate of the first step."""
    peak: NonNegative
    """Learning rate after the warm-up."""
    final: NonNegative
    """Learning rate at the end of the schedule."""
    warmup_epochs: NonNegative
    """How many epochs the rise from `start` to `peak` takes; need not be whole."""


class Range(Settings):
    """A value that moves from `start` to `final`."""

    start: float
    """Value at the first step."""
    final: float
    """Value at the end of the schedule."""


class DecayRange(Range):
    """Weight decay: a cosine from `start` to `final`."""

    start: NonNegative
    """Weight decay of the first step."""
    final: NonNegative
    """Weight decay at the end of the schedule."""


class LaterClip(Settings):
    """Another norm, from an epoch on."""

    norm: Annotated[float, Field(gt=0.0)]
    """The largest norm from then on."""
    from_epoch: Annotated[int, Field(ge=1)]
    """The epoch, from 0, that it begins with."""


class Clip(Settings):
    """Gradient clipping of the student: one norm over all its tensors, or each tensor by its own norm.
    later: the norm that takes over in the course of the run (null: none does)."""

    kind: Literal["total", "per_tensor"]
    """`total`: one norm over all of the student's gradients; `per_tensor`: each tensor by its own."""
    norm: Annotated[float, Field(gt=0.0)]
    """The largest norm that a gradient keeps."""
    from_epoch: Annotated[int, Field(ge=0)] = 0
    """The epoch, from 0, that clipping begins with."""
    later: LaterClip | None = None
    """Another norm that takes over in the course of the run (null: none)."""

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
    """The optimizer."""
    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]]
    """How much of the old the gradient's mean and its square's keep at a step."""
    eps: Annotated[float, Field(gt=0.0)]
    """What is added to a divisor that may be 0."""
    lr: LearningRate
    """The learning rate and its schedule."""
    weight_decay: DecayRange
    """Weight decay and its schedule."""
    clip: Clip | None
    """Gradient clipping of the student (null: none)."""
    stretch: Annotated[float, Field(ge=1.0)]
    """Every schedule is laid out over this many times the run."""


class LARCSpec(Settings):
    """SGD with momentum whose step is, tensor by tensor, the learning rate times `trust` of the tensor's norm
    (SwAV). eps: what keeps the division by a gradient's norm finite. stretch: as for AdamW."""

    name: Literal["larc"]
    """The optimizer."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)]
    """How much of the last update goes into the next."""
    trust: Annotated[float, Field(gt=0.0)]
    """A tensor's step, as a share of its norm."""
    eps: NonNegative
    """What is added to a divisor that may be 0."""
    lr: LearningRate
    """The learning rate and its schedule."""
    weight_decay: DecayRange
    """Weight decay and its schedule."""
    clip: Clip | None
    """Gradient clipping of the student (null: none)."""
    stretch: Annotated[float, Field(ge=1.0)]
    """Every schedule is laid out over this many times the run."""


class SGDSpec(Settings):
    """SGD with momentum; weight decay is added to the gradient. stretch: as for AdamW."""

    name: Literal["sgd"]
    """The optimizer."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)]
    """How much of the last update goes into the next."""
    lr: LearningRate
    """The learning rate and its schedule."""
    weight_decay: DecayRange
    """Weight decay and its schedule."""
    clip: Clip | None
    """Gradient clipping of the student (null: none)."""
    stretch: Annotated[float, Field(ge=1.0)]
    """Every schedule is laid out over this many times the run."""


class LARSSpec(Settings):
    """SGD with momentum whose step is, matrix by matrix, the learning rate times `trust` of the matrix's norm
    (You et al. 2017); vectors take plain steps. stretch: as for AdamW."""

    name: Literal["lars"]
    """The optimizer."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)]
    """How much of the last update goes into the next."""
    trust: Annotated[float, Field(gt=0.0)]
    """A tensor's step, as a share of its norm."""
    lr: LearningRate
    """The learning rate and its schedule."""
    weight_decay: DecayRange
    """Weight decay and its schedule."""
    clip: Clip | None
    """Gradient clipping of the student (null: none)."""
    stretch: Annotated[float, Field(ge=1.0)]
    """Every schedule is laid out over this many times the run."""


AnyOptimSpec = Annotated[OptimSpec | LARCSpec | SGDSpec | LARSSpec, Field(discriminator="name")]
"""Any optimizer of a recipe, told apart by its name."""

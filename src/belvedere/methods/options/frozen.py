"""How long prototypes stay as they began, in steps or in epochs."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from belvedere.core.settings import Contradictions
from belvedere.methods.method import Extent, MethodOptions
from belvedere.methods.options.ranges import Steps

STEPS, EPOCHS = "freeze_prototypes_steps", "freeze_prototypes_epochs"


class FrozenPrototypes(MethodOptions):
    """Of methods whose prototypes have no gradient at first. One of the two keys is given: steps mean what
    the authors' number means on any images, epochs follow the images that there are."""

    freeze_prototypes_steps: Steps | None = None
    """How many steps leave the prototypes as they began, but for their length. Either this or
    `freeze_prototypes_epochs` is given."""
    freeze_prototypes_epochs: Annotated[float, Field(ge=0.0)] | None = None
    """The same in epochs, which need not be whole: cut to whole steps, whatever the number of images. Either
    this or `freeze_prototypes_steps` is given."""

    @model_serializer(mode="wrap")
    def _without_unused(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = written(self)
        unused = [name for name in (STEPS, EPOCHS) if values.get(name, 0) is None]
        return {name: value for name, value in values.items() if name not in unused}

    def contradictions(self) -> Contradictions:
        steps, epochs = self.freeze_prototypes_steps, self.freeze_prototypes_epochs
        if steps is None and epochs is None:
            yield STEPS, f"is missing; give it, or the same in epochs as {EPOCHS}"
        if steps is not None and epochs is not None:
            yield EPOCHS, f"{epochs:g} is given and {STEPS} {steps} too; give one of them"

    def frozen_steps(self, steps_per_epoch: int) -> int:
        """How many steps leave the prototypes as they began."""
        if self.freeze_prototypes_epochs is not None:
            return int(self.freeze_prototypes_epochs * steps_per_epoch)
        assert self.freeze_prototypes_steps is not None, "one of the two is given"
        return self.freeze_prototypes_steps

    def in_steps(self, steps_per_epoch: int) -> FrozenPrototypes:
        frozen = self.frozen_steps(steps_per_epoch)
        return self.model_copy(update={STEPS: frozen, EPOCHS: None})

    def frozen_for_good(self, extent: Extent, *, number: str) -> list[str]:
        """That prototypes never learn, as `doubts` tells it. number: what ImageNet's epoch is."""
        frozen = self.frozen_steps(extent.steps_per_epoch)
        if frozen < extent.total_steps:
            return []
        if self.freeze_prototypes_epochs is not None:
            return [
                f"method.{EPOCHS}: {self.freeze_prototypes_epochs:g} of {extent.epochs} epochs: the "
                "prototypes never learn; published runs freeze them for 1 epoch"
            ]
        return [
            f"method.{STEPS}: {frozen} steps of a run of {extent.total_steps}: the prototypes never learn; "
            f"{number} is one epoch of ImageNet, which here is {extent.steps_per_epoch} "
            f"(method.{EPOCHS}: 1 in its place)"
        ]

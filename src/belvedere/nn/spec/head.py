"""What a recipe says about a projection head."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from belvedere.core.settings import Settings
from belvedere.nn.spec.count import Count


class HeadSpec(Settings):
    """The projection head: three linear layers, `hidden` wide, to `out` columns."""

    hidden: Count
    out: Count
    batch_norm: bool


class MLPHeadSpec(Settings):
    """SwAV's projection head: linear to `hidden` columns, BatchNorm (optional), ReLU, linear to `out`; with
    hidden 0 one linear layer."""

    hidden: Annotated[int, Field(ge=0)]
    out: Count
    batch_norm: bool

    @model_validator(mode="after")
    def _fits(self) -> MLPHeadSpec:
        if self.hidden == 0 and self.batch_norm:
            raise ValueError("batch_norm has no effect with hidden 0, one linear layer; set it to false")
        return self

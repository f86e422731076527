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


class ContrastiveHeadSpec(Settings):
    """Mugs' head for telling images apart: `layers` linear layers without bias, `hidden` wide, to `out`
    columns; of the student, two more (the predictor), `predictor` wide. batch_norm: after every layer of the
    first ones but the last. norm_before_predictor: whether rows have length 1 there too."""

    hidden: Count
    out: Count
    layers: Count
    predictor: Count
    batch_norm: bool
    norm_before_predictor: bool

    @model_validator(mode="after")
    def _fits(self) -> ContrastiveHeadSpec:
        if self.layers == 1 and self.batch_norm:
            raise ValueError("batch_norm has no effect with one layer; set it to false")
        return self


class WeightNormHeadSpec(Settings):
    """The projection head of DINO, EsViT and Mugs' groups: `layers` linear layers, `hidden` wide, to
    `bottleneck` columns, then cosines with `out` prototypes times a scale for each. norm_last_layer: whether
    these scales stay 1. batch_norm: after every linear layer of the first but the last."""

    hidden: Count
    bottleneck: Count
    out: Count
    layers: Count
    batch_norm: bool
    norm_last_layer: bool

    @model_validator(mode="after")
    def _fits(self) -> WeightNormHeadSpec:
        if self.layers == 1 and self.batch_norm:
            raise ValueError("batch_norm has no effect with one layer; set it to false")
        return self

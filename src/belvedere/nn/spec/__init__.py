"""What a recipe says about networks: one module per kind of backbone, the heads, the feature."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from belvedere.nn.spec.cvt import CvTSpec
from belvedere.nn.spec.feature import FeatureSpec
from belvedere.nn.spec.head import ContrastiveHeadSpec, HeadSpec, MLPHeadSpec, WeightNormHeadSpec
from belvedere.nn.spec.resnet import ResNetSpec
from belvedere.nn.spec.swin import SwinSpec
from belvedere.nn.spec.vil import ViLSpec
from belvedere.nn.spec.vit import ViTSpec

BackboneSpec = Annotated[ViTSpec | ResNetSpec | SwinSpec | CvTSpec | ViLSpec, Field(discriminator="name")]
"""Any backbone of a recipe or a card, told apart by its name."""


__all__ = [
    "BackboneSpec",
    "ContrastiveHeadSpec",
    "CvTSpec",
    "FeatureSpec",
    "HeadSpec",
    "MLPHeadSpec",
    "ResNetSpec",
    "SwinSpec",
    "ViLSpec",
    "ViTSpec",
    "WeightNormHeadSpec",
]


def __dir__() -> list[str]:
    return sorted(__all__)

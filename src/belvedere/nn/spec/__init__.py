"""What a recipe says about networks: one module per kind of backbone, the heads, the feature."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from belvedere.nn.spec.feature import FeatureSpec
from belvedere.nn.spec.head import HeadSpec, MLPHeadSpec
from belvedere.nn.spec.resnet import ResNetSpec
from belvedere.nn.spec.vit import ViTSpec

BackboneSpec = Annotated[ViTSpec | ResNetSpec, Field(discriminator="name")]
"""Any backbone of a recipe or a card, told apart by its name."""

__all__ = ["BackboneSpec", "FeatureSpec", "HeadSpec", "MLPHeadSpec", "ResNetSpec", "ViTSpec"]

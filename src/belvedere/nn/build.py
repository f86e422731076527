"""From a recipe's words to a network."""

from __future__ import annotations

from typing import overload

from belvedere.nn.resnet import ResNet
from belvedere.nn.spec import ResNetSpec, ViTSpec
from belvedere.nn.vit import ViT


@overload
def build(spec: ViTSpec) -> ViT: ...
@overload
def build(spec: ResNetSpec) -> ResNet: ...
@overload
def build(spec: ViTSpec | ResNetSpec) -> ViT | ResNet: ...
def build(spec: ViTSpec | ResNetSpec) -> ViT | ResNet:
    """The backbone a spec describes, with its parameters not yet drawn."""
    return ResNet(spec) if isinstance(spec, ResNetSpec) else ViT(spec)

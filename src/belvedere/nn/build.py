"""From a recipe's words to a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, overload

from belvedere.nn.cvt import CvT
from belvedere.nn.resnet import ResNet
from belvedere.nn.spec import BackboneSpec, CvTSpec, ResNetSpec, SwinSpec, ViLSpec, ViTSpec
from belvedere.nn.vil import ViL
from belvedere.nn.vit import ViT

if TYPE_CHECKING:
    from belvedere.nn.swin import Swin

Backbone: TypeAlias = "ViT | ResNet | Swin | CvT | ViL"
"""Any backbone."""


@overload
def build(spec: ViTSpec) -> ViT: ...
@overload
def build(spec: ResNetSpec) -> ResNet: ...
@overload
def build(spec: SwinSpec) -> Swin: ...
@overload
def build(spec: CvTSpec) -> CvT: ...
@overload
def build(spec: ViLSpec) -> ViL: ...
@overload
def build(spec: BackboneSpec) -> Backbone: ...
def build(spec: BackboneSpec) -> Backbone:
    """The backbone a spec describes, with its parameters not yet drawn."""
    match spec:
        case ResNetSpec():
            return ResNet(spec)
        case SwinSpec():
            from belvedere.nn.swin import Swin  # it brings torch's compiler, a second or two of start-up

            return Swin(spec)
        case CvTSpec():
            return CvT(spec)
        case ViLSpec():
            return ViL(spec)
        case ViTSpec():
            return ViT(spec)

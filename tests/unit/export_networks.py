"""Small backbones on their way out."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from belvedere.eval.classifier import FeatureNetwork
from belvedere.nn.build import build
from belvedere.nn.spec import BackboneSpec, CvTSpec, FeatureSpec, ResNetSpec, SwinSpec, ViTSpec
from belvedere.zoo.cards import Card
from belvedere.zoo.write import Classifier, Outgoing


def vit(**changes: Any) -> ViTSpec:
    values: dict[str, Any] = {
        "name": "vit",
        "width": 24,
        "depth": 2,
        "heads": 3,
        "patch_px": 8,
        "mlp_ratio": 2.0,
        "stem": "patch",
        "image_px": 32,
        "drop_path": 0.0,
    }
    return ViTSpec(**(values | changes))


def resnet(**changes: Any) -> ResNetSpec:
    values: dict[str, Any] = {
        "name": "resnet",
        "block": "basic",
        "blocks": (1, 1, 1, 1),
        "widen": 1,
        "width_per_group": 64,
        "stem": "imagenet",
    }
    return ResNetSpec(**(values | changes))


def swin() -> SwinSpec:
    return SwinSpec(
        name="swin",
        embed_width=12,
        blocks=(2, 2),
        heads=(1, 2),
        patch_px=4,
        window=4,
        mlp_ratio=2.0,
        image_px=32,
        drop_path=0.0,
    )


def cvt() -> CvTSpec:
    return CvTSpec(
        name="cvt",
        widths=(16, 32),
        heads=(1, 2),
        blocks=(1, 1),
        kernels=(7, 3),
        strides=(4, 2),
        paddings=(2, 1),
        window=4,
        mlp_ratio=2.0,
        drop_path=0.0,
    )


def card(spec: BackboneSpec, *, crop_px: int = 32, **changes: Any) -> Card:
    source = "cls" if isinstance(spec, ViTSpec) else "pooled"
    features = FeatureSpec(
        source=source, blocks=1, norm="none", resize_px=40, crop_px=crop_px, interpolation="bicubic"
    )
    values: dict[str, Any] = {
        "system": "msn",
        "backbone": spec,
        "features": features,
        "mean": (0.4, 0.5, 0.6),
        "std": (0.1, 0.2, 0.3),
        "source": "recipe small",
    }
    return Card(**(values | changes))


def outgoing(spec: BackboneSpec, *, classes: tuple[str, ...] = (), crop_px: int = 32) -> Outgoing:
    """A backbone whose every parameter is drawn: norms and biases too, so that none can be left out."""
    backbone = build(spec).eval()
    generator = torch.Generator().manual_seed(0)
    backbone.initialize_(generator)
    with torch.no_grad():
        for module in backbone.modules():
            for name, tensor in module.named_parameters(recurse=False):
                if name == "bias" or isinstance(module, nn.LayerNorm):
                    tensor += 0.2 * torch.randn(tensor.shape, generator=generator)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    written = card(spec, crop_px=crop_px)
    if not classes:
        return Outgoing(backbone, written, FeatureNetwork(backbone, written.features).eval(), {})
    weights = 5 * torch.randn(backbone.width, len(classes), generator=generator).double()
    network = FeatureNetwork(backbone, written.features, weights).eval()
    return Outgoing(backbone, written, network, {}, Classifier(weights, classes, 0.1, 7))

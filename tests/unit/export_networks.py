"""Small backbones on their way out."""

from __future__ import annotations

from typing import Any

import torch
from published_files import small_cvt, small_resnet, small_swin, small_vit
from torch import nn

from belvedere.eval.classifier import FeatureNetwork
from belvedere.nn.build import build
from belvedere.nn.spec import BackboneSpec, CvTSpec, FeatureSpec, ResNetSpec, SwinSpec, ViLSpec, ViTSpec
from belvedere.zoo.cards import Card
from belvedere.zoo.write import Classifier, Outgoing


def vit(**changes: Any) -> ViTSpec:
    return small_vit(**({"width": 24, "heads": 3, "patch_px": 8, "mlp_ratio": 2.0, "image_px": 32} | changes))


def resnet(**changes: Any) -> ResNetSpec:
    return small_resnet(**({"width_per_group": 64} | changes))


def swin() -> SwinSpec:
    return small_swin(blocks=(2, 2), heads=(1, 2), window=4, image_px=32)


def cvt() -> CvTSpec:
    return small_cvt(widths=(16, 32), blocks=(1, 1), window=4)


def vil() -> ViLSpec:
    """A stage of windows with a class token, and one of full attention without."""
    return ViLSpec(
        name="vil",
        widths=(16, 32),
        heads=(1, 2),
        blocks=(1, 1),
        patches=(4, 2),
        sparse=(True, False),
        class_token=(True, False),
        window=3,
        mode=0,
        mlp_ratio=2.0,
        image_px=32,
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

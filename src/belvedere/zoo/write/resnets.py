"""Which of torchvision's (and timm's) ResNets a network is."""

from __future__ import annotations

from belvedere.nn.spec import ResNetSpec
from belvedere.zoo.network_words import RESNETS

_ANY = {"basic": "resnet18", "bottleneck": "resnet50"}


def named_resnet(spec: ResNetSpec) -> tuple[str, list[int] | None]:
    """The name of a network, and its blocks per stage where they are not those of the one of that name."""
    layers = RESNETS.get((spec.block, spec.blocks))
    return (f"resnet{layers}", None) if layers else (_ANY[spec.block], list(spec.blocks))


def resnet_refusal(spec: ResNetSpec, library: str) -> str:
    """Why `library` has no such ResNet, or ""."""
    if spec.stem == "small":
        return f"{library}'s ResNets begin with a 7x7 convolution and a max-pool, this one with stem small"
    if spec.planes(0) != 64 or spec.width_per_group != 64:
        return (
            f"{library}'s ResNets have 64 channels after the stem and none that is as wide as this one "
            f"({spec.planes(0)}; SwAV's w2, w4 and w5 are not wide_resnet50_2)"
        )
    return ""

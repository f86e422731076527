"""A ResNet by the shapes of its tensors, which SwAV, EsViT, timm and torchvision name alike."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from belvedere.core.errors import WeightsError
from belvedere.core.match import Shape
from belvedere.nn.spec import ResNetSpec
from belvedere.zoo.convert.checkpoint import shape

COUNTS = "num_batches_tracked"
_BLOCK = re.compile(r"layer([1-4])\.(\d+)\.")
_STAGES = 4


def resnet_spec_of(shapes: Mapping[str, Shape], *, origin: str) -> ResNetSpec:
    """The network that has tensors of these shapes.

    Raises `WeightsError` for one that belvedere has not: grouped convolutions (ResNeXt), or bottlenecks
    widened without the stages they stand in (torchvision's `wide_resnet`).
    """
    stem, _, kernel, _ = shape(shapes, "conv1.weight", 4, origin=origin)
    bottleneck = any(name.endswith(".conv3.weight") for name in shapes)
    inner, _, _, _ = shape(shapes, "layer1.0.conv1.weight", 4, origin=origin)
    blocks = [0] * _STAGES
    for name in shapes:
        if found := _BLOCK.match(name):
            stage = int(found[1]) - 1
            blocks[stage] = max(blocks[stage], int(found[2]) + 1)
    if 0 in blocks:
        raise WeightsError(f"{origin} has no layer{blocks.index(0) + 1}, which a ResNet must have")
    second = shape(shapes, "layer1.0.conv2.weight", 4, origin=origin)
    fits = [
        base
        for base in sorted(range(1, stem + 1), key=lambda base: (base != 64, -base))
        if stem % base == 0 and (not bottleneck or stem * base // 64 == inner)
    ]
    if not fits or second[1] != inner:
        raise WeightsError(
            f"{origin}: a ResNet with {stem} channels in its stem and {inner} in its first bottleneck "
            f"(conv2 sees {second[1]}) is a wide_resnet or a ResNeXt; belvedere has the plain ones, and "
            f"SwAV's, whose stem is as many times as wide"
        )
    return ResNetSpec(
        name="resnet",
        block="bottleneck" if bottleneck else "basic",
        blocks=(blocks[0], blocks[1], blocks[2], blocks[3]),
        widen=stem // fits[0],
        width_per_group=fits[0],
        stem="small" if kernel == 3 else "imagenet",
    )


def with_counts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with a count of 0 for every BatchNorm, if it has no such counts at all: files of before
    torch 0.4.1 have none, and nothing here depends on them."""
    if any(name.endswith(COUNTS) for name in state):
        return dict(state)
    found = dict(state)
    for name in state:
        if name.endswith(".running_var"):
            found[name.removesuffix("running_var") + COUNTS] = torch.tensor(0)
    return found

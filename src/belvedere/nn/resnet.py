"""ResNets (He et al. 2016) with torchvision's parameter names, and SwAV's wider ones.

SwAV widens every stage's planes and the stem: these are not torchvision's `wide_resnet`. A published SwAV
file loads here without its head, and what is saved here loads into torchvision's network of the same name but
for its `fc`.

Legend: B images, C channels, H x W the grid of a stage, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from belvedere.nn.backbone import Block as StageOutput
from belvedere.nn.backbone import Features
from belvedere.nn.spec import ResNetSpec


def _conv(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, bias=False)


def _downsample(channels: int, out: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels == out:
        return None
    return nn.Sequential(_conv(channels, out, 1, stride), nn.BatchNorm2d(out))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a residual; the first has the stride."""

    def __init__(self, channels: int, spec: ResNetSpec, stage: int, stride: int) -> None:
        super().__init__()
        planes = spec.planes(stage)
        self.conv1 = _conv(channels, planes, 3, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv(planes, planes, 3)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _downsample(channels, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return F.relu(out, inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a residual; the 3x3 one has the stride."""

    def __init__(self, channels: int, spec: ResNetSpec, stage: int, stride: int) -> None:
        super().__init__()
        inner, out = spec.inner_width(stage), spec.channels(stage)
        self.conv1 = _conv(channels, inner, 1)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = _conv(inner, inner, 3, stride)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = _conv(inner, out, 1)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = _downsample(channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return F.relu(out, inplace=True)


class ResNet(nn.Module):
    """images [B, 3, H, W] -> `Features`; the mean over the last map is `pooled`.

    There is no class token and no final norm. A "block" of `Features` is a stage's output (`layer1` to
    `layer4`), its tokens the map's cells, row by row.
    """

    def __init__(self, spec: ResNetSpec) -> None:
        super().__init__()
        self.spec, self.width = spec, spec.out_width
        small = spec.stem == "small"
        stem = spec.planes(0)
        self.conv1 = _conv(3, stem, 3) if small else _conv(3, stem, 7, 2)
        self.bn1 = nn.BatchNorm2d(stem)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = _stage(stem, spec, 0)
        self.layer2 = _stage(spec.channels(0), spec, 1)
        self.layer3 = _stage(spec.channels(1), spec, 2)
        self.layer4 = _stage(spec.channels(2), spec, 3)
        self.norm = nn.Identity()

    def initialize_(self, generator: torch.Generator) -> None:
        """Fresh weights: convolutions Kaiming normal (fan out), BatchNorm ones and zeros."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(
                    module.weight, mode="fan_out", nonlinearity="relu", generator=generator
                )
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(
        self, images: Tensor, *, keep: Tensor | None = None, blocks: int = 0, regions: bool = True
    ) -> Features:
        if keep is not None:
            raise ValueError("a ResNet has no patches that could be dropped; give it whole images")
        x = images.contiguous(memory_format=_layout(images, training=self.training))
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        layers = (self.layer1, self.layer2, self.layer3, self.layer4)
        last: list[StageOutput] = []
        for stage, layer in enumerate(layers):
            x = layer(x)  # [B, C, H, W]
            if stage >= len(layers) - blocks:
                last.append(StageOutput(_tokens(x), None, _grid(x), x.shape[1], stage))
        tokens = _tokens(x) if regions else None
        return Features(x.mean((2, 3)), None, tokens, _grid(x), tuple(last))


def _stage(channels: int, spec: ResNetSpec, stage: int) -> nn.Sequential:
    block = Bottleneck if spec.block == "bottleneck" else BasicBlock
    first = block(channels, spec, stage, 1 if stage == 0 else 2)
    rest = [block(spec.channels(stage), spec, stage, 1) for _ in range(spec.blocks[stage] - 1)]
    return nn.Sequential(first, *rest)


def _tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)  # [B, H * W, C]


def _grid(x: Tensor) -> tuple[int, int]:
    return x.shape[2], x.shape[3]


def _layout(images: Tensor, *, training: bool) -> torch.memory_format:
    """Channels last where that is faster and as exact.

    Measured on one Zen 5 core, ResNet-50, 16 x 96 px: training in bfloat16 0.47 -> 0.39 s, evaluation 0.22 ->
    0.20 s in float32 and 0.14 -> 0.12 s in bfloat16 (8 x 224 px: 0.80 -> 0.69 s and 0.35 -> 0.27 s). Training
    in float32 would win 9 %, but a CPU's channels-last BatchNorm adds up a channel one by one: its variance
    is off by 5e-6 instead of 1e-7, which bfloat16 does not notice. On a GPU not measured: there only where
    tensor cores work on bfloat16, which is the order they read images in.
    """
    rough = images.dtype == torch.bfloat16 or torch.is_autocast_enabled(images.device.type)
    fast = rough or (images.device.type == "cpu" and not training)
    return torch.channels_last if fast else torch.contiguous_format

"""Projection heads and prototypes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from belvedere.nn.spec import HeadSpec, MLPHeadSpec


class ProjectionHead(nn.Module):
    """Three linear layers, the first two followed by BatchNorm (optional) and GELU: [R, width] -> [R, out].

    MSN, appendix: `fc1, bn1, fc2, bn2, fc3`, all with bias.
    """

    def __init__(self, width: int, spec: HeadSpec) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, spec.hidden)
        self.fc2 = nn.Linear(spec.hidden, spec.hidden)
        self.fc3 = nn.Linear(spec.hidden, spec.out)
        if spec.batch_norm:
            self.bn1: nn.Module = nn.BatchNorm1d(spec.hidden)
            self.bn2: nn.Module = nn.BatchNorm1d(spec.hidden)
        self.batch_norm = spec.batch_norm

    def initialize_(self, generator: torch.Generator) -> None:
        """Linear layers N(0, 0.02) without bias; BatchNorm keeps its ones and zeros."""
        for layer in (self.fc1, self.fc2, self.fc3):
            nn.init.trunc_normal_(layer.weight, std=0.02, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, h: Tensor) -> Tensor:
        x = self.fc1(h)
        x = F.gelu(self.bn1(x) if self.batch_norm else x)
        x = self.fc2(x)
        x = F.gelu(self.bn2(x) if self.batch_norm else x)
        out: Tensor = self.fc3(x)
        return out


def mlp_head(width: int, spec: MLPHeadSpec) -> nn.Sequential | nn.Linear:
    """SwAV's projection head, [R, width] -> [R, out]: to be called `projection_head`, as in published files.

    Linear, BatchNorm, ReLU, linear, numbered `0, 1, 3`; without BatchNorm (w5) `0, 2`; with hidden 0 one
    linear layer without a number.
    """
    if spec.hidden == 0:
        return nn.Linear(width, spec.out)
    norm = [nn.BatchNorm1d(spec.hidden)] if spec.batch_norm else []
    first, last = nn.Linear(width, spec.hidden), nn.Linear(spec.hidden, spec.out)
    return nn.Sequential(first, *norm, nn.ReLU(), last)


class Projector(nn.Module):
    """A backbone and SwAV's projection head; `forward` reaches either, so that a wrapper sees every use."""

    def __init__(self, backbone: nn.Module, width: int, spec: MLPHeadSpec) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection_head = mlp_head(width, spec)

    def forward(self, x: Tensor, *, part: Literal["backbone", "head"]) -> Tensor:
        """`backbone`: images [R, 3, H, W] -> h [R, D]; `head`: h [R, D] -> z [R, out], not normalized."""
        if part == "head":
            z: Tensor = self.projection_head(x)
            return z
        pooled: Tensor = self.backbone(x, regions=False).pooled
        return pooled


class PrototypeHeads(nn.Module):
    """Several sets of prototypes, one linear layer without bias each: `prototypes0.weight` [K, D] and so on.

    [R, D] -> one [R, K] of each set. DeepCluster-v2; SwAV's single set is a plain `nn.Linear`.
    """

    def __init__(self, width: int, counts: Sequence[int]) -> None:
        super().__init__()
        self.num_heads = len(counts)
        for number, count in enumerate(counts):
            self.add_module(f"prototypes{number}", nn.Linear(width, count, bias=False))

    def weights(self) -> list[nn.Parameter]:
        """The prototypes of every head, in order."""
        return [self.get_parameter(f"prototypes{number}.weight") for number in range(self.num_heads)]

    def forward(self, z: Tensor) -> list[Tensor]:
        return [F.linear(z, weight) for weight in self.weights()]


def initialize_linears_(module: nn.Module, generator: torch.Generator) -> None:
    """Draw all linear layers as torch does by default: weight and bias uniform within 1 / sqrt(columns).

    SwAV's head and prototypes; BatchNorm keeps its ones and zeros.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            bound = 1 / math.sqrt(layer.in_features)
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            if layer.bias is not None:
                nn.init.uniform_(layer.bias, -bound, bound, generator=generator)

"""Projection heads and prototypes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from belvedere.core.errors import RecipeError
from belvedere.nn.spec import HeadSpec, MLPHeadSpec, WeightNormHeadSpec


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


class WeightNormLinear(nn.Module):
    """A linear layer without bias whose rows have a direction, `weight_v` [K, D], and a length, `weight_g`
    [K, 1]."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out, 1))
        self.weight_v = nn.Parameter(torch.empty(out, width))

    @property
    def weight(self) -> Tensor:
        """The matrix itself [K, D]."""
        length: Tensor = torch.linalg.vector_norm(self.weight_v, dim=1, keepdim=True)
        return self.weight_v * (self.weight_g / length)

    def forward(self, z: Tensor) -> Tensor:
        return F.linear(z, self.weight)


class WeightNormHead(nn.Module):
    """DINO's projection head: an MLP with GELU, unit rows, a weight-normed layer: [R, width] -> [R, out].

    Names as published: `mlp.0/2/4` (with BatchNorm `mlp.0/1/3/4/6`; `mlp` where it has one layer), and
    `last_layer.weight_g`, `last_layer.weight_v`.
    """

    def __init__(self, width: int, spec: WeightNormHeadSpec) -> None:
        super().__init__()
        widths = [width, *[spec.hidden] * (spec.layers - 1)]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            norm = [nn.BatchNorm1d(after)] if spec.batch_norm else []
            layers += [nn.Linear(before, after), *norm, nn.GELU()]
        last = nn.Linear(widths[-1], spec.bottleneck)
        self.mlp: nn.Sequential | nn.Linear = nn.Sequential(*layers, last) if layers else last
        self.last_layer = WeightNormLinear(spec.bottleneck, spec.out)
        self.last_layer.weight_g.requires_grad_(not spec.norm_last_layer)

    def initialize_(self, generator: torch.Generator) -> None:
        """Linear layers N(0, 0.02) without bias; directions as torch draws a linear layer, lengths 1."""
        for layer in self.mlp.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02, generator=generator)
                nn.init.zeros_(layer.bias)
        bound = 1 / math.sqrt(self.last_layer.weight_v.shape[1])
        nn.init.uniform_(self.last_layer.weight_v, -bound, bound, generator=generator)
        nn.init.ones_(self.last_layer.weight_g)

    def embed(self, h: Tensor) -> Tensor:
        """What the last layer reads: h [R, width] -> unit rows [R, bottleneck], in the MLP's type."""
        x: Tensor = self.mlp(h)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.normalize(wide, dim=1, eps=1e-12).to(x.dtype)

    def forward(self, h: Tensor) -> Tensor:
        logits: Tensor = self.last_layer(self.embed(h))
        return logits


class TaskHeads(nn.Module):
    """A backbone and EsViT's heads, `head` for crops and `head_dense` for their regions (None without that
    task); `forward` reaches each, so that a wrapper sees every use."""

    def __init__(self, backbone: nn.Module, width: int, spec: WeightNormHeadSpec, *, regions: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = WeightNormHead(width, spec)
        self.head_dense = WeightNormHead(width, spec) if regions else None

    def forward(
        self, x: Tensor, *, part: Literal["backbone", "head", "head_dense"]
    ) -> dict[str, Tensor] | tuple[Tensor, Tensor]:
        """`backbone`: images [R, 3, H, W] -> by name, pooled [R, D] and, where there is a head for them,
        regions [R, N, D]; a head: features [R, D] -> unit rows [R, O] and the last layer's matrix [K, O]."""
        if part != "backbone":
            head = self.head if part == "head" else self.head_dense
            assert head is not None, "there is no head for regions"
            return head.embed(x), head.last_layer.weight
        features = self.backbone(x, regions=self.head_dense is not None)
        if self.head_dense is None:
            return {"pooled": features.pooled}
        if features.regions is None:
            raise RecipeError("method.region: this backbone gives no regions; set it to false")
        return {"pooled": features.pooled, "regions": features.regions}


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

"""CvT v4, the convolutional vision transformer of EsViT: windows without positions, queries, keys and values
behind a depthwise convolution.

It is not the CvT of Wu et al. 2021: four stages, attention in windows that are not shifted, one depthwise
convolution and BatchNorm for queries, keys and values together, no class token. Three things are as in
EsViT's code, which made the published weights: scores are scaled by the width of the *stage* (not of a head)
to the power -1/2; a map is padded to whole windows after the norm and *before* the convolution, so that
padded cells are in BatchNorm's statistics; and they are keys like any other. Parameter names are the
published ones.

Maps are kept channels last, [B, H, W, C], so that norms and 1x1 convolutions are those of tokens.

Legend: B images, H x W the map of a stage, C its width, h heads, w side of a window, d width of a head.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from belvedere.nn.backbone import Block as BlockOutput
from belvedere.nn.backbone import Features
from belvedere.nn.spec import CvTSpec
from belvedere.nn.vit import DropPath
from belvedere.ops.attention import attention
from belvedere.ops.linear import linear

_NORM_EPS = 1e-5
_INIT_STD = 0.02
_QUICK = 1.702  # QuickGELU: x * sigmoid(1.702 x)


def _pointwise(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A 1x1 convolution of a map that has its channels last."""
    return linear(x, conv.weight.flatten(1), conv.bias)


class Embedding(nn.Module):
    """Images or the map before [B, C', H', W'] -> normed map [B, H, W, C]: a strided convolution."""

    def __init__(self, channels: int, spec: CvTSpec, stage: int) -> None:
        super().__init__()
        width, kernel = spec.widths[stage], spec.kernels[stage]
        self.proj = nn.Conv2d(channels, width, kernel, spec.strides[stage], spec.paddings[stage])
        self.norm = nn.LayerNorm(width, eps=_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x).permute(0, 2, 3, 1)
        # Autocast must not round the sum that all blocks of a stage add to.
        out: Tensor = self.norm(x.to(self.norm.weight.dtype))
        return out


class QueryKeyValue(nn.Module):
    """Depthwise 3x3 convolution, BatchNorm, 1x1 convolution: [B, H, W, C] -> [B, H, W, 3 * C]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dw = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(width)
        self.pw = nn.Conv2d(width, 3 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.dw(x.permute(0, 3, 1, 2)))  # [B, C, H, W]
        return _pointwise(x.permute(0, 2, 3, 1), self.pw)


class Attention(nn.Module):
    """Attention within windows of w x w cells that do not overlap: [B, H, W, C] -> [B, H, W, C]."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = QueryKeyValue(width)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        w = min(self.window, height, width)
        below, right = -height % w, -width % w
        if below or right:
            x = F.pad(x, (0, 0, 0, right, 0, below))
        rows, columns = (height + below) // w, (width + right) // w
        parts: Tensor = self.qkv(x).view(batch, rows, w, columns, w, 3, self.heads, -1)
        # [3, B, rows, columns, h, w, w, d] -> three of [B * windows, h, w * w, d]
        query, key, value = parts.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(1, 3).flatten(3, 4).unbind(0)
        # Scores are divided by sqrt(C); `attention` divides by sqrt(d).
        mixed = attention(query * math.sqrt(query.shape[-1] / channels), key, value)
        mixed = mixed.view(batch, rows, columns, self.heads, w, w, -1).permute(0, 1, 4, 2, 5, 3, 6)
        mixed = mixed.reshape(batch, rows * w, columns * w, channels)[:, :height, :width]
        return _pointwise(mixed, self.proj_out)


class FeedForward(nn.Module):
    """1x1 convolution, QuickGELU, 1x1 convolution, on a map that has its channels last."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.ModuleDict({"0": nn.Conv2d(width, hidden, 1), "2": nn.Conv2d(hidden, width, 1)})

    def forward(self, x: Tensor) -> Tensor:
        first, second = (cast(nn.Conv2d, self.net[name]) for name in ("0", "2"))
        # x sigmoid(1.702 x), by the operation that keeps one tensor for the backward pass and not two
        hidden = F.silu(_QUICK * _pointwise(x, first)) / _QUICK
        return _pointwise(hidden, second)


class Residual(nn.Module):
    """x + drop_path(fn(norm(x)))."""

    def __init__(self, width: int, fn: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=_NORM_EPS)
        self.fn = fn
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.drop_path(self.fn(self.norm(x)))
        return out


class Blocks(nn.Module):
    """The blocks of a stage, attention and feed-forward in turn: `layers.0.0`, `layers.0.1` and so on."""

    def __init__(self, spec: CvTSpec, stage: int, drop_paths: list[float]) -> None:
        super().__init__()
        width = spec.widths[stage]
        self.layers = nn.ModuleList(
            nn.Sequential(
                Residual(width, Attention(width, spec.heads[stage], spec.window), rate),
                Residual(width, FeedForward(width, int(width * spec.mlp_ratio)), rate),
            )
            for rate in drop_paths
        )


class CvT(nn.Module):
    """images [B, 3, H, W] -> `Features`; the mean of the last stage's normed cells is `pooled`.

    There is no class token. A "block" of `Features` is one of any stage, before the next stage's convolution.
    """

    def __init__(self, spec: CvTSpec) -> None:
        super().__init__()
        self.spec, self.width = spec, spec.out_width
        rates = torch.linspace(0, spec.drop_path, spec.depth, device="cpu").tolist()
        channels = 3
        for stage, count in enumerate(spec.blocks):
            embedding = Embedding(channels, spec, stage)
            blocks = Blocks(spec, stage, [rates.pop(0) for _ in range(count)])
            self.add_module(f"stage{stage}", nn.ModuleList([embedding, blocks]))
            channels = spec.widths[stage]
        self.norm = nn.LayerNorm(self.width, eps=_NORM_EPS)

    def initialize_(self, generator: torch.Generator) -> None:
        """Fresh weights: convolutions N(0, 0.02) without bias; norms keep their ones and zeros."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=_INIT_STD, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self, images: Tensor, *, keep: Tensor | None = None, blocks: int = 0, regions: bool = True
    ) -> Features:
        if keep is not None:
            raise ValueError("a CvT has no patches that could be dropped; give it whole images (keep=None)")
        self._check(images)
        last: list[BlockOutput] = []
        number = 0
        x = images  # [B, 3, H, W]
        for stage in range(len(self.spec.blocks)):
            embedding, transformer = cast(nn.ModuleList, self.get_submodule(f"stage{stage}"))
            x = embedding(x)  # [B, H, W, C]
            for block in cast(Blocks, transformer).layers:
                x = block(x)
                number += 1
                if number > self.spec.depth - blocks:
                    last.append(BlockOutput(x.flatten(1, 2), None, _grid(x), x.shape[3], stage))
            x = x.permute(0, 3, 1, 2)  # [B, C, H, W], channels last in memory
        tokens = self.norm(x.flatten(2).transpose(1, 2))  # [B, N, C]
        grid = (x.shape[2], x.shape[3])
        return Features(tokens.mean(1), None, tokens if regions else None, grid, tuple(last))

    def _check(self, images: Tensor) -> None:
        height, width = images.shape[-2:]
        if words := self.spec.refusal(min(height, width)):
            raise ValueError(f"an image of {height}x{width} px {words}")


def _grid(x: Tensor) -> tuple[int, int]:
    return x.shape[1], x.shape[2]

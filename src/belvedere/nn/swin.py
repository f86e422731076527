"""The Swin transformer (Liu et al. 2021) as EsViT trains it: four stages of attention in shifted windows.

Parameter names are the published ones; `relative_position_index` is not stored, it follows from the window.
Windows and shifts are those of the size a network was built for and stay so at any other. A map that is no
whole number of windows is padded at its bottom and right and then rolled; what was padded are keys like any
other, whose queries, keys and values are the bias of `qkv`. timm's network of the same weights rolls first.

Images need whole patches and may be of any shape, also wider than high; maps with odd sides are padded by one
before they are halved.

Legend: B images, R x C a stage's map, D its width, W windows, H heads, T tokens of a window.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from belvedere.nn.backbone import Block as BlockOutput
from belvedere.nn.backbone import Features
from belvedere.nn.linear import Linear
from belvedere.nn.spec import SwinSpec
from belvedere.nn.vit import DropPath, Mlp
from belvedere.nn.window_attention import WindowAttention

_INIT_STD = 0.02


class PatchEmbed(nn.Module):
    """Images [B, 3, H, W] -> a normed token per patch [B, R, C, D]."""

    def __init__(self, width: int, patch_px: int, *, eps: float) -> None:
        super().__init__()
        self.patch_px = patch_px
        self.proj = nn.Conv2d(3, width, patch_px, patch_px)
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, images: Tensor) -> Tensor:
        self._refuse_parts(images.shape[-2], images.shape[-1])
        tokens = self.proj(images).permute(0, 2, 3, 1)  # [B, R, C, D]
        # Autocast must not round the sum that all blocks of a stage add to.
        normed: Tensor = self.norm(tokens.to(self.norm.weight.dtype))
        return normed

    def _refuse_parts(self, height: int, width: int) -> None:
        px = self.patch_px
        if height % px or width % px or not height * width:
            near = " or ".join(
                f"{fit(height / px) * px:d}x{fit(width / px) * px:d}"
                for fit in ((math.floor, math.ceil) if min(height, width) >= px else (math.ceil,))
            )
            raise ValueError(
                f"an image of {height}x{width} px has no whole patches of {px} px; the nearest are {near}"
            )


class PatchMerging(nn.Module):
    """Maps [B, R, C, D] -> [B, R / 2, C / 2, 2 * D], sides rounded up: four tokens normed and made one."""

    def __init__(self, width: int, *, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width, eps=eps)
        self.reduction = Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.shape[1:3]
        if rows % 2 or columns % 2:
            x = F.pad(x, (0, 0, 0, columns % 2, 0, rows % 2))
        fours = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # [B, R / 2, 2, C / 2, 2, D]
        # The published order of the four: down the left column, then down the right one.
        fours = fours.permute(0, 1, 3, 4, 2, 5).flatten(3)  # [B, R / 2, C / 2, 4 * D]
        merged: Tensor = self.reduction(self.norm(fours))
        return merged.to(self.reduction.weight.dtype)


class Block(nn.Module):
    """Attention in windows and MLP, each behind a norm and around a residual: [B, R, C, D] -> the same."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        window: int,
        shift: int,
        mlp_ratio: float,
        drop_path: float,
        eps: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = WindowAttention(width, heads, window=window, shift=shift)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out


class Stage(nn.Module):
    """Blocks on maps of one size, and the halving after them, which the last stage has not."""

    def __init__(self, spec: SwinSpec, stage: int, rates: list[float]) -> None:
        super().__init__()
        width, window = spec.width(stage), spec.window_of(stage)
        self.blocks = nn.ModuleList(
            Block(
                width,
                spec.heads[stage],
                window=window,
                shift=spec.shift_of(stage, number),
                mlp_ratio=spec.mlp_ratio,
                drop_path=rate,
                eps=spec.norm_eps,
            )
            for number, rate in enumerate(rates)
        )
        self.downsample = PatchMerging(width, eps=spec.norm_eps) if stage < len(spec.blocks) - 1 else None


class Swin(nn.Module):
    """images [B, 3, H, W] -> `Features`; the mean of the last stage's normed tokens is `pooled`.

    There is no class token. `blocks` are outputs before the halving that ends their stage.
    """

    def __init__(self, spec: SwinSpec) -> None:
        super().__init__()
        self.spec, self.width = spec, spec.out_width
        self.patch_embed = PatchEmbed(spec.embed_width, spec.patch_px, eps=spec.norm_eps)
        rates = iter(np.linspace(0.0, spec.drop_path, spec.depth).tolist())
        self.layers = nn.ModuleList(
            Stage(spec, stage, [next(rates) for _ in range(depth)]) for stage, depth in enumerate(spec.blocks)
        )
        self.norm = nn.LayerNorm(self.width, eps=spec.norm_eps)

    def initialize_(self, generator: torch.Generator) -> None:
        """Fresh weights: linear layers and position tables N(0, 0.02), norms ones and zeros, the patch
        convolution as torch draws one."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_INIT_STD, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, WindowAttention):
                table = module.relative_position_bias_table
                nn.init.trunc_normal_(table, std=_INIT_STD, generator=generator)
        conv = self.patch_embed.proj
        bound = conv.weight[0].numel() ** -0.5
        for parameter in conv.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def num_patches(self, px: int) -> int:
        """How many tokens the last stage has for a square image of `px` pixels."""
        return self.spec.num_patches(px)

    def forward(
        self, images: Tensor, *, keep: Tensor | None = None, blocks: int = 0, regions: bool = True
    ) -> Features:
        if keep is not None:
            raise ValueError(
                "a Swin needs whole maps and can drop no patches; give it whole images, or take a vit"
            )
        x = self.patch_embed(images)  # [B, R, C, D]
        last: list[BlockOutput] = []
        left = self.spec.depth
        for stage, layer in enumerate(self.layers):
            assert isinstance(layer, Stage)
            for block in layer.blocks:
                x = block(x)
                if left <= blocks:
                    last.append(BlockOutput(x.flatten(1, 2), None, _grid(x), x.shape[-1], stage))
                left -= 1
            if layer.downsample is not None:
                x = layer.downsample(x)
        tokens = self.norm(x).flatten(1, 2)  # [B, R * C, D]
        return Features(tokens.mean(1), None, tokens if regions else None, _grid(x), tuple(last))

    def attention(self, images: Tensor) -> list[Tensor]:
        """The softmaxed attention of every block [B * W, H, T, T], the windows of an image row by row."""
        x = self.patch_embed(images)
        maps: list[Tensor] = []
        for layer in self.layers:
            assert isinstance(layer, Stage)
            for block in layer.blocks:
                assert isinstance(block, Block)
                maps.append(block.attn.weights(block.norm1(x)))
                x = block(x)
            if layer.downsample is not None:
                x = layer.downsample(x)
        return maps


def _grid(x: Tensor) -> tuple[int, int]:
    return x.shape[1], x.shape[2]

"""The vision transformer of MSN (and DeiT, DINO, Mugs): pre-norm, class token first, learned positions.

Parameter names are the published ones, which timm's `vit_*_patch16_224` shares.

Legend: B images, N patches, T tokens (class token and kept patches), D width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from belvedere.core import rng
from belvedere.nn.backbone import Block as BlockOutput
from belvedere.nn.backbone import Features
from belvedere.nn.linear import Linear
from belvedere.nn.position import resize_position
from belvedere.nn.spec import ViTSpec
from belvedere.nn.spec.vit import CONV_WIDTHS
from belvedere.ops.attention import attention
from belvedere.ops.linear import linear

_INIT_STD = 0.02


class PatchEmbed(nn.Module):
    """Images [B, 3, H, W] -> one token per patch [B, N, D]; only the kept ones [B, T, D] with `keep` [T]."""

    def __init__(self, width: int, patch_px: int) -> None:
        super().__init__()
        self.patch_px = patch_px
        self.proj = nn.Conv2d(3, width, patch_px, patch_px)

    def forward(self, images: Tensor, keep: Tensor | None) -> Tensor:
        batch, channels, height, width = images.shape
        px = self.patch_px
        patches = images.unflatten(3, (width // px, px)).unflatten(2, (height // px, px))
        patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * px * px)  # [B, N, 3*px*px]
        if keep is not None:
            patches = patches[:, keep]
        return linear(patches, self.proj.weight.flatten(1), self.proj.bias)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches; sides must be whole numbers of patches."""
        if height % self.patch_px or width % self.patch_px:
            raise ValueError(f"an image of {height}x{width} px has no whole patches of {self.patch_px} px")
        return height // self.patch_px, width // self.patch_px


class ConvStem(nn.Module):
    """Four strided 3x3 convolutions with BatchNorm, then 1x1 to the width: patches of 16 px."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for out in CONV_WIDTHS:
            layers += [nn.Conv2d(channels, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        self.stem = nn.Sequential(*layers, nn.Conv2d(channels, width, 1))

    def forward(self, images: Tensor, keep: Tensor | None) -> Tensor:
        tokens: Tensor = self.stem(images).flatten(2).transpose(1, 2)  # [B, N, D]
        return tokens if keep is None else tokens[:, keep]

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns: each of the four convolutions halves a side, rounding up."""
        return -(-height // 16), -(-width // 16)


class Attention(nn.Module):
    """Multi-head self-attention; `qkv` has its rows in the order query, key, value, each split by head."""

    def __init__(self, width: int, heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width, bias=qkv_bias)
        self.proj = Linear(width, width)

    def _split(self, tokens: Tensor, parts: int) -> tuple[Tensor, ...]:
        batch, count, _ = tokens.shape
        return (
            tokens.view(batch, count, parts, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        )  # [B, H, T, d]

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self._split(self.qkv(x), 3)
        mixed = attention(query, key, value)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out

    def first(self, x: Tensor) -> Tensor:
        """Row 0 of `forward(x)` [B, 1, D], for about a sixth of its work."""
        width = x.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        first, rest = (None, None) if bias is None else (bias[:width], bias[width:])
        (query,) = self._split(linear(x[:, :1], weight[:width], first), 1)
        key, value = self._split(linear(x, weight[width:], rest), 2)
        mixed = attention(query, key, value)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out

    def weights(self, x: Tensor) -> Tensor:
        """The softmaxed attention [B, H, T, T]."""
        query, key, _ = self._split(self.qkv(x), 3)
        scores: Tensor = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        return scores.softmax(dim=-1)


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class DropPath(nn.Module):
    """Drops a residual branch per image at `rate`, and scales what stays by 1 / (1 - rate).

    What is dropped follows from the scope the loop opened: a row keeps its draw on any rank or micro-batch.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        kept = rng.row_uniforms(x.shape[0]) >= self.rate  # [B]
        return x * (kept.to(x) / (1.0 - self.rate)).view(-1, *[1] * (x.dim() - 1))


class Block(nn.Module):
    """Attention and MLP, each behind a norm and around a residual."""

    def __init__(self, spec: ViTSpec, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(spec.width, eps=spec.norm_eps)
        self.attn = Attention(spec.width, spec.heads, qkv_bias=spec.qkv_bias)
        self.norm2 = nn.LayerNorm(spec.width, eps=spec.norm_eps)
        self.mlp = Mlp(spec.width, int(spec.width * spec.mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out

    def first(self, x: Tensor) -> Tensor:
        """Row 0 of `forward(x)` [B, 1, D]: all that is needed of the last block where regions are not."""
        head = x[:, :1] + self.drop_path(self.attn.first(self.norm1(x)))
        out: Tensor = head + self.drop_path(self.mlp(self.norm2(head)))
        return out


class ViT(nn.Module):
    """images [B, 3, H, W] -> `Features`; the class token after the final norm is `pooled`."""

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.spec, self.width = spec, spec.out_width
        self.patch_embed: PatchEmbed | ConvStem = (
            ConvStem(spec.width) if spec.stem == "conv" else PatchEmbed(spec.width, spec.patch_px)
        )
        table = (spec.image_px // spec.patch_px) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, table + 1, spec.width))
        rates = torch.linspace(0, spec.drop_path, spec.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(Block(spec, rate) for rate in rates)
        self.norm = nn.LayerNorm(spec.width, eps=spec.norm_eps)

    def initialize_(self, generator: torch.Generator) -> None:
        """Fresh weights: linear layers, class token, positions N(0, 0.02); convolutions Kaiming (fan in)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_INIT_STD, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.cls_token, std=_INIT_STD, generator=generator)
        nn.init.trunc_normal_(self.pos_embed, std=_INIT_STD, generator=generator)

    def num_patches(self, px: int) -> int:
        """How many patches a square image of `px` pixels has."""
        rows, columns = self.patch_embed.grid(px, px)
        return rows * columns

    def embed(self, images: Tensor, keep: Tensor | None = None) -> tuple[Tensor, tuple[int, int]]:
        """Tokens with positions added [B, T, D] (class token first), and the grid they were taken from.

        keep [T - 1]: the patches that stay; positions are added before, so that their order is free.
        """
        grid = self.patch_embed.grid(images.shape[-2], images.shape[-1])
        position = resize_position(self.pos_embed, grid, self.spec.position_margin)  # [1, N + 1, D]
        patch_position = position[:, 1:] if keep is None else position[:, 1:][:, keep]
        patches = self.patch_embed(images, keep) + patch_position
        cls = (self.cls_token + position[:, :1]).expand(images.shape[0], -1, -1)
        return torch.cat([cls.to(patches.dtype), patches], dim=1), grid

    def forward(
        self, images: Tensor, *, keep: Tensor | None = None, blocks: int = 0, regions: bool = True
    ) -> Features:
        x, grid = self.embed(images, keep)
        seen = None if keep is not None else grid
        last: list[BlockOutput] = []
        for number, block in enumerate(self.blocks):
            if number == len(self.blocks) - 1 and not regions and not blocks:
                cls = self.norm(block.first(x))[:, 0]  # type: ignore[operator]
                return Features(cls, cls, None, seen, ())
            x = block(x)
            if number >= len(self.blocks) - blocks:
                last.append(BlockOutput(x[:, 1:], x[:, 0], seen, self.width, 0))
        x = self.norm(x)
        return Features(x[:, 0], x[:, 0], x[:, 1:], seen, tuple(last))

    def attention(self, images: Tensor) -> Tensor:
        """The last block's softmaxed attention [B, H, N + 1, N + 1], all patches kept."""
        x, _ = self.embed(images)
        *before, last = list(self.blocks)
        for block in before:
            x = block(x)
        assert isinstance(last, Block)
        return last.attn.weights(last.norm1(x))

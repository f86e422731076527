"""ViL, the multi-scale Vision Longformer (Zhang et al. 2021) as EsViT uses it: stages of pre-norm blocks, the
first ones with sliding-chunk attention, each with a class token of its own that is dropped at its end.

Positions are relative: biases of the scores, and no table that is added to the cells. For another image size
the stages with attention over all cells resize the *expanded* matrix of biases, cells by cells, as if it were
an image, as EsViT's code does and its published weights were trained; the target is the number of cells
itself, where EsViT's passes a factor that misses by one at 64 and 128 px. Parameter names are the published
ones.

Legend: B images, N cells of a stage's map, T = N and the class token where there is one, D width, h heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn

from belvedere.core import rng
from belvedere.nn.backbone import Block as BlockOutput
from belvedere.nn.backbone import Features
from belvedere.nn.linear import Linear
from belvedere.nn.position import bicubic_matrix
from belvedere.nn.sliding import ALL_CHUNKS, NUM_NEIGHBOURS, SlidingAttention
from belvedere.nn.spec import ViLSpec
from belvedere.nn.vit import DropPath, Mlp
from belvedere.ops.attention import biased_attention
from belvedere.ops.linear import linear

_NORM_EPS = 1e-6
_INIT_STD = 0.02


@lru_cache(maxsize=32)
def _bias_rows(side: int, device: torch.device) -> Tensor:
    """Which row of a bias table [(2 * side - 1)^2, h] is between two cells of a map: int64 [N, N], by query
    minus key coordinates."""
    with torch.inference_mode(False):
        cell = torch.arange(side)
        apart = cell[:, None] - cell + side - 1  # [side, side]
        rows = apart[:, None, :, None] * (2 * side - 1) + apart[None, :, None, :]
        return rows.reshape(side**2, side**2).to(device)


class FullAttention(nn.Module):
    """Attention between all tokens [B, T, D] -> [B, T, D], with biases by relative position.

    side: of the map that the table of biases is made for.
    """

    def __init__(self, width: int, heads: int, side: int, *, class_token: bool) -> None:
        super().__init__()
        self.heads, self.side, self.class_token = heads, side, class_token
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)
        self.local_relative_position_bias_table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, heads))
        if class_token:
            self.g2l_relative_position_bias = nn.Parameter(torch.zeros(2, heads, 1))
            self.g2g_relative_position_bias = nn.Parameter(torch.zeros(heads, 1, 1))

    def forward(self, x: Tensor, grid: tuple[int, int], seen: int) -> Tensor:
        """seen: as a sparse stage is told; every cell sees all."""
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = biased_attention(query, key, value, self.bias(grid[0] * grid[1]))  # [B, h, T, d]
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out

    def bias(self, cells: int) -> Tensor:
        """What is added to the scores [h, T, T] of a map with so many cells."""
        table = self.local_relative_position_bias_table
        bias = table[_bias_rows(self.side, table.device)].permute(2, 0, 1)  # [h, N, N] at the built size
        built = bias.shape[1]
        if cells != built:
            matrix = bicubic_matrix(built, cells, cells / built, table.device, table.dtype)
            with torch.autocast(table.device.type, enabled=False):
                bias = matrix @ bias @ matrix.T  # [h, N, N]
        if not self.class_token:
            return bias
        down, up = self.g2l_relative_position_bias  # class to cells, cells to class: [h, 1] each
        first = torch.cat([self.g2g_relative_position_bias, down[:, None].expand(-1, -1, cells)], dim=2)
        return torch.cat([first, torch.cat([up[:, None].expand(-1, cells, -1), bias], dim=2)], dim=1)


class Embedding(nn.Module):
    """A map [B, H, W, C] -> tokens of its patches [B, T, D], the class token first, and their grid.

    Rows and columns that make no whole patch are left out.
    """

    def __init__(self, channels: int, width: int, patch: int, *, class_token: bool) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(channels, width, patch, patch)
        self.norm_embed = nn.LayerNorm(width, eps=_NORM_EPS)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if class_token else None

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        p = self.patch
        rows, columns = x.shape[1] // p, x.shape[2] // p
        x = x[:, : rows * p, : columns * p].unflatten(2, (columns, p)).unflatten(1, (rows, p))
        patches = x.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)  # [B, N, p * p * C]
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(1)
        tokens = linear(patches, weight, self.proj.bias)
        # Autocast must not round the sum that all blocks of a stage add to.
        tokens = self.norm_embed(tokens.to(weight.dtype))
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        return tokens, (rows, columns)


class AttentionHalf(nn.Module):
    """The first half of a block: x + drop_path(attn(norm(x)))."""

    def __init__(self, spec: ViLSpec, stage: int, drop_path: float) -> None:
        super().__init__()
        width, heads, own = spec.widths[stage], spec.heads[stage], spec.class_token[stage]
        self.norm = nn.LayerNorm(width, eps=_NORM_EPS)
        self.attn: nn.Module
        if spec.sparse[stage]:
            self.attn = SlidingAttention(width, heads, spec.window, class_token=own)
        else:
            self.attn = FullAttention(width, heads, spec.sides(spec.image_px)[stage], class_token=own)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, grid: tuple[int, int], seen: int) -> Tensor:
        out: Tensor = x + self.drop_path(self.attn(self.norm(x), grid, seen))
        return out


class MlpHalf(nn.Module):
    """The second half of a block: x + drop_path(mlp(norm(x)))."""

    def __init__(self, width: int, hidden: int, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=_NORM_EPS)
        self.mlp = Mlp(width, hidden)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.drop_path(self.mlp(self.norm(x)))
        return out


class ViL(nn.Module):
    """images [B, 3, H, W] (square) -> `Features`; the mean of the last stage's normed cells is `pooled`.

    A "block" of `Features` is one of any stage, its class token beside its cells, before the next stage.
    """

    def __init__(self, spec: ViLSpec) -> None:
        super().__init__()
        self.spec, self.width = spec, spec.out_width
        rates = iter(torch.linspace(0, spec.drop_path, spec.depth, device="cpu").tolist())
        channels = 3
        for stage, (width, patch) in enumerate(zip(spec.widths, spec.patches, strict=True)):
            parts: list[nn.Module] = [Embedding(channels, width, patch, class_token=spec.class_token[stage])]
            for _ in range(spec.blocks[stage]):
                rate = next(rates)
                parts.append(AttentionHalf(spec, stage, rate))
                parts.append(MlpHalf(width, int(width * spec.mlp_ratio), rate))
            self.add_module(f"layer{stage + 1}", nn.ModuleList(parts))
            channels = width
        self.norm = nn.LayerNorm(self.width, eps=_NORM_EPS)

    def initialize_(self, generator: torch.Generator) -> None:
        """Fresh weights: linear layers, class tokens and tables of biases N(0, 0.02), biases of layers 0; the
        patches' convolutions as torch does, uniform within 1 / sqrt(columns)."""
        for name, parameter in self.named_parameters():
            if name.endswith(("cls_token", "_bias_table", "_position_bias")):
                nn.init.trunc_normal_(parameter, std=_INIT_STD, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_INIT_STD, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                bound = module.weight[0].numel() ** -0.5
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                assert module.bias is not None
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)

    def forward(
        self,
        images: Tensor,
        *,
        keep: Tensor | None = None,
        blocks: int = 0,
        regions: bool = True,
        neighbours: Sequence[int] | None = None,
    ) -> Features:
        """neighbours: of mode 1 in training, the neighbour (1 to 8) that each sparse block sees; None: drawn,
        the same for all rows of the global batch."""
        if keep is not None:
            raise ValueError("a ViL has no patches that could be dropped; give it whole images (keep=None)")
        self._check(images)
        seen = self._seen(neighbours)
        last: list[BlockOutput] = []
        number, grid = 0, (0, 0)
        x = images.permute(0, 2, 3, 1)  # [B, H, W, 3]
        for stage, width in enumerate(self.spec.widths):
            embedding, *halves = cast(nn.ModuleList, self.get_submodule(f"layer{stage + 1}"))
            first = int(self.spec.class_token[stage])
            x, grid = embedding(x)  # [B, T, D]
            for attend, mlp in zip(halves[::2], halves[1::2], strict=True):
                x = mlp(attend(x, grid, seen[number]))
                number += 1
                if number > self.spec.depth - blocks:
                    last.append(BlockOutput(x[:, first:], x[:, 0] if first else None, grid, width, stage))
            x = x[:, first:].unflatten(1, grid)  # [B, H, W, D]
        tokens = self.norm(x.flatten(1, 2))
        return Features(tokens.mean(1), None, tokens if regions else None, grid, tuple(last))

    def _seen(self, neighbours: Sequence[int] | None) -> list[int]:
        """What each block sees: the mode, and in training with mode 1 a neighbour for each sparse block."""
        spec = self.spec
        sparse = [
            is_sparse for is_sparse, count in zip(spec.sparse, spec.blocks, strict=True) for _ in range(count)
        ]
        if spec.mode != 1 or not self.training:
            if neighbours is not None:
                raise ValueError("neighbours have no effect but in training with mode 1; leave them out")
            return [ALL_CHUNKS if spec.mode == 1 else spec.mode] * len(sparse)
        if neighbours is None:
            neighbours = rng.shared_integers(1, NUM_NEIGHBOURS + 1, sum(sparse))
        elif len(neighbours) != sum(sparse) or not all(1 <= n <= NUM_NEIGHBOURS for n in neighbours):
            raise ValueError(
                f"neighbours {list(neighbours)}: a number from 1 to {NUM_NEIGHBOURS} is needed for each of "
                f"the {sum(sparse)} sparse blocks"
            )
        drawn = iter(neighbours)
        return [next(drawn) if is_sparse else ALL_CHUNKS for is_sparse in sparse]

    def _check(self, images: Tensor) -> None:
        height, width = images.shape[-2:]
        if height != width:
            raise ValueError(
                f"an image of {height}x{width} px is not square; a ViL's biases of positions are resized for "
                f"square maps alone"
            )
        if words := self.spec.refusal(height):
            raise ValueError(f"an image of {height}x{width} px {words}")

"""CvT and ViL written the usual way, for `backbones.py`: one module per layer, maps with channels first,
scores and weights of attention as tensors, masks and indices made in every forward pass, neighbours by
indexing.

They have belvedere's parameter names, so that one loads the other's weights, and no drop path. ViL sees all
nine chunks (mode 0).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class ChannelNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()


# CvT


class PlainWindows(nn.Module):
    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Sequential()
        self.qkv.add_module("dw", nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False))
        self.qkv.add_module("bn", nn.BatchNorm2d(width))
        self.qkv.add_module("pw", nn.Conv2d(width, 3 * width, 1))
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        w = min(self.window, height, width)
        x = self.qkv(F.pad(x, (0, -width % w, 0, -height % w)))
        rows, columns = x.shape[2] // w, x.shape[3] // w
        x = x.view(batch, 3, self.heads, -1, rows, w, columns, w).permute(1, 0, 4, 6, 2, 5, 7, 3)
        q, k, v = x.reshape(3, batch * rows * columns, self.heads, w * w, -1)
        weights = (q @ k.transpose(2, 3) * channels**-0.5).softmax(-1)
        out = (weights @ v).view(batch, rows, columns, self.heads, w, w, -1).permute(0, 3, 6, 1, 4, 2, 5)
        out = out.reshape(batch, channels, rows * w, columns * w)[:, :, :height, :width]
        return self.proj_out(out)


class PlainResidual(nn.Module):
    def __init__(self, width: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm, self.fn = ChannelNorm(width), fn

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(self.norm(x))


class PlainFeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(width, hidden, 1), QuickGELU(), nn.Conv2d(hidden, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class PlainCvT(nn.Module):
    """images [B, 3, H, W] -> pooled [B, D]. spec: belvedere's."""

    def __init__(self, spec) -> None:
        super().__init__()
        channels = 3
        for stage, width in enumerate(spec.widths):
            embed = nn.Sequential()
            conv = nn.Conv2d(channels, width, spec.kernels[stage], spec.strides[stage], spec.paddings[stage])
            embed.add_module("proj", conv)
            embed.add_module("norm", ChannelNorm(width))
            blocks = nn.Module()
            blocks.layers = nn.Sequential(
                *(
                    nn.Sequential(
                        PlainResidual(width, PlainWindows(width, spec.heads[stage], spec.window)),
                        PlainResidual(width, PlainFeedForward(width, int(width * spec.mlp_ratio))),
                    )
                    for _ in range(spec.blocks[stage])
                )
            )
            self.add_module(f"stage{stage}", nn.ModuleList([embed, blocks]))
            channels = width
        self.num_stages = len(spec.widths)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        for stage in range(self.num_stages):
            embed, blocks = getattr(self, f"stage{stage}")
            x = blocks.layers(embed(x))
        return self.norm(x.flatten(2).transpose(1, 2)).mean(1)


# ViL


class PlainSliding(nn.Module):
    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.query, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.local_relative_position_bias_table = nn.Parameter(torch.zeros((4 * window - 1) ** 2, heads))
        self.g2l_relative_position_bias = nn.Parameter(torch.zeros(2, heads, 1))
        self.g2g_relative_position_bias = nn.Parameter(torch.zeros(heads, 1, 1))

    def forward(self, x: Tensor, side: int) -> Tensor:
        batch, _, width = x.shape
        w, heads = self.window, self.heads
        q = self.query(x).view(batch, -1, heads, width // heads).transpose(1, 2) * (width // heads) ** -0.5
        k, v = self.kv(x).view(batch, -1, 2, heads, width // heads).permute(2, 0, 3, 1, 4)
        count = -(-side // w)
        pad = count * w - side

        def chunks(t: Tensor) -> Tensor:  # [B, h, chunks, w * w, d]
            t = F.pad(t[:, :, 1:].unflatten(2, (side, side)), (0, 0, 0, pad, 0, pad))
            t = t.view(batch, heads, count, w, count, w, -1).transpose(3, 4)
            return t.reshape(batch, heads, count * count, w * w, -1)

        around, inside = self.around(count, side, x.device)  # [chunks, 9], [chunks, 9, w * w]
        local_k, local_v = (chunks(t)[:, :, around].flatten(3, 4) for t in (k, v))
        scores = chunks(q) @ local_k.transpose(3, 4) + self.bias(x.device)[:, None]
        scores = scores.masked_fill(~inside.flatten(1)[:, None], -torch.inf)
        to_class = chunks(q) @ k[:, :, None, :1].transpose(3, 4)
        to_class = to_class + self.g2l_relative_position_bias[1][:, :, None, None]
        weights = torch.cat([to_class, scores], -1).softmax(-1)
        out = weights[..., 1:] @ local_v + weights[..., :1] * v[:, :, None, :1]
        out = out.view(batch, heads, count, count, w, w, -1).permute(0, 2, 4, 3, 5, 1, 6)
        out = out.reshape(batch, count * w, count * w, width)[:, :side, :side].flatten(1, 2)
        bias = torch.cat(
            [
                self.g2g_relative_position_bias,
                self.g2l_relative_position_bias[0][:, None].expand(-1, 1, side * side),
            ],
            -1,
        )
        first = (q[:, :, :1] @ k.transpose(2, 3) + bias).softmax(-1) @ v
        return self.proj(torch.cat([first.transpose(1, 2).flatten(2), out], 1))

    def around(self, count: int, side: int, device: torch.device) -> tuple[Tensor, Tensor]:
        place = torch.arange(count, device=device)
        row, column = (part.flatten() for part in torch.meshgrid(place, place, indexing="ij"))
        step = torch.arange(-1, 2, device=device)
        down, right = (part.flatten() for part in torch.meshgrid(step, step, indexing="ij"))
        rows, columns = row[:, None] + down, column[:, None] + right  # [chunks, 9]
        exists = (rows >= 0) & (rows < count) & (columns >= 0) & (columns < count)
        cell = torch.arange(self.window, device=device)
        in_rows = rows[..., None] * self.window + cell < side
        in_columns = columns[..., None] * self.window + cell < side
        inside = (in_rows[..., :, None] & in_columns[..., None, :]).flatten(2) & exists[..., None]
        return rows.clamp(0, count - 1) * count + columns.clamp(0, count - 1), inside

    def bias(self, device: torch.device) -> Tensor:
        w = self.window
        cell = torch.arange(w, device=device)
        key = torch.arange(-w, 2 * w, device=device)
        apart = cell[:, None] - key + 2 * w - 1  # [w, 3 * w]
        index = apart[:, None, :, None] * (4 * w - 1) + apart[None, :, None, :]  # [w, w, 3w, 3w]
        index = index.view(w * w, 3, w, 3, w).transpose(2, 3).reshape(w * w, -1)
        return self.local_relative_position_bias_table[index].permute(2, 0, 1)


class PlainFull(nn.Module):
    def __init__(self, width: int, heads: int, side: int, *, class_token: bool) -> None:
        super().__init__()
        self.heads, self.side, self.class_token = heads, side, class_token
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.local_relative_position_bias_table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, heads))
        if class_token:
            self.g2l_relative_position_bias = nn.Parameter(torch.zeros(2, heads, 1))
            self.g2g_relative_position_bias = nn.Parameter(torch.zeros(heads, 1, 1))

    def forward(self, x: Tensor, side: int) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(2, 3) * (width // self.heads) ** -0.5 + self.bias(side)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, width))

    def bias(self, side: int) -> Tensor:
        table = self.local_relative_position_bias_table
        cell = torch.arange(self.side, device=table.device)
        apart = cell[:, None] - cell + self.side - 1
        index = apart[:, None, :, None] * (2 * self.side - 1) + apart[None, :, None, :]
        bias = table[index.reshape(self.side**2, -1)].permute(2, 0, 1)
        if side != self.side:
            bias = F.interpolate(bias[None], (side**2, side**2), mode="bicubic")[0]
        if self.class_token:
            down, up = self.g2l_relative_position_bias
            left = torch.cat([self.g2g_relative_position_bias, up[:, None].expand(-1, side**2, 1)], 1)
            bias = torch.cat([left, torch.cat([down[:, None].expand(-1, 1, side**2), bias], 1)], 2)
        return bias


class PlainHalf(nn.Module):
    def __init__(self, width: int, *, attn: nn.Module | None, hidden: int = 0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        if attn is not None:
            self.attn = attn
        else:
            self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, x: Tensor, side: int) -> Tensor:
        normed = self.norm(x)
        if hasattr(self, "attn"):
            return x + self.attn(normed, side)
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](normed)))


class PlainEmbed(nn.Module):
    def __init__(self, channels: int, width: int, patch: int, *, class_token: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)
        self.norm_embed = nn.LayerNorm(width, eps=1e-6)
        if class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        x = self.proj(x)
        tokens = self.norm_embed(x.flatten(2).transpose(1, 2))
        if hasattr(self, "cls_token"):
            tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], 1)
        return tokens, x.shape[-1]


class PlainViL(nn.Module):
    """images [B, 3, H, H] -> pooled [B, D]. spec: belvedere's, with class tokens in all sparse stages."""

    def __init__(self, spec) -> None:
        super().__init__()
        channels = 3
        self.class_token = spec.class_token
        for stage, width in enumerate(spec.widths):
            own, heads = spec.class_token[stage], spec.heads[stage]
            parts = [PlainEmbed(channels, width, spec.patches[stage], class_token=own)]
            for _ in range(spec.blocks[stage]):
                attn = (
                    PlainSliding(width, heads, spec.window)
                    if spec.sparse[stage]
                    else PlainFull(width, heads, spec.sides(spec.image_px)[stage], class_token=own)
                )
                parts.append(PlainHalf(width, attn=attn))
                parts.append(PlainHalf(width, attn=None, hidden=int(width * spec.mlp_ratio)))
            self.add_module(f"layer{stage + 1}", nn.ModuleList(parts))
            channels = width
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        for stage, own in enumerate(self.class_token):
            embed, *halves = getattr(self, f"layer{stage + 1}")
            x, side = embed(x)
            for half in halves:
                x = half(x, side)
            x = x[:, int(own) :].transpose(1, 2).unflatten(2, (side, side))
        return self.norm(x.flatten(2).transpose(1, 2)).mean(1)

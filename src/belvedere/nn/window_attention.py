"""Attention within the windows of a map, shifted or not: Swin's.

Legend: B images, R x C rows and columns of a map, D width of a token, W windows, w side of one, T = w * w
its tokens, H heads, d width of one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from belvedere.nn.linear import Linear
from belvedere.nn.windows import cut, join, relative_index, shift_mask, whole
from belvedere.ops.attention import biased_attention, biased_weights


class WindowAttention(nn.Module):
    """Self-attention within windows, with a learned bias per head for every relative position.

    `qkv` has its rows in the order query, key, value, each split by head.
    """

    def __init__(self, width: int, heads: int, *, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.shape[1:3]
        padded = whole(rows, columns, window=self.window)
        mixed = biased_attention(*self._split(x, padded), self._bias(padded))  # [B, W, H, T, d]
        joined = _rolled(join(mixed, *padded, window=self.window), -self.shift)
        out: Tensor = self.proj(joined[:, :rows, :columns])
        return out

    def weights(self, x: Tensor) -> Tensor:
        """The softmaxed attention [B * W, H, T, T], the windows of an image row by row."""
        padded = whole(x.shape[1], x.shape[2], window=self.window)
        query, key, _ = self._split(x, padded)
        return biased_weights(query, key, self._bias(padded)).flatten(0, 1)

    def _split(self, x: Tensor, padded: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, W, H, T, d] of a map [B, R, C, D]."""
        if padded == x.shape[1:3]:
            qkv = self.qkv(cut(_rolled(x, self.shift), window=self.window))
        else:
            qkv = cut(_rolled(_padded(self.qkv(x), self.qkv.bias, padded), self.shift), window=self.window)
        # Parted before their axes are moved: the gradients of the three are then put together in one copy.
        query, key, value = qkv.unflatten(3, (3, self.heads, -1)).unbind(3)  # [B, W, T, H, d]
        return query.transpose(2, 3), key.transpose(2, 3), value.transpose(2, 3)

    def _bias(self, padded: tuple[int, int]) -> Tensor:
        """What is added to the scores: [H, T, T], or with shifted windows [W, H, T, T]."""
        table, tokens = self.relative_position_bias_table, self.window * self.window
        index: Tensor = _constant_index(self.window, table.device)
        bias = table[index].view(tokens, tokens, -1).permute(2, 0, 1)
        if not self.shift:
            return bias
        mask: Tensor = _constant_mask(*padded, self.window, self.shift, table.device, table.dtype)
        return bias + mask[:, None]


def _rolled(x: Tensor, shift: int) -> Tensor:
    """A map [B, R, C, D] moved up and left by `shift`, its edges coming in again at the other side."""
    return torch.roll(x, (-shift, -shift), (1, 2)) if shift else x


def _padded(qkv: Tensor, bias: Tensor, sides: tuple[int, int]) -> Tensor:
    """A map [B, R, C, D] of what a linear layer gave, made larger as if it had been given zeros there, for
    which it gives its bias [D]."""
    batch, rows, columns, _ = qkv.shape
    fill = bias.to(qkv.dtype)
    if columns < sides[1]:
        qkv = torch.cat([qkv, fill.expand(batch, rows, sides[1] - columns, -1)], 2)
    if rows < sides[0]:
        qkv = torch.cat([qkv, fill.expand(batch, sides[0] - rows, sides[1], -1)], 1)
    return qkv


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _constant_index(window: int, device: torch.device) -> Tensor:
    """`relative_index`, which a compiler takes as it is and does not follow into its cache."""
    return relative_index(window, device)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _constant_mask(
    rows: int, columns: int, window: int, shift: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """`shift_mask`, which a compiler takes as it is and does not follow into its cache."""
    return shift_mask(rows, columns, window, shift, device, dtype)

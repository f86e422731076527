"""Sliding-chunk attention (Zhang et al. 2021, Vision Longformer): a map's cells see their own chunk of
w x w cells and chunks around it, and a class token that sees all cells.

The map is padded to whole chunks after the projections. What a chunk sees is laid out by slices of the
chunked map; padded cells and chunks outside the map are hidden. Which rows of the bias table apply, and which
keys are hidden, depends on sizes alone and is kept between calls.

Legend: B images, N cells of the map, T = N and the class token where there is one, D width, h heads, d width
of a head, R x C chunks, w side of a chunk, S keys that a chunk sees.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from belvedere.nn.linear import Linear
from belvedere.ops.attention import biased_attention

_AROUND = tuple((row, column) for row in (-1, 0, 1) for column in (-1, 0, 1))
_NEIGHBOURS = tuple(offset for offset in _AROUND if offset != (0, 0))
NUM_NEIGHBOURS = len(_NEIGHBOURS)

ALL_CHUNKS = 0
"""See the own chunk and all eight around it."""
OWN_CHUNK = -1
"""See the own chunk alone. From 1 to 8: the own chunk and that neighbour, row by row from the upper left."""


def seen_chunks(seen: int) -> tuple[tuple[int, int], ...]:
    """The chunks that a query sees, as (rows, columns) from its own: `ALL_CHUNKS`, `OWN_CHUNK` or 1 to 8."""
    if seen == ALL_CHUNKS:
        return _AROUND
    return ((0, 0),) if seen == OWN_CHUNK else ((0, 0), _NEIGHBOURS[seen - 1])


@lru_cache(maxsize=64)
def bias_rows(window: int, seen: int, device: torch.device) -> Tensor:
    """Which row of a bias table [(4w - 1)^2, h] is between each cell of a chunk and each key: int64
    [w * w, S], by query minus key coordinates."""
    with torch.inference_mode(False):
        cell = torch.arange(window)
        # query minus key along one axis, for a chunk `offset` away: [w, w]
        apart = {offset: cell[:, None] - cell - window * offset + 2 * window - 1 for offset in (-1, 0, 1)}
        rows = [
            apart[row][:, None, :, None] * (4 * window - 1) + apart[column][None, :, None, :]
            for row, column in seen_chunks(seen)
        ]  # [w, w, w, w] each
        return torch.cat([part.reshape(window**2, window**2) for part in rows], dim=1).to(device)


@lru_cache(maxsize=256)
def hidden_keys(
    grid: tuple[int, int], window: int, seen: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """0 for the keys of each chunk that are cells of the map, -inf for the others: [R * C, 1, 1, S]."""
    with torch.inference_mode(False):
        parts: list[Tensor] = []
        for offsets in seen_chunks(seen):
            inside: list[Tensor] = []  # [R, w], [C, w]
            for size, offset in zip(grid, offsets, strict=True):
                count = -(-size // window)
                cell = ((torch.arange(count) + offset) * window)[:, None] + torch.arange(window)
                inside.append((cell >= 0) & (cell < size))
            both = inside[0][:, None, :, None] & inside[1][None, :, None, :]  # [R, C, w, w]
            parts.append(both.reshape(-1, window**2))
        visible = torch.cat(parts, dim=1)[:, None, None, :]
        return torch.zeros(visible.shape).masked_fill(~visible, -torch.inf).to(device=device, dtype=dtype)


class SlidingAttention(nn.Module):
    """[B, T, D] -> [B, T, D], of cells in chunks and of a class token (first) over everything.

    The class token uses the same projections as the cells (EsViT's SHARE_W). A published file lists them a
    second time as `query_global`, `kv_global` and `proj_global`: here they have one name each, and loading
    accepts the second where its tensor is the same.
    """

    def __init__(self, width: int, heads: int, window: int, *, class_token: bool) -> None:
        super().__init__()
        self.heads, self.window, self.class_token = heads, window, class_token
        self.query = Linear(width, width)
        self.kv = Linear(width, 2 * width)
        self.proj = Linear(width, width)
        self.local_relative_position_bias_table = nn.Parameter(torch.zeros((4 * window - 1) ** 2, heads))
        if class_token:
            self.g2l_relative_position_bias = nn.Parameter(torch.zeros(2, heads, 1))
            self.g2g_relative_position_bias = nn.Parameter(torch.zeros(heads, 1, 1))
        self.register_load_state_dict_pre_hook(_drop_shared)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor, grid: tuple[int, int], seen: int) -> Tensor:
        """seen: which chunks the cells of the map see, `ALL_CHUNKS`, `OWN_CHUNK` or 1 to 8."""
        query, kv = self.query(x), self.kv(x)
        if self.class_token:
            cells = self._cells(query[:, 1:], kv[:, 1:], kv[:, :1], grid, seen)
            mixed = torch.cat([self._class(query[:, :1], kv), cells], dim=1)
        else:
            mixed = self._cells(query, kv, None, grid, seen)
        out: Tensor = self.proj(mixed)
        return out

    def _cells(
        self, query: Tensor, kv: Tensor, class_kv: Tensor | None, grid: tuple[int, int], seen: int
    ) -> Tensor:
        """What the cells see: query [B, N, D], kv [B, N, 2 * D], class_kv [B, 1, 2 * D] -> [B, N, D]."""
        w = self.window
        (chunked,) = self._chunks(query, grid, 1)  # [B, R, C, h, w * w, d]
        chunks = self._chunks(kv, grid, 2)  # [2, B, R, C, h, w * w, d]
        rows, columns = chunks.shape[2:4]
        parts = list(_slices(chunks, seen))
        if class_kv is not None:
            first = class_kv.unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [2, B, h, 1, d]
            parts.insert(0, first[:, :, None, None].expand(-1, -1, rows, columns, -1, -1, -1))
        key, value = torch.cat(parts, dim=5).flatten(2, 4)  # [B, R * C * h, S, d]
        mixed = biased_attention(chunked.flatten(1, 3), key, value, self._cell_bias(grid, seen))
        mixed = mixed.view(-1, rows, columns, self.heads, w, w, mixed.shape[-1])
        mixed = mixed.permute(0, 1, 4, 2, 5, 3, 6).reshape(len(mixed), rows * w, columns * w, -1)
        return mixed[:, : grid[0], : grid[1]].flatten(1, 2)

    def _chunks(self, x: Tensor, grid: tuple[int, int], parts: int) -> Tensor:
        """[B, N, parts * D] -> [parts, B, R, C, h, w * w, d], with zeros where the map ends in a chunk."""
        w = self.window
        below, right = -grid[0] % w, -grid[1] % w
        x = x.unflatten(1, grid)
        if below or right:
            x = F.pad(x, (0, 0, 0, right, 0, below))
        rows, columns = x.shape[1] // w, x.shape[2] // w
        x = x.view(len(x), rows, w, columns, w, parts, self.heads, -1)
        return x.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(5, 6)

    def _cell_bias(self, grid: tuple[int, int], seen: int) -> Tensor:
        """What is added to the scores of the cells [R * C * h, w * w, S]."""
        table = self.local_relative_position_bias_table
        bias = table[bias_rows(self.window, seen, table.device)].permute(2, 0, 1)  # [h, w * w, S]
        hidden = hidden_keys(grid, self.window, seen, table.device, table.dtype)
        bias = bias + hidden  # [R * C, h, w * w, S]
        if self.class_token:
            to_class = self.g2l_relative_position_bias[1][:, None].expand(*bias.shape[:3], 1)
            bias = torch.cat([to_class, bias], dim=3)
        return bias.flatten(0, 1)

    def _class(self, query: Tensor, kv: Tensor) -> Tensor:
        """What the class token sees: query [B, 1, D], kv [B, T, 2 * D] -> [B, 1, D]."""
        key, value = kv.unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, h, T, d]
        to_cells = self.g2l_relative_position_bias[0][:, None].expand(-1, -1, kv.shape[1] - 1)
        bias = torch.cat([self.g2g_relative_position_bias, to_cells], dim=2)  # [h, 1, T]
        mixed = biased_attention(
            query.unflatten(2, (self.heads, -1)).transpose(1, 2), key, value, bias
        )  # [B, h, 1, d]
        return mixed.transpose(1, 2).flatten(2)


def _slices(chunks: Tensor, seen: int) -> tuple[Tensor, ...]:
    """The chunks that each chunk sees, as views of [2, B, R, C, h, w * w, d]; zeros outside the map."""
    offsets = seen_chunks(seen)
    if len(offsets) == 1:
        return (chunks,)
    rows, columns = chunks.shape[2:4]
    wide = F.pad(chunks, (0, 0, 0, 0, 0, 0, 1, 1, 1, 1))
    return tuple(
        wide[:, :, 1 + row : 1 + row + rows, 1 + column : 1 + column + columns] for row, column in offsets
    )


def _drop_shared(
    module: nn.Module,
    state: dict[str, Tensor],
    prefix: str,
    metadata: object,
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    """Take the second name of a shared projection out of what is loaded, if it is the same tensor."""
    for name in ("query", "kv", "proj"):
        for kind in ("weight", "bias"):
            first, second = f"{prefix}{name}.{kind}", f"{prefix}{name}_global.{kind}"
            if second not in state:
                continue
            if first in state and torch.equal(state[first], state[second]):
                del state[second]
            else:
                errors.append(
                    f"{second} differs from {first}; only files whose class tokens share the cells' "
                    f"projections (SHARE_W true, as published) can be loaded"
                )

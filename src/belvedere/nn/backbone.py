"""What every backbone gives, whatever it is made of."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor, nn


class Block(NamedTuple):
    """One block's output *before* the final norm.

    tokens [B, N, D] (region tokens, without the class token), cls [B, D] or None, grid (rows, columns) or
    None where patches were dropped, width D, stage (from 0; a ViT has one).
    """

    tokens: Tensor
    cls: Tensor | None
    grid: tuple[int, int] | None
    width: int
    stage: int


class Features(NamedTuple):
    """pooled [B, D]: what the paper's head reads; cls [B, D] or None, regions [B, N, D], both after the final
    norm (regions None where only the pooled output was asked for); grid (rows, columns) or None where patches
    were dropped; blocks: the last n, oldest first."""

    pooled: Tensor
    cls: Tensor | None
    regions: Tensor | None
    grid: tuple[int, int] | None
    blocks: tuple[Block, ...]


class Backbone(Protocol):
    """images [B, 3, H, W] (and `keep`, patch indices [T]) -> `Features`; `norm` is the final norm.

    blocks: how many of the last blocks to return. regions: false where only `pooled` is needed, which lets a
    network leave out work whose result nobody reads.
    """

    width: int
    norm: nn.Module

    def __call__(
        self, images: Tensor, *, keep: Tensor | None = None, blocks: int = 0, regions: bool = True
    ) -> Features: ...

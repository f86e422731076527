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
    norm; grid (rows, columns) or None where patches were dropped; blocks: the last n, oldest first."""

    pooled: Tensor
    cls: Tensor | None
    regions: Tensor
    grid: tuple[int, int] | None
    blocks: tuple[Block, ...]


class Backbone(Protocol):
    """images [B, 3, H, W] (and `keep`, patch indices [T]) -> `Features`; `norm` is the final norm."""

    width: int
    norm: nn.Module

    def __call__(self, images: Tensor, *, keep: Tensor | None = None, blocks: int = 0) -> Features: ...

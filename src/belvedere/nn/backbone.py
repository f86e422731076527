"""What every backbone gives, whatever it is made of."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor, nn


def described(tensor: Tensor | None) -> str:
    """A tensor's shape, dtype and device, and none of its numbers: `[2, 196, 384] float32 cuda:0`."""
    if tensor is None:
        return "None"
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} {tensor.device}"


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

    def __repr__(self) -> str:
        return (
            f"Block(tokens={described(self.tokens)}, cls={described(self.cls)}, grid={self.grid}, "
            f"width={self.width}, stage={self.stage})"
        )


class Features(NamedTuple):
    """pooled [B, D]: what the paper's head reads; cls [B, D] or None, regions [B, N, D], both after the final
    norm (regions None where only the pooled output was asked for); grid (rows, columns) or None where patches
    were dropped; blocks: the last n, oldest first."""

    pooled: Tensor
    cls: Tensor | None
    regions: Tensor | None
    grid: tuple[int, int] | None
    blocks: tuple[Block, ...]

    def __repr__(self) -> str:
        return (
            f"Features(pooled={described(self.pooled)}, cls={described(self.cls)}, "
            f"regions={described(self.regions)}, grid={self.grid}, blocks={self.blocks})"
        )


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

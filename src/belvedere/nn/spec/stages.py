"""What the descriptions of networks that are made of stages have in common."""

from __future__ import annotations

from typing import Annotated, Protocol

from pydantic import Field

from belvedere.core.settings import Contradictions
from belvedere.nn.spec.count import Count

PerStage = Annotated[tuple[Count, ...], Field(min_length=1)]
"""A count for each stage, first stage first."""


class _Staged(Protocol):
    @property
    def blocks(self) -> tuple[int, ...]: ...
    @property
    def widths(self) -> tuple[int, ...]: ...
    @property
    def heads(self) -> tuple[int, ...]: ...


def stage_contradictions(spec: _Staged, *more: str) -> Contradictions:
    """What `widths`, `heads` and the keys in `more` are without one entry for each stage of `blocks`, and
    where a stage's width is no multiple of its heads, as `Settings.contradictions` tells it."""
    stages = len(spec.blocks)
    for key in ("widths", "heads", *more):
        if len(getattr(spec, key)) != stages:
            yield "", f"{key} has {len(getattr(spec, key))} entries for {stages} stages (blocks)"
    for width, heads in zip(spec.widths, spec.heads, strict=False):
        if width % heads:
            yield "", f"a stage's width {width} is no multiple of its heads {heads}"

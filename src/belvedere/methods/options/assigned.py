"""Which views give targets, of the methods that name them by number: from 0, global views first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field

Assign = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


def assign_mistakes(
    assign: Sequence[int], views: Mapping[str, tuple[int, int]], *, least: int = 1
) -> list[tuple[str, str]]:
    """Each number names a view and stands once, as `MethodOptions.mistakes` tells it.

    least: how many views the method needs; that there are fewer is told by its page.
    """
    found, given = [], ", ".join(map(str, assign))
    total = sum(count for count, _ in views.values())
    if len(set(assign)) < len(assign):
        found.append(("method.assign", f"[{given}] names a view twice; name each once"))
    if "global" in views and max(assign) >= max(total, least):
        words = f"[{given}] names a view that is not there; the {total} views are 0 to {total - 1}"
        found.append(("method.assign", words))
    return found

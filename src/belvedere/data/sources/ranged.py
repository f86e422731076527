"""A range of values for images of more than eight bits: `data.range`, `--range LOW HIGH`."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np

from belvedere.core.errors import DataError
from belvedere.data.decode import UnreadableImage
from belvedere.data.levels import Range
from belvedere.data.sources.source import ArraySource, Source, inspect

_TRIED = 64


def with_range(source: Source, value_range: Range | None) -> Source:
    """The source itself; `value_range` is black and white in its images of more than eight bits from now on
    (None: the usual rules hold). Raises DataError for what is no range."""
    if value_range is not None:
        low, high = value_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise DataError(f"data.range is [{low:g}, {high:g}]; it must be [low, high], low below high")
        value_range = float(low), float(high)
    cast(Any, source).value_range = value_range
    return source


def refuse_range_without_effect(source: Source, value_range: Range) -> None:
    """Raise DataError where no image has more than eight bits, as far as a sample spread over them shows."""
    if _holds_scaled(source):
        return
    tried = 0
    for index in np.unique(np.linspace(0, len(source) - 1, min(_TRIED, len(source))).astype(np.int64)):
        try:
            if inspect(source, int(index)).values is not None:
                return
            tried += 1
        except UnreadableImage:
            continue
    if tried:
        raise DataError(
            f"data.range is [{value_range[0]:g}, {value_range[1]:g}], which has no effect: none of {tried} "
            f"images tried in {source.name!r} has more than 8 bits; leave it out"
        )


def _holds_scaled(source: Source) -> bool:
    """Whether a source is an array that was scaled when it was opened, or has one as a part."""
    parts: tuple[Source, ...] = getattr(source, "parts", ())
    own = isinstance(source, ArraySource) and source.scaled_from is not None
    return own or any(map(_holds_scaled, parts))

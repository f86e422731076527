"""Which classes are taken for which: a confusion matrix as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from belvedere.core.log import visible
from belvedere.viz.figure import INK, MUTED, drawn, without_ticks

_MOST_NUMBERS = 25  # classes up to which cells show their count
_MOST_NAMES = 60  # classes up to which every class is named

Floats = NDArray[np.float64]


def confusion_picture(
    matrix: NDArray[np.integer] | Floats, class_names: Sequence[str], path: Path, *, title: str = ""
) -> None:
    """Counts [C, C] (line: true class, column: predicted class; fractions where they are means over splits).

    The colour is the share of the line, on a square-root scale: errors are few, and what one looks for.
    """
    counts = np.asarray(matrix, dtype=np.float64)
    num_classes = len(class_names)
    if counts.shape != (num_classes, num_classes):
        raise ValueError(
            f"a confusion of {num_classes} classes must be {num_classes} x {num_classes}, not {counts.shape}"
        )
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1e-12)
    side = float(np.clip(0.46 * num_classes, 3.2, 12.0))
    longest = max((len(name) for name in class_names), default=0)
    margin = 0.9 + 0.075 * min(longest, 24)
    with drawn(path, width=side + margin, height=side + margin + 0.3) as figure:
        axes = figure.subplots()
        without_ticks(axes)
        axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0.0, vmax=1.15, interpolation="nearest")
        _name_classes(axes, class_names, upright=longest > 3)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.set_title(title, pad=10)
        if num_classes <= _MOST_NUMBERS:
            _write_counts(axes, counts, shares)


def _name_classes(axes: Axes, class_names: Sequence[str], *, upright: bool) -> None:
    every = max(1, -(-len(class_names) // _MOST_NAMES))
    places = range(0, len(class_names), every)
    names = [_shortened(class_names[place]) for place in places]
    size = 10 if len(names) <= _MOST_NUMBERS else 6
    # a name is a name: with two dollar signs it is no formula
    axes.set_xticks(places, names, fontsize=size, rotation=90 if upright else 0, parse_math=False)
    axes.set_yticks(places, names, fontsize=size, parse_math=False)
    axes.tick_params(length=0)


def _shortened(name: str) -> str:
    name = visible(name)
    return name if len(name) <= 24 else f"{name[:23]}…"


def _write_counts(axes: Axes, counts: Floats, shares: Floats) -> None:
    whole = bool(np.all(counts == np.rint(counts)))
    for (row, column), count in np.ndenumerate(counts):
        words = _count_words(count, whole=whole)
        if words:
            color = "white" if shares[row, column] > 0.4 else INK if row != column else MUTED
            size = 9 if whole or len(words) < 4 else 8
            axes.text(column, row, words, ha="center", va="center", fontsize=size, color=color)


def _count_words(count: float, *, whole: bool) -> str:
    """`12`, `0.3`, and nothing for what rounds to zero."""
    if whole or count >= 9.95:
        return f"{count:.0f}" if count else ""
    return f"{count:.1f}" if count >= 0.05 else ""

"""What all pictures share: type, colours that colour-blind readers tell apart, how a file is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from belvedere.core.files import replacing

# Okabe and Ito's palette (2008)
BLUE, ORANGE, GREEN, SKY = "#0072B2", "#D55E00", "#009E73", "#56B4E9"
INK, MUTED = "#222222", "#767676"
DOTS_PER_INCH = 150

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters everywhere
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@contextmanager
def drawn(path: Path, *, width: float, height: float, arranged: bool = True) -> Iterator[Figure]:
    """A figure of this size in inches, written to `path` as PNG at the end of the block, whole or not at all.

    arranged: axes share the room by themselves; else the caller gives each its place. Needs no display and
    reads no settings of the user's: the same content gives the same bytes.
    """
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        layout: Any = "constrained" if arranged else "none"
        figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout=layout)
        FigureCanvasAgg(figure)
        yield figure
        with replacing(path) as temporary, temporary.open("wb") as file:
            figure.savefig(file, format="png", metadata={"Software": None})


def without_ticks(axes: Axes) -> None:
    """Leave only what is drawn: no ticks, no frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)

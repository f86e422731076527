"""The loss of a run and how evenly it uses its prototypes, drawn from metrics.jsonl."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from belvedere.core.errors import DataError
from belvedere.viz.figure import BLUE, GREEN, MUTED, ORANGE, drawn

_KEYS = ("step", "loss", "ploss", "mean_entropy")

Floats = NDArray[np.float64]


def curves_picture(metrics_path: Path, path: Path, *, num_prototypes: int) -> None:
    """The loss and its cross-entropy part; the entropy of the mean prediction, with ln K, its limit.

    Raises DataError for metrics that are missing, damaged or lack these columns.
    """
    series = read_metrics(metrics_path, _KEYS)
    with drawn(path, width=9.0, height=3.4) as figure:
        left, right = figure.subplots(1, 2)
        _draw_loss(left, series)
        _draw_entropy(right, series, limit=math.log(num_prototypes), num_prototypes=num_prototypes)
        for axes in (left, right):
            axes.set_xlabel("step")
            axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
            axes.set_axisbelow(True)


def run_picture(metrics_path: Path, path: Path) -> None:
    """The loss of any method's run and, where it has prototypes, the entropy of the mean prediction.

    Raises DataError for metrics that are missing, damaged or empty.
    """
    records = _records(metrics_path)
    known = "mean_entropy" in (records[0] if records else {})
    series = read_metrics(metrics_path, ("step", "loss", *(["mean_entropy"] if known else [])))
    with drawn(path, width=9.0 if known else 4.6, height=3.2) as figure:
        panels = figure.subplots(1, 2 if known else 1, squeeze=False)[0]
        for axes, key, title, color in zip(
            panels,
            ("loss", "mean_entropy"),
            ("Loss", "Entropy of the mean prediction (nats)"),
            (BLUE, GREEN),
            strict=False,
        ):
            _line(axes, series, key, "", color)
            axes.set_title(title)
            axes.set_xlabel("step")
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
            axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
            axes.set_axisbelow(True)


def _draw_loss(axes: Axes, series: dict[str, Floats]) -> None:
    # the wider line below, so that both are seen where me-max adds next to nothing
    _line(axes, series, "loss", "loss", BLUE, width=4.0)
    _line(axes, series, "ploss", "of it, cross-entropy of views and target", ORANGE)
    axes.set_title("Loss")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.legend(frameon=False, fontsize=9)


def _draw_entropy(axes: Axes, series: dict[str, Floats], *, limit: float, num_prototypes: int) -> None:
    _line(axes, series, "mean_entropy", "", GREEN)
    axes.axhline(limit, color=MUTED, linestyle=(0, (4, 3)), linewidth=1.2)
    axes.set_title("Entropy of the mean prediction (nats)")
    axes.set_ylim(0.0, limit * 1.15)
    for level, words in (
        (limit, f"ln {num_prototypes} = {limit:.2f}: all prototypes used alike"),
        (0.0, "0: one prototype for every image (collapse)"),
    ):
        axes.annotate(
            words,
            (1.0, level),
            (-2, 4),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            fontsize=9,
            color=MUTED,
            ha="right",
        )


def read_metrics(path: Path, keys: tuple[str, ...]) -> dict[str, Floats]:
    """The named columns of a metrics.jsonl, in its order.

    Lines that have none of `keys` but `step` are another kind of record and are left out; so is a last line
    that a killed process left unfinished. Raises DataError.
    """
    records = _records(path)
    wanted = [record for record in records if any(key in record for key in keys if key != "step")]
    if not wanted:
        raise DataError(f"{path} has no line with {', '.join(keys)}; there is nothing to draw")
    columns = {}
    for key in keys:
        try:
            columns[key] = np.array([_number(record[key]) for record in wanted], dtype=np.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} has a line without a number for {key!r}") from error
    return columns


def _records(path: Path) -> list[dict[str, object]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise DataError(f"{path}: line {number} is no JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}: line {number} is no record but {line[:40]!r}")
        records.append(record)
    return records


def _number(value: object) -> float:
    """A recorded number; null stands for one that was not finite."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _line(
    axes: Axes, series: dict[str, Floats], key: str, label: str, color: str, *, width: float = 1.6
) -> None:
    """Every value; where there are many, faintly, with their running mean drawn over them."""
    step, value = series["step"], series[key]
    window = len(value) // 40
    if window < 2:
        axes.plot(
            step, value, color=color, label=label, linewidth=width, marker="o" if len(value) == 1 else None
        )
        return
    axes.plot(step, value, color=color, linewidth=0.6, alpha=0.35)
    axes.plot(step, _running_mean(value, window), color=color, label=label, linewidth=width)


def _running_mean(value: Floats, window: int) -> Floats:
    """The mean of the finite values at most `window` places away, fewer at the ends."""
    finite = np.isfinite(value)
    total = np.convolve(np.where(finite, value, 0.0), np.ones(2 * window + 1), mode="same")
    count = np.convolve(finite.astype(np.float64), np.ones(2 * window + 1), mode="same")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)

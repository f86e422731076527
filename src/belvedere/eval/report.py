"""Scores, their comparison, and the reports they are written to.

Scores lie in [0, 1] and are shares of images (not averaged over classes). Numbers are written with six
decimals, keys in alphabetical order and no time or date, so that the same command writes the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from belvedere.core.files import write_text

DECIMALS = 6
_NUM_CONFUSED = 10


@dataclass(frozen=True)
class ShotScores:
    """One score per split, in the order of the splits."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def sd(self) -> float:
        """Sample standard deviation over splits; 0 for a single split."""
        return stdev(self.values) if len(self.values) > 1 else 0.0

    def to_json(self) -> dict[str, Any]:
        return {"mean": self.mean, "sd": self.sd, "values": list(self.values)}


@dataclass(frozen=True)
class Difference:
    """Of two rows on the same splits: mean and standard error of the paired differences (NaN for one
    split)."""

    mean: float
    standard_error: float

    @property
    def wins(self) -> bool:
        """Whether the first row is better by more than twice the standard error."""
        return self.mean > 0.0 and self.mean > 2.0 * self.standard_error

    def to_json(self) -> dict[str, Any]:
        return {"mean": self.mean, "standard_error": self.standard_error, "wins": self.wins}


@dataclass(frozen=True)
class Row:
    """What one kind of features reaches: k-NN, and few-label scores by number of labels per class.

    preprocessing: for the columns (`knn`, `1`, ...) that had a choice, the one that was better on the scored
    images.
    """

    features: str
    knn: float
    shots: Mapping[int, ShotScores]
    preprocessing: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {
            "features": self.features,
            "knn": self.knn,
            "shots": {str(k): scores.to_json() for k, scores in self.shots.items()},
        }
        return row | ({"preprocessing": dict(self.preprocessing)} if self.preprocessing else {})


def compare(first: ShotScores, second: ShotScores) -> Difference:
    """How much better `first` is than `second`, split by split; both must be of the same splits."""
    pairs = [a - b for a, b in zip(first.values, second.values, strict=True)]
    error = stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else math.nan
    return Difference(fmean(pairs), error)


def better_of(rows: Mapping[str, Row], *, features: str) -> Row:
    """Column by column the row with the highest score, the first of equals; {preprocessing: row}.

    The choice sees the scored images, which favours a baseline and never the method held against it.
    """
    knn = max(rows, key=lambda name: rows[name].knn)
    shots = next(iter(rows.values())).shots
    best = {k: max(rows, key=lambda name, k=k: rows[name].shots[k].mean) for k in shots}  # type: ignore[misc]
    return Row(
        features,
        rows[knn].knn,
        {k: rows[name].shots[k] for k, name in best.items()},
        {"knn": knn} | {str(k): name for k, name in best.items()},
    )


def rows_report(rows: Sequence[Row]) -> dict[str, Any]:
    """`rows` as given, and `differences`: the last row against each other one, few-label column by column.

    {"rows": [{"features", "knn", "shots": {"1": {"mean", "sd", "values"}, ...}, "preprocessing"?}],
     "differences": [{"row", "against", "shots": {"1": {"mean", "standard_error", "wins"}, ...}}]}
    """
    last = rows[-1]
    differences = [
        {
            "row": last.features,
            "against": other.features,
            "shots": {str(k): compare(last.shots[k], other.shots[k]).to_json() for k in last.shots},
        }
        for other in rows[:-1]
    ]
    return {"rows": [row.to_json() for row in rows], "differences": differences}


def confusion(
    labels: NDArray[np.int64], predictions: NDArray[np.int64], num_classes: int
) -> NDArray[np.int64]:
    """Counts [C, C]: row = label, column = prediction."""
    return np.bincount(labels * num_classes + predictions, minlength=num_classes**2).reshape(num_classes, -1)


def accuracy(counts: NDArray[np.int64]) -> float:
    """The share of images on the diagonal; NaN of none."""
    return float(np.trace(counts) / counts.sum()) if counts.sum() else math.nan


def class_report(counts: NDArray[np.int64], classes: Sequence[str]) -> dict[str, Any]:
    """`per_class`: accuracy by class (null where none was scored); `confused`: the pairs mistaken most often.

    confused: [{"label", "predicted", "count", "share" of the label's images}], by falling count, then by
    name.
    """
    totals = counts.sum(1)
    per_class = {
        name: float(counts[c, c] / totals[c]) if totals[c] else math.nan for c, name in enumerate(classes)
    }
    off = counts.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:_NUM_CONFUSED]
    pairs = [divmod(int(flat), len(classes)) for flat in order]
    confused = [
        {
            "label": classes[a],
            "predicted": classes[b],
            "count": int(off[a, b]),
            "share": float(off[a, b] / totals[a]),
        }
        for a, b in pairs
        if off[a, b]
    ]
    return {"per_class": per_class, "confused": confused}


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report as JSON, whole or not at all; NaN becomes null."""
    text = json.dumps(_plain(report), indent=1, sort_keys=True, allow_nan=False)
    write_text(path, text + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, DECIMALS) + 0.0 if math.isfinite(value) else None  # + 0.0: no -0.0
    return value

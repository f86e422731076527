"""Which labelled images a classifier may see: k-shot splits, folds and halves, all functions of a seed.

A split is drawn once, saved with the run and shared by every row of a report, so that rows can be compared
split by split. `splits.json`:

    {"seed": 0, "labels_sha256": "...", "splits_sha256": "...", "shots": {"1": [[3, 17, ...], ...], ...}}

where the numbers are positions in the list of labelled images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from belvedere.core.errors import EvaluationError
from belvedere.core.files import read_json, write_text
from belvedere.core.rng import generator

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Splits:
    """shots: {images per class: one ascending index array per split}; labels_sha256: of the labels they
    index."""

    seed: int
    labels_sha256: str
    shots: Mapping[int, Sequence[Indices]]

    @property
    def sha256(self) -> str:
        """A fingerprint of every index of every split."""
        return hashlib.sha256(_canonical(self._lists()).encode()).hexdigest()

    def _lists(self) -> dict[str, list[list[int]]]:
        return {str(k): [[int(i) for i in split] for split in self.shots[k]] for k in sorted(self.shots)}

    def save(self, path: Path) -> None:
        """Write `splits.json`, whole or not at all."""
        content = {
            "seed": self.seed,
            "labels_sha256": self.labels_sha256,
            "splits_sha256": self.sha256,
            "shots": self._lists(),
        }
        write_text(path, _canonical(content) + "\n")

    @classmethod
    def load(cls, path: Path, labels: Indices) -> Splits:
        """Read `splits.json`; raises EvaluationError if it is altered or was drawn for other labels."""
        try:
            content = read_json(path)
            shots = {int(k): [np.array(s, dtype=np.int64) for s in v] for k, v in content["shots"].items()}
            splits = cls(int(content["seed"]), str(content["labels_sha256"]), shots)
            written = content["splits_sha256"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise EvaluationError(f"{path} is no file of splits: {error!r}") from error
        if splits.sha256 != written:
            raise EvaluationError(f"{path} was altered: its splits do not match their own fingerprint")
        if splits.labels_sha256 != labels_sha256(labels):
            raise EvaluationError(f"{path} was drawn for other labels; draw new splits for this data")
        return splits


def draw_splits(labels: Indices, shots: Sequence[int], *, splits: int, seed: int) -> Splits:
    """Splits for every number of shots; see `few_shot_splits`."""
    drawn = {k: few_shot_splits(labels, k, splits=splits, seed=seed) for k in shots}
    return Splits(seed, labels_sha256(labels), drawn)


def few_shot_splits(labels: Indices, shots: int, *, splits: int, seed: int) -> list[Indices]:
    """`splits` ascending index arrays, each with `shots` images of every class, without replacement.

    labels [N], -1 = none (never drawn). A class with fewer images gives what it has (`short_classes` names
    it). Each class is drawn on its own key, so adding a class leaves the others' draws as they were.
    """
    if shots < 1 or splits < 1:
        raise EvaluationError(f"--shots and --splits must be at least 1; got {shots} and {splits}")
    classes = np.unique(labels[labels >= 0])
    if not len(classes):
        raise EvaluationError(
            "few-label evaluation needs labels; this data has none (give a CSV by --labels)"
        )
    members = {int(c): np.flatnonzero(labels == c) for c in classes}
    return [
        _joined(
            [
                generator(seed, "few-shot", shots, split, c).permutation(rows)[:shots]
                for c, rows in members.items()
            ]
        )
        for split in range(splits)
    ]


def stratified_split(labels: Indices, share: float, *, seed: int) -> tuple[Indices, Indices]:
    """Two ascending index arrays over the labelled images; `share` of each class (rounded up) is in the
    first."""
    first: list[Indices] = []
    second: list[Indices] = []
    for c in np.unique(labels[labels >= 0]):
        rows = generator(seed, "stratified", int(c)).permutation(np.flatnonzero(labels == c))
        cut = int(np.ceil(share * len(rows)))
        first.append(rows[:cut])
        second.append(rows[cut:])
    return _joined(first), _joined(second)


def stratified_folds(labels: Indices, max_folds: int) -> Indices:
    """A fold number per row [n]: as many folds as the rarest class has rows, at least 2, at most `max_folds`.

    Every fold holds each class where possible; -1 (always in training) for a class with a single row. Rows of
    a class are dealt in order, each class starting where the one before stopped, which keeps folds equally
    large.
    """
    folds = np.full(len(labels), -1, dtype=np.int64)
    members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    members = [rows for rows in members if len(rows) > 1]
    if not members:
        return folds
    count = min(max_folds, max(2, min(len(rows) for rows in members)))
    dealt = 0
    for rows in members:
        folds[rows] = (dealt + np.arange(len(rows))) % count
        dealt += len(rows)
    return folds


def short_classes(labels: Indices, shots: int, classes: Sequence[str]) -> dict[str, int]:
    """{class: its number of labelled images} for the classes that have fewer than `shots`, none included."""
    counts = np.bincount(labels[labels >= 0], minlength=len(classes))
    return {name: int(counts[c]) for c, name in enumerate(classes) if counts[c] < shots}


def labels_sha256(labels: Indices) -> str:
    """A fingerprint of the labels in their order."""
    return hashlib.sha256(np.ascontiguousarray(labels, dtype="<i8").tobytes()).hexdigest()


def _joined(parts: list[Indices]) -> Indices:
    return np.sort(np.concatenate([np.empty(0, dtype=np.int64), *parts]))


def _canonical(content: object) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))

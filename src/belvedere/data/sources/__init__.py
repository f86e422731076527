"""Opening sets of images by path or name, and trying a sample of them first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from belvedere.core.errors import DataError
from belvedere.core.rng import generator
from belvedere.data.decode import Decoded, UnreadableImage
from belvedere.data.report import DataReport
from belvedere.data.sources.builtin import is_idx_folder, open_digits, open_idx
from belvedere.data.sources.folder import FolderSource, open_folder
from belvedere.data.sources.labels import from_list, with_labels
from belvedere.data.sources.source import UNLABELLED, ArraySource, Source, inspect, read, relabelled, subset

SPLITS = ("train", "test")


def open_source(path: str, *, split: str | None = None) -> Source:
    """The images that `data.path` and `data.split` name.

    path: `digits`, a folder of IDX files, or a folder of images. Raises DataError for a path that is
    missing, no folder, empty, or that does not have the split.
    """
    if split is not None and split not in SPLITS:
        raise DataError(f"data.split is {split!r}; it must be train, test or null")
    folder = Path(path).expanduser()
    if path == "digits":
        return open_digits(split)
    if not path or not folder.exists():
        raise DataError(f"data.path is {path!r}, which does not exist; give a folder of images, or `digits`")
    if not folder.is_dir():
        raise DataError(f"data.path is {path!r}, which is a file; give the folder that holds the images")
    if is_idx_folder(folder):
        return open_idx(folder, split)
    return open_folder(folder.resolve(), split)


def check_sample(source: Source, *, count: int = 256, seed: int = 0) -> DataReport:
    """Try `count` images spread evenly over the source, and report what they are.

    One image is drawn at random from each of `count` equal stretches. Raises DataError when none can be read.
    """
    total = len(source)
    edges = np.linspace(0, total, min(count, total) + 1).astype(np.int64)
    shift = generator(seed, "sample").random(len(edges) - 1)
    report = DataReport(total)
    for index in (edges[:-1] + np.floor(shift * np.diff(edges))).astype(np.int64):
        try:
            report.record(int(index), inspect(source, int(index)).kind)
        except UnreadableImage as error:
            report.fail(int(index), error.reason)
    if report.num_unreadable == report.num_tried:
        listed = "; ".join(f"{source.key(index)}: {reason}" for index, reason in report.first_failures(5))
        raise DataError(
            f"none of {report.num_tried} images tried in {source.name!r} (data.path) can be read: {listed}"
        )
    return report


def describe(source: Source) -> dict[str, Any]:
    """What a source is, for the record: name, number of images, classes and labelled images."""
    return {
        "name": source.name,
        "images": len(source),
        "classes": list(source.classes),
        "labelled": int((source.labels != UNLABELLED).sum()),
        "fingerprint": source.fingerprint(),
    }


__all__ = [
    "UNLABELLED",
    "ArraySource",
    "DataReport",
    "Decoded",
    "FolderSource",
    "Source",
    "UnreadableImage",
    "check_sample",
    "describe",
    "from_list",
    "inspect",
    "open_source",
    "read",
    "relabelled",
    "subset",
    "with_labels",
]

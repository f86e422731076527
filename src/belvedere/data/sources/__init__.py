"""Sets of images: opening them, trying a sample of them first, labels of their own."""

from __future__ import annotations

from typing import Any

import numpy as np

from belvedere.core.errors import DataError
from belvedere.core.rng import generator
from belvedere.data.decode import Decoded, UnreadableImage
from belvedere.data.report import DataReport
from belvedere.data.sources.folder import FolderSource
from belvedere.data.sources.huggingface import from_huggingface
from belvedere.data.sources.labels import from_list, with_labels
from belvedere.data.sources.opening import has_columns, open_source
from belvedere.data.sources.ranged import with_range
from belvedere.data.sources.remarks import remarks
from belvedere.data.sources.source import UNLABELLED, ArraySource, Source, inspect, read, relabelled, subset


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
        listed = ""
        for index, reason in report.first_failures(5):
            listed += f"\n  {source.key(index)}: {reason}"
        raise DataError(
            f"none of {report.num_tried} images tried in {source.name!r} (data.path) can be read:{listed}"
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
    "from_huggingface",
    "from_list",
    "has_columns",
    "inspect",
    "open_source",
    "read",
    "relabelled",
    "remarks",
    "subset",
    "with_labels",
    "with_range",
]


def __dir__() -> list[str]:
    return sorted(__all__)

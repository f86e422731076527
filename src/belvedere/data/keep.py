"""The list of a source's good images: those that can be read, and one of each group of copies."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from belvedere.core.errors import DataError, UsageError
from belvedere.core.files import check_writable, write_bytes
from belvedere.data.check import Copies
from belvedere.data.sources.access import is_url
from belvedere.data.sources.folder import FolderSource
from belvedere.data.sources.lines import Line, ListFile
from belvedere.data.sources.listing import LISTS, ListSource
from belvedere.data.sources.source import UNLABELLED, Source
from belvedere.data.survey import Survey

_SEPARATORS = {".csv": ",", ".tsv": "\t"}


class Kept(NamedTuple):
    """How many images a list keeps, and what it leaves out: unreadable ones, and copies of one that is kept
    (equal, or near); conflicts: groups of copies whose labels differ, of which the first one's is kept."""

    kept: int
    unreadable: int
    equal: int
    near: int
    conflicts: int


def check_keep(file: Path, source: Source) -> None:
    """Raise UsageError, DataError or WriteError where a list of the source's images could not be written to
    `file`; before any image is read."""
    if file.suffix.lower() not in LISTS:
        raise UsageError(
            f"--keep {file} ends in {file.suffix or 'nothing'!r}; use {', '.join(sorted(LISTS))}"
        )
    if file.is_dir():
        raise UsageError(f"--keep {file} is a folder; give the file to write")
    root = _root(source)
    if isinstance(source, ListSource) and file.exists() and (root / source.name).samefile(file):
        raise UsageError(f"--keep {file} is the list that is looked at; give another file")
    divided = isinstance(source, FolderSource) and source.divided
    if file.suffix.lower() == ".txt" and (divided or bool((source.labels != UNLABELLED).any())):
        raise UsageError(
            f"--keep {file} would lose the labels of {source.name!r}: a .txt holds names only; use .csv"
        )
    check_writable(file)


def _root(source: Source) -> Path:
    """Where the names of a source start."""
    if isinstance(source, FolderSource):
        return source.root
    if isinstance(source, ListSource):
        return source.folder
    raise DataError(
        f"--keep lists files, and the images of {source.name!r} are no files of their own "
        f"({type(source).__name__.removeprefix('_')}): unpack it into a folder first, or take the keys of "
        "unreadable images and copies from --json"
    )


def kept_images(survey: Survey, copies: Copies) -> tuple[NDArray[np.int64], Kept]:
    """The positions [K] of the images to keep, ascending, and the count of the rest.

    Of a group of copies the first one is kept; what could not be compared is kept.
    """
    itself = np.arange(len(survey))
    readable = survey.readable
    chosen = np.flatnonzero(readable & (copies.near == itself))
    equal = int((readable & (copies.equal != itself)).sum())
    copied = int((readable & (copies.near != itself)).sum())
    labels = survey.source.labels[survey.indices]
    differ = readable & (labels != labels[copies.near])
    conflicts = len(np.unique(copies.near[differ]))
    return chosen, Kept(len(chosen), int((~readable).sum()), equal, copied - equal, conflicts)


def write_kept(file: Path, source: Source, indices: NDArray[np.int64]) -> None:
    """Write the images at `indices` of a source to a list that `data.path` reads, whole or not at all.

    Names are relative to the list where its folder holds the images or lies among them, else absolute. Raises
    DataError for no image, and for a name that such a list cannot hold.
    """
    if not len(indices):
        raise DataError(f"--keep: no image of {source.name!r} is left to list")
    names = _names(source, indices, file)
    columns: dict[str, list[str | None]] = {"file": [*names]}
    given = source.labels[indices]
    if bool((given != UNLABELLED).any()):
        columns["label"] = [source.classes[label] if label >= 0 else None for label in given.tolist()]
    if isinstance(source, FolderSource) and source.divided:
        columns["split"] = [source.part(int(index)) for index in indices]
    content = _content(file.suffix.lower(), columns).encode("utf-8", "surrogateescape")
    _check_content(content, file, columns)
    write_bytes(file, content)


def _names(source: Source, indices: NDArray[np.int64], file: Path) -> list[str]:
    root, folder = Path(os.path.realpath(_root(source))), Path(os.path.realpath(file.parent))
    near = root.is_relative_to(folder) or folder.is_relative_to(root)
    start = os.path.relpath(root, folder) if near else str(root)
    keys = [source.key(int(index)) for index in indices]
    return [key if is_url(key) else os.path.normpath(os.path.join(start, key)) for key in keys]


def _content(ending: str, columns: dict[str, list[str | None]]) -> str:
    rows = list(zip(*columns.values(), strict=True))
    if ending == ".jsonl":
        entries = [dict(zip(columns, row, strict=True)) for row in rows]
        given = [{name: value for name, value in entry.items() if value is not None} for entry in entries]
        return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in given)
    text = io.StringIO()
    writer = csv.writer(text, delimiter=_SEPARATORS.get(ending, "\x1f"), lineterminator="\n")
    if ending in _SEPARATORS:
        writer.writerow(columns)
    writer.writerows([["" if value is None else value for value in row] for row in rows])
    return text.getvalue()


def _check_content(content: bytes, file: Path, columns: dict[str, list[str | None]]) -> None:
    """Read the list as `data.path` will, and compare."""
    with tempfile.TemporaryDirectory(prefix="belvedere-keep-") as folder:
        trial = Path(folder, f"list{file.suffix}")
        trial.write_bytes(content)
        wanted = zip(columns["file"], columns.get("label", [None] * len(columns["file"])), strict=True)
        for (name, label), line in zip(wanted, ListFile(trial), strict=False):
            if not isinstance(line, Line) or (line.file, line.label) != (name, label):
                raise DataError(
                    f"--keep {file}: such a list cannot hold the name {name!r}"
                    + (f" or its label {label!r}" if label is not None else "")
                    + ("; use .jsonl" if file.suffix.lower() != ".jsonl" else "; rename it")
                )

"""Labels and selections that come in a file of their own: a CSV of names and labels, a paper's fixed list."""

from __future__ import annotations

import csv
from pathlib import Path, PurePosixPath

import numpy as np

from belvedere.core.errors import DataError
from belvedere.data.sources.source import UNLABELLED, Source, relabelled, subset

_LISTED = 10


def with_labels(source: Source, csv_path: str | Path) -> Source:
    """The source with the labels of a CSV of `file,label` lines (a header of these words may come first).

    Files are named as the source's keys are; images without a line have no label. Raises DataError listing
    all unknown files, files named twice, empty labels and malformed lines together.
    """
    rows = _rows(Path(csv_path))
    index_of = {source.key(index): index for index in range(len(source))}
    if rows and [cell.strip().lower() for cell in rows[0][1]] == ["file", "label"] and "file" not in index_of:
        rows = rows[1:]
    problems: list[str] = []
    named: dict[int, str] = {}
    for line, cells in rows:
        if len(cells) != 2:
            problems.append(f"line {line}: {len(cells)} columns, not file,label")
            continue
        file, label = str(PurePosixPath(cells[0].strip())), cells[1].strip()
        index = index_of.get(file)
        if index is None:
            problems.append(f"line {line}: no image {file!r}")
        elif index in named:
            problems.append(f"line {line}: {file!r} for the second time")
        elif not label:
            problems.append(f"line {line}: {file!r} has an empty label")
        else:
            named[index] = label
    _raise_all(problems, f"{csv_path} does not fit the images of {source.name!r}")
    if not named:
        raise DataError(f"{csv_path} names no image; each line must be file,label")
    classes = tuple(sorted(set(named.values())))
    number = {name: label for label, name in enumerate(classes)}
    labels = np.full(len(source), UNLABELLED, dtype=np.int64)
    for index, name in named.items():
        labels[index] = number[name]
    return relabelled(source, labels, classes)


def from_list(source: Source, list_path: str | Path) -> Source:
    """The images of a fixed list, in its order.

    Each line is `n01440764_10026.JPEG`, found as `n01440764/n01440764_10026.JPEG` anywhere below the
    source's root (the class is what stands before `_`), or a relative name with its folders. Raises
    DataError listing all missing and repeated names together.
    """
    lines = [line.strip() for line in _text(Path(list_path)).splitlines()]
    wanted = {line: _looked_up(line) for line in lines if line}
    if not wanted:
        raise DataError(f"{list_path} lists no image")
    depths = {name.count("/") for name in wanted.values()}
    found: dict[str, int] = {}
    sought = set(wanted.values())
    for index in range(len(source)):
        parts = source.key(index).split("/")
        for depth in depths:
            tail = "/".join(parts[-depth - 1 :])
            if tail in sought:
                found.setdefault(tail, index)
    problems = [f"no image {name}" for name in wanted.values() if name not in found]
    seen: set[str] = set()
    for line in filter(None, lines):
        if line in seen:
            problems.append(f"{line} for the second time")
        seen.add(line)
    _raise_all(problems, f"{list_path} does not fit the images of {source.name!r}")
    return subset(source, [found[name] for name in wanted.values()])


def _looked_up(line: str) -> str:
    name = str(PurePosixPath(line))
    return name if "/" in name else f"{name.split('_')[0]}/{name}"


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Non-empty CSV rows with their line numbers."""
    reader = csv.reader(_text(path).splitlines())
    try:
        return [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise DataError(f"{path} is no CSV: line {reader.line_num}: {error}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text: {error}") from error


def _raise_all(problems: list[str], what: str) -> None:
    if not problems:
        return
    more = f"\n  and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
    raise DataError(what + ":\n  " + "\n  ".join(problems[:_LISTED]) + more)

"""Labels and selections in a file of their own: a table of names and labels, a paper's fixed list."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from belvedere.core.errors import DataError
from belvedere.core.log import named_few, say, warn
from belvedere.data.sources.choice import as_class
from belvedere.data.sources.lookup import look_up
from belvedere.data.sources.names import encode_name
from belvedere.data.sources.source import UNLABELLED, Source, relabelled, subset
from belvedere.data.sources.tables import (
    LABEL,
    Row,
    Table,
    file_column,
    predicted_mark,
    read_list,
    read_tables,
    repeated,
    unused_columns,
)

_LISTED = 10
_NO_CLASS = "-1"
"""What a table writes where it says that an image has no label."""


class _Labelled(NamedTuple):
    """A line of a table: what it says of which image."""

    line: int
    file: str
    label: str
    predicted: bool


class _Reading(NamedTuple):
    """A table read in one way: its lines, the images that each can mean, and what is wrong with it."""

    lines: list[_Labelled]
    meant: list[list[int]]
    mistakes: list[str]
    unused: list[str]


def with_labels(source: Source, table_path: str | Path, *, use_predicted: bool = False) -> Source:
    """The source with the labels of a table of `file,label` lines (a header may name the columns, and more).

    Files are named as the source's keys are, by their paths, or by as much of a key's end as no other image
    shares; images without a line have no label. use_predicted: also labels that the table marks as predicted
    (`predictions.csv`), for images that are only trained on; otherwise those images have no label. What is
    left out is counted and named. Raises DataError listing all unknown and ambiguous files, files labelled in
    two ways, empty labels and malformed lines together, and for a table that labels nothing.
    """
    path = Path(table_path)
    reading = _best_reading(source, path)
    labels, repeats = _labels_of(source, reading)
    _raise_all(
        sorted(reading.mistakes, key=_line_number), f"{path} does not fit the images of {source.name!r}"
    )
    named, labels = labels, {at: line for at, line in labels.items() if line.label != _NO_CLASS}
    if named and not labels:
        raise DataError(f"{path} labels no image: each of its labels is {_NO_CLASS} or nan, which is none")
    if not labels:
        raise DataError(f"{path} names no image; each line must be file,label")
    predicted = [index for index, line in labels.items() if line.predicted]
    kept = {index: line.label for index, line in labels.items() if use_predicted or not line.predicted}
    if not kept:
        raise DataError(
            f"{path} holds only labels that were predicted (column predicted: yes, or a column probability); "
            f"they may be trained on where --val gives others to score, and are never scored themselves. "
            f"Write no in the column predicted of the lines that a person has checked"
        )
    _tell(source, path, reading, kept, repeats=repeats, predicted=predicted, use_predicted=use_predicted)
    classes = tuple(sorted(set(kept.values())))
    number = {name: label for label, name in enumerate(classes)}
    array = np.full(len(source), UNLABELLED, dtype=np.int64)
    for index, name in kept.items():
        array[index] = number[name]
    return relabelled(source, array, classes)


def from_list(source: Source, list_path: str | Path) -> Source:
    """The images of a fixed list, in its order.

    Each line is a name (`n01440764_10026.JPEG`, found in whatever folder it lies) or one with its folders, as
    for `with_labels`. Raises DataError listing all missing, ambiguous and repeated names together.
    """
    path = Path(list_path)
    rows = read_list(path)
    if not rows:
        raise DataError(f"{path} lists no image")
    names = [row.cells[0] if row.cells else "" for row in rows]
    mistakes, chosen = [], dict[int, int]()
    for row, name, meant in zip(rows, names, look_up(source, names, folder=path.parent), strict=True):
        mistake = _unclear(source, name, meant)
        if mistake is None and meant[0] in chosen:
            mistake = f"{name!r} for the second time, after line {chosen[meant[0]]}"
        if mistake is not None:
            mistakes.append(f"line {row.line}: {mistake}")
        else:
            chosen[meant[0]] = row.line
    _raise_all(mistakes, f"{path} does not fit the images of {source.name!r}")
    return subset(source, list(chosen))


def _best_reading(source: Source, path: Path) -> _Reading:
    """The reading of a table that finds most of its images; a table in which two find as many is refused."""
    readings = [_read(source, table, path) for table in read_tables(path)]
    found = [sum(len(meant) == 1 for meant in reading.meant) for reading in readings]
    best = max(found)
    if best and found.count(best) > 1:
        raise DataError(
            f"{path} can be read with more than one of comma, semicolon and tab between its columns; begin "
            f"it with the line file,label in the delimiter that is meant"
        )
    return readings[found.index(best)]


def _read(source: Source, table: Table, path: Path) -> _Reading:
    header = table.header
    if header is not None and (again := repeated(header)) is not None:
        raise DataError(f"{path} has two columns {again!r}; name each column once")
    lines, mistakes = [], []
    for row in table.rows:
        line = _line(row, header)
        if isinstance(line, str):
            mistakes.append(f"line {row.line}: {line}")
        else:
            lines.append(line)
    meant = look_up(source, [line.file for line in lines], folder=path.parent)
    for line, images in zip(lines, meant, strict=True):
        unclear = _unclear(source, line.file, images)
        if unclear is None and not line.label:
            unclear = f"{line.file!r} has an empty label"
        if unclear is not None:
            first = header is None and line.line == 1 and not images
            header_words = " (a header must name its columns file and label)" if first else ""
            mistakes.append(f"line {line.line}: {unclear}{header_words}")
    return _Reading(lines, meant, mistakes, unused_columns(header))


def _line(row: Row, header: list[str] | None) -> _Labelled | str:
    """What a row says, or what is wrong with it."""
    width = 2 if header is None else len(header)
    cells = [*row.cells, *[""] * (width - len(row.cells))] if header is not None else row.cells
    if len(cells) != width:
        wanted = (
            "file,label (more columns need a first line that names them)" if header is None else str(width)
        )
        return f"{len(row.cells)} columns, not {wanted}"
    file, label = (0, 1) if header is None else (file_column(header), header.index(LABEL))
    predicted = predicted_mark(header, cells)
    if predicted is None:
        return "the column predicted must be yes or no"
    text = as_class(cells[label]) or (_NO_CLASS if cells[label].strip() else "")
    try:
        text.encode()
        encode_name(cells[file])
    except UnicodeEncodeError:
        return f"the label {text!r} is not UTF-8; save the file as UTF-8"
    return _Labelled(row.line, cells[file], text, predicted)


def _labels_of(source: Source, reading: _Reading) -> tuple[dict[int, _Labelled], list[_Labelled]]:
    """{image: its line}, and the lines that say again what another has said; contradictions are mistakes."""
    labels: dict[int, _Labelled] = {}
    repeats = []
    for line, meant in zip(reading.lines, reading.meant, strict=True):
        if len(meant) != 1 or not line.label:
            continue
        first = labels.setdefault(meant[0], line)
        if first is line:
            continue
        if (first.label, first.predicted) == (line.label, line.predicted):
            repeats.append(line)
        else:
            kind = "" if first.predicted == line.predicted else ", one of them predicted"
            reading.mistakes.append(
                f"line {line.line}: {line.file!r} is labelled {line.label!r}, but {first.label!r} in line "
                f"{first.line}{kind}; keep one of the two"
            )
    return labels, repeats


def _tell(
    source: Source,
    path: Path,
    reading: _Reading,
    kept: dict[int, str],
    *,
    repeats: list[_Labelled],
    predicted: list[int],
    use_predicted: bool,
) -> None:
    """Say what of a table, and of the source, is not used."""
    if reading.unused:
        say(f"{path.name}: columns that are not read: {named_few(reading.unused)}")
    if repeats:
        files = [f"{line.file!r} (line {line.line})" for line in repeats]
        say(f"{path.name}: lines that repeat an earlier one: {len(repeats)} ({named_few(files)})")
    if predicted:
        keys = named_few([source.key(index) for index in predicted])
        use = (
            "that are trained on, though no person gave them"
            if use_predicted
            else "are never scored; not used"
        )
        warn(f"{path.name}: predicted labels {use}: {len(predicted)} ({keys})")
    rest = [source.key(index) for index in range(len(source)) if index not in kept]
    if rest:
        say(
            f"{path.name} labels {len(kept)} of {len(source)} images; the others have no label: "
            f"{named_few(rest)}"
        )


def _unclear(source: Source, name: str, meant: list[int]) -> str | None:
    if not meant:
        return f"no image {name!r}"
    if len(meant) > 1:
        keys = named_few([source.key(index) for index in meant])
        return f"{name!r} can be {len(meant)} images: {keys}; write more of its path"
    return None


def _line_number(mistake: str) -> int:
    return int(mistake.removeprefix("line ").partition(":")[0])


def _raise_all(problems: list[str], what: str) -> None:
    if not problems:
        return
    more = f"\n  and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
    raise DataError(what + ":\n  " + "\n  ".join(problems[:_LISTED]) + more)

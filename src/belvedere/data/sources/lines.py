"""The lines of a list of images, whatever its format; what a line gets wrong is a value, not an error."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TextIO

from belvedere.core.errors import DataError
from belvedere.data.sources.access import is_url
from belvedere.data.sources.names import encode_name

_FILE = ("file", "path")


class Line(NamedTuple):
    """An image: the line's number from 1, and what it says; None where it says nothing."""

    number: int
    file: str
    label: str | None
    split: str | None


class Mistake(NamedTuple):
    """What is wrong in the line of this number."""

    number: int
    text: str


def read_lines(path: Path) -> Iterator[Line | Mistake]:
    """The lines of a `.txt`, `.csv`, `.tsv` or `.jsonl` file, one at a time; empty ones are left out.

    Names with bytes that are no UTF-8 survive. Raises OSError, and DataError for text that is no UTF-8 and
    for a header without a column `file`.
    """
    with path.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise DataError(f"{path} (data.path) is UTF-16; save it as UTF-8")
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        if path.suffix.lower() == ".jsonl":
            yield from _json_lines(text)
        elif path.suffix.lower() in (".csv", ".tsv"):
            yield from _table(text, path)
        else:
            for number, content in enumerate(text, start=1):
                if content.strip():
                    yield _line(number, content, None, None)


def _table(text: TextIO, path: Path) -> Iterator[Line | Mistake]:
    reader = csv.reader(text, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    try:
        header = [cell.strip().lower() for cell in next(reader, [])]
        column = {name: at for at, name in enumerate(header)}
        if len(column) < len(header) or sum(name in column for name in _FILE) != 1:
            raise DataError(
                f"{path} (data.path) starts with the columns {', '.join(map(repr, header)) or 'none'}; its "
                f"first line must name the columns, each once: file (or path), and perhaps label and split"
            )
        file = next(column[name] for name in _FILE if name in column)
        label, split = column.get("label"), column.get("split")
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                yield Mistake(reader.line_num, f"{len(cells)} columns, not {len(header)}")
                continue
            yield _line(
                reader.line_num,
                cells[file],
                None if label is None else cells[label],
                None if split is None else cells[split],
            )
    except csv.Error as error:  # nothing after it can be told apart
        yield Mistake(reader.line_num, str(error))


def _json_lines(text: TextIO) -> Iterator[Line | Mistake]:
    for number, content in enumerate(text, start=1):
        if not content.strip():
            continue
        try:
            entry = json.loads(content)
        except (ValueError, RecursionError) as error:
            yield Mistake(number, f"no JSON: {error}")
            continue
        if not isinstance(entry, dict) or sum(name in entry for name in _FILE) != 1:
            yield Mistake(number, "no object with a file (or path)")
            continue
        file = next(entry[name] for name in _FILE if name in entry)
        label, split = entry.get("label"), entry.get("split")
        if type(label) is int:  # True is none
            label = str(label)
        given = {
            "file": file,
            "label": "" if label is None else label,
            "split": "" if split is None else split,
        }
        wrong = [name for name, value in given.items() if not isinstance(value, str)]
        if wrong:
            yield Mistake(number, f"the {wrong[0]} is {given[wrong[0]]!r}, no text")
        else:
            yield _line(number, file, label, split)


def _line(number: int, file: str, label: str | None, split: str | None) -> Line | Mistake:
    file = file.strip()
    if not file:
        return Mistake(number, "no file")
    name = file if is_url(file) else str(PurePosixPath(file))
    label, split = (label or "").strip() or None, (split or "").strip() or None
    try:
        for text in (name, label or ""):
            encode_name(text)
    except UnicodeEncodeError:
        return Mistake(number, f"{file!r} or its label holds half a character")
    if "\0" in name:
        return Mistake(number, f"{file!r} holds a zero byte")
    return Line(number, name, label, split)

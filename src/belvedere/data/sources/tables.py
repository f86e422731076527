"""Tables and lists that a person keeps of images: a name a line, or columns with a header or without.

Commas, semicolons or tabs divide the columns; cells may be quoted and then hold any of them, and line ends.
A byte-order mark, Windows' line ends and spaces around a cell count for nothing. Bytes that are not UTF-8
survive in names, as they do in the names of files.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from belvedere.core.errors import DataError
from belvedere.core.files import readable_size

FILE, LABEL = ("file", "path"), "label"
PREDICTED, PROBABILITY = "predicted", "probability"
"""A column `predicted` marks labels that a classifier gave (`yes`) and that a person has confirmed (`no`).
Without it, labels that stand beside a `probability` are predicted: older files have no other mark."""
_DELIMITERS = (",", ";", "\t")
_NO, _YES = ("no", "false", "0", ""), ("yes", "true", "1")
_LOOKED_AT = 4096
_LARGEST = 512 << 20
_UTF16_OR_32 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)


class Row(NamedTuple):
    """A row's first line in the file, from 1, and its cells as they stand there."""

    line: int
    cells: list[str]


class Table(NamedTuple):
    """header: the columns' names in lower case, or None. The header is none of the rows."""

    header: list[str] | None
    rows: list[Row]


def read_list(path: Path) -> list[Row]:
    """The names in a list, a line each: rows of one cell. Commas are part of a name; quotes are taken away.

    Of a `.csv` or `.tsv` file the column `file` (or `path`), or the only one. Raises DataError.
    """
    text = read_text(path)
    if path.suffix.lower() not in (".csv", ".tsv"):
        return _rows(text, "\x1f", path)  # a delimiter that no name has
    parsed = [_rows(text, delimiter, path) for delimiter in _DELIMITERS]
    for rows in parsed:
        header = header_of(rows, LABEL, needed=False)
        if header is not None:
            at = file_column(header)
            return [Row(row.line, row.cells[at : at + 1]) for row in rows[1:]]
    if all(len(row.cells) == 1 for rows in parsed for row in rows):
        return parsed[0]
    raise DataError(f"{path} has several columns; its first line must name them, one of them file (or path)")


def read_tables(path: Path) -> list[Table]:
    """The readings of a table of labels: one where a header decides, else one for each delimiter that gives
    columns to any line, commas first. Raises DataError."""
    text = read_text(path)
    readings, mistakes = [], []
    for delimiter in _DELIMITERS:
        try:
            rows = _rows(text, delimiter, path)
        except DataError as error:  # a quote that another delimiter would make part of a cell
            mistakes.append(error)
            continue
        header = header_of(rows, LABEL, needed=True)
        if header is not None:
            return [Table(header, rows[1:])]
        readings.append(Table(None, rows))
    wide = [table for table in readings if any(len(row.cells) > 1 for row in table.rows)]
    if not wide and mistakes:
        raise mistakes[0]
    return wide or readings[:1]


def header_of(rows: Sequence[Row], column: str, *, needed: bool) -> list[str] | None:
    """The names of the columns, if the first row has `file` or `path`, and `column` where that is needed."""
    if not rows:
        return None
    header = [cell.strip().lower() for cell in rows[0].cells]
    named = sum(name in header for name in FILE) == 1
    return header if named and (column in header or not needed) else None


def file_column(header: Sequence[str]) -> int:
    """Where the names of the images stand."""
    return next(header.index(name) for name in FILE if name in header)


def repeated(header: Sequence[str]) -> str | None:
    """The first column named twice."""
    return next((name for at, name in enumerate(header) if name and name in header[:at]), None)


def predicted_mark(header: Sequence[str] | None, cells: Sequence[str]) -> bool | None:
    """Whether a row's label is one that a classifier gave; None for a mark that says neither.

    cells: as many as the header has names.
    """
    if header is None:
        return False
    if PREDICTED not in header:
        return PROBABILITY in header
    mark = cells[list(header).index(PREDICTED)].strip().lower()
    return mark in _YES if mark in (*_YES, *_NO) else None


def unused_columns(header: Iterable[str] | None) -> list[str]:
    """The columns of a table of labels that nobody reads."""
    return [name for name in header or () if name and name not in (*FILE, LABEL, PREDICTED, PROBABILITY)]


def read_text(path: Path) -> str:
    """A text file as UTF-8, without its byte-order mark. Raises DataError for a file that is missing, a
    folder, in another encoding, no text, or endless."""
    try:
        with path.open("rb") as file:
            start = file.read(_LOOKED_AT)
            if start.startswith(_UTF16_OR_32):
                raise DataError(f"{path} is no UTF-8 text but UTF-16 or UTF-32; save it as UTF-8")
            if b"\0" in start:
                raise DataError(f"{path} is no text: it holds zero bytes")
            data = start + file.read(_LARGEST)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > _LARGEST:
        raise DataError(f"{path} is larger than {readable_size(_LARGEST)}, which no list of images is")
    return data.decode("utf-8-sig", "surrogateescape")


@lru_cache
def after_quote(separator: str) -> re.Pattern[str]:
    """Spaces behind the quote that closes a cell: behind an odd number of quotes."""
    return re.compile(rf'(?<!")((?:"")*")[ \t]+(?={re.escape(separator)}|[\r\n]*$)')


def _rows(text: str, delimiter: str, path: Path) -> list[Row]:
    quoted = '"' in text
    lines: Iterable[str] = io.StringIO(text, newline="")
    if quoted:
        after = after_quote(delimiter)
        lines = (after.sub(r"\1", line) if '"' in line else line for line in lines)
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=quoted)
    rows, line = [], 1
    try:
        for cells in reader:
            while len(cells) > 2 and not cells[-1].strip():  # spreadsheets fill short lines up
                cells.pop()
            if any(cell.strip() for cell in cells):
                rows.append(Row(line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path} is no table: line {line}: {error}") from error
    return rows

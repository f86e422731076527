"""The lines of a list of images, whatever its format; what a line gets wrong is a value, not an error."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TextIO

from belvedere.core.errors import DataError
from belvedere.data.sources.access import is_url
from belvedere.data.sources.choice import (
    NotAClassError,
    as_class,
    chosen_image,
    chosen_label,
    dug,
    listed,
    nested_names,
)
from belvedere.data.sources.names import encode_name
from belvedere.data.sources.tables import LABEL, PREDICTED, PROBABILITY, after_quote, predicted_mark

_FILE = ("file", "path")
_ALSO_FILE = ("filename", "file_name", "filepath", "file_path", "image", "image_path", "img", "img_path")
"""Names of the column of files where there is no `file` or `path`; a list may have one of them."""
_SPLIT = "split"
_SEPARATORS = (",", ";", "\t", "|")
_NEVER = "\x1f"  # separates nothing: a line of names only
_MOST_KEYS = 1000


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


class Columns(NamedTuple):
    """The columns (or keys) of a list: those of the file (one or the other), of the label and of the split,
    and all there are."""

    file: tuple[str, ...]
    label: str | None
    split: str | None
    every: tuple[str, ...]

    @property
    def unused(self) -> tuple[str, ...]:
        used = {*self.file, self.label, self.split}
        whole = {str(name).partition(".")[0] for name in used}
        return tuple(name for name in self.every if name not in used and name.partition(".")[0] not in whole)


class ListFile:
    """A list of images, to be iterated over as often as needed: each line is a `Line` or a `Mistake`.

    `.txt` names one image a line, unless its first line is the header of a table; `.csv` and `.tsv` are
    tables with a header (separated by commas, semicolons, tabs or bars, whatever the name says); `.jsonl`
    holds an object a line. Names may be quoted as in CSV, and hold line breaks then. Spaces at the ends of
    names and labels do not count, except for the names in `.jsonl`. Names with bytes that are no UTF-8
    survive. Labels of a table that are marked as predicted (`predictions.csv`) are none.

    num_blank, num_predicted: lines without anything, and predicted labels, after an iteration.
    """

    def __init__(self, path: Path, *, image: str | None = None, label: str | None = None) -> None:
        """image, label: the columns to take (keys, with dots for nested ones).

        Raises OSError, and DataError for text that is no UTF-8, for a header without a column of files, for
        a chosen column that is not there and for several that may be the label.
        """
        self.path, self._what = path, f"{path} (data.path)"
        self.num_blank = self.num_predicted = 0
        self._image, self._label = image, label
        self._refuse_utf16()
        self._separator: str | None = None  # of a table; None: objects
        self._has_header = True
        if path.suffix.lower() == ".jsonl":
            self.columns = self._of_objects()
        else:
            self.columns = self._of_table()

    def __iter__(self) -> Iterator[Line | Mistake]:
        self.num_blank = self.num_predicted = 0
        with self._open() as text:
            yield from self._objects(text) if self._separator is None else self._rows(text)

    def _open(self) -> TextIO:
        return self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")

    def _refuse_utf16(self) -> None:
        with self.path.open("rb") as file:
            if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                raise DataError(f"{self._what} is UTF-16; save it as UTF-8")

    # --- tables

    def _of_table(self) -> Columns:
        """Find the separator and the columns."""
        text_file = self.path.suffix.lower() not in (".csv", ".tsv")
        order = ("\t", *_SEPARATORS) if self.path.suffix.lower() == ".tsv" else _SEPARATORS
        headers = {each: self._header(each) for each in dict.fromkeys(order)}
        fitting = [each for each, header in headers.items() if self._names_files(header)]
        if text_file:  # a single column that is called `file` is an image of that name
            fitting = [each for each in fitting if len(headers[each]) > 1]
        several = [each for each in fitting if len(headers[each]) > 1]
        if len(several) > 1:
            raise DataError(
                f"{self._what} can be read as separated by {listed(several)}; keep one of them in its header"
            )
        if fitting:
            self._separator = (several or fitting)[0]
            return self._named(headers[self._separator])
        self._has_header = False
        if text_file and self._image is None and self._label is None:
            self._separator = _NEVER
            return Columns(("file",), None, None, ("file",))
        header = headers[order[0]]
        raise DataError(
            f"{self._what} starts with the columns {listed(header) or 'none'}; its first line must name the "
            f"columns, each once, separated by commas, semicolons or tabs: file (or path), and perhaps label "
            f"and split; another column of files is chosen by data.image"
        )

    def _header(self, separator: str) -> list[str]:
        with self._open() as text:
            try:
                return [cell.strip() for cell in next(_records(text, separator), (0, []))[1]]
            except _BrokenTableError:
                return []

    def _names_files(self, header: list[str]) -> bool:
        lowered = [cell.lower() for cell in header]
        if self._image is not None:
            return self._image in header or self._image.lower() in lowered
        return any(name in lowered for name in (*_FILE, *_ALSO_FILE))

    def _named(self, header: list[str]) -> Columns:
        """The columns of a header. Raises DataError."""
        if len({cell.lower() for cell in header if cell}) < len([cell for cell in header if cell]):
            raise DataError(
                f"{self._what} starts with the columns {listed(header)}; its first line must name the "
                f"columns, each once"
            )
        split = next((cell for cell in header if cell.lower() == _SPLIT), None)
        return self._chosen([cell for cell in header if cell], split, noun="column")

    def _chosen(self, every: list[str], split: str | None, *, noun: str) -> Columns:
        where = str(self.path)
        if self._image is not None:
            file: tuple[str, ...] = (chosen_image(every, self._image, where=where, noun=noun),)
        else:
            file = self._file_columns(every, noun)
        rest = [name for name in every if name not in file and name != split]
        if self._label is None and {PREDICTED, PROBABILITY} & {name.lower() for name in rest}:
            rest = [name for name in rest if name.lower() == LABEL]  # the others are runners-up
        label = chosen_label(rest, given=self._label, where=where, noun=noun)
        if label == split:
            split = None
        return Columns(file, label, split, tuple(every))

    def _file_columns(self, every: list[str], noun: str) -> tuple[str, ...]:
        for names in (_FILE, _ALSO_FILE):
            found = [name for name in every if name.lower() in names]
            if len(found) == 1 or (found and noun == "key"):  # each object has one or the other
                return tuple(found)
            if found:
                raise DataError(
                    f"{self._what} has several {noun}s that may name the files: {listed(found)}; its first "
                    f"line must name the columns, each once: file (or path); or choose one by data.image"
                )
        raise DataError(
            f"{self._what}: no {noun} of its objects names a file; each needs a file (or path), or choose a "
            f"{noun} by data.image; there are {listed(every) or 'none'}"
        )

    def _rows(self, text: TextIO) -> Iterator[Line | Mistake]:
        assert self._separator is not None
        records = _records(text, self._separator)
        try:
            header = next(records, (0, []))[1] if self._has_header else list(self.columns.every)
            names = [cell.strip() for cell in header]
            file, label, split = (
                None if name is None else names.index(name)
                for name in (self.columns.file[0], self.columns.label, self.columns.split)
            )
            assert file is not None
            header = [name.lower() for name in names]
            for number, cells in records:
                if not any(cell.strip() for cell in cells):
                    self.num_blank += 1
                elif len(cells) < len(names) or any(cell.strip() for cell in cells[len(names) :]):
                    yield Mistake(number, f"{len(cells)} columns, not {len(names)}")
                else:
                    said = None if label is None else cells[label]
                    if said and predicted_mark(header, cells):
                        said = None
                        self.num_predicted += 1
                    yield _line(
                        number,
                        cells[file].strip(),
                        said,
                        None if split is None else cells[split],
                    )
        except _BrokenTableError as error:  # nothing after it can be told apart
            yield Mistake(error.number, str(error))

    # --- objects

    def _of_objects(self) -> Columns:
        """The keys that the objects have, all lines together."""
        names: dict[str, None] = {}
        with self._open() as text:
            for content in text:
                entry = _parsed(content)
                if isinstance(entry, dict) and len(names) < _MOST_KEYS:
                    names.update(dict.fromkeys(entry))
                    if any(isinstance(value, dict) for value in entry.values()):
                        names.update(dict.fromkeys(nested_names(entry)))
        if not names:
            return Columns(_FILE, None, None, ())
        top = [name for name in names if "." not in name] + [name for name in names if "." in name]
        split = _SPLIT if _SPLIT in names else None
        if self._image is None and not any(name.lower() in (*_FILE, *_ALSO_FILE) for name in names):
            return Columns(_FILE, None, None, tuple(top))  # each line is a mistake
        return self._chosen(top, split, noun="key")

    def _objects(self, text: TextIO) -> Iterator[Line | Mistake]:
        files = [name.split(".") for name in self.columns.file]
        label = None if self.columns.label is None else self.columns.label.split(".")
        for number, content in enumerate(text, start=1):
            if not content.strip():
                self.num_blank += 1
                continue
            try:
                entry = json.loads(content)
            except (ValueError, RecursionError) as error:
                yield Mistake(number, f"no JSON: {error}")
                continue
            given = [value for path in files if (value := _value(entry, path)) is not None]
            if not isinstance(entry, dict) or len(given) != 1:
                yield Mistake(number, "no object with a file (or path)")
                continue
            split = _value(entry, [_SPLIT]) if self.columns.split else None
            if not isinstance(given[0], str):
                yield Mistake(number, f"the file is {given[0]!r}, no text")
            elif split is not None and not isinstance(split, str):
                yield Mistake(number, f"the split is {split!r}, no text")
            else:
                yield _line(number, given[0], None if label is None else _value(entry, label), split)


def _records(text: TextIO, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The records of a table with the number of the line that each begins in, also those without anything."""
    after = after_quote(separator)
    lines = (after.sub(r"\1", line) if '"' in line else line for line in text)
    reader = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=True)
    first = 1
    try:
        for cells in reader:
            yield first, cells
            first = reader.line_num + 1
    except csv.Error as error:
        raise _BrokenTableError(first, str(error)) from error


class _BrokenTableError(Exception):
    """What makes no record, and the line that it begins in."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number


def _parsed(content: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _value(entry: Any, path: list[str]) -> Any:
    """A value under a key, or under nested keys; a key may hold a dot itself."""
    if not isinstance(entry, dict):
        return None
    whole = ".".join(path)
    return entry[whole] if whole in entry else dug(entry, path)


def _line(number: int, file: str, label: Any, split: str | None) -> Line | Mistake:
    if not file.strip():
        return Mistake(number, "no file")
    name = file if is_url(file) else str(PurePosixPath(file))
    try:
        text = as_class(label)
    except NotAClassError as error:
        return Mistake(number, f"the label is {error}")
    split = (split or "").strip() or None
    try:
        encode_name(name)
        encode_name(text or "")
    except UnicodeEncodeError:
        return Mistake(number, f"{file!r} or its label holds half a character")
    if "\0" in name:
        return Mistake(number, f"{file!r} holds a zero byte")
    return Line(number, name, text, split)

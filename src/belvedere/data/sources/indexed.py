"""Encoded images at places that an index knows: members of archives, rows of tables, remote files."""

from __future__ import annotations

import hashlib
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from belvedere.core.errors import DataError
from belvedere.data.decode import UnreadableImage
from belvedere.data.sources.access import ReadError
from belvedere.data.sources.index import Index
from belvedere.data.sources.parts import rows_wanted
from belvedere.data.sources.source import UNLABELLED, source_repr

LARGEST_BYTES = 1 << 30
"""An encoded image that says to be larger is refused before it is read."""
NUMBER = "number"
"""The column of labels whose numbers the data itself gives, with their names in the index's meta."""
MOST_CLASSES = 1_000_000
_MOST_DIGITS = 20


class Reader(Protocol):
    """Reads the bytes of one row of an index; raises ReadError. Pickled to loader workers."""

    def __call__(self, index: Index, row: int) -> bytes: ...


class IndexedSource:
    """The rows `first` to `end` - 1 of an index, read by `reader`. What it sends to loader workers does not
    grow with their number.

    Of the index's meta, `parts` {part: [first row, row behind the last]} says what a split may be, and
    `classes` names the classes when the data numbers them itself (column `number`).
    """

    def __init__(self, name: str, index: Index, reader: Reader, first: int, end: int) -> None:
        self.name, self.skipped = name, index.notes
        self.divided = bool(index.meta.get("parts"))
        self._index, self._reader, self._first, self._end = index, reader, first, end
        given = index.meta.get("classes")
        self.classes = index.classes if given is None else tuple(given)
        self.labels: NDArray[np.int64] = index.columns.get(NUMBER, index.labels)[first:end]

    def __reduce__(self) -> tuple[Any, ...]:
        return IndexedSource, (self.name, self._index, self._reader, self._first, self._end)

    __repr__ = source_repr

    def __len__(self) -> int:
        return self._end - self._first

    def key(self, index: int) -> str:
        return self._index.names[self._row(index)]

    def stored(self, index: int) -> bytes:
        try:
            return self._reader(self._index, self._row(index))
        except ReadError as error:
            raise UnreadableImage(self.key(index), str(error)) from error

    def place(self, index: int) -> tuple[str, int]:
        """What tells an image from all others: of which index it is a row, and which."""
        return self._index.identity, self._row(index)

    def fingerprint(self) -> str:
        text = f"{self._index.fingerprint} {self._first} {self._end} {self.classes}"
        return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()

    def _row(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._first + index


def rows_of_split(name: str, index: Index, reader: Reader, *, split: str | None, where: str) -> IndexedSource:
    """The images of an index that a split names; where: the path, for errors. Raises DataError."""
    parts = {part: (first, end) for part, (first, end) in index.meta.get("parts", {}).items()}
    first, end = rows_wanted(parts, len(index), split=split, where=where)
    if first == end:
        raise DataError(f"{where} (data.path) holds no image" + (f" for split {split!r}" if split else ""))
    return IndexedSource(name, index, reader, first, end)


def numbered_classes(texts: list[str], where: str) -> list[str] | None:
    """The classes 0, 1 and so on, when all labels are numbers; None when one is a name.

    -1 stands for none. Raises DataError for numbers that cannot be classes.
    """
    if not texts or not all(text.removeprefix("-").isdecimal() for text in texts):
        return None
    longest = max(texts, key=len)
    if len(longest) > _MOST_DIGITS:
        raise DataError(
            f"{where} (data.path) holds a label of {len(longest)} digits, {longest[:_MOST_DIGITS]}...; "
            f"labels must be class numbers from 0 on, or -1 for none"
        )
    numbers = [int(text) for text in texts]
    if min(numbers) < UNLABELLED or max(numbers) >= MOST_CLASSES:
        raise DataError(
            f"{where} (data.path) holds labels from {min(numbers)} to {max(numbers)}; they must be class "
            f"numbers from 0 on, or -1 for none"
        )
    return [str(number) for number in range(max(numbers) + 1)]


def value(index: Index, column: str, row: int) -> int:
    """One number of an index."""
    return int(index.columns[column][row])

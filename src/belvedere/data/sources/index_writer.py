"""Building an index entry by entry; no more than a stretch of it is ever held in memory."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import tempfile
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from belvedere.core.cache import VARIABLE, writable_folder
from belvedere.core.errors import DataError
from belvedere.data.sources.index_file import ArrayFile
from belvedere.data.sources.names import encode_name

PART = "indices"
"""The part of the cache that holds them."""
SUFFIX = ".index"
UNFINISHED = ".writing"
RACY_NS = 2_000_000_000
"""What changed less than two seconds before it was looked at may change again within the same tick of the
file system's clock; FAT's is the coarsest, two seconds."""
NEVER = -(2**63)
"""In the place of a time: a stamp that never holds."""
_SPILLED_AT = 1 << 16  # entries
_REPORTED_EACH = 64
_READ_BYTES = 1 << 20


class IndexWriter:
    """What `open_index` hands to a function that finds the entries of a data set, in the order they get.

    meta: facts of the source that are kept with the index (JSON). count: entries so far. notes: so far.
    """

    def __init__(self, found: Callable[[int], None]) -> None:
        """found: told the count now and then."""
        self.meta: dict[str, Any] = {}
        self.count = 0
        self._found = found
        self._block, self._ends, self._labels = _Growing("B"), _Growing("q"), _Growing("q")
        self._ends.append(0)
        self._columns: dict[str, _Growing] = {}
        self._stamp_block, self._stamp_ends, self._stamps = _Growing("B"), _Growing("q"), _Growing("q")
        self._stamp_ends.append(0)
        self._num_stamps = 0
        self._classes: dict[str, int] = {}
        self.notes: list[str] = []
        self._lasting = True

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for growing in self._all():
            growing.close()

    def add(self, name: str, *, label: str | None = None, **columns: int) -> None:
        """Append one entry: its name, the name of its class, and whole numbers, the same columns each time.

        `size`, if there is one, is the image's bytes and part of the fingerprint. Raises UnicodeEncodeError
        for a name that cannot be written down.
        """
        self._block.extend(encode_name(name))
        self._ends.append(self._block.length)
        classes = self._classes
        self._labels.append(-1 if label is None else classes.setdefault(label, len(classes)))
        if self.count == 0:
            self._columns = {column: _Growing("q") for column in columns}
        if columns.keys() != self._columns.keys():
            raise ValueError(f"columns {sorted(columns)} after {sorted(self._columns)}")
        for column, value in columns.items():
            self._columns[column].append(value)
        self.count += 1
        if self.count % _REPORTED_EACH == 0:
            self._found(self.count)
        if self.count % _SPILLED_AT == 0:
            self.spill()

    def declare(self, classes: Iterable[str]) -> None:
        """Classes that count for the numbers of the labels even where no entry has them."""
        for name in classes:
            self._classes.setdefault(name, len(self._classes))

    def stamp(self, path: str | os.PathLike[str]) -> os.stat_result:
        """Note when a file or folder changed last; the index is made anew once that is another time.

        Call it *before* reading what is at `path`, an absolute path. Returns its status; raises OSError.
        """
        now = time.time_ns()
        status = os.stat(path)
        # some file systems that show what lies in object stores have no times, and say zero
        racy = abs(now - status.st_mtime_ns) < RACY_NS or status.st_mtime_ns == 0
        self._stamp_block.extend(encode_name(os.fspath(path)))
        self._stamp_ends.append(self._stamp_block.length)
        for number in (NEVER, 0, 0) if racy else times_and_size(status):
            self._stamps.append(number)
        self._num_stamps += 1
        if self._num_stamps % _SPILLED_AT == 0:
            self.spill()
        return status

    def note(self, text: str, *, passing: bool = False) -> None:
        """Record something a person should know, such as a folder that was skipped and why.

        passing: the next time it may be otherwise (a network's error), so this index is not used again.
        """
        self.notes.append(text)
        self._lasting = self._lasting and not passing

    def spill(self) -> None:
        """Move what is in memory to files without names in the cache."""
        folder = writable_folder(PART)
        with _disk_errors(folder):
            for growing in self._all():
                growing.spill(folder)

    def facts(self, identity: dict[str, Any], fingerprint: str) -> dict[str, Any]:
        """What is kept beside the arrays, as JSON."""
        return {
            "identity": identity,
            "classes": sorted(self._classes),
            "fingerprint": fingerprint,
            "meta": self.meta,
            "notes": self.notes,
            "lasting": self._lasting,
        }

    def arrays(self) -> dict[str, Iterator[NDArray[Any]]]:
        """All arrays in stretches, those of the fingerprint first."""
        size = {"column/size": self._columns["size"]} if "size" in self._columns else {}
        rest = {f"column/{name}": column for name, column in self._columns.items() if name != "size"}
        grown = {"ends": self._ends, "block": self._block, **size}
        late = {"stamps": self._stamps, "stamp_ends": self._stamp_ends, "stamp_block": self._stamp_block}
        return {
            **{name: growing.chunks() for name, growing in grown.items()},
            "labels": self._numbered(),
            **{name: growing.chunks() for name, growing in {**rest, **late}.items()},
        }

    def save(self, key: str, identity: dict[str, Any]) -> Path:
        """Write everything to one file of the cache, whole or not at all; returns where it is.

        Its name says its content too, so an index in use is never replaced by another one.
        """
        folder = writable_folder(PART)
        with _disk_errors(folder):
            # no number of a process: two machines that share a cache may use the same
            unfinished = folder / f".{key}-{secrets.token_hex(8)}{UNFINISHED}"
            try:
                with unfinished.open("xb") as file:
                    header = self._write(ArrayFile(file), identity)
                    os.fsync(file.fileno())
                content = hashlib.blake2b(header, digest_size=8).hexdigest()
                path = folder / f"{key}-{content}{SUFFIX}"
                unfinished.replace(path)
            except BaseException:
                unfinished.unlink(missing_ok=True)
                raise
        return path

    def _write(self, file: ArrayFile, identity: dict[str, Any]) -> bytes:
        digest = hashlib.blake2b(digest_size=16)
        for name, chunks in self.arrays().items():
            counted = name in FINGERPRINTED
            dtype = "|u1" if name.endswith("block") else "<i8"
            file.add(name, _digested(chunks, digest) if counted else chunks, dtype=dtype)
        return file.finish(self.facts(identity, digest.hexdigest()))

    def _numbered(self) -> Iterator[NDArray[Any]]:
        """The labels as numbers of the sorted classes; they were numbered as they were met."""
        number = {name: label for label, name in enumerate(sorted(self._classes))}
        table = np.array([*(number[name] for name in self._classes), -1], dtype=np.int64)  # table[-1] is -1
        return (table[chunk] for chunk in self._labels.chunks())

    def _all(self) -> list[_Growing]:
        stamps = [self._stamp_block, self._stamp_ends, self._stamps]
        return [self._block, self._ends, self._labels, *self._columns.values(), *stamps]


FINGERPRINTED = ("ends", "block", "column/size", "labels")
"""The arrays that make a data set what it is, in this order."""


def times_and_size(status: os.stat_result) -> tuple[int, int, int]:
    """What tells that a file or folder changed: times of its content and its permissions, a file's size."""
    size = -1 if stat.S_ISDIR(status.st_mode) else status.st_size
    return status.st_mtime_ns, status.st_ctime_ns, size


class _Growing:
    """An array that grows at its end: the latest stretch in memory, what came before in a file."""

    def __init__(self, typecode: str) -> None:
        """typecode: `B` bytes, `q` 64-bit integers."""
        self._recent = array(typecode)
        self._dtype = np.dtype(np.uint8 if typecode == "B" else np.int64)
        self._file: IO[bytes] | None = None
        self._spilled = 0
        self.append = self._recent.append
        self.extend = self._recent.frombytes

    @property
    def length(self) -> int:
        return self._spilled + len(self._recent)

    def spill(self, folder: Path) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `close`
        self._recent.tofile(self._file)
        self._spilled += len(self._recent)
        del self._recent[:]

    def chunks(self) -> Iterator[NDArray[Any]]:
        if self._file is not None:
            self._file.flush()
            self._file.seek(0)
            while data := self._file.read(_READ_BYTES):
                yield np.frombuffer(data, dtype=self._dtype)
        yield np.frombuffer(self._recent.tobytes(), dtype=self._dtype)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _digested(chunks: Iterator[NDArray[Any]], digest: hashlib.blake2b) -> Iterator[NDArray[Any]]:
    for chunk in chunks:
        digest.update(chunk.data)
        yield chunk


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """What the file system refuses in `folder`, as DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"the index of the images cannot be written to {folder}: {error.strerror or error}; "
            f"free some space, or set {VARIABLE} to another directory"
        ) from error

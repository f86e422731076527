"""What a data set holds, found once and kept: names, labels and places in flat arrays that processes share.

A large index lies in one file of the cache. It is mapped and not read, so a million entries cost a process
only the pages it touches, and those are the same memory in all processes. Pickling an index (to a loader
worker) sends where the file is.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from belvedere.core.cache import readable_folders
from belvedere.core.counting import Counting
from belvedere.core.errors import DataError
from belvedere.core.files import replacing
from belvedere.data.sources.index_file import ArrayFile, DamagedFileError, map_arrays
from belvedere.data.sources.index_writer import (
    FINGERPRINTED,
    PART,
    SUFFIX,
    UNFINISHED,
    IndexWriter,
    times_and_size,
)
from belvedere.data.sources.names import Names

KEPT_FROM = 20_000
"""Entries from which on an index is kept in the cache; fewer are found again faster than they are missed."""
_UNUSED_S = 30 * 24 * 3600.0


class Index:
    """The entries of a data set.

    names [N]; labels [N], -1 = none, numbers of the sorted `classes`; columns: what the source noted of each
    entry, [N] each (`size`: bytes); notes: what a person should know, such as skipped folders; meta: facts of
    the source as a whole; fingerprint: a hash of names, sizes and labels; identity: what `open_index` was
    asked for, with the paths. The arrays are read-only.
    """

    names: Names
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    columns: dict[str, NDArray[np.int64]]
    notes: tuple[str, ...]
    meta: dict[str, Any]
    fingerprint: str
    identity: str

    def __init__(self, arrays: dict[str, NDArray[Any]], facts: dict[str, Any], *, path: Path | None) -> None:
        """path: the file that the arrays are mapped from, if they are."""
        self.path = path
        self._arrays, self._facts = arrays, facts
        self.names = Names.view(arrays["block"], arrays["ends"])
        self.labels = arrays["labels"]
        columns = [name for name in arrays if name.startswith("column/")]
        self.columns = {name.removeprefix("column/"): arrays[name] for name in columns}
        self.classes, self.notes = tuple(facts["classes"]), tuple(facts["notes"])
        self.meta, self.fingerprint = facts["meta"], facts["fingerprint"]
        self.identity = json.dumps(facts["identity"], sort_keys=True)

    def __len__(self) -> int:
        return len(self.labels)

    def write(self, path: Path) -> None:
        """A copy of the index in a file of its own."""
        with replacing(path) as temporary, temporary.open("wb") as file:
            content = ArrayFile(file)
            for name, values in self._arrays.items():
                content.add(name, [values], dtype="<i8" if values.itemsize == 8 else "|u1")
            content.finish(self._facts)

    @staticmethod
    def read(path: Path) -> Index:
        """The index in a file that `write` wrote. Raises DamagedFileError and OSError."""
        arrays, facts = map_arrays(path.absolute(), check=True)
        if not _is_whole(arrays, facts):
            raise DamagedFileError("its arrays do not fit each other")
        return Index(arrays, facts, path=path.absolute())

    def __reduce__(self) -> tuple[Callable[..., Index], tuple[Any, ...]]:
        if self.path is not None:
            return _mapped_again, (self.path,)
        return _from_memory, (self._arrays, self._facts)


def _is_whole(arrays: dict[str, NDArray[Any]], facts: dict[str, Any]) -> bool:
    """Whether these are the arrays of an index: someone may have made the file by hand."""
    if not {"block", "ends", "labels", "column/size"} <= arrays.keys():
        return False
    ends, labels, classes = arrays["ends"], arrays["labels"], facts.get("classes")
    columns = [values for name, values in arrays.items() if name.startswith("column/")]
    return (
        isinstance(classes, list)
        and all(isinstance(name, str) for name in classes)
        and isinstance(facts.get("notes"), list)
        and isinstance(facts.get("meta"), dict)
        and isinstance(facts.get("fingerprint"), str)
        and all(len(values) == len(labels) == len(ends) - 1 for values in columns)
        and ends[0] == 0
        and ends[-1] == len(arrays["block"])
        and bool((np.diff(ends) >= 0).all())
        and bool(((labels >= -1) & (labels < len(classes))).all())
    )


def open_index(
    identity: dict[str, Any],
    build: Callable[[IndexWriter], None],
    *,
    describe: str,
    kept_from: int = KEPT_FROM,
) -> Index:
    """The index of what `identity` (JSON: kind of source, absolute path, options, versions of remote files)
    names, from the cache if nothing that `build` stamped has changed since, else built.

    describe: names the data set to a person while it is built. kept_from: an index of fewer entries stays in
    memory; lower it where finding them is slow. Raises what `build` raises, and DataError when a large index
    cannot be written.
    """
    key = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=12).hexdigest()
    for path in _kept(key):
        index = _still_true(path, identity)
        if index is not None:
            return index
    with Counting(f"indexing {describe}", unit="images") as counting, IndexWriter(counting.update) as writer:
        build(writer)
        counting.update(writer.count)
        if writer.count < kept_from:
            return _in_memory(writer, identity)
        path = writer.save(key, identity)
    _remove_unused(path.parent)
    return _mapped(path, check=False)


def _kept(key: str) -> list[Path]:
    """Files of the cache that may hold this index, the latest first."""
    found: list[tuple[float, Path]] = []
    for folder in readable_folders(PART):
        for path in folder.glob(f"{key}-*{SUFFIX}"):
            with suppress(OSError):  # removed meanwhile
                found.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(found, reverse=True)]


def _still_true(path: Path, identity: dict[str, Any]) -> Index | None:
    """The index in this file; None when it is damaged, or when something changed since it was built."""
    try:
        arrays, facts = map_arrays(path, check=False)
        if facts["identity"] != json.loads(json.dumps(identity)) or not facts["lasting"]:
            return None
        if not _stamps_hold(arrays):
            return None
        index = _mapped(path, check=True)
    except (DamagedFileError, OSError):
        return None
    with suppress(OSError):  # a cache that is only read
        os.utime(path)  # in use: not to be removed
    return index


def _stamps_hold(arrays: dict[str, NDArray[Any]]) -> bool:
    paths = Names.view(arrays["stamp_block"], arrays["stamp_ends"])
    for path, stamp in zip(paths, arrays["stamps"].reshape(-1, 3).tolist(), strict=True):
        try:
            if times_and_size(os.stat(path)) != tuple(stamp):
                return False
        except OSError:
            return False
    return True


def _mapped(path: Path, *, check: bool) -> Index:
    arrays, facts = map_arrays(path, check=check)
    return Index(arrays, facts, path=path)


def _mapped_again(path: Path) -> Index:
    """The index that another process handed over."""
    try:
        return _mapped(path, check=False)
    except (DamagedFileError, OSError) as error:
        raise DataError(
            f"the index of the images, {path}, is gone or damaged ({error}); start again to make it anew"
        ) from error


def _in_memory(writer: IndexWriter, identity: dict[str, Any]) -> Index:
    arrays = {name: np.concatenate(list(chunks)) for name, chunks in writer.arrays().items()}
    digest = hashlib.blake2b(digest_size=16)
    for name in FINGERPRINTED:
        if name in arrays:
            digest.update(arrays[name].data)
    for values in arrays.values():
        values.flags.writeable = False
    arrays = {name: values for name, values in arrays.items() if not name.startswith("stamp")}
    return Index(arrays, writer.facts(identity, digest.hexdigest()), path=None)


def _from_memory(arrays: dict[str, NDArray[Any]], facts: dict[str, Any]) -> Index:
    return Index(arrays, facts, path=None)


def _remove_unused(folder: Path) -> None:
    """Remove indices that nobody opened for a month, and what killed writers left a month ago."""
    before = time.time() - _UNUSED_S
    for path in [*folder.glob(f"*{SUFFIX}"), *folder.glob(f".*{UNFINISHED}")]:
        with suppress(OSError):  # another process removes them too
            if path.stat().st_mtime < before:
                path.unlink()


__all__ = ["KEPT_FROM", "Index", "IndexWriter", "open_index"]

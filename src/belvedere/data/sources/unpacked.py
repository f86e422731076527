"""Files of images unpacked into the cache, for sets whose own files cannot be read image by image."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from belvedere.core.cache import VARIABLE, writable_folder
from belvedere.core.errors import DataError
from belvedere.core.files import free_bytes, readable_size
from belvedere.core.log import say

PART = "unpacked"
_SUFFIX, _USED, _UNFINISHED = ".images", ".used", ".writing"
_UNUSED_S = 30 * 24 * 3600.0
_SPARE_BYTES = 256 << 20
_SETTLED_NS = 10_000_000_000


def unpacked_key(identity: dict[str, Any]) -> str:
    """A file name for what `identity` names."""
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=12).hexdigest()


@contextmanager
def alone(key: str, what: str) -> Iterator[None]:
    """One process at a time unpacks what `key` names; the others wait, and then find it unpacked."""
    path = writable_folder(PART) / f"{key}.lock"
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is unpacking {what}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class BlockFile:
    """Images written one behind the other to a new file of the cache, whole or not at all.

    path: where it will be. Use as a context manager; an error in the block removes what was written.
    """

    def __init__(self, key: str, *, need_bytes: int, what: str) -> None:
        """Raises DataError when there is no room for `need_bytes`."""
        self._folder = writable_folder(PART)
        free = free_bytes(self._folder)
        if free < need_bytes + _SPARE_BYTES:
            raise DataError(
                f"{what} (data.path) is unpacked once to {self._folder}, which takes "
                f"{readable_size(need_bytes)}; {readable_size(free)} are free: make room, or set {VARIABLE} "
                f"to a directory on another disk"
            )
        remove_unused(self._folder)
        self.path = self._folder / f"{key}-{os.urandom(6).hex()}{_SUFFIX}"
        self._unfinished = self.path.with_name(f".{self.path.name}{_UNFINISHED}")
        self._at = 0
        self._file: BinaryIO | None = None

    def append(self, data: bytes | memoryview) -> int:
        """Write an image; returns where it starts. Raises DataError when the disk is full."""
        assert self._file is not None
        start = self._at
        try:
            self._file.write(data)
        except OSError as error:
            raise self._no_room(error) from error
        self._at += len(data)
        return start

    def __enter__(self) -> BlockFile:
        self._file = self._unfinished.open("xb", buffering=1 << 20)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        try:
            if kind is None:
                self._finish(self._file)
        except OSError as refused:
            raise self._no_room(refused) from refused
        finally:
            with suppress(OSError):
                self._file.close()
            self._unfinished.unlink(missing_ok=True)

    def _finish(self, file: BinaryIO) -> None:
        file.flush()
        os.fsync(file.fileno())
        # nobody writes to it again, so its stamp in an index may be trusted at once
        settled = time.time_ns() - _SETTLED_NS
        os.utime(file.fileno(), ns=(settled, settled))
        self._unfinished.replace(self.path)
        mark_used(self.path)

    def _no_room(self, error: OSError) -> DataError:
        return DataError(
            f"images cannot be unpacked to {self._folder}: {error.strerror or error}; make room, or set "
            f"{VARIABLE} to another directory"
        )


def mark_used(path: Path) -> None:
    """Keep a file of images from being removed for another month."""
    with suppress(OSError):  # a cache that is only read
        path.with_suffix(_USED).touch()


def remove_others(key: str, kept: Path) -> None:
    """Remove what was unpacked from earlier states of the same files, unless a process still reads it."""
    for path in kept.parent.glob(f"{key}-*{_SUFFIX}"):
        if path != kept:
            _remove_idle(path)


def remove_unused(folder: Path) -> None:
    """Remove files of images that nobody used for a month, and what killed writers left a month ago."""
    before = time.time() - _UNUSED_S
    for used in folder.glob(f"*{_USED}"):
        with suppress(OSError):
            if used.stat().st_mtime < before:
                _remove_idle(used.with_suffix(_SUFFIX))
    for path in folder.glob(f".*{_UNFINISHED}"):
        with suppress(OSError):
            if path.stat().st_mtime < before:
                path.unlink()


def _remove_idle(path: Path) -> None:
    with suppress(OSError):  # gone, or in use
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        path.with_suffix(_USED).unlink(missing_ok=True)


class InUse:
    """Marks a file of images as being read, for as long as this object lives; not sent to loader workers,
    whose parent has one."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO | None = None
        with suppress(OSError):  # a file system without locks
            self._file = path.open("rb")
            fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        mark_used(path)

    def __getstate__(self) -> dict[str, Any]:
        return {"_file": None}

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()

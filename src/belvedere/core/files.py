"""Files that are either wholly there or not there at all, and the lock of a run directory."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import yaml

from belvedere.core.errors import RunLockedError

TEMPORARY = ".{name}.{pid}.writing"
LOCK_NAME = ".lock"
_CHUNK_BYTES = 1 << 20


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling to write to; it takes the place of `path` at the end of the block.

    Before that its bytes are forced to the disk, after that the folder's entry is: whatever stops the
    process or the machine, `path` is the old file or the new one. An error in the block leaves `path` alone
    and removes the sibling; a kill leaves the sibling, hidden, named after `path` and ending in `.writing`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / TEMPORARY.format(name=path.name, pid=os.getpid())
    try:
        yield temporary
        sync_file(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by a file with this content."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by a UTF-8 file with this text."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by this value as JSON. A number that JSON lacks (NaN, infinity) is a ValueError."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_yaml(path: Path, value: Any) -> None:
    """Replace `path` by this value as YAML, keys in the order given."""
    write_text(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=110))


def remove_interrupted(folder: Path) -> None:
    """Remove what killed writers left in `folder`. Only for a folder that no other process writes to."""
    for leftover in folder.glob(TEMPORARY.format(name="*", pid="*")):
        leftover.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Force the bytes of `path` to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Force the entries of `folder` (names, renames) to the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def free_bytes(path: Path) -> int:
    """Bytes this user may still write to the file system of `path`, or of its first parent that exists."""
    while not path.exists():
        path = path.parent
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def system_error(error: BaseException | None) -> OSError | None:
    """What the system said first; torch's archive writer covers a full disk by an error of its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def readable_size(num_bytes: float) -> str:
    """A number of bytes for a person to read: `512 B`, `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


class DirectoryLock:
    """At most one process writes to a directory; use as a context manager, or `acquire` and `release`.

    The lock is the kernel's: it ends with the process, however that dies, and no stale lock is ever left. The
    file stays and names the last holder.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / LOCK_NAME
        self._file: BinaryIO | None = None

    def acquire(self) -> None:
        """Take the lock or raise `RunLockedError`, naming the holder. The directory is created if need be."""
        if self._file is not None:
            raise RunLockedError(f"{self.path.parent} is locked already, by this process")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)
        except OSError as error:
            raise RunLockedError(f"cannot lock {self.path.parent}: {error}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = file.read().decode(errors="replace")
            file.close()
            raise RunLockedError(self._refusal(holder, error)) from error
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        self._file = file
        _held.add(self)

    def release(self) -> None:
        """Give the lock back; does nothing when it is not held."""
        if self._file is not None:
            _held.discard(self)
            self._file.close()
            self._file = None

    def _refusal(self, holder: str, error: OSError) -> str:
        if not isinstance(error, BlockingIOError):
            return f"cannot lock {self.path.parent}: {error}; choose a directory whose file system has locks"
        who = "another process"
        with suppress(ValueError, KeyError, TypeError):
            record = json.loads(holder)
            who = f"process {record['pid']} on {record['host']}"
        return f"{self.path.parent} is in use by {who}; wait for it, stop it, or choose another run.dir"

    def __enter__(self) -> DirectoryLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


# A forked child (a loader worker) inherits the open file and with it the lock; if the parent is killed, the
# directory would stay locked for as long as the child lives. So a child closes its copy at once, which does
# not release the parent's lock.
_held: weakref.WeakSet[DirectoryLock] = weakref.WeakSet()


def _close_in_child() -> None:
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_close_in_child)

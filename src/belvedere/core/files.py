"""Files that are either wholly there or not there at all, and the lock of a run directory."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import socket
import stat
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import yaml

from belvedere.core.errors import RunLockedError, WriteError

if TYPE_CHECKING:
    from torch import Tensor

TEMPORARY = ".{name}.{pid}.writing"
LOCK_NAME = ".lock"
MOST_TEXT_BYTES = 1 << 30
"""Of a file of settings or records that is read whole."""
_CHUNK_BYTES = 1 << 20
_LONGEST_NAME = 200
_PROBE_BYTES = 4096
_SCRATCH, _ENDING = "belvedere-", ".writing"
_READER_WAIT_S = 10.0
_MOST_LINKS = 40  # as the kernel
_DESCRIPTORS = re.compile(r"/proc/(\d+)/(?:task/\d+/)?fd/(\d+)")
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file to write to; it takes the place of `path` at the end of the block.

    Before that its bytes are forced to the disk, after that the folder's entry is: whatever stops the
    process or the machine, `path` is the old file or the new one. An error in the block leaves `path` alone
    and removes the temporary file, a hidden sibling; a kill leaves it, named after `path` and ending in
    `.writing`.

    What stands at `path` decides what is replaced: of a symbolic link the file it leads to, which need not
    exist yet; the link stays. An existing file keeps its permissions, and its owner where this user may give
    files away. A device, a pipe or an open descriptor (`/dev/stdout`) is written to at the end of the block
    and stays what it is. Raises WriteError, naming `path`, for a folder, a socket, a disk device, links that
    lead nowhere, a file or folder that may not be written, and a disk that is full.
    """
    with write_errors(path):
        place = _place(path)
        if place.regular:
            with _sibling(place) as temporary:
                yield temporary
        else:
            with tempfile.TemporaryDirectory(prefix=_SCRATCH) as folder:
                temporary = Path(folder) / "content"
                yield temporary
                _pour(temporary, place)


def check_writable(path: Path) -> None:
    """Raise WriteError if `replacing` could not write to `path`, as far as that shows without writing."""
    with write_errors(path):
        place = _place(path)
        if not place.regular:
            return
        folder = place.target.parent
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{folder} is no folder")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"the folder {folder} is read-only for this user")


def try_folder(folder: Path) -> None:
    """Raise WriteError if no file can be written to `folder`, or where it is not there yet to the first
    folder above it that is: one without a name is written and is gone at once. Nothing is created."""
    with write_errors(folder):
        place = folder
        while not place.exists():
            place = place.parent
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{place} is no folder")
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())


def real_path(path: str | Path) -> Path:
    """Where `path` leads, absolute; of links that lead to each other, one of them: where `Path.resolve`
    raises."""
    return Path(os.path.realpath(path))


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by a file with this content."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by a UTF-8 file with this text.

    A byte of a file name that is not UTF-8 (in Python a lone surrogate, as `os.fsdecode` gives it) is written
    as the escape `\\udcXX`. In JSON and YAML that is the character's own escape, so a reader gets the very
    name, and `os.fsencode` of it the file's bytes.
    """
    write_bytes(path, encode_text(text))


def encode_text(text: str) -> bytes:
    """UTF-8, with lone surrogates as `\\udcXX`."""
    return text.encode("utf-8", "backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by this value as JSON. A number that JSON lacks (NaN, infinity) is a ValueError."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def require_regular(path: Path, *, most_bytes: int | None = None) -> None:
    """Raise OSError for what is there and is no regular file (a pipe is waited for, a device may never end),
    and for a file of more than `most_bytes`."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return  # for whoever opens it to say
    if not stat.S_ISREG(status.st_mode):
        kind = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
        raise OSError(kind, "it is no regular file", str(path))
    if most_bytes is not None and status.st_size > most_bytes:
        size, most = readable_size(status.st_size), readable_size(most_bytes)
        raise OSError(errno.EFBIG, f"it has {size}, more than {most}", str(path))


def read_json(path: Path) -> Any:
    """What a file of JSON in UTF-8 holds. Raises OSError, and ValueError for what is none."""
    require_regular(path, most_bytes=MOST_TEXT_BYTES)
    try:
        return json.loads(path.read_bytes().decode())
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def write_yaml(path: Path, value: Any) -> None:
    """Replace `path` by this value as YAML, keys in the order given."""
    write_text(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=110))


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], *, metadata: dict[str, str] | None = None
) -> None:
    """Write tensors (on the CPU, contiguous) to `path` as safetensors; what fails is an OSError.

    It writes over `path` as it is: within `replacing`, or in a folder of one's own.
    """
    from safetensors import SafetensorError  # imports numpy, which most commands do without
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata=metadata)
    except SafetensorError as error:  # the system's error in words: "I/O error: ... (os error 28)"
        found = _SYSTEM_ERROR.search(str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error


class _Place(NamedTuple):
    """Where the bytes of a path go. regular: replace the file `target`, `status` being that of the one which
    is there; otherwise write to `target`, or to the open `descriptor` of this process."""

    target: Path
    regular: bool
    status: os.stat_result | None = None
    descriptor: int | None = None


def _place(path: Path) -> _Place:
    try:
        status = path.stat()
    except FileNotFoundError:
        return _Place(real_path(path), regular=True)
    kind = status.st_mode
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, "it is a folder; name a file")
    if stat.S_ISSOCK(kind) or stat.S_ISBLK(kind):
        what = "socket" if stat.S_ISSOCK(kind) else "disk device"
        raise OSError(errno.EINVAL, f"it is a {what}; name a file, a pipe or a terminal")
    descriptor = _own_descriptor(path)
    if not stat.S_ISREG(kind) or descriptor is not None:
        return _Place(path, regular=False, descriptor=descriptor)
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "the file that is there is read-only for this user")
    return _Place(real_path(path), regular=True, status=status)


def _own_descriptor(path: Path) -> int | None:
    """The number of the open file that `path` (`/dev/stdout`, `/dev/fd/3`) stands for in this process."""
    for _ in range(_MOST_LINKS):
        folder = os.path.realpath(path.parent)
        found = _DESCRIPTORS.fullmatch(os.path.join(folder, path.name))
        if found is not None and int(found[1]) == os.getpid():
            return int(found[2])
        if not path.is_symlink():
            return None
        path = Path(folder) / os.readlink(path)
    return None


@contextmanager
def _sibling(place: _Place) -> Iterator[Path]:
    target = place.target
    target.parent.mkdir(parents=True, exist_ok=True)
    # The system allows 255 bytes for a name, and the target's own may have them all.
    name = os.fsdecode(os.fsencode(target.name)[:_LONGEST_NAME])
    temporary = target.parent / TEMPORARY.format(name=name, pid=os.getpid())
    try:
        mode = 0o666 if place.status is None else stat.S_IMODE(place.status.st_mode)
        # Made here, so that what nobody else may read is never readable, not even while it is written.
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        usual = stat.S_IMODE(os.fstat(handle).st_mode)
        os.close(handle)
        yield temporary
        if place.status is None:
            temporary.chmod(usual)  # safetensors writes files that nobody else may read
        else:
            _take_over_permissions(temporary, place.status)
        sync_file(temporary)
        temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def _take_over_permissions(path: Path, status: os.stat_result) -> None:
    now = path.stat()
    if (now.st_uid, now.st_gid) != (status.st_uid, status.st_gid):
        for owner in (status.st_uid, -1):  # who may not give a file away may still have the same group
            with suppress(OSError):
                os.chown(path, owner, status.st_gid)
                break
    path.chmod(stat.S_IMODE(status.st_mode))  # after the owner: a change of owner takes the set-id bits away


def _pour(content: Path, place: _Place) -> None:
    """Write a file's bytes to what is no regular file, or to a descriptor at its present position."""
    if place.descriptor is not None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(ValueError, AttributeError):  # closed, or replaced by something else
                stream.flush()
        handle = os.dup(place.descriptor)
    else:
        handle = _opened(place.target)
    try:
        with open(handle, "wb", buffering=0) as there, content.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                left = memoryview(chunk)
                while left:
                    left = left[there.write(left) :]
    except BrokenPipeError as error:
        raise OSError(errno.EIO, "whoever read from this pipe has closed it") from error


def _opened(path: Path) -> int:
    """A descriptor to write to. A pipe that nobody reads from would block for ever: it gets ten seconds."""
    deadline = time.monotonic() + _READER_WAIT_S
    while True:
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() > deadline:
                raise OSError(errno.ENXIO, "nobody reads from this pipe") from error
            time.sleep(0.05)
        else:
            os.set_blocking(handle, True)
            return handle


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """What the system refuses while a file or folder is written, as WriteError that names it."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        if error.errno is None or _elsewhere(error, path):
            raise
        raise WriteError(error.errno, _reason(error, path), str(path)) from error


def _elsewhere(error: OSError, path: Path) -> bool:
    """Whether an error is about another file: what is being written may be read from one."""
    if not isinstance(error.filename, str):
        return False
    named = Path(error.filename)
    ours = named.name.endswith(_ENDING) or named.parent.name.endswith(_ENDING)
    ours = ours or named.parent.name.startswith(_SCRATCH)
    return not ours and named != path and named not in path.parents


def _reason(error: OSError, path: Path) -> str:
    if error.errno in _NO_SPACE:
        return f"{error.strerror}: free some space, or choose a place on another disk"
    if error.errno == errno.EROFS:
        return "its file system is read-only; choose another place"
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        in_the_way = next((str(one) for one in path.parents if one.exists() and not one.is_dir()), None)
        if in_the_way is not None:
            return f"{in_the_way} is no folder"
    if error.errno == errno.ELOOP:
        return "its symbolic links lead to each other"
    return error.strerror or str(error)


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
            require_regular(self.path)
            file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)
        except OSError as error:
            raise RunLockedError(f"cannot lock {self.path.parent}: {error}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = file.read().decode(errors="replace")
            file.close()
            raise RunLockedError(self.refusal(holder, error)) from error
        if not self._is_at_its_place(file):  # removed by its last holder while this process waited to open it
            file.close()
            self.acquire()
            return
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        self._file = file
        _held.add(self)

    def _is_at_its_place(self, file: BinaryIO) -> bool:
        with suppress(OSError):
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self.path))
        return False

    def remove_if_alone(self) -> None:
        """Remove the directory if it holds nothing but this lock, which must be held; it stays held."""
        assert self._file is not None
        if [path.name for path in self.path.parent.iterdir()] == [LOCK_NAME]:
            self.path.unlink()
            self.path.parent.rmdir()

    def release(self) -> None:
        """Give the lock back; does nothing when it is not held."""
        if self._file is not None:
            _held.discard(self)
            self._file.close()
            self._file = None

    def refusal(self, holder: str, error: OSError) -> str:
        """What to say of a lock that could not be taken. holder: what the lock file says."""
        if not isinstance(error, BlockingIOError):
            return f"cannot lock {self.path.parent}: {error}; choose a directory whose file system has locks"
        who = "another process"
        with suppress(ValueError, KeyError, TypeError, RecursionError):
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


def refuse_locked(directory: Path) -> None:
    """Raise `RunLockedError` if another process holds the lock of `directory`. Changes nothing."""
    lock = DirectoryLock(directory)
    try:
        require_regular(lock.path)
        with lock.path.open("rb", buffering=0) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = file.read().decode(errors="replace")
                raise RunLockedError(lock.refusal(holder, error)) from error
    except OSError:
        return  # there is none, or `acquire` will say what is wrong


# A forked child (a loader worker) inherits the open file and with it the lock; if the parent is killed, the
# directory would stay locked for as long as the child lives. So a child closes its copy at once, which does
# not release the parent's lock.
_held: weakref.WeakSet[DirectoryLock] = weakref.WeakSet()


def _close_in_child() -> None:
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_close_in_child)

"""Reading stretches of files, local or behind a URL, from many threads and processes."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from typing import Any

from belvedere.core.errors import DataError, MissingPackageError
from belvedere.core.packages import extra_command, package_command

_PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "adlfs"),
    **dict.fromkeys(("sftp", "ssh"), "paramiko"),
    "smb": "smbprotocol",
    "hf": "huggingface_hub",
}
"""The package of a protocol of fsspec."""
_MOST_OPEN = 64
_TRIES = 3
_PAUSE_S = 0.5


class ReadError(Exception):
    """What a person should know about bytes that could not be read."""


def is_url(path: str) -> bool:
    """Whether fsspec is to read it."""
    return "://" in path


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it.

    Raises DataError for an unknown protocol, MissingPackageError for one whose package is not installed.
    """
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        why = missing_protocol(url.partition("://")[0], error)
        raise MissingPackageError(f"data.path is {url!r}, which needs a package: {why}") from error
    except ValueError as error:
        raise DataError(f"data.path is {url!r}, which cannot be opened: {error}") from error
    return system, path


def missing_protocol(protocol: str, error: ImportError) -> str:
    """Why a protocol cannot be used and what to type; of packages not known here, in fsspec's words."""
    from fsspec.registry import known_implementations

    inner = protocol.rpartition("::")[2]
    if inner in ("http", "https"):
        return f"{error}; {extra_command('remote')}"
    if inner in _PACKAGES:
        return f"{error}; {package_command(_PACKAGES[inner])}"
    remedy = known_implementations.get(inner, {}).get("err", "")
    return f"{remedy} ({error})" if remedy and remedy not in str(error) else str(error)


def remote_version(path: str) -> list[str]:
    """What changes when a remote file does, as far as its protocol tells; empty for a local file.

    Raises DataError for a file that is not there.
    """
    if not is_url(path):
        return []
    system, inner = file_system(path)
    try:
        system.invalidate_cache()  # another process may have written it since
        facts = system.info(inner)
    except Exception as error:  # every protocol's package has errors of its own
        raise DataError(f"{path} (data.path) cannot be opened: {type(error).__name__}: {error}") from error
    kept = ("size", "ETag", "etag", "mtime", "LastModified", "last_modified", "created", "generation", "md5")
    return [f"{name}={facts[name]}" for name in kept if facts.get(name) is not None]


def size_of(path: str) -> int:
    """Bytes of a local or remote file; raises OSError or ReadError."""
    if not is_url(path):
        return os.stat(path).st_size
    system, inner = file_system(path)
    size = system.size(inner)
    if size is None:
        raise ReadError("its server does not tell its size, so it cannot be read in parts; copy it here")
    return int(size)


class Stretches:
    """Stretches of files. Local files stay open, a few at a time, each process having its own handles."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._open: OrderedDict[str, _Handle] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._reset()

    def read(
        self, path: str, start: int, size: int, *, short: bool = False, total: int | None = None
    ) -> bytes:
        """`size` bytes from `start` on.

        short: fewer are fine where the file ends. total: how long a local file must be as a whole. Raises
        ReadError.
        """
        data = _fetched(path, start, size) if is_url(path) else self._pread(path, start, size, total)
        if len(data) < size and not short:
            raise ReadError(f"{path} is cut short: {len(data)} bytes instead of {size} at {start}")
        return data

    def _pread(self, path: str, start: int, size: int, total: int | None) -> bytes:
        try:
            handle = self._handle(path)
            if total is not None and handle.size > total:  # a shorter one shows where it ends
                raise ReadError(
                    f"{path} has changed since its images were found: {handle.size} bytes, not {total}"
                )
            if handle.size:  # what lies about its size takes no memory
                size = min(size, max(0, handle.size - start))
            parts = [os.pread(handle.descriptor, size, start)]
            while parts[-1] and (got := sum(map(len, parts))) < size:
                parts.append(os.pread(handle.descriptor, size - got, start + got))
        except OSError as error:
            raise ReadError(f"{path} cannot be read: {error.strerror or error}") from error
        return b"".join(parts)

    def _handle(self, path: str) -> _Handle:
        if self._pid != os.getpid():
            self._reset()
        with self._lock:
            handle = self._open.get(path)
            if handle is None:
                handle = self._open[path] = _Handle(path)
            self._open.move_to_end(path)
            if len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)  # a thread that is reading from it keeps it open
        return handle


class _Handle:
    """An open file, closed when nobody refers to it any more."""

    def __init__(self, path: str) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self.descriptor).st_size

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


def _fetched(url: str, start: int, size: int) -> bytes:
    if size == 0:
        return b""
    system, path = file_system(url)

    def ranged() -> bytes:
        data: bytes = system.cat_file(path, start=start, end=start + size)
        return data

    data = _tried(ranged, url)
    if len(data) > size:
        raise ReadError(f"{url} is sent as a whole by its server, which knows no ranges; copy it here")
    return data


def fetched_whole(url: str) -> bytes:
    """All bytes of a remote file. Raises ReadError."""
    system, path = file_system(url)

    def whole() -> bytes:
        data: bytes = system.cat_file(path)
        return data

    return _tried(whole, url)


def _tried(fetch: Any, url: str) -> bytes:
    """What `fetch` returns; networks fail for moments, so an error that may pass is tried again."""
    for attempt in range(_TRIES):
        try:
            data: bytes = fetch()
            return data
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            raise ReadError(f"{url} cannot be read: {error.strerror or type(error).__name__}") from error
        except Exception as error:  # every protocol's package has errors of its own
            if attempt == _TRIES - 1:
                text = " ".join(str(error).split())
                raise ReadError(f"{url} cannot be read: {type(error).__name__}: {text}") from error
            time.sleep(_PAUSE_S * 2**attempt)
    raise AssertionError("unreachable")

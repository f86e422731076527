"""Fetches a published file over HTTP, so that nothing is fetched twice and nothing wrong is kept.

FOLDER/
  NAME          the whole file; in place from the moment it is whole
  NAME.sha256   its SHA-256, recorded when it came; what is there later must still have it
  NAME.part     what has come so far of a file that is on its way
  NAME.tag      what the server called that version of it, so that parts of two are never put together
"""

from __future__ import annotations

import errno
import fcntl
import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from belvedere.core.errors import WeightsError
from belvedere.core.files import free_bytes, readable_size, sha256, sync_file, sync_folder, write_text
from belvedere.zoo.filekind import unlike_weights

Progress = Callable[[int, int | None], None]
"""Told how many bytes there are, and of how many (None: the server does not say)."""

ATTEMPTS = 5
MOST_REQUESTS = 1000
_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 30.0
_PAUSE_S = 1.0
_RANGE = re.compile(r"bytes (\d+)-\d*/(\d+|\*)")
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class _Broken(NamedTuple):
    """A transfer that ended early."""

    reason: str


def fetch(
    address: str,
    folder: Path,
    *,
    expected_sha256: str | None = None,
    progress: Progress | None = None,
    pause_s: float = _PAUSE_S,
) -> Path:
    """The file at `address` in `folder`, fetched or found there; goes on with what a stopped call left.

    A transfer that breaks off is taken up again, at most `ATTEMPTS` times in a row without getting further
    and `MOST_REQUESTS` times in all. Raises `WeightsError` if the server cannot be reached or does not have
    the file, what it sends is no whole checkpoint, the disk is full, another process fetches the same file,
    or its SHA-256 is not the one that was recorded or is expected.
    """
    target = folder / address.rpartition("/")[2]
    if target.exists():
        return _checked(target, expected_sha256)
    part = target.with_name(f"{target.name}.part")
    with _alone(part) as file:
        if target.exists():  # another process has fetched it meanwhile
            return _checked(target, expected_sha256)
        _fill(file, address, target, progress=progress or (lambda done, total: None), pause_s=pause_s)
        if reason := unlike_weights(part):
            _discard(part, target)
            raise WeightsError(f"{address} gives no checkpoint: {reason}; nothing is kept")
        found = sha256(part)
        if expected_sha256 is not None and found != expected_sha256.lower():
            _discard(part, target)
            raise WeightsError(
                f"{address} has SHA-256 {found}, expected is {expected_sha256.lower()}: it is another file "
                "or was altered on its way; nothing is kept"
            )
        write_text(_record(target), f"{found}  {target.name}\n")
        sync_file(part)
        part.replace(target)
        sync_folder(folder)
        _tag(target).unlink(missing_ok=True)
    return target


def _discard(part: Path, target: Path) -> None:
    part.unlink()
    _tag(target).unlink(missing_ok=True)


def recorded_sha256(target: Path) -> str | None:
    """The SHA-256 that was recorded when the file came; None without a record."""
    try:
        return _record(target).read_text().split()[0]
    except (OSError, IndexError):
        return None


def _record(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _tag(target: Path) -> Path:
    return target.with_name(f"{target.name}.tag")


def _checked(target: Path, expected_sha256: str | None) -> Path:
    """A file that is there, if it still is what came."""
    if reason := unlike_weights(target):
        raise WeightsError(f"{target} is no checkpoint: {reason}; remove it to fetch it again")
    wanted = (expected_sha256 or recorded_sha256(target) or "").lower()
    found = sha256(target)
    if wanted and found != wanted:
        raise WeightsError(
            f"{target} has SHA-256 {found}, must have {wanted}: it was altered; remove it to fetch it again"
        )
    if not wanted:
        write_text(_record(target), f"{found}  {target.name}\n")
    return target


@contextmanager
def _alone(part: Path) -> Iterator[IO[bytes]]:
    """The part file, open for appending, which no other process writes to."""
    try:
        file = part.open("ab", buffering=0)
    except OSError as error:
        raise WeightsError(f"{part} cannot be written: {error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WeightsError(f"{part} is being fetched by another process; wait for it") from error
        yield file


def _fill(file: IO[bytes], address: str, target: Path, *, progress: Progress, pause_s: float) -> None:
    """Append until the file is whole.

    Only what the next request can go on from counts as getting further: where the server gives a version no
    name (ETag), each request begins anew, and one that always breaks off would never end.
    """
    left, furthest = ATTEMPTS, file.seek(0, 2)
    for request in range(1, MOST_REQUESTS + 1):
        broken = _transfer(file, address, target, progress=progress)
        if broken is None:
            return
        there, goes_on = file.seek(0, 2), _tag(target).exists()
        left = ATTEMPTS if goes_on and there > furthest else left - 1
        furthest = max(furthest, there)
        if left <= 0 or request == MOST_REQUESTS:
            times = ATTEMPTS if left <= 0 else MOST_REQUESTS
            kept = (
                f"{readable_size(there)} are kept, and the same command goes on from there"
                if goes_on
                else "the server names no version (ETag), so that the same command begins anew: fetch"
                f" the file elsewhere and put it at {target}, or name another server (--mirror)"
            )
            raise WeightsError(f"{address}: the transfer broke off {times} times ({broken.reason}); {kept}")
        time.sleep(pause_s)


def _transfer(file: IO[bytes], address: str, target: Path, *, progress: Progress) -> _Broken | None:
    """One request for what is missing; None if the file is whole."""
    start = file.seek(0, 2)
    tag = _tag(target).read_text() if start and _tag(target).exists() else None
    if start and tag is None:
        start = _emptied(file)
    headers = {"Accept-Encoding": "identity", "User-Agent": "belvedere"}
    if tag:
        headers |= {"Range": f"bytes={start}-", "If-Range": tag}
    request = urllib.request.Request(address, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            start, total = _begun(file, response, start)
            _keep_tag(target, response)
            _refuse_without_room(file, target, total)
            return _copied(file, response, total, progress=progress)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            if error.headers.get("Content-Range") == f"bytes */{start}":
                return None  # all of it had come before a call was stopped
            _emptied(file)
            return _Broken("the server has another version of it")
        raise WeightsError(f"{address}: the server answers {error.code} {error.reason}") from error
    except ValueError as error:  # an address to go to, a size or a range that is none
        return _Broken(f"the server's answer makes no sense: {error}")
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = str(getattr(error, "reason", None) or error) or type(error).__name__
        if file.tell() or isinstance(error, ConnectionResetError | http.client.HTTPException):
            return _Broken(reason)
        raise WeightsError(
            f"{address} cannot be reached ({reason}): this machine seems to be offline. Fetch the file "
            f"elsewhere and give it to `belvedere import`, or put it at {target}"
        ) from error
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise WeightsError(_no_room(file, target, None)) from error
        raise


def _begun(file: IO[bytes], response: http.client.HTTPResponse, start: int) -> tuple[int, int | None]:
    """Where the answer begins in the file, which is emptied unless it goes on there; and the whole's size."""
    if response.status == http.client.PARTIAL_CONTENT:
        found = _RANGE.match(response.headers.get("Content-Range", ""))
        if found and int(found[1]) == start:
            return start, None if found[2] == "*" else int(found[2])
        raise http.client.HTTPException("the server sent another part than was asked for")
    length = response.headers.get("Content-Length")
    return _emptied(file), int(length) if length and length.isdigit() else None


def _emptied(file: IO[bytes]) -> int:
    file.truncate(0)
    return file.seek(0)


def _keep_tag(target: Path, response: http.client.HTTPResponse) -> None:
    """Note which version comes; without a strong name for it the next call begins anew."""
    tag = response.headers.get("ETag") or response.headers.get("Last-Modified")
    if tag and not tag.startswith("W/"):
        write_text(_tag(target), tag)
    else:
        _tag(target).unlink(missing_ok=True)


def _refuse_without_room(file: IO[bytes], target: Path, total: int | None) -> None:
    if total is not None and free_bytes(target.parent) < total - file.tell():
        raise WeightsError(_no_room(file, target, total))


def _no_room(file: IO[bytes], target: Path, total: int | None) -> str:
    size = "" if total is None else f"needs {readable_size(total - file.tell())} more, "
    return (
        f"{target}: no room; it {size}{readable_size(free_bytes(target.parent))} are free. What came is "
        "kept: make room, or set BELVEDERE_CACHE to a directory on another disk, and run the same command "
        "again"
    )


def _append(file: IO[bytes], chunk: bytes) -> None:
    """Write all of a chunk; a disk that fills takes part of it."""
    left = memoryview(chunk)
    while left:
        left = left[file.write(left) :]


def _copied(
    file: IO[bytes], response: http.client.HTTPResponse, total: int | None, *, progress: Progress
) -> _Broken | None:
    """Append the answer; None if the file is whole then."""
    reason = "the server closed the connection"
    progress(file.tell(), total)
    try:
        while chunk := response.read(_CHUNK_BYTES):
            _append(file, chunk)
            progress(file.tell(), total)
    except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, http.client.IncompleteRead):
            _append(file, error.partial)
    if total is None and reason.startswith("the server closed") and not response.length:
        return None  # the end is all there is to know of its size
    return None if file.tell() == total else _Broken(reason)

"""The members of one tar file: images, and the files beside them that may say their labels."""

from __future__ import annotations

import os
import re
import struct
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from belvedere.core.errors import DataError
from belvedere.core.files import readable_size
from belvedere.data.sources.access import file_system, is_url
from belvedere.data.sources.folder import EXTENSIONS
from belvedere.data.sources.layout import member_name
from belvedere.data.sources.left import Left

SPARSE = -1
"""In the place of an offset: a member that is not stored in one piece."""
LARGEST_LABEL = 1 << 20
_MAGICS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_LARGEST_READ = 4 << 20  # of a header, a long name or a label; images are not read here
_WORD = re.compile(r"[A-Za-z_][\w-]*")
_MOST = 1 << 62
_LOOKED_AT = 1 << 16  # behind the last member
_BROKEN = (
    *(tarfile.TarError, EOFError, OSError, ValueError, OverflowError, IndexError, KeyError),
    *(RecursionError, MemoryError, struct.error),
)


class Image(NamedTuple):
    """An encoded image: its member's name, and where in the file its bytes are."""

    name: str
    offset: int
    size: int


class Beside(NamedTuple):
    """A file that is no image: its name, and its bytes where it was to be read; None where it was not, or is
    larger than LARGEST_LABEL."""

    name: str
    content: bytes | None


def split_name(name: str) -> tuple[str, str]:
    """A member's key and its ending: what stands before and behind the last dot of its name.

    `scan_0.05.png` is `scan_0.05` and `png`, and `x.left.png` is `x.left` and `png`.
    """
    folder, slash, file = name.rpartition("/")
    stem, suffix = os.path.splitext(file)
    return folder + slash + stem, suffix[1:].lower()


def shorter_keys(key: str) -> Iterator[str]:
    """A key without one, two, ... words at its end: `x.left` is of the sample `x`; numbers are no such
    words: `scan_0.05` is of no other sample."""
    while True:
        rest, dot, word = key.rpartition(".")
        if not dot or "/" in word or not rest or rest.endswith("/") or not _WORD.fullmatch(word):
            return
        yield rest
        key = rest


def members(path: str, *, read: Callable[[str], bool], left: Left) -> Iterator[Image | Beside]:
    """The images of a tar file (local path or URL) and the files that lie beside them.

    read: whether the content of files of an ending is wanted. Hidden members and what macOS adds are left
    out, as are links to images and to such files. Raises DataError for a file that is compressed, cut
    short or no tar file.
    """
    num_images = 0
    try:
        with _opened(path) as file:
            _refuse_compressed(file, path)
            careful: Any = _Careful(file)
            with tarfile.open(fileobj=careful, mode="r:", encoding="utf-8") as tar:
                for member in _members(tar, path, left):
                    if member.isdir():
                        continue
                    name = member_name(member.name)
                    if name is None:
                        left.add("hidden members were left out", member.name)
                        continue
                    is_image = os.path.splitext(name)[1].lower() in EXTENSIONS
                    if not member.isreg():
                        if is_image or read(split_name(name)[1]):
                            what = "images" if is_image else "files of labels"
                            left.add(f"{what} that are links to other members were left out", name)
                    elif is_image:
                        num_images += 1
                        yield Image(name, SPARSE if member.issparse() else member.offset_data, member.size)
                    else:
                        yield Beside(name, _content(tar, member) if read(split_name(name)[1]) else None)
    except DataError:
        raise
    except Exception as error:
        if not is_url(path) and not isinstance(error, _BROKEN):
            raise  # a protocol's package has errors of its own; a local file has none
        why = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path} (data.path) is no whole tar file: {why} (after {num_images} images); copy or "
            f"pack it anew"
        ) from error


class _Careful:
    """A file that refuses to be read in huge pieces: a header may claim a name of 8 GB."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def read(self, size: int = -1) -> bytes:
        if size > _LARGEST_READ:
            raise tarfile.ReadError(f"a header claims {readable_size(size)}")
        return self._file.read(size)


def _opened(path: str) -> IO[bytes]:
    if not is_url(path):
        return open(path, "rb")
    system, inner = file_system(path)
    file: IO[bytes] = system.open(inner, "rb")
    return file


def _refuse_compressed(file: IO[bytes], path: str) -> None:
    head = file.read(6)
    kind = next((kind for magic, kind in _MAGICS.items() if head.startswith(magic)), None)
    if kind is not None:
        raise DataError(
            f"{path} (data.path) is compressed with {kind}, so no image in it can be read without all before "
            f"it; decompress it (images hardly shrink anyway)"
        )
    file.seek(0)


def _members(tar: tarfile.TarFile, path: str, left: Left) -> Iterator[tarfile.TarInfo]:
    """The members one by one, none of which is kept."""
    before = -1
    while (member := tar.next()) is not None:
        if not 0 <= member.size < _MOST or tar.offset <= before:
            raise tarfile.ReadError(f"a member of {member.size} bytes at {member.offset}")
        before = tar.offset
        yield member
        tar.members = []  # type: ignore[attr-defined]
    # a header that makes no sense ends the file for `tarfile`, as an empty one does
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    end = tar.fileobj.read(_LOOKED_AT)
    if end[: tarfile.BLOCKSIZE].strip(b"\0"):
        raise tarfile.ReadError(f"no header where one should be, at byte {tar.offset}")
    _tell_end(end, tar.offset, path, left)


def _tell_end(end: bytes, at: int, path: str, left: Left) -> None:
    """Look at what stands behind the last member. Raises DataError for another tar file."""
    behind = len(end) - len(end.lstrip(b"\0"))
    if not end:
        left.add("tar files have no mark at their end and may be cut short", path)
    elif behind < len(end):
        start = behind // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        try:
            tarfile.TarInfo.frombuf(end[start : start + tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
        except _BROKEN:
            left.add("tar files hold something behind their end, which was not read", path)
            return
        raise DataError(
            f"{path} (data.path) holds another tar file behind its end, at byte {at + start}; unpack it with "
            f"`tar -xif`, or keep its parts in files of their own"
        )


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | None:
    file: IO[Any] | None = tar.extractfile(member) if member.size <= LARGEST_LABEL else None
    return None if file is None else bytes(file.read())

"""Images in a .zip archive, read in place."""

from __future__ import annotations

import bz2
import os
import stat
import struct
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from belvedere.core.errors import DataError
from belvedere.data.sources.access import ReadError, Stretches, is_url, remote_version, size_of
from belvedere.data.sources.folder import EXTENSIONS
from belvedere.data.sources.index import Index, IndexWriter, open_index
from belvedere.data.sources.indexed import LARGEST_BYTES, IndexedSource, rows_of_split, value
from belvedere.data.sources.layout import folder_of, layout_of, member_name
from belvedere.data.sources.left import Left

# Layouts from PKWARE's APPNOTE.TXT, 4.3
_END = struct.Struct("<IHHHHIIH")
_END_64 = struct.Struct("<IQHHIIQQQQ")
_LOCATOR_64 = struct.Struct("<IIQI")
_ENTRY = struct.Struct("<IHHHHHHIIIHHHHHII")
_LOCAL_BYTES = 30
_LOCAL_SLACK = 256  # an extra field that the central directory does not show
_LOCAL_MARK = b"PK\x03\x04"
_UNIX = 3  # the system that wrote a member, where its kind of file is stated
_END_MARK, _END_64_MARK, _ENTRY_MARK = b"PK\x05\x06", 0x06064B50, 0x02014B50
_MOST_COMMENT = 65535
_ENCRYPTED, _UTF8 = 0x1, 0x800
_STORED, _DEFLATED, _BZIP2 = 0, 8, 12
_IN_EXTRA = 0xFFFFFFFF
_SIGNATURE_MARK = 0x05054B50
_MOST = 1 << 62  # in the place of larger numbers, which no file has


class _Member(NamedTuple):
    name: str
    offset: int
    packed: int
    size: int
    crc: int
    method: int
    encrypted: bool


def open_zip(path: str, split: str | None) -> IndexedSource:
    """The images of a .zip file (local path or URL), in the order of the archive, part by part.

    Labels and parts are those of the folders in it, as in a folder of images; folders that wrap all images
    count for nothing. Raises DataError.
    """
    where = path if is_url(path) else str(Path(path).expanduser().resolve())
    identity = {"kind": "zip", "rules": 4, "path": where, "remote": remote_version(where)}

    def build(writer: IndexWriter) -> None:
        if not is_url(where):
            writer.stamp(where)
        _build(writer, where)

    try:
        index = open_index(identity, build, describe=where)
    except (ReadError, OSError) as error:
        raise DataError(f"{where} (data.path) cannot be read: {error}") from error
    return rows_of_split(_stem(where), index, ZipReader(where), split=split, where=where)


def _stem(path: str) -> str:
    return os.path.splitext(path.rstrip("/").rpartition("/")[2])[0]


# --- the central directory


def _build(writer: IndexWriter, path: str) -> None:
    """Add the images of an archive, part by part."""
    directory = _directory(path)
    folders: set[str] = set()
    num_images = num_encrypted = 0
    hashes = array("q")
    left = Left()
    for member in _images(directory, path, left):
        folders.add(folder_of(member.name))
        num_images += 1
        num_encrypted += member.encrypted
        hashes.append(hash(member.name))
    for told in left.told():
        writer.note(told)
    if not num_images:
        raise DataError(
            f"{path} (data.path) holds no image file" + "".join(f"; {told}" for told in left.told())
        )
    if num_encrypted == num_images:
        raise DataError(f"{path} (data.path) is encrypted; unpack it, and give the folder")
    num_repeated = num_images - len(np.unique(np.frombuffer(hashes, dtype=np.int64)))
    if num_repeated:
        writer.note(f"{num_repeated} images have the name of one before them, and are taken too")
    layout = layout_of(folders, path)
    if layout.note is not None:
        writer.note(layout.note)
    parts: dict[str, list[int]] = {}
    of_folder = {folder: (layout.part(folder), layout.label(folder)) for folder in folders}
    for part in sorted(set(layout.parts.values())) or ("",):
        first = writer.count
        for member in _images(directory, path, Left()):
            its_part, label = of_folder[folder_of(member.name)]
            if its_part == part:
                _add(writer, member, label)
        if part:
            parts[part] = [first, writer.count]
    writer.meta["parts"] = parts


def _add(writer: IndexWriter, member: _Member, label: str | None) -> None:
    writer.add(
        member.name,
        label=label,
        size=member.size,
        packed=member.packed,
        offset=member.offset,
        crc=member.crc,
        method=-1 if member.encrypted else member.method,
    )


class _Directory(NamedTuple):
    """The central directory's bytes, and what to add to the offsets in it (bytes before the archive).

    num_members: how many members the end record says there are, modulo `modulo`."""

    entries: bytes
    base: int
    num_members: int
    modulo: int


def _directory(path: str) -> _Directory:
    """The central directory of an archive; raises DataError."""
    stretches = Stretches()
    total = size_of(path)
    tail_at = max(0, total - _END.size - _MOST_COMMENT - _LOCATOR_64.size - _END_64.size)
    tail = stretches.read(path, tail_at, total - tail_at)
    at = tail.rfind(_END_MARK)
    if at < 0 or len(tail) - at < _END.size:
        raise DataError(
            f"{path} (data.path) is no zip archive, or is cut short: it has no directory at its end"
        )
    _, disk, _, _, count, size, offset, _ = _END.unpack_from(tail, at)
    end, modulo = tail_at + at, 1 << 16  # what writes more members than that without 64 bits counts anew
    locator_at = at - _LOCATOR_64.size
    if locator_at >= 0 and tail[locator_at : locator_at + 4] == b"PK\x06\x07":
        wide = _directory_64(stretches, path, tail_at + locator_at, tail[locator_at:])
        end, disk, count, size, offset = wide
        modulo = 1 << 64
    base = end - size - offset
    if disk or base < 0:
        raise DataError(
            f"{path} (data.path) is one part of a split zip archive, or is damaged; join its parts, or pack "
            f"it anew"
        )
    entries = stretches.read(path, base + offset, size)
    return _Directory(entries, _checked_base(stretches, path, entries, base), count, modulo)


def _checked_base(stretches: Stretches, path: str, entries: bytes, base: int) -> int:
    """How many bytes stand before the archive: none, where only the end record is wrong about its directory.

    Raises DataError where these bytes are an archive themselves, whose members nobody would see.
    """
    if not base or len(entries) < _ENTRY.size:
        return base
    first = _ENTRY.unpack_from(entries)[-1]
    if stretches.read(path, base + first, 4, short=True) != _LOCAL_MARK:
        return 0 if stretches.read(path, first, 4, short=True) == _LOCAL_MARK else base
    if stretches.read(path, 0, 4, short=True) == _LOCAL_MARK:
        raise DataError(
            f"{path} (data.path) holds another zip archive before its own, of {base} bytes; keep them in "
            f"files of their own"
        )
    return base


def _directory_64(
    stretches: Stretches, path: str, locator_at: int, locator: bytes
) -> tuple[int, int, int, int, int]:
    """Where the 64-bit end record is, its disk, and number of members, size and offset of the directory."""
    _, _, stated, _ = _LOCATOR_64.unpack_from(locator)
    for at in (stated, locator_at - _END_64.size):  # the second where bytes stand before the archive
        if not 0 <= at < locator_at:
            continue
        record = stretches.read(path, at, _END_64.size, short=True)
        if len(record) == _END_64.size and record[:4] == b"PK\x06\x06":
            _, _, _, _, disk, _, _, count, size, offset = _END_64.unpack(record)
            return at, disk, count, size, offset
    raise DataError(f"{path} (data.path) is a damaged zip archive: its 64-bit directory is not where it says")


def _images(directory: _Directory, path: str, left: Left) -> Iterator[_Member]:
    """The members that are images; left: told the others. Raises DataError for a directory that holds another
    number of members than the archive says, or that ends in the middle of one."""
    entries = directory.entries
    at = count = 0
    while at + _ENTRY.size <= len(entries):
        entry = _ENTRY.unpack_from(entries, at)
        mark, by, _, flags, method, _, _, crc, packed, size, named, extra, comment, _, _, kind, offset = entry
        if mark == _SIGNATURE_MARK:
            at = len(entries)
            break
        start = at + _ENTRY.size
        at = start + named + extra + comment
        if mark != _ENTRY_MARK or at > len(entries):
            raise DataError(_damaged(path, f"its directory is broken behind {count} members"))
        count += 1
        name = _taken(_decoded(entries[start : start + named], flags), left)
        if name is None:
            continue
        if by >> 8 == _UNIX and stat.S_ISLNK(kind >> 16):
            left.add("images that are links to other members were left out", name)
            continue
        if _IN_EXTRA in (size, packed, offset):
            fields = entries[start + named : start + named + extra]
            size, packed, offset = _wide(fields, size, packed, offset)
        size, packed, offset = (min(each, _MOST) for each in (size, packed, directory.base + offset))
        yield _Member(name, offset, packed, size, crc, method, bool(flags & _ENCRYPTED))
    if at != len(entries):
        raise DataError(_damaged(path, f"{len(entries) - at} bytes of its directory are no member"))
    if (count - directory.num_members) % directory.modulo:
        raise DataError(
            _damaged(path, f"it says it has {directory.num_members} members, and its directory {count}")
        )


def _decoded(name: bytes, flags: int) -> str:
    """A member's name: UTF-8 where the archive says so, or where it can be: macOS does not say it."""
    if not flags & _UTF8:
        try:
            return name.decode("utf-8")
        except UnicodeDecodeError:
            return name.decode("cp437")
    return name.decode("utf-8", "surrogateescape")


def _damaged(path: str, how: str) -> str:
    return (
        f"{path} (data.path) is a damaged zip archive: {how}; repair it (zip -FF {path} --out "
        f"repaired.zip) or pack it anew"
    )


def _taken(raw: str, left: Left) -> str | None:
    """The name of a member that is an image to take."""
    if raw.endswith("/"):
        return None
    name = member_name(raw)
    if name is None:
        left.add("hidden members were left out", raw)
        return None
    suffix = os.path.splitext(name)[1].lower()
    if suffix not in EXTENSIONS:
        left.add(f"{suffix or 'other'} files were not used", name)
        return None
    return name


def _wide(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """The 64-bit values of those that did not fit, from the extra field 0x0001."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            held = min(length, len(extra) - at - 4) // 8  # the field may say more than there is
            values = iter(struct.unpack_from(f"<{held}Q", extra, at + 4))
            wide = [next(values, each) if each == _IN_EXTRA else each for each in (size, packed, offset)]
            return wide[0], wide[1], wide[2]
        at += 4 + length
    return size, packed, offset


# --- one member


class ZipReader:
    """Reads members of an archive by the places that its directory gives."""

    def __init__(self, path: str) -> None:
        self._path, self._stretches = path, Stretches()

    def __call__(self, index: Index, row: int) -> bytes:
        size, packed = value(index, "size", row), value(index, "packed", row)
        method = value(index, "method", row)
        if method < 0:
            raise ReadError("is encrypted")
        if max(size, packed) > LARGEST_BYTES:
            raise ReadError(f"says to have {max(size, packed)} bytes, more than {LARGEST_BYTES}, refused")
        data = _unpacked(self._packed(index, row, packed), size, method)
        if zlib.crc32(data) != value(index, "crc", row):
            raise ReadError(f"differs from its checksum in {self._path}")
        return data

    def _packed(self, index: Index, row: int, packed: int) -> bytes:
        offset = value(index, "offset", row)
        guess = _LOCAL_BYTES + len(index.names[row].encode("utf-8", "surrogateescape")) + _LOCAL_SLACK
        head = self._stretches.read(self._path, offset, guess + packed, short=True)
        if head[:4] != _LOCAL_MARK or len(head) < _LOCAL_BYTES:
            raise ReadError(f"{self._path} is damaged or has changed: no member at {offset}")
        named, extra = struct.unpack_from("<HH", head, _LOCAL_BYTES - 4)
        start = _LOCAL_BYTES + named + extra
        if start + packed <= len(head):
            return head[start : start + packed]
        return self._stretches.read(self._path, offset + start, packed)


def _unpacked(data: bytes, size: int, method: int) -> bytes:
    """The member's own bytes; never more than it says, whatever its data would unpack to."""
    try:
        if method == _DEFLATED:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
        elif method == _BZIP2:
            data = bz2.BZ2Decompressor().decompress(data, size + 1)
        elif method != _STORED:
            raise ReadError(f"is compressed by method {method}; only stored, deflate and bzip2 are read")
    except (zlib.error, OSError, ValueError) as error:
        raise ReadError(f"cannot be decompressed: {error}") from error
    if len(data) != size:
        raise ReadError(f"has {len(data)} bytes, not the {size} it says")
    return data

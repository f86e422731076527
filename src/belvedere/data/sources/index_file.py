"""Flat arrays and a few facts in one file, which is mapped into memory and not read.

    preamble    magic, version, CRC-32, offset and length of the header
    arrays      each at a multiple of 64 bytes, little-endian
    header      JSON: the facts; type, offset and length of each array; the CRC-32 of all arrays

All processes that map the file share its pages.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

VERSION = 1
_MAGIC = b"bvindex\n"
_PREAMBLE = struct.Struct("<8sIIQQ")
_ALIGNMENT = 64
_CHUNK_BYTES = 1 << 20
_TYPES = ("<i8", "|u1")


class DamagedFileError(Exception):
    """A file that is no index, of another version, or not whole. It is made again, so no user sees this."""


class ArrayFile:
    """Writes arrays one after another to an empty file; `finish` adds the facts."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._at, self._crc = file, 0, 0
        self._arrays: dict[str, dict[str, Any]] = {}
        self._file.write(bytes(_PREAMBLE.size))
        self._at = _PREAMBLE.size

    def add(self, name: str, chunks: Iterable[NDArray[Any]], *, dtype: str) -> None:
        """Append the array that `chunks` make one after another; dtype: `<i8` or `|u1`."""
        assert dtype in _TYPES
        self._write(bytes(-self._at % _ALIGNMENT))
        start = self._at
        for chunk in chunks:
            self._write(np.ascontiguousarray(chunk, dtype=dtype).tobytes())
        length = (self._at - start) // np.dtype(dtype).itemsize
        self._arrays[name] = {"type": dtype, "offset": start, "length": length}

    def finish(self, facts: dict[str, Any]) -> bytes:
        """Write the header and then the preamble; returns the header, which tells this file from others."""
        content = {"facts": facts, "arrays": self._arrays, "crc": self._crc}
        header = json.dumps(content, sort_keys=True).encode("ascii")
        at = self._at
        self._file.write(header)
        self._file.seek(0)
        self._file.write(_PREAMBLE.pack(_MAGIC, VERSION, zlib.crc32(header), at, len(header)))
        self._file.flush()
        return header

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._crc = zlib.crc32(data, self._crc)
        self._at += len(data)


def map_arrays(path: Path, *, check: bool) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The arrays of a file, mapped, and its facts.

    check: compare the arrays with their checksum too, which reads them once. Raises DamagedFileError, or
    OSError where the file cannot be opened.
    """
    with path.open("rb") as file:
        header = _header(file)
        if check and _checksum(file, until=header["end"]) != header["crc"]:
            raise DamagedFileError("the arrays differ from their checksum")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    arrays = {
        name: np.frombuffer(mapped, dtype=entry["type"], count=entry["length"], offset=entry["offset"])
        for name, entry in header["arrays"].items()
    }
    return arrays, header["facts"]


def _header(file: BinaryIO) -> dict[str, Any]:
    preamble = file.read(_PREAMBLE.size)
    if len(preamble) < _PREAMBLE.size:
        raise DamagedFileError("shorter than its preamble")
    magic, version, crc, at, length = _PREAMBLE.unpack(preamble)
    if magic != _MAGIC or version != VERSION:
        raise DamagedFileError(f"no index of version {VERSION}")
    if os.fstat(file.fileno()).st_size != at + length:
        raise DamagedFileError("not of the length it says")
    file.seek(at)
    content = file.read(length)
    if zlib.crc32(content) != crc:
        raise DamagedFileError("the header differs from its checksum")
    try:
        header = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError("a header that is no JSON") from error
    if not _is_header(header, at):
        raise DamagedFileError("a header that is no index's")
    return {**header, "end": at}


def _is_header(header: Any, end: int) -> bool:
    """Whether a header describes arrays that lie between preamble and header."""
    return (
        isinstance(header, dict)
        and isinstance(header.get("facts"), dict)
        and isinstance(header.get("arrays"), dict)
        and type(header.get("crc")) is int
        and all(_is_array(entry, end) for entry in header["arrays"].values())
    )


def _is_array(entry: Any, end: int) -> bool:
    if not isinstance(entry, dict) or entry.get("type") not in _TYPES:
        return False
    offset, length = entry.get("offset"), entry.get("length")
    return (
        type(offset) is int
        and type(length) is int
        and _PREAMBLE.size <= offset
        and length >= 0
        and offset + length * np.dtype(entry["type"]).itemsize <= end
    )


def _checksum(file: BinaryIO, *, until: int) -> int:
    file.seek(_PREAMBLE.size)
    left, crc = until - _PREAMBLE.size, 0
    while left > 0 and (chunk := file.read(min(left, _CHUNK_BYTES))):
        crc = zlib.crc32(chunk, crc)
        left -= len(chunk)
    return crc

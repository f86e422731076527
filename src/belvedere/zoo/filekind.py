"""Is a file that was fetched a checkpoint at all, and whole? Told by its bytes; nothing is unpickled."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

_ZIP = b"PK\x03\x04"
_PICKLES = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")
_LENGTH_BYTES = 8
_START_BYTES = 512
_LARGEST_HEADER = 100_000_000  # bytes, as safetensors itself has it


def unlike_weights(path: Path) -> str:
    """Why the file is no whole checkpoint (safetensors, torch's zip archive, or a pickle), or ""."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(_START_BYTES)
    if not size:
        return "it is empty"
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGES):
        return "it is a web page"
    if start.startswith(_ZIP):
        return _unlike_archive(path)
    if start.startswith(_PICKLES):
        return ""
    if start[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{":
        return _unlike_safetensors(path, size)
    return f"it begins with {start[:16]!r}, as neither safetensors, a zip archive nor a pickle does"


def _unlike_archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "it is a zip archive that is cut off or damaged"
    is_torch = any(name.endswith("/data.pkl") for name in names)
    return "" if is_torch else "it is a zip archive of something else than torch's"


def _unlike_safetensors(path: Path, size: int) -> str:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if length > min(size - _LENGTH_BYTES, _LARGEST_HEADER):
            return f"its header would be {length} bytes long, the file has {size}"
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            expected = _LENGTH_BYTES + length + max(ends, default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return "its header is not that of a safetensors file"
    return "" if expected == size else f"its header announces {expected} bytes, the file has {size}"

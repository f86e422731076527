"""TIFF files written byte by byte, for those that Pillow reads and cannot write."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, MASK, CMYK, YCBCR = 0, 1, 2, 3, 4, 5, 6
UNSIGNED, SIGNED, REAL = 1, 2, 3
UNSPECIFIED, ASSOCIATED, UNASSOCIATED = 0, 1, 2  # what an extra sample is
NONE, DEFLATE, PACKBITS = 1, 8, 32773
_SHORT, _LONG, _ASCII = 3, 4, 2


def tiff(
    values: NDArray[Any],
    photometric: int,
    *,
    bits: int | None = None,
    order: str = "<",
    extra: Sequence[int] | None = None,
    planar: bool = False,
    compression: int = NONE,
    tile: int | None = None,
    nodata: str | None = None,
    tags: Mapping[int, Sequence[int]] | None = None,
    long_tags: Mapping[int, Sequence[int]] | None = None,
) -> bytes:
    """A TIFF of one strip (of one a band, if planar) that holds values [H, W] or [H, W, bands].

    bits: of a value, where they are fewer than the array's type has (1, 2, 4, 12). extra: ExtraSamples, left
    out by default. nodata: GDAL's tag. tags {number: SHORT values} and
    long_tags {number: LONG values}: added, or in place of what is written.
    """
    values = values[..., None] if values.ndim == 2 else values
    height, width, bands = values.shape
    kind = {"u": UNSIGNED, "i": SIGNED, "f": REAL}[values.dtype.kind]
    bits = bits or values.dtype.itemsize * 8
    parts = [values[..., band : band + 1] for band in range(bands)] if planar else [values]
    parts = parts if tile is None else [piece for part in parts for piece in _tiles(part, tile)]
    strips = [_packed(_rows(part, bits, order), compression) for part in parts]
    entries: dict[int, tuple[int, Sequence[int] | bytes]] = {
        256: (_LONG, [width]),
        257: (_LONG, [height]),
        258: (_SHORT, [bits] * bands),
        259: (_SHORT, [compression]),
        262: (_SHORT, [photometric]),
        273: (_LONG, [0] * len(strips)),
        277: (_SHORT, [bands]),
        278: (_LONG, [height]),
        279: (_LONG, [len(strip) for strip in strips]),
        284: (_SHORT, [2 if planar else 1]),
        339: (_SHORT, [kind] * bands),
    }
    if extra is not None:
        entries[338] = (_SHORT, list(extra))
    if tile is not None:
        entries |= {322: (_LONG, [tile]), 323: (_LONG, [tile]), 324: entries.pop(273), 325: entries.pop(279)}
        del entries[278]
    if nodata is not None:
        entries[42113] = (_ASCII, nodata.encode() + b"\0")
    entries |= {number: (_SHORT, list(given)) for number, given in (tags or {}).items()}
    entries |= {number: (_LONG, list(given)) for number, given in (long_tags or {}).items()}
    return _assembled(dict(sorted(entries.items())), strips, order)


def _tiles(values: NDArray[Any], side: int) -> list[NDArray[Any]]:
    height, width, _ = values.shape
    whole = np.pad(values, ((0, -height % side), (0, -width % side), (0, 0)))
    return [
        whole[top : top + side, left : left + side]
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]


def _rows(values: NDArray[Any], bits: int, order: str) -> list[bytes]:
    """The bytes of each row; fewer than 8, or 12, bits are packed, each row from a new byte on."""
    if bits % 8 == 0:
        return [row.astype(row.dtype.newbyteorder(order)).tobytes() for row in values]
    flat = values.reshape(len(values), -1).astype(np.uint16)
    single = (flat[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return [row.tobytes() for row in np.packbits(single.reshape(len(values), -1).astype(np.uint8), axis=1)]


def _packed(rows: list[bytes], compression: int) -> bytes:
    if compression == DEFLATE:
        return zlib.compress(b"".join(rows))
    if compression == PACKBITS:  # literal runs only
        runs = [row[at : at + 128] for row in rows for at in range(0, len(row), 128)]
        return b"".join(bytes([len(run) - 1]) + run for run in runs)
    return b"".join(rows)


def _assembled(
    entries: dict[int, tuple[int, Sequence[int] | bytes]], strips: list[bytes], order: str
) -> bytes:
    """Header, one directory, the values that do not fit into it, and the strips."""
    code = {_SHORT: "H", _LONG: "I"}
    sizes = {n: len(v) * {_SHORT: 2, _LONG: 4, _ASCII: 1}[t] for n, (t, v) in entries.items()}
    at = 8 + 2 + 12 * len(entries) + 4
    places = {}
    for number, size in sizes.items():
        if size > 4:
            places[number], at = at, at + size + size % 2
    starts = []
    for strip in strips:
        starts.append(at)
        at += len(strip)
    entries[273 if 273 in entries else 324] = (_LONG, starts)
    directory, behind = struct.pack(order + "H", len(entries)), b""
    for number, (kind, given) in entries.items():
        content = (
            bytes(given)
            if isinstance(given, bytes)
            else struct.pack(f"{order}{len(given)}{code[kind]}", *given)
        )
        place = content.ljust(4, b"\0") if number not in places else struct.pack(order + "I", places[number])
        directory += struct.pack(order + "HHI", number, kind, len(given)) + place
        behind += content + bytes(len(content) % 2) if number in places else b""
    start = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    return start + directory + bytes(4) + behind + b"".join(strips)

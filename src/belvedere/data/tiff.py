"""TIFF files whose values Pillow does not hand out as the file means them.

Pillow knows the usual layouts. Of others it takes a band for transparency that the file does not call so,
leaves white-is-zero as it is above eight bits, reads signed bytes as unsigned ones, compressed big-endian
values in the wrong order, or nothing at all. For those, the file is described to Pillow anew as rows of
bytes, which it only has to decompress, and what the bytes mean is worked out here.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import TiffImageFile

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, CMYK = 0, 1, 2, 5
UNSIGNED, SIGNED, REAL, VOID = 1, 2, 3, 4
ASSOCIATED, UNASSOCIATED = 1, 2
_READ = (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, CMYK)
_COLORS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, 3: 1, 4: 1, CMYK: 4, 6: 3, 8: 3, 9: 3, 10: 3}
_DECOMPRESSED = (1, 5, 8, 32773, 32946, 34925, 50000)  # none, LZW, Deflate, PackBits, LZMA, Zstandard: bytes
_MOST_ENTRIES, _MOST_VALUES = 4096, 1 << 20
_MOST_BANDS = 4096
_TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_KINDS = {
    **{(UNSIGNED, bits): f"u{bits // 8}" for bits in (8, 16, 32, 64)},
    **{(SIGNED, bits): f"i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{(REAL, bits): f"f{bits // 8}" for bits in (16, 32, 64)},
}


class Layout(NamedTuple):
    """What the first directory of a TIFF says. bits: of one value; form: unsigned, signed, real; bands: how
    many values a pixel has; extra: what those beyond the colors are; order: `<` or `>`; nodata: GDAL's value
    for none; alike: all bands have the same bits and form; more: another image follows; big: a BigTIFF."""

    width: int
    height: int
    bits: int
    form: int
    photometric: int
    bands: int
    extra: tuple[int, ...]
    planar: bool
    compression: int
    predictor: int
    fill_order: int
    order: str
    rows: int
    tile: tuple[int, int] | None
    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    nodata: float | None
    orientation: int
    alike: bool
    more: bool
    big: bool

    @property
    def colors(self) -> int:
        """How many of the bands are colors, or gray."""
        return _COLORS.get(self.photometric, self.bands)

    @property
    def alpha(self) -> int | None:
        """The band that the file calls transparency."""
        return next(
            (
                self.colors + number
                for number, kind in enumerate(self.extra[: self.bands - self.colors])
                if kind in (ASSOCIATED, UNASSOCIATED)
            ),
            None,
        )

    @property
    def left_out(self) -> int:
        """Bands that are neither colors nor transparency."""
        return max(0, self.bands - self.colors - (self.alpha is not None))

    def told(self) -> str:
        """For people: what kind of file it is."""
        form = {SIGNED: "signed ", REAL: "floating-point "}.get(self.form, "")
        bands = f"{self.bands} band{'' if self.bands == 1 else 's'}"
        tags = f"photometric {self.photometric}, compression {self.compression}, predictor {self.predictor}"
        return f"a TIFF of {bands} of {self.bits}-bit {form}values ({tags})"


def layout_of(data: bytes) -> Layout | None:
    """What a TIFF says of its first image; None for other files and for directories that cannot be read."""
    try:
        return _layout(data)
    except (struct.error, ValueError, IndexError, OverflowError, ZeroDivisionError):
        return None


def read_by_pillow(layout: Layout) -> bool:
    """Whether what Pillow hands out is what the file means (or this module cannot do better)."""
    if layout.photometric not in _READ or layout.bands < layout.colors:
        return True
    if layout.compression not in _DECOMPRESSED:
        return True
    if layout.planar or (layout.big and layout.order == ">"):
        return False  # misread: 16-bit colors, white-is-zero; not read at all
    usual = layout.form in (UNSIGNED, VOID)
    if layout.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO):
        black = layout.photometric == BLACK_IS_ZERO
        with_alpha = black and layout.bands == 2 and layout.alpha == 1 and layout.extra == (UNASSOCIATED,)
        known = layout.bits in (1, 2, 4, 8) if layout.bands == 1 else with_alpha and layout.bits == 8
        return usual and known
    if layout.photometric == CMYK:
        return usual and layout.bits == 8 and layout.bands == 4
    if layout.bands == 3:
        return usual and layout.bits in (8, 16)
    return usual and layout.bits in (8, 16) and layout.bands == 4


def obstacle(layout: Layout) -> str | None:
    """Why `bands_of` cannot read such a file, or None."""
    packed = layout.form in (UNSIGNED, VOID) and 1 <= layout.bits <= 16
    if not layout.alike:
        return f"{layout.told()}: the bands differ in bits or kind; save them alike"
    if not packed and (layout.form, layout.bits) not in _KINDS:
        return f"{layout.told()}, which is not read; save it with 8, 16 or 32 bits"
    if layout.compression not in _DECOMPRESSED or (layout.predictor != 1 and layout.bits % 8):
        return f"{layout.told()}, which is not read; save it without compression, or with LZW or Deflate"
    if layout.predictor not in (1, 2, 3) or (layout.predictor == 3 and layout.form != REAL):
        return f"{layout.told()}, which is not read; save it without a predictor"
    return None


def bands_of(data: bytes, layout: Layout, wanted: Sequence[int]) -> NDArray[Any]:
    """The values [H, W, bands] of the bands wanted, in the type that the file states (unsigned values of
    fewer than 8 or of 9 to 15 bits in the next larger one). Raises what decompressing raises."""
    if layout.planar and layout.bands > 1:
        return np.concatenate([_plane(data, layout, band) for band in wanted], axis=-1)
    return _plane(data, layout, None)[..., list(wanted)]


# --- the directory


def _layout(data: bytes) -> Layout | None:
    tags, order, more = _directory(data)
    if not tags:
        return None

    def of(number: int, usual: int) -> int:
        return int(tags[number][0]) if tags.get(number) else usual

    width, height, bands = of(256, 0), of(257, 0), of(277, 1)
    if width < 1 or height < 1 or not 1 <= bands <= _MOST_BANDS or 262 not in tags:
        return None
    bits, forms = tags.get(258, (1,)), tags.get(339, (UNSIGNED,))
    tiled = 322 in tags and 323 in tags
    starts, sizes = (324, 325) if tiled else (273, 279)
    return Layout(
        width=width,
        height=height,
        bits=int(bits[0]),
        form=int(forms[0]),
        photometric=of(262, BLACK_IS_ZERO),
        bands=bands,
        extra=tuple(int(kind) for kind in tags.get(338, ())),
        planar=of(284, 1) == 2,
        compression=of(259, 1),
        predictor=of(317, 1),
        fill_order=of(266, 1),
        order=order,
        rows=min(of(278, height), height),
        tile=(of(322, 0), of(323, 0)) if tiled else None,
        starts=tuple(tags.get(starts, ())),
        sizes=tuple(tags.get(sizes, ())),
        nodata=_number(bytes(tags.get(42113, ()))),
        orientation=of(274, 1),
        alike=len(set(bits)) == 1 and len(set(forms)) == 1,
        more=more,
        big=43 in data[2:4],
    )


def _directory(data: bytes) -> tuple[dict[int, tuple[int, ...]], str, bool]:
    """The whole-number tags of the first directory, the byte order, and whether there is another one."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return {}, "<", False
    (version,) = struct.unpack_from(order + "H", data, 2)
    if version not in (42, 43):
        return {}, order, False
    big = version == 43
    place, count, entry = ("Q", "Q", "HHQ8s") if big else ("I", "H", "HHI4s")
    (at,) = struct.unpack_from(order + place, data, 8 if big else 4)
    (number,) = struct.unpack_from(order + count, data, at)
    at += struct.calcsize(order + count)
    if number > _MOST_ENTRIES:
        return {}, order, False
    tags = {}
    for _ in range(number):
        tag, kind, length, inline = struct.unpack_from(order + entry, data, at)
        at += struct.calcsize(order + entry)
        if kind in _TYPES and length <= _MOST_VALUES:
            tags[tag] = _values(data, inline, f"{order}{length}{_TYPES[kind]}", order + place)
    (following,) = struct.unpack_from(order + place, data, at)
    return tags, order, following != 0


def _values(data: bytes, inline: bytes, form: str, place: str) -> tuple[int, ...]:
    if struct.calcsize(form) <= len(inline):
        return struct.unpack_from(form, inline)
    return struct.unpack_from(form, data, struct.unpack(place, inline)[0])


def _number(text: bytes) -> float | None:
    try:
        return float(text.split(b"\0")[0].decode("ascii").strip())
    except ValueError:
        return None


# --- the bytes


def _plane(data: bytes, layout: Layout, band: int | None) -> NDArray[Any]:
    """Values [H, W, bands] of all bands that lie together, or [H, W, 1] of a plane of its own."""
    bands = 1 if band is not None else layout.bands
    across = layout.width if layout.tile is None else layout.tile[0]
    strip_bytes = -(-across * bands * layout.bits // 8)
    row_bytes = strip_bytes * -(-layout.width // across)  # the last tile may reach beyond the image
    starts, sizes = layout.starts, layout.sizes
    if band is not None:
        each = len(starts) // layout.bands
        starts, sizes = starts[band * each : (band + 1) * each], sizes[band * each : (band + 1) * each]
    described = _described(data, layout, row_bytes, strip_bytes, starts, sizes)
    with TiffImageFile(io.BytesIO(described)) as image:
        image.load()
        raw = np.asarray(image)
    if raw.shape != (layout.height, row_bytes) or raw.dtype != np.uint8:
        raise ValueError(f"says {layout.height} rows of {row_bytes} bytes, and holds {raw.shape}")
    pieces = [raw[:, at : at + strip_bytes] for at in range(0, row_bytes, strip_bytes)]
    if layout.bits % 8:
        values = [_unpacked(piece, layout, bands, across) for piece in pieces]
    else:
        values = [_typed(piece, layout, bands) for piece in pieces]
    return np.concatenate(values, axis=1)[:, : layout.width]


def _described(
    data: bytes, layout: Layout, row_bytes: int, strip_bytes: int, starts: Sequence[int], sizes: Sequence[int]
) -> bytes:
    """The same file with another directory at its end: gray, eight bits, `row_bytes` wide."""
    if not starts or len(starts) != len(sizes):
        raise ValueError("the places of its strips or tiles are missing")
    tags: dict[int, Sequence[int]] = {
        256: [row_bytes],
        257: [layout.height],
        258: [8],
        259: [layout.compression],
        262: [BLACK_IS_ZERO],
        266: [layout.fill_order],
        277: [1],
    }
    if layout.tile is None:
        tags |= {273: starts, 278: [layout.rows], 279: sizes}
    else:
        tags |= {322: [strip_bytes], 323: [layout.tile[1]], 324: starts, 325: sizes}
    at = len(data) + len(data) % 2
    lists = at + 2 + 12 * len(tags) + 4
    directory, behind = struct.pack("<H", len(tags)), b""
    for tag, values in sorted(tags.items()):
        content = struct.pack(f"<{len(values)}I", *values)
        place = content if len(values) == 1 else struct.pack("<I", lists + len(behind))
        behind += content if len(values) > 1 else b""
        directory += struct.pack("<HHI", tag, 4, len(values)) + place
    return (
        struct.pack("<2sHI", b"II", 42, at) + data[8:] + bytes(len(data) % 2) + directory + bytes(4) + behind
    )


def _unpacked(raw: NDArray[np.uint8], layout: Layout, bands: int, across: int) -> NDArray[Any]:
    """Values [H, W, bands] of a number of bits that is no multiple of eight, most significant bit first."""
    dtype = np.dtype(np.uint8 if layout.bits < 8 else np.uint16)
    result = np.empty((len(raw), across * bands), dtype=dtype)
    for row, content in enumerate(raw):  # a row at a time: single bits take eight times the room
        single = np.unpackbits(content, count=result.shape[1] * layout.bits).reshape(-1, layout.bits)
        value = np.zeros(len(single), dtype=dtype)
        for bit in single.T:
            value = (value << 1) | bit
        result[row] = value
    return result.reshape(len(raw), across, bands)


def _typed(raw: NDArray[np.uint8], layout: Layout, bands: int) -> NDArray[Any]:
    """Values [H, W, bands] of bytes [H, W * bands * size], the predictor undone."""
    form = UNSIGNED if layout.form == VOID else layout.form
    dtype = np.dtype(f"{layout.order}{_KINDS[form, layout.bits]}")
    height = len(raw)
    if layout.predictor == 3:
        summed = np.add.accumulate(raw.reshape(height, -1, bands), axis=1, dtype=np.uint8)
        planes = summed.reshape(height, dtype.itemsize, -1)  # all first bytes, all second ones, and so on
        whole = np.ascontiguousarray(planes.transpose(0, 2, 1)).view(dtype.newbyteorder(">"))
        return whole.reshape(height, -1, bands)
    values = np.ascontiguousarray(raw).view(dtype).reshape(height, -1, bands)
    if layout.predictor == 2:
        counted = values.view(f"{layout.order}u{dtype.itemsize}")
        native = counted.astype(counted.dtype.newbyteorder("="))
        values = np.add.accumulate(native, axis=1, dtype=native.dtype).view(dtype.newbyteorder("="))
    return values.astype(dtype.newbyteorder("="), copy=False)

"""What a source stores to RGB pixels, by rules that pretraining, evaluation and embedding share."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from belvedere.core.errors import DataError
from belvedere.data import tiff
from belvedere.data.levels import NoValuesError, Range, Values, scaled
from belvedere.data.pixels import pixels_of

_LIMIT_VARIABLE = "BELVEDERE_PIXEL_LIMIT"
_USUAL_LIMIT = 89_478_485  # Pillow's own bound for what may be a decompression bomb


def _pixel_limit(given: str | None) -> int:
    if given is None:
        return _USUAL_LIMIT
    if not given.isascii() or not given.isdigit() or int(given) < 1:
        raise DataError(f"{_LIMIT_VARIABLE} is {given!r}; it must be a number of pixels, at least 1")
    return int(given)


PIXEL_LIMIT = _pixel_limit(os.environ.get(_LIMIT_VARIABLE))
"""Images of more pixels are refused by their header alone, before any memory is taken for them.

Set the environment variable BELVEDERE_PIXEL_LIMIT to allow more, or fewer; loader workers inherit it.
"""

SIDE_LIMIT = 2**18
"""Images with a longer side are refused by their header: resizing 1 x 1,000,000 pixels takes seconds
and a gigabyte."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA")
"""The formats that are read, whatever a file is called. Pillow knows more, and some are no mere pictures: it
hands EPS to an interpreter."""

PLAIN = "RGB"
_REFUSED = f", refused; make it smaller, or set {_LIMIT_VARIABLE}"
_ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})
_ORIENTATION = 0x0112  # EXIF tag
_LATE_EXIF = b"eXIf"  # a PNG may carry it behind its pixels
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How an orientation is undone."""

# Pillow warns of each oddity in a file as often as it is read; what matters is in the data report. Where
# warnings are errors, they would make images unreadable.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())  # or it would print where nobody set up logging
if PIXEL_LIMIT > _USUAL_LIMIT:
    Image.MAX_IMAGE_PIXELS = PIXEL_LIMIT  # Pillow refuses from twice its own limit on


Pixels = NDArray[np.uint8]


class UnreadableImage(DataError):  # noqa: N818 - says what it is, as reports do
    """An image that cannot be decoded: its key in the source, and why."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key, self.reason = key, reason

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


class Decoded(NamedTuple):
    """pixels uint8 [H, W, 3]; kind: `RGB`, or what it was converted from; shrink: how many times smaller each
    side is than the image's own (1, or what a JPEG was asked for); values: of an image of more than eight
    bits, what it held before it was scaled."""

    pixels: Pixels
    kind: str
    shrink: int = 1
    values: Values | None = None


class Opened(Protocol):
    """An image whose header has been read: its size upright, in pixels, and how to decode the rest."""

    height: int
    width: int

    def decoded(self, *, shrink: int = 1) -> Decoded:
        """The pixels; raises UnreadableImage.

        shrink: 1, 2, 4 or 8; a JPEG is decoded to that part of its height and width (rounded up), which costs
        less; other formats are decoded whole, and say so in `Decoded.shrink`.
        """
        ...


def open_image(stored: bytes | Pixels, key: str, *, value_range: Range | None = None) -> Opened:
    """Read the header of what a source stores; raises UnreadableImage.

    The rules for bytes: the first frame only; turned upright by EXIF; what the file calls transparency on
    white, further bands left out; unsigned gray of up to 16 bits from 0 to the most it can hold (of 16-bit
    colors, Pillow keeps the upper half); gray of other types from its own range (values in [0, 1] are taken
    as they are; integers within 0..65535 count as 16-bit); pixels without a value (NaN, infinite, or the
    value that a TIFF states for none) black; one of FORMATS, at most PIXEL_LIMIT pixels, no side longer than
    SIDE_LIMIT. `key` names the image in errors. value_range: what becomes black and white in images of more
    than eight bits, in place of the ranges above.
    """
    if isinstance(stored, np.ndarray):
        return _Held(stored, key)
    layout = tiff.layout_of(stored) if stored[:2] in (b"II", b"MM") else None
    if layout is not None and not (tiff.read_by_pillow(layout) and (value_range is None or layout.bits <= 8)):
        return _Tiff(stored, key, layout, value_range)
    return _Encoded(stored, key, layout, value_range)


def decode(data: bytes, key: str) -> Decoded:
    """The pixels of an encoded image, by the rules of `open_image`."""
    return open_image(data, key).decoded()


class _Held:
    """Pixels that a source holds."""

    def __init__(self, pixels: Pixels, key: str) -> None:
        if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3) or 0 in pixels.shape:
            raise UnreadableImage(key, f"holds an array of shape {pixels.shape}, not [height, width, 3 or 1]")
        if pixels.dtype != np.uint8:
            raise UnreadableImage(key, f"holds {pixels.dtype}, not uint8")
        self._pixels = pixels
        self.height, self.width = pixels.shape[:2]
        _refuse_side(self.width, self.height, key)

    def decoded(self, *, shrink: int = 1) -> Decoded:
        if self._pixels.shape[-1] == 1:
            return Decoded(np.repeat(self._pixels, 3, axis=-1), "gray")
        return Decoded(self._pixels, PLAIN)


class _Encoded:
    """An encoded image, opened by Pillow. layout: what a TIFF says of itself."""

    def __init__(self, data: bytes, key: str, layout: tiff.Layout | None, value_range: Range | None) -> None:
        if not data:
            raise UnreadableImage(key, "the file is empty")
        self._data, self._key, self._layout, self._range = data, key, layout, value_range
        with _reasons(key, data, layout):
            self._image = Image.open(io.BytesIO(data), formats=FORMATS)
            _refuse_size(*self._image.size, key)
            self._orientation = _orientation(self._image, data)
            self._turned = self._orientation != 1
            if self._turned and self._image.format == "TIFF":
                self._image.load()  # Pillow turns these itself
                self._orientation = 1
        width, height = self._image.size
        self.height, self.width = (width, height) if self._orientation >= 5 else (height, width)

    def decoded(self, *, shrink: int = 1) -> Decoded:
        with _reasons(self._key, self._data, self._layout), self._image as image:
            used = _draft(image, shrink)
            expected = image.size
            image.load()
            if image.size != expected:
                raise UnreadableImage(self._key, f"says {expected} pixels, and holds {image.size}")
            notes = []
            if getattr(image, "is_animated", False):
                notes.append("first of several frames")
            upright: Image.Image = image
            if self._orientation != 1:
                upright = image.transpose(_TURNS[self._orientation])
            if self._turned:
                notes.append("turned by EXIF")
            rgb, mode, values = self._to_rgb(upright, image.format)
            if mode != PLAIN:
                notes.insert(0, mode)
            return Decoded(pixels_of(rgb), ", ".join(notes) or PLAIN, used, values)

    def _to_rgb(self, image: Image.Image, kind: str | None) -> tuple[Image.Image, str, Values | None]:
        """The image in RGB, a name of what it was, and its values if they had more than eight bits."""
        if image.mode.startswith("I;16") or image.mode in ("I", "F"):
            return _deep_gray(image, self._range)
        half = _half_read(image, kind, self._data, self._layout)
        if self._range is not None and half is not None:
            _refuse_half_read(kind, self._key)
        left_out = _bands_left_out(image, kind, self._data, self._layout)
        if left_out and image.mode in _ALPHA_MODES:
            image = image.convert("L" if image.mode in ("LA", "La") else PLAIN)
        elif kind == "PNG" and "transparency" in image.info:
            image.info["transparency"] = _png_key(image, self._data)
        rgb, name = _to_rgb(image)
        return rgb, f"{name}, {left_out}" if left_out else name, half


class _Tiff:
    """A TIFF whose values are worked out here, because Pillow would not hand them out as they are meant."""

    def __init__(self, data: bytes, key: str, layout: tiff.Layout, value_range: Range | None) -> None:
        self._data, self._key, self._layout, self._range = data, key, layout, value_range
        _refuse_size(layout.width, layout.height, key)
        reason = tiff.obstacle(layout)
        if reason is None and layout.width * layout.height * layout.bands * layout.bits > 64 * PIXEL_LIMIT:
            reason = (
                f"{layout.told()} of {layout.width} x {layout.height} pixels, too large to read{_REFUSED}"
            )
        if reason is not None:
            raise UnreadableImage(key, reason)
        turned = layout.orientation >= 5 and layout.orientation in _TURNS
        size = (layout.width, layout.height)
        self.height, self.width = size if turned else size[::-1]

    def decoded(self, *, shrink: int = 1) -> Decoded:
        layout = self._layout
        with _reasons(self._key, self._data, layout):
            alpha = layout.alpha
            wanted = [*range(layout.colors), *([] if alpha is None else [alpha])]
            bands = tiff.bands_of(self._data, layout, wanted)
            rgb, values = _composed(bands, layout, self._range)
            image = Image.fromarray(rgb)
            notes = [_name_of(layout, values, self._range)]
            if layout.more:
                notes.append("first of several frames")
            if layout.orientation in _TURNS:
                image = image.transpose(_TURNS[layout.orientation])
                notes.append("turned by EXIF")
            kind = ", ".join(notes)
            return Decoded(pixels_of(image), kind, values=values if layout.bits > 8 else None)


def _composed(bands: NDArray[Any], layout: tiff.Layout, value_range: Range | None) -> tuple[Pixels, Values]:
    """RGB [H, W, 3] of bands [H, W, colors and perhaps transparency], on white; and the colors' values."""
    bits = layout.bits if bands.dtype.kind == "u" and layout.bits != 8 * bands.dtype.itemsize else None
    colors = bands[..., : layout.colors]
    wide = layout.bits > 8 or layout.form not in (tiff.UNSIGNED, tiff.VOID)
    levels, values, absent = scaled(
        colors, bits=bits, wanted=value_range if wide else None, nodata=layout.nodata if wide else None
    )
    if layout.photometric == tiff.CMYK:
        levels = np.asarray(Image.fromarray(np.ascontiguousarray(levels), "CMYK").convert(PLAIN))
    elif layout.photometric == tiff.WHITE_IS_ZERO:
        levels = 255 - levels
    if absent is not None:
        levels = np.where(absent[..., None], np.uint8(0), levels)
    if layout.alpha is not None:
        opaque, _, _ = scaled(bands[..., -1:], bits=bits)
        share = opaque / 255.0
        lit = levels if layout.extra[layout.alpha - layout.colors] == tiff.ASSOCIATED else levels * share
        levels = np.rint(np.minimum(lit + 255.0 * (1.0 - share), 255.0)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(levels, (*levels.shape[:2], 3))), values


def _name_of(layout: tiff.Layout, values: Values, value_range: Range | None) -> str:
    """What such an image was, for the report."""
    what = {tiff.RGB: PLAIN, tiff.CMYK: "CMYK"}.get(layout.photometric, "gray")
    depth = f"{layout.bits}-bit " if layout.bits != 8 else ""
    form = {tiff.SIGNED: f"signed {layout.bits}-bit ", tiff.REAL: "float "}.get(layout.form, depth)
    name = f"{form}{what}" + (" with transparency" if layout.alpha is not None else "")
    if layout.left_out:
        name += f", {_left_out(layout.left_out, layout.bands)}"
    return name + _missing(values)


def _missing(values: Values) -> str:
    return ", pixels without a value black" if values.missing else ""


def _left_out(count: int, bands: int) -> str:
    return f"{count} of {bands} bands left out"


def _bands_left_out(image: Image.Image, kind: str | None, data: bytes, layout: tiff.Layout | None) -> str:
    """Of an image that Pillow read: which bands are no colors, and not called transparency by the file."""
    if layout is not None:
        return _left_out(layout.left_out, layout.bands) if layout.left_out else ""
    bands = len(image.getbands())
    if image.mode in _ALPHA_MODES and (
        (kind == "TGA" and data[17] & 15 == 0) or (kind == "JPEG2000" and b"cdef" not in data[:4096])
    ):
        return _left_out(1, bands)
    return ""


def _png_key(image: Image.Image, data: bytes) -> Any:
    """A PNG's transparent color in the values that Pillow hands out: of few bits it states the number that
    is stored, of 16-bit colors Pillow keeps the upper half."""
    key, depth = image.info["transparency"], data[24]
    if depth < 8 and image.mode in ("L", "1") and isinstance(key, int):
        return min(255, key * 255 // (2**depth - 1))
    if depth == 16 and image.mode == PLAIN and isinstance(key, tuple):
        return tuple(value >> 8 for value in key)
    return key


def _half_read(
    image: Image.Image, kind: str | None, data: bytes, layout: tiff.Layout | None
) -> Values | None:
    """The values of colors of more than eight bits, of which Pillow hands out the upper eight; else None."""
    if layout is not None:
        deep, what = layout.bits > 8, f"uint{layout.bits}"
    elif kind == "JPEG2000":
        at = data.find(b"\xff\x51", 0, 4096) + 40  # the depth of the first component, less one
        deep, what = at > 40 and (data[at] & 127) >= 8, "JPEG 2000 colors"
    else:
        deep, what = kind == "PNG" and data[24] == 16, "PNG colors"
    if not deep:
        return None
    bands = image.getextrema()[:3] if image.mode.startswith("RGB") else image.getextrema()[:1]
    ends = [end for end in bands if isinstance(end, tuple)]
    low = 256.0 * min(end[0] for end in ends)
    high = 256.0 * max(end[1] for end in ends) + 255.0
    width, height = image.size
    return Values(low, high, (low, high), what, 0.0, 65535.0, 0, width * height)


def _refuse_half_read(kind: str | None, key: str) -> None:
    raise UnreadableImage(
        key,
        f"of {kind} colors of more than 8 bits the upper 8 bits are read, so data.range cannot be applied; "
        "convert it to TIFF, or leave data.range out",
    )


def _deep_gray(image: Image.Image, value_range: Range | None) -> tuple[Image.Image, str, Values]:
    """Gray of more than eight bits in RGB, its name, and its values."""
    held = np.asarray(image)
    values = held.astype(held.dtype.newbyteorder("="), copy=False)
    clear = image.info.get("transparency") if image.mode.startswith("I;16") else None
    levels, found, _ = scaled(values, wanted=value_range)
    name = {"I": "32-bit gray", "F": "float gray"}.get(image.mode, "16-bit gray")
    if clear is not None:
        levels = np.where(values == clear, np.uint8(255), levels)
        name += " with transparency"
    return _gray(levels), name + _missing(found), found


def _draft(image: Image.Image, shrink: int) -> int:
    """Have a JPEG decoded to a part of its size, and say to which: 1 / `shrink`, or all of it."""
    whole = image.size
    if shrink == 1 or min(whole) < shrink:
        return 1
    image.draft(image.mode, (whole[0] // shrink, whole[1] // shrink))
    return shrink if image.size != whole else 1


@contextmanager
def _reasons(key: str, data: bytes, layout: tiff.Layout | None = None) -> Iterator[None]:
    """Anything that decoding raises, as UnreadableImage."""
    try:
        yield
    except UnreadableImage:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableImage(key, f"more than {PIXEL_LIMIT} pixels{_REFUSED}") from error
    except Exception as error:  # hostile bytes make Pillow's plugins raise nearly anything
        raise UnreadableImage(key, _reason(error, data, layout)) from error


def _reason(error: Exception, data: bytes, layout: tiff.Layout | None) -> str:
    if isinstance(error, NoValuesError):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        if layout is not None:
            return f"{layout.told()}, which is not read"
        return f"no image format recognized; it starts with {data[:12]!r}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _refuse_size(width: int, height: int, key: str) -> None:
    if width < 1 or height < 1:
        raise UnreadableImage(key, f"has no pixels ({width} x {height})")
    if width * height > PIXEL_LIMIT:
        raise UnreadableImage(key, f"{width} x {height} is more than {PIXEL_LIMIT} pixels{_REFUSED}")
    _refuse_side(width, height, key)


def _refuse_side(width: int, height: int, key: str) -> None:
    if max(width, height) > SIDE_LIMIT:
        raise UnreadableImage(
            key, f"{width} x {height} has a side of more than {SIDE_LIMIT} pixels, refused; cut it into parts"
        )


def _orientation(image: Image.Image, data: bytes) -> int:
    """EXIF's orientation, 1 to 8; unreadable EXIF leaves an image as it is."""
    if image.format == "PNG" and "exif" not in image.info and _LATE_EXIF not in data:
        return 1  # asking Pillow would decode the whole image in search of it
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata beside good pixels
        return 1
    return orientation if orientation in _TURNS else 1


def _to_rgb(image: Image.Image) -> tuple[Image.Image, str]:
    """An image of eight bits in RGB, and a name of what it was."""
    mode = image.mode
    if mode in _ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        paper = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        name = "palette with transparency" if mode in ("P", "PA") else f"{mode} with transparency"
        return Image.alpha_composite(paper, rgba).convert("RGB"), name
    if mode == PLAIN:
        return image, PLAIN
    names = {"L": "gray", "P": "palette", "1": "1-bit"}
    return image.convert("RGB"), names.get(mode, mode)


def _gray(values: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(values).convert("RGB")

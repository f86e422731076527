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
    side is than the image's own (1, or what a JPEG was asked for)."""

    pixels: Pixels
    kind: str
    shrink: int = 1


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


def open_image(stored: bytes | Pixels, key: str) -> Opened:
    """Read the header of what a source stores; raises UnreadableImage.

    The rules for bytes: the first frame only; turned upright by EXIF; transparency on white; 16-bit gray
    scaled by 255/65535 (of 16-bit colours, Pillow keeps the upper half); 32-bit and float gray from their own
    range (values in [0, 1] are taken as they are; 32-bit values within 0..65535 count as 16-bit); one of
    FORMATS, at most PIXEL_LIMIT pixels. `key` names the image in errors.
    """
    if isinstance(stored, np.ndarray):
        return _Held(stored, key)
    return _Encoded(stored, key)


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

    def decoded(self, *, shrink: int = 1) -> Decoded:
        if self._pixels.shape[-1] == 1:
            return Decoded(np.repeat(self._pixels, 3, axis=-1), "gray")
        return Decoded(self._pixels, PLAIN)


class _Encoded:
    """An encoded image, opened by Pillow."""

    def __init__(self, data: bytes, key: str) -> None:
        if not data:
            raise UnreadableImage(key, "the file is empty")
        self._data, self._key = data, key
        with _reasons(key, data):
            self._image = Image.open(io.BytesIO(data), formats=FORMATS)
            _refuse_size(self._image, key)
            self._orientation = _orientation(self._image, data)
            self._turned = self._orientation != 1
            if self._turned and self._image.format == "TIFF":
                self._image.load()  # Pillow turns these itself
                self._orientation = 1
        width, height = self._image.size
        self.height, self.width = (width, height) if self._orientation >= 5 else (height, width)

    def decoded(self, *, shrink: int = 1) -> Decoded:
        with _reasons(self._key, self._data), self._image as image:
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
            rgb, mode = _to_rgb(upright, self._key)
            if mode != PLAIN:
                notes.insert(0, mode)
            return Decoded(pixels_of(rgb), ", ".join(notes) or PLAIN, used)


def _draft(image: Image.Image, shrink: int) -> int:
    """Have a JPEG decoded to a part of its size, and say to which: 1 / `shrink`, or all of it."""
    whole = image.size
    if shrink == 1 or min(whole) < shrink:
        return 1
    image.draft(image.mode, (whole[0] // shrink, whole[1] // shrink))
    return shrink if image.size != whole else 1


@contextmanager
def _reasons(key: str, data: bytes) -> Iterator[None]:
    """Anything that decoding raises, as UnreadableImage."""
    try:
        yield
    except UnreadableImage:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableImage(key, f"more than {PIXEL_LIMIT} pixels{_REFUSED}") from error
    except Exception as error:  # hostile bytes make Pillow's plugins raise nearly anything
        raise UnreadableImage(key, _reason(error, data)) from error


def _reason(error: Exception, data: bytes) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"no image format recognized; it starts with {data[:12]!r}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _refuse_size(image: Image.Image, key: str) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise UnreadableImage(key, f"has no pixels ({width} x {height})")
    if width * height > PIXEL_LIMIT:
        raise UnreadableImage(key, f"{width} x {height} is more than {PIXEL_LIMIT} pixels{_REFUSED}")


def _orientation(image: Image.Image, data: bytes) -> int:
    """EXIF's orientation, 1 to 8; unreadable EXIF leaves an image as it is."""
    if image.format == "PNG" and "exif" not in image.info and _LATE_EXIF not in data:
        return 1  # asking Pillow would decode the whole image in search of it
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata beside good pixels
        return 1
    return orientation if orientation in _TURNS else 1


def _to_rgb(image: Image.Image, key: str) -> tuple[Image.Image, str]:
    """The image in RGB, and a name of what it was."""
    mode = image.mode
    if mode.startswith("I;16"):
        values, clear = np.asarray(image).astype(np.int64), image.info.get("transparency")
        if clear is None:
            return _gray(_scaled_16(values)), "16-bit gray"
        white = np.where(values == clear, 65535, values)
        return _gray(_scaled_16(white)), "16-bit gray with transparency"
    if mode in _ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        paper = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        name = "palette with transparency" if mode in ("P", "PA") else f"{mode} with transparency"
        return Image.alpha_composite(paper, rgba).convert("RGB"), name
    if mode == PLAIN:
        return image, PLAIN
    if mode == "I":
        return _gray(_scaled_32(np.asarray(image).astype(np.int64))), "32-bit gray"
    if mode == "F":
        with np.errstate(invalid="ignore"):  # what is no number is refused by name
            reals = np.asarray(image).astype(np.float64)
        return _gray(_scaled_float(reals, key)), "float gray"
    names = {"L": "gray", "P": "palette", "1": "1-bit"}
    return image.convert("RGB"), names.get(mode, mode)


def _gray(values: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(values).convert("RGB")


def _scaled_16(values: NDArray[np.int64]) -> NDArray[np.uint8]:
    return _rounded(values * (255.0 / 65535.0))


def _scaled_32(values: NDArray[np.int64]) -> NDArray[np.uint8]:
    low, high = int(values.min()), int(values.max())
    if low >= 0 and high <= 65535:  # how some formats and older Pillows hand out 16 bits
        return _scaled_16(values)
    return _rounded((values - low) * (255.0 / (high - low if high > low else 1)))


def _scaled_float(values: NDArray[np.float64], key: str) -> NDArray[np.uint8]:
    if not np.isfinite(values).all():
        raise UnreadableImage(key, "holds values that are not finite")
    low, high = float(values.min()), float(values.max())
    if low < 0.0 or high > 1.0:
        values = (values - low) / (high - low if high > low else 1.0)
    return _rounded(values * 255.0)


def _rounded(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    rounded: NDArray[np.uint8] = np.rint(values).astype(np.uint8)
    return rounded

"""One image file's bytes to RGB pixels, by rules that pretraining, evaluation and embedding share."""

from __future__ import annotations

import io
import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from belvedere.core.errors import DataError

PIXEL_LIMIT = 89_478_485
"""Images of more pixels are refused: Pillow's own bound for what may be a decompression bomb."""

PLAIN = "RGB"
_ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})
_ORIENTATION = 0x0112  # EXIF tag

# Pillow warns between its limit and twice its limit; `decode` refuses both, so the warning says nothing more.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class UnreadableImage(DataError):  # noqa: N818 - says what it is, as reports do
    """An image that cannot be decoded: its key in the source, and why."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key, self.reason = key, reason

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


class Decoded(NamedTuple):
    """pixels uint8 [H, W, 3]; kind: `RGB`, or what it was converted from."""

    pixels: NDArray[np.uint8]
    kind: str


def decode(data: bytes, key: str) -> Decoded:
    """Pixels of an encoded image.

    EXIF orientation is applied; transparency is laid on white; of several frames the first is taken; 16-bit
    gray is scaled by 255/65535, 32-bit and float gray by its own range when it exceeds 16 bits or [0, 1];
    every other mode becomes RGB by Pillow's rules. Raises UnreadableImage, whatever is wrong with the
    bytes.
    """
    if not data:
        raise UnreadableImage(key, "the file is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            _refuse_size(image, key)
            image.load()
            notes = []
            if getattr(image, "is_animated", False):
                notes.append("first of several frames")
            turned = _upright(image)
            if turned is not image:
                notes.append("turned by EXIF")
            rgb, mode = _to_rgb(turned, key)
            if mode != PLAIN:
                notes.insert(0, mode)
            return Decoded(np.array(rgb, dtype=np.uint8), ", ".join(notes) or PLAIN)
    except UnreadableImage:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableImage(key, f"more than {PIXEL_LIMIT} pixels are refused") from error
    except Exception as error:  # hostile bytes make Pillow's plugins raise nearly anything
        raise UnreadableImage(key, _reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no image format recognized"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _refuse_size(image: Image.Image, key: str) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise UnreadableImage(key, f"has no pixels ({width} x {height})")
    if width * height > PIXEL_LIMIT:
        raise UnreadableImage(key, f"{width} x {height} is more than {PIXEL_LIMIT} pixels, refused")


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says; unreadable EXIF leaves it as it is."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata beside good pixels
        return image
    if orientation not in range(2, 9):
        return image
    return ImageOps.exif_transpose(image)


def _to_rgb(image: Image.Image, key: str) -> tuple[Image.Image, str]:
    """The image in RGB, and a name of what it was."""
    mode = image.mode
    if mode in _ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        name = "palette with transparency" if mode in ("P", "PA") else f"{mode} with transparency"
        return Image.alpha_composite(white, rgba).convert("RGB"), name
    if mode == PLAIN:
        return image, PLAIN
    if mode.startswith("I;16"):
        return _gray(_scaled_16(np.asarray(image).astype(np.int64))), "16-bit gray"
    if mode == "I":
        return _gray(_scaled_32(np.asarray(image).astype(np.int64))), "32-bit gray"
    if mode == "F":
        return _gray(_scaled_float(np.asarray(image).astype(np.float64), key)), "float gray"
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

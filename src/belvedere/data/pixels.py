"""The pixels of a Pillow image without a copy, where Pillow hands them out."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_CHANNELS = 4  # Pillow keeps RGB in four bytes a pixel


class _ArrowArray(ctypes.Structure):
    """Arrow's C data interface."""


_ArrowArray._fields_ = (
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
    ("dictionary", ctypes.c_void_p),
    ("release", ctypes.c_void_p),
    ("private_data", ctypes.c_void_p),
)

_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    """Pixels uint8 [H, W, 3] of a loaded RGB image, to be read only.

    A view of Pillow's own memory, four bytes a pixel, where Pillow exports it (since 11.3, and not of images
    that it keeps in several blocks); else a copy.
    """
    shared = _exported(image)
    if shared is None:
        return np.asarray(image)
    return shared[..., :3]


def _exported(image: Image.Image) -> NDArray[np.uint8] | None:
    """The image's memory [H, W, 4]; the array keeps the export alive, and that the memory."""
    if not hasattr(image, "__arrow_c_array__"):
        return None
    try:
        _, capsule = image.__arrow_c_array__()
    except ValueError:  # in several blocks
        return None
    array = _ArrowArray.from_address(_pointer(capsule, b"arrow_array"))
    width, height = image.size
    if array.n_children != 1 or array.length != width * height:
        return None
    values = array.children[0].contents
    if values.n_buffers != 2 or values.offset or values.length != width * height * _CHANNELS:
        return None
    memory = (ctypes.c_uint8 * values.length).from_address(values.buffers[1])
    memory.keeps = capsule
    pixels = np.frombuffer(memory, dtype=np.uint8).reshape(height, width, _CHANNELS)
    pixels.flags.writeable = False
    return pixels

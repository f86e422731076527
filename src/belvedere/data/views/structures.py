"""The structures of kernels/views.h, field by field."""

from __future__ import annotations

import ctypes

from belvedere.data.spec import MOST_OPERATIONS


class Image(ctypes.Structure):
    """The decoded image."""

    _fields_ = (
        ("pixels", ctypes.c_void_p),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("step", ctypes.c_int64),
        ("row_bytes", ctypes.c_int64),
    )


class Job(ctypes.Structure):
    """Views of one size."""

    _fields_ = (
        ("boxes", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("views", ctypes.c_int64),
        ("px", ctypes.c_int64),
        ("out_stride", ctypes.c_int64),
        ("bicubic", ctypes.c_int32),
    )


class Step(ctypes.Structure):
    """One operation on a whole image."""

    _fields_ = (
        ("numbers", ctypes.c_double * 6),
        ("kind", ctypes.c_int32),
        ("bicubic", ctypes.c_int32),
    )


class Augmented(ctypes.Structure):
    """What happens to the whole image before one strong view is cropped."""

    _fields_ = (
        ("steps", Step * MOST_OPERATIONS),
        ("count", ctypes.c_int32),
        ("mirror", ctypes.c_int32),
        ("fill", ctypes.c_uint8 * 4),
    )


class Looks(ctypes.Structure):
    """Crops, their rows and where they go."""

    _fields_ = (
        ("crops", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("bytes", ctypes.c_void_p),
        ("floats", ctypes.c_void_p),
        ("views", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("factor", ctypes.c_float * 3),
        ("offset", ctypes.c_float * 3),
    )

"""Crops and their photometry on the CPU in compiled code: the pixels of the portable renderer, much faster.

The library is built from kernels/ when the package is installed and a C compiler is there; nothing depends
on it but speed. Sizes are checked here, before C sees a pointer. The calls release the interpreter lock and
share nothing, so that threads may render at once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from belvedere.core.log import warn
from belvedere.data.spec import MOST_OPERATIONS, Interpolation
from belvedere.data.views import structures
from belvedere.data.views.row import NUM_COLUMNS

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]

MISSING = (
    "belvedere was installed without its compiled renderer (that needs a C compiler): the portable one "
    "gives the same pixels more slowly. Install a C compiler and install belvedere again to have it"
)
"""What to tell a person when `available()` is false."""

_INTERFACE = 2  # of the library's structures and functions, see dispatch.c
_MOST_PIXELS = 2**26  # of a view, see color.h
_MOST_SIDE = 2**24  # of an image: single precision holds a box's offsets


@cache
def warn_if_missing() -> None:
    """Say once that views will be rendered by the portable renderer, where that is so."""
    if not available():
        warn(MISSING)


class Crops(NamedTuple):
    """Views of one image to be cropped: boxes [V, 4] (top, left, height, width) inside the image, whole or
    fractional; out [V, C, px, px], of which only the first axis may be strided."""

    boxes: Floats
    interpolation: Interpolation
    out: Pixels


class Augmented(NamedTuple):
    """One strong view of an image: mirrored, then changed by steps (number of the operation, its argument or
    map, whether it resamples bicubically), then cropped: box [4], in whole pixels; out [3, px, px]."""

    box: Floats
    interpolation: Interpolation
    mirror: bool
    steps: Sequence[tuple[int, tuple[float, ...], bool]]
    fill: tuple[int, int, int]
    out: Pixels


def available() -> bool:
    """Whether the compiled renderer was built for this installation."""
    return _library() is not None


def crop(image: Pixels, jobs: Sequence[Crops]) -> None:
    """Crop and resize all views of one image [H, W, C], antialiased, into each job's `out`.

    C is 1 (then out has one channel), 3, or 4, of which the fourth is ignored (out has three). The pixels of
    a row lie side by side, three of four bytes too (`pixels_of`); rows may be strided. A fractional box is
    resized from the whole pixels that cover it.
    """
    image = _four_bytes_wide(image)
    whole = _image(image)
    made = (structures.Job * len(jobs))()
    kept = [_fill_job(job, wanted, image) for job, wanted in zip(made, jobs, strict=True)]  # until C returns
    _checked(_loaded().belvedere_crop(_level(), ctypes.byref(whole), made, len(kept)))


def crop_strong(image: Pixels, views: Sequence[Augmented]) -> None:
    """Augment, crop and resize strong views of one image [H, W, 1, 3 or 4] into each one's `out`."""
    image = _four_bytes_wide(image)
    whole = _image(image)
    if whole.step != 4:
        wide = np.empty((*image.shape[:2], 4), dtype=np.uint8)
        wide[..., :3] = image
        image, whole = wide, _image(wide)
    jobs, plans = (structures.Job * len(views))(), (structures.Augmented * len(views))()
    kept = []  # alive until C returns
    for job, plan, view in zip(jobs, plans, views, strict=True):
        kept.append(_fill_job(job, Crops(view.box[None], view.interpolation, view.out[None]), image))
        numbers_of_all = [number for _, numbers, _ in view.steps for number in numbers]
        if len(view.steps) > MOST_OPERATIONS or not np.isfinite(numbers_of_all).all():
            raise ValueError(f"a view needs at most {MOST_OPERATIONS} steps of finite numbers: {view.steps}")
        plan.count, plan.mirror, plan.fill[:3] = len(view.steps), view.mirror, view.fill
        for step, (kind, numbers, bicubic) in zip(plan.steps, view.steps, strict=False):
            step.kind, step.numbers[: len(numbers)], step.bicubic = kind, numbers, bicubic
    _checked(_loaded().belvedere_strong(_level(), ctypes.byref(whole), jobs, plans, len(kept)))


def _image(image: Pixels) -> structures.Image:
    """What C reads of an image [H, W, C], checked."""
    height, width, step = image.shape
    rows_whole = image.size == 0 or (
        image[0].flags.c_contiguous and (height == 1 or image.strides[0] >= width * step)
    )
    if image.dtype != np.uint8 or step not in (1, 3, 4) or not rows_whole:
        raise ValueError(f"an image must be uint8 [H, W, 1, 3 or 4] with contiguous rows, not {_what(image)}")
    if max(height, width) > _MOST_SIDE:
        raise ValueError(f"an image must have sides of at most {_MOST_SIDE}, not {_what(image)}")
    return structures.Image(image.ctypes.data, height, width, step, image.strides[0])


def _fill_job(job: structures.Job, wanted: Crops, image: Pixels) -> Floats:
    """Write what C reads of views of an image [H, W, C], checked; what is returned must outlive the call."""
    height, width, step = image.shape
    boxes, out = np.ascontiguousarray(wanted.boxes, dtype=np.float64), wanted.out
    views, px = out.shape[0], out.shape[-1]
    if out.shape[1:] != (1 if step == 1 else 3, px, px) or px < 1 or boxes.shape != (views, 4):
        raise ValueError(f"{_what(boxes)} boxes of an image {_what(image)} do not fit crops {_what(out)}")
    views_whole = views == 0 or out[0].flags.c_contiguous
    if out.dtype != np.uint8 or not views_whole or not out.flags.writeable:
        raise ValueError(f"crops must be uint8 [V, C, px, px] with contiguous views, not {_what(out)}")
    if not _inside(boxes, height, width):
        raise ValueError(f"a crop box {boxes.tolist()} leaves its image of {height} x {width} pixels")
    job.boxes, job.out, job.views = boxes.ctypes.data, out.ctypes.data, views
    job.px, job.out_stride, job.bicubic = px, out.strides[0], wanted.interpolation == "bicubic"
    return boxes


def _four_bytes_wide(image: Pixels) -> Pixels:
    """An image [H, W, 3] that shows three of four bytes, as [H, W, 4]; any other as it is."""
    whole: Any = image.base
    if image.ndim != 3 or image.shape[2] != 3 or image.strides[1:] != (4, 1) or image.size == 0:
        return image
    height, width = image.shape[:2]
    last = image.ctypes.data + (height - 1) * image.strides[0] + 4 * width
    owned = isinstance(whole, np.ndarray) and whole.flags.c_contiguous
    end = whole.ctypes.data + whole.nbytes if owned else 0
    if last > end:  # nobody promises the fourth byte of the last pixel
        return np.ascontiguousarray(image)
    return np.lib.stride_tricks.as_strided(image, (height, width, 4), writeable=False)


def photometry(crops: Tensor, rows: Floats) -> Tensor:
    """Crops [N, C, H, W] uint8 changed as their rows [N, P] say, as `photometry.photometry` does it."""
    crops = crops.contiguous()
    result = torch.empty_like(crops)
    looks = _looks(crops, rows := _checked_rows(crops, rows))
    looks.bytes = result.data_ptr()
    _checked(_loaded().belvedere_look(_level(), ctypes.byref(looks)))
    return result


def finish(
    crops: Tensor, rows: Floats, *, factor: Tensor, offset: Tensor, out: Tensor | None = None
) -> Tensor:
    """Views float32 [N, 3, H, W] from crops uint8 [N, C, H, W] changed as their rows [N, P] say.

    Every pixel of channel c becomes pixel * factor[c] + offset[c]; factor, offset [3] float32. out: where
    the views go, if they have a place already.
    """
    crops = crops.contiguous()
    shape = (crops.shape[0], 3, *crops.shape[2:])
    # by NumPy, which asks for large pages: touching small ones takes longer than rendering
    result = torch.from_numpy(np.empty(shape, dtype=np.float32)) if out is None else out
    if result.shape != shape or result.dtype != torch.float32 or not result.is_contiguous():
        raise ValueError(f"finished views must be contiguous float32 {list(shape)}, not {list(result.shape)}")
    looks = _looks(crops, rows := _checked_rows(crops, rows))
    looks.floats = result.data_ptr()
    looks.factor[:], looks.offset[:] = factor.flatten().tolist(), offset.flatten().tolist()
    _checked(_loaded().belvedere_look(_level(), ctypes.byref(looks)))
    return result


def _looks(crops: Tensor, rows: Floats) -> structures.Looks:
    views, channels, height, width = crops.shape
    looks = structures.Looks(crops.data_ptr(), rows.ctypes.data)
    looks.views, looks.channels, looks.height, looks.width = views, channels, height, width
    looks.columns = rows.shape[1]
    return looks


def _checked_rows(crops: Tensor, rows: Floats) -> Floats:
    if crops.dtype != torch.uint8 or crops.ndim != 4 or crops.shape[1] not in (1, 3) or crops.is_cuda:
        raise ValueError(f"crops must be uint8 [N, 1 or 3, H, W] on the CPU, not {crops.dtype} {crops.shape}")
    if not 0 < crops.shape[2] * crops.shape[3] <= _MOST_PIXELS:
        raise ValueError(f"a crop must have 1 to {_MOST_PIXELS} pixels, not {list(crops.shape[2:])}")
    rows = np.ascontiguousarray(rows, dtype=np.float64)
    if rows.shape != (crops.shape[0], NUM_COLUMNS) or not np.isfinite(rows).all():
        raise ValueError(f"{list(crops.shape)} crops need finite rows [{crops.shape[0]}, {NUM_COLUMNS}]")
    return rows


def _inside(boxes: Floats, height: int, width: int) -> bool:
    """Whether every box is a part of the image with an area."""
    start, length = boxes[:, :2], boxes[:, 2:]
    return bool(((start >= 0) & (length > 0) & (start + length <= (height, width))).all())


def _what(array: NDArray[Any]) -> str:
    return f"{array.dtype} {list(array.shape)}"


def _checked(failed: int) -> None:
    if failed:
        raise MemoryError("no memory left for rendering views")


def _loaded() -> ctypes.CDLL:
    library = _library()
    if library is None:
        raise RuntimeError(MISSING)
    return library


@cache
def _library() -> ctypes.CDLL | None:
    """The library beside this file, if it was built, can be loaded here and fits this module."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_kernels{suffix}")
        if not path.exists():
            continue
        try:
            library = ctypes.CDLL(str(path))
        except OSError:  # built for another machine
            continue
        if library.belvedere_interface() == _INTERFACE:
            library.belvedere_crop.argtypes = (
                ctypes.c_int,
                ctypes.POINTER(structures.Image),
                ctypes.POINTER(structures.Job),
                ctypes.c_int64,
            )
            library.belvedere_strong.argtypes = (
                ctypes.c_int,
                ctypes.POINTER(structures.Image),
                ctypes.POINTER(structures.Job),
                ctypes.POINTER(structures.Augmented),
                ctypes.c_int64,
            )
            library.belvedere_look.argtypes = (ctypes.c_int, ctypes.POINTER(structures.Looks))
            return library
    return None


@cache
def _level() -> int:
    """The best instructions of this machine: 0 any, 1 AVX2, 2 AVX-512."""
    level: int = _loaded().belvedere_level()
    return level

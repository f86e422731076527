"""Images in NumPy files: one .npy array, mapped into memory, or the arrays of an .npz file."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from belvedere.core.errors import DataError, UndividedError
from belvedere.core.log import say
from belvedere.data.levels import NoValuesError, Range, scaled
from belvedere.data.sources.choice import NO_LABEL, as_class, listed, means_label
from belvedere.data.sources.mapped import MappedFile
from belvedere.data.sources.parts import NAMES, TEST, TRAIN, VAL
from belvedere.data.sources.source import UNLABELLED, ArraySource, Numbered, Source

Array = NDArray[Any]

_IMAGES = ("images", "image", "x", "data", "pixels", "arr_0")
_LABELS = ("labels", "label", "y", "targets", "target", "arr_1")
_PARTS = {"train": NAMES[TRAIN], "test": (*NAMES[TEST], *NAMES[VAL])}
"""The parts of an .npz file that a split may be, in this order."""
_LOOKED_AT = 256  # images whose values are looked at where there are too many for all
_MOST_CLASSES = 1_000_000
_BAD_FILE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError)


def open_array(path: str | Path, split: str | None, *, value_range: Range | None = None) -> Source:
    """The images of a .npy or .npz file.

    .npy: uint8 [N, H, W], [N, H, W, 1 or 3] or [N, 3, H, W], with labels [N] from `STEM_labels.npy` beside it
    where there is one. .npz: arrays of these shapes named `images`, `x` or alike, with `labels` or `y`; or
    divided, as `x_train` and `y_train`, `train_images` and `train_labels`, and so on. value_range: makes
    uint8 images of arrays of other real types, in memory. Raises DataError.
    """
    file = Path(path).expanduser()
    images = _load(file)
    if not isinstance(images, np.ndarray):
        return _of_npz(images, split, str(file), value_range)
    _refuse_split(split, str(file))
    pixels = checked_pixels(images, str(file), value_range=value_range)
    sibling = file.with_name(f"{file.stem}_labels.npy")
    labels = _unlabelled(len(pixels))
    classes: tuple[str, ...] = ()
    if sibling.exists():
        labels, classes = checked_labels(_load(sibling), len(pixels), str(sibling))
    return ArraySource(
        file.stem,
        pixels,
        labels=labels,
        classes=classes,
        keys=Numbered(f"{file.stem}/", len(pixels)),
        file=_mapping(images, pixels, file),
        scaled_from=_scaled_from(images),
    )


def open_loaded_array(
    content: bytes, split: str | None, where: str, *, value_range: Range | None = None
) -> Source:
    """The images of a .npy or .npz file whose bytes are at hand, by the same rules; where: its path."""
    images = _load(io.BytesIO(content), where)
    if not isinstance(images, np.ndarray):
        return _of_npz(images, split, where, value_range)
    _refuse_split(split, where)
    pixels = checked_pixels(images, where, value_range=value_range)
    return ArraySource(
        Path(where).stem,
        pixels,
        labels=_unlabelled(len(pixels)),
        classes=(),
        keys=Numbered(f"{Path(where).stem}/", len(pixels)),
        scaled_from=_scaled_from(images),
    )


def _load(file: Path | io.BytesIO, where: str = "") -> Any:
    """An array, mapped where it lies in a file, or an opened .npz; objects are never unpickled."""
    try:
        with np.errstate(all="ignore"):
            return np.load(file, mmap_mode="r" if isinstance(file, Path) else None, allow_pickle=False)
    except Exception as error:  # a hostile header makes numpy raise nearly anything
        raise DataError(
            f"{where or file} (data.path) is no NumPy file that can be read: {_why_not_loaded(error)}"
        ) from error


def _why_not_loaded(error: Exception) -> str:
    """What numpy says of a file, without its advice to trust it."""
    told = " ".join(str(error).split())
    if "object" in told.lower() and ("pickle" in told or "memory-mapped" in told):
        return "it holds Python objects, which are never unpickled; save plain numbers"
    if "pickle" in told:
        large = "max_header_size" in told
        return "its header is longer than any array needs" if large else "it does not start as one does"
    plain = isinstance(error, _BAD_FILE)
    return told if plain and told else f"{type(error).__name__}: {told}" if told else type(error).__name__


def _refuse_split(split: str | None, where: str) -> None:
    if split is not None:
        raise UndividedError(
            f"data.split is {split!r}, but {where} (data.path) is one array; set data.split=null, or give "
            f"an .npz file of x_train, y_train, x_test and y_test"
        )


def _mapping(images: Array, pixels: NDArray[np.uint8], file: Path) -> MappedFile | None:
    """Where the pixels lie, if they are those of the mapped file as they are."""
    if not isinstance(images, np.memmap) or not np.may_share_memory(images, pixels):
        return None
    return MappedFile(str(file.resolve()), int(images.offset), pixels.shape)


def _unlabelled(count: int) -> NDArray[np.int64]:
    return np.full(count, UNLABELLED, dtype=np.int64)


def _scaled_from(images: Array) -> str | None:
    return None if images.dtype == np.uint8 else str(images.dtype)


def checked_pixels(images: Array, where: str, *, value_range: Range | None = None) -> NDArray[np.uint8]:
    """Images as uint8 [N, H, W, 1 or 3], contiguous, without a copy where they are so; raises DataError.

    Accepts uint8 [N, H, W], [N, H, W, 1 or 3] and, where no side could be mistaken for it, [N, 1 or 3, H, W];
    other real types with `value_range`, the values that become 0 and 255.
    """
    deep = images.dtype != np.uint8
    if deep and (value_range is None or images.dtype.kind not in "iuf"):
        raise DataError(f"{where} (data.path) holds {_not_uint8(images)}")
    if images.ndim == 3:
        images = images[..., None]
    elif images.ndim == 4 and images.shape[3] not in (1, 3) and images.shape[1] in (1, 3):
        images = np.moveaxis(images, 1, 3)
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise DataError(
            f"{where} (data.path) has shape {list(images.shape)}; it must be [N, H, W], [N, H, W, 1 or 3] or "
            f"[N, 1 or 3, H, W], and hold at least one image{_of_four(images)}"
        )
    if deep and value_range is not None:
        return _scaled(images, value_range, where)
    return np.ascontiguousarray(images)


def _of_four(images: Array) -> str:
    """What to do with four channels, of which nothing says what the fourth is."""
    if images.ndim != 4 or 4 not in (images.shape[1], images.shape[3]):
        return ""
    keep = "x[..., :3]" if images.shape[3] == 4 else "x[:, :3]"
    return f"; of four channels nothing says what the fourth is: save the three colors, {keep}"


def _not_uint8(images: Array) -> str:
    """What an array holds that is no pixels, and what to do."""
    kind = images.dtype
    if kind.kind not in "iuf" or images.size == 0 or images.ndim == 0:
        return f"{kind}, not uint8 pixels; convert it to uint8 values 0 to 255"
    some = images[np.unique(np.linspace(0, len(images) - 1, _LOOKED_AT).astype(np.int64))]
    there = some[np.isfinite(some)] if kind.kind == "f" else some
    low, high = (there.min(), there.max()) if there.size else (0, 1)
    word = "" if len(some) == len(images) else "about "
    return (
        f"{kind}, not uint8 pixels, with values from {word}{low:g} to {high:g}; say which become black and "
        f"white, data.range=[{low:g},{high:g}] (--range {low:g} {high:g}), or convert it to uint8"
    )


def _scaled(images: Array, value_range: Range, where: str) -> NDArray[np.uint8]:
    """uint8 of images [N, H, W, C] of another type, one at a time; what has no value is black, and said."""
    result, missing = np.empty(images.shape, dtype=np.uint8), 0
    for at, image in enumerate(images):
        try:
            result[at], found, _ = scaled(image, wanted=value_range)
            missing += found.missing
        except NoValuesError:
            result[at] = 0
            missing += image.shape[0] * image.shape[1]
    if missing:
        say(f"{where}: {missing:,} pixels have no value (NaN or infinite) and are black")
    return result


def checked_labels(labels: Any, count: int, where: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels [N] and class names from whole numbers (-1: none) or names, [N] or [N, 1]; raises DataError.

    Numbers stand for themselves, whichever of them occur; names are numbered in alphabetical order.
    """
    given = np.asarray(labels)
    if given.ndim == 2 and given.shape[1] == 1:
        given = given[:, 0]
    if given.shape != (count,):
        raise DataError(f"{where} has shape {list(given.shape)}; the labels of {count} images are [{count}]")
    if given.dtype.kind in "USb":
        return _named(given)
    if given.dtype.kind == "f":
        given = _whole(given)
    if given.dtype.kind not in "iu":
        raise DataError(f"{where} holds {given.dtype}; labels must be whole numbers or names")
    low, high = (int(given.min()), int(given.max())) if count else (0, -1)
    if low < UNLABELLED or high >= _MOST_CLASSES:
        raise DataError(
            f"{where} holds labels from {low} to {high}; they must be class numbers from 0 on, or -1 for none"
        )
    return given.astype(np.int64), tuple(str(number) for number in range(high + 1))


def _named(given: Array) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels [N] and the classes of names, or of true and false; an empty name and -1 are none."""
    values, where = np.unique(given, return_inverse=True)
    texts = [as_class(value) for value in values.tolist()]
    classes = sorted({text for text in texts if text is not None})
    number = {text: at for at, text in enumerate(classes)}
    numbers = np.array([UNLABELLED if text is None else number[text] for text in texts], dtype=np.int64)
    return numbers[where.reshape(-1)], tuple(classes)


def _whole(given: Array) -> Array:
    """Floats that are whole numbers as such, NaN as no label; others as they are."""
    filled = np.where(np.isnan(given), UNLABELLED, given)
    whole = np.isfinite(filled).all() and (filled == np.rint(filled)).all() and (abs(filled) < 2**53).all()
    return filled.astype(np.int64) if whole else given


# --- .npz


def _of_npz(opened: Any, split: str | None, where: str, value_range: Range | None = None) -> Source:
    try:
        with opened as arrays:
            stem = Path(where).stem
            return source_of_arrays(arrays, split, name=stem, where=where, value_range=value_range)
    except DataError:
        raise
    except Exception as error:  # a hostile member makes numpy and zipfile raise nearly anything
        raise DataError(f"{where} (data.path) cannot be read: {_why_not_loaded(error)}") from error


def source_of_arrays(
    arrays: Mapping[str, Array],
    split: str | None,
    *,
    name: str,
    where: str,
    value_range: Range | None = None,
) -> Source:
    """The images among named arrays; without a split, those of all parts. Raises DataError listing them."""
    names = {entry.lower(): entry for entry in arrays}
    whole = _first(names, _IMAGES)
    if whole is not None and split is None:
        parts = every = [("", whole, _first(names, _LABELS))]
    else:
        parts, every = _divided(names, split), _divided(names, None)
    if not parts:
        divided = "x_train, train_images, x_test, val_images and so on"
        allowed = (
            f"{', '.join(_IMAGES)}; or {divided}" if split is None else f"{divided}, by data.split {split!r}"
        )
        raise DataError(
            f"{where} (data.path) holds {', '.join(arrays) or 'nothing'}; images must be named {allowed}"
        )
    return _joined(arrays, parts, every, name=name, where=where, value_range=value_range)


Part = tuple[str, str, str | None]
"""A part's name, and the names of its images and labels."""


def _divided(names: Mapping[str, str], split: str | None) -> list[Part]:
    """The parts of a split, or all there are."""
    wanted = (
        [_PARTS[split]] if split is not None else [(part,) for group in _PARTS.values() for part in group]
    )
    found: list[Part] = []
    for group in wanted:
        for part in group:
            images = _first(names, _of_part(_IMAGES, part))
            if images is not None:
                found.append((part, images, _first(names, _of_part(_LABELS, part))))
                break
    return found


def _of_part(names: tuple[str, ...], part: str) -> tuple[str, ...]:
    return tuple(each for name in names for each in (f"{name}_{part}", f"{part}_{name}"))


def _first(names: Mapping[str, str], candidates: tuple[str, ...]) -> str | None:
    return next((names[candidate] for candidate in candidates if candidate in names), None)


def _joined(
    arrays: Mapping[str, Array],
    parts: list[Part],
    every: list[Part],
    *,
    name: str,
    where: str,
    value_range: Range | None,
) -> Source:
    """The images of `parts`; `every` part counts for the numbers of the classes."""
    held = [arrays[images] for _, images, _ in parts]
    pixels = [
        checked_pixels(each, f"{images!r} in {where}", value_range=value_range)
        for each, (_, images, _) in zip(held, parts, strict=True)
    ]
    sizes = {part: len(each) for (part, _, _), each in zip(parts, pixels, strict=True)}
    given: dict[str, Array] = {}
    for part, _, named in every:
        if named is not None:
            given[part] = np.asarray(arrays[named]).reshape(-1)
            checked_labels(given[part], sizes.get(part, len(given[part])), f"{named!r} in {where}")
    labels, classes = _unlabelled(sum(sizes.values())), tuple[str, ...]()
    if given:
        labels, classes = _numbered(given, sizes, where)
    joined = joined_arrays(name, pixels, labels, classes, parts=list(sizes), where=where)
    used = {name for _, *pair in every for name in pair if name is not None}
    joined.skipped = tuple(_unused([name for name in arrays if name not in used], labelled=bool(given)))
    joined.scaled_from = next((kind for kind in map(_scaled_from, held) if kind is not None), None)
    return joined


def _unused(names: list[str], *, labelled: bool) -> Iterator[str]:
    """What to say of arrays that are neither taken for images nor for labels."""
    if not names:
        return
    yield f"arrays that were not used: {listed(names)}"
    could = [name for name in names if means_label(name)]
    if could and not labelled:
        yield f"{NO_LABEL}; {listed(could)} may be it: call the one array of labels `labels`"


def _numbered(
    given: Mapping[str, Array], sizes: Mapping[str, int], where: str
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels of the images of all parts of `sizes`, and the classes of all that are given."""
    numbers, classes = checked_labels(
        np.concatenate(list(given.values())), sum(map(len, given.values())), where
    )
    ends = np.cumsum([len(each) for each in given.values()])
    of_part = dict(zip(given, np.split(numbers, ends[:-1]), strict=True))
    return np.concatenate([of_part.get(part, _unlabelled(size)) for part, size in sizes.items()]), classes


def joined_arrays(
    name: str,
    pixels: list[NDArray[np.uint8]],
    labels: NDArray[np.int64],
    classes: tuple[str, ...],
    *,
    parts: list[str],
    where: str,
) -> ArraySource:
    """One source over the images of several parts; keys are `PART/12`, or `NAME/12` for a part without a
    name. Raises DataError when the parts' images differ in size."""
    shapes = sorted({each.shape[1:] for each in pixels})
    if len(shapes) > 1:
        raise DataError(f"{where} (data.path) holds images of different sizes, {shapes}; set data.split")
    if len(pixels) == 1:
        keys: Numbered | list[str] = Numbered(f"{parts[0] or name}/", len(pixels[0]))
        return ArraySource(name, pixels[0], labels=labels, classes=classes, keys=keys)
    keys = [f"{part}/{row}" for part, each in zip(parts, pixels, strict=True) for row in range(len(each))]
    return ArraySource(name, np.concatenate(pixels), labels=labels, classes=classes, keys=keys)

"""Data sets that are objects of another library: `len`, and an image with its target by index."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from belvedere.data.decode import Pixels, UnreadableImage
from belvedere.data.sources.arrays import checked_pixels
from belvedere.data.sources.names import Names
from belvedere.data.sources.source import UNLABELLED, source_repr

_PLAINER = {"HSV": "RGB", "RGBX": "RGB", "RGBa": "RGBA", "La": "LA", "PA": "RGBA", "I;16L": "I"}
"""Modes that no file holds, and what they become without a loss."""
_AS_TIFF = frozenset({"CMYK", "YCbCr", "LAB", "F", "I", "I;16B"})


def holds_pixels(dataset: Any) -> bool:
    """Whether `data` is an array of uint8 images, one for each index."""
    data = getattr(dataset, "data", None)
    if not hasattr(data, "dtype") or not hasattr(data, "shape"):
        return False
    array = np.asarray(data)
    return array.dtype == np.uint8 and array.ndim in (3, 4) and len(array) == len(dataset)


def labelled(parts: list[Any]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The labels of all parts, and the names of their classes."""
    labels = np.concatenate([_labels(part) for part in parts])
    named = [str(name) if isinstance(name, str) else " ".join(name) for name in _class_names(parts[0])]
    count = int(labels.max()) + 1 if labels.size else 0
    if len(named) < count:
        named = [str(number) for number in range(count)]
    return labels, tuple(named) if count else ()


def _class_names(dataset: Any) -> list[Any]:
    names = getattr(dataset, "classes", None)
    return list(names) if isinstance(names, list | tuple) else []


def _labels(dataset: Any) -> NDArray[np.int64]:
    """Labels [N]; -1 throughout where the targets are no class numbers (boxes, captions, attributes)."""
    for attribute in ("targets", "labels", "_labels"):
        given = getattr(dataset, attribute, None)
        if given is not None and len(given) == len(dataset):
            return _as_labels(given)
    return _as_labels([_target(dataset, index) for index in range(len(dataset))])


def _target(dataset: Any, index: int) -> Any:
    try:
        return dataset[index][1]
    except Exception:  # one image that cannot be read has no label here, and is reported when it is read
        return UNLABELLED


def _as_labels(given: Any) -> NDArray[np.int64]:
    try:
        labels = np.asarray(given)
    except ValueError:  # targets of unequal shapes
        labels = np.empty(0)
    if labels.shape == (len(given),) and labels.dtype.kind in "iu":
        found: NDArray[np.int64] = np.maximum(labels.astype(np.int64), UNLABELLED)
        return found
    return np.full(len(given), UNLABELLED, dtype=np.int64)


class ObjectSource:
    """Images that objects read from files of theirs, one part after another."""

    def __init__(
        self, name: str, parts: list[Any], labels: NDArray[np.int64], classes: tuple[str, ...]
    ) -> None:
        self.name, self.labels, self.classes = name, labels, classes
        self._ends = np.cumsum([len(part) for part in parts])
        files = [sample[0] for part in parts for sample in getattr(part, "samples", ()) if len(sample) == 2]
        listed = len(files) == len(labels) and all(isinstance(file, str) for file in files)
        # a list of files needs no object, and shares the rules for bytes that all sources have
        self._root = os.path.commonpath([os.path.dirname(file) for file in files]) if listed else ""
        self._files = Names(os.path.relpath(file, self._root) for file in files) if listed else None
        self._parts = [] if listed else parts

    __repr__ = source_repr

    def __len__(self) -> int:
        return len(self.labels)

    def key(self, index: int) -> str:
        return f"{self.name}/{index}" if self._files is None else self._files[index]

    def stored(self, index: int) -> bytes | Pixels:
        key = self.key(index)
        try:
            if self._files is not None:
                return Path(self._root, key).read_bytes()
            part = int(np.searchsorted(self._ends, index, side="right"))
            image = self._parts[part][index - (int(self._ends[part - 1]) if part else 0)][0]
            return stored_of(image)
        except OSError as error:
            raise UnreadableImage(key, f"cannot be read: {error.strerror or error}") from error
        except Exception as error:  # whatever the object raises for this one image
            raise UnreadableImage(key, f"{type(error).__name__}: {' '.join(str(error).split())}") from error

    def fingerprint(self) -> str:
        digest = hashlib.blake2b(f"{self.name} {self._ends.tolist()}".encode(), digest_size=16)
        if self._files is not None:
            self._files.update(digest)
        digest.update(self.labels.tobytes())
        return digest.hexdigest()


def stored_of(image: Any) -> bytes | Pixels:
    """A PIL image or an array as a source stores it; other modes than RGB and gray as a file in memory, so
    that they become RGB by the rules of all sources."""
    mode = getattr(image, "mode", None)
    if mode is None:
        pixels: Pixels = checked_pixels(np.asarray(image)[None], "this image")[0]
        return pixels
    if mode in ("RGB", "L"):
        array = np.asarray(image)
        return array if array.ndim == 3 else array[..., None]
    if mode in _PLAINER:
        image = image.convert(_PLAINER[mode])
    file = io.BytesIO()
    image.save(file, "TIFF" if mode in _AS_TIFF else "PNG")
    return file.getvalue()

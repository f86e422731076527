"""A map-style data set of torch, or any object with `len` and items by number, as a source."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from belvedere.core.errors import DataError
from belvedere.core.log import warn
from belvedere.data.decode import Pixels, UnreadableImage
from belvedere.data.sources.local import read_file
from belvedere.data.sources.objects import stored_of
from belvedere.data.sources.source import UNLABELLED, Source

PREFIX = "python:"
"""What the recipe of a run calls images that were handed over from Python."""

_IMAGES = ("image", "img", "pixel_values", "pixels", "x")
_LABELS = ("label", "labels", "target", "targets", "y", "fine_label")
_MOST_READ = 50_000  # items that are read for their labels alone
_TRIED = 8
_DEPTH = 4
_ALLOWED = (
    "an item must be an image, (image, label, ...) or a dictionary with `image` and perhaps `label`; an "
    "image is a PIL image, uint8 [H, W], [H, W, 1 or 3] or [1 or 3, H, W] as an array or a tensor, a "
    "floating-point array or tensor of these shapes in [0, 1], the bytes of a file, or its path"
)


def as_source(given: Any, *, split: str | None = None) -> Source:
    """A source as it is; a data set with `len` and items by number as one.

    Labels are its `targets` (or `labels`), or else those of the items; keys are `NAME/12`. Raises DataError
    for iterable data sets, for what has no length, and for items of no kind known.
    """
    if all(hasattr(given, name) for name in ("stored", "key", "labels", "classes", "fingerprint")):
        return cast(Source, given)
    kind = type(given).__name__
    if type(given).__module__.partition(".")[0] == "datasets":
        from belvedere.data.sources.huggingface import from_huggingface

        return from_huggingface(given, split=split)
    if split is not None:
        raise DataError(f"data.split is {split!r}, but {kind} is not divided; set data.split=null")
    iterable = any(base.__name__ == "IterableDataset" for base in type(given).__mro__)
    if iterable or not hasattr(given, "__getitem__"):
        raise DataError(
            f"{kind} has no items by number, and an epoch is a permutation of all images: give a map-style "
            "torch.utils.data.Dataset, or save the images to files"
        )
    try:
        count = len(given)
    except (TypeError, NotImplementedError) as error:
        raise DataError(f"{kind} has no length (`__len__`), which an epoch needs") from error
    if not count:
        raise DataError(f"{kind} holds no image")
    return DatasetSource(given)


class DatasetSource:
    """The items of a data set; each is read anew, by whatever process needs it.

    Its fingerprint covers its type, its length and its labels, not its pixels, which a transform may draw.
    """

    def __init__(self, dataset: Any) -> None:
        self.name = type(dataset).__name__
        self._dataset, self._count = dataset, len(dataset)
        self.needs_main = _of_main(dataset, _DEPTH)
        self._try_first()
        self.labels, self.classes = _labelled(dataset, self._count)

    def __len__(self) -> int:
        return self._count

    def key(self, index: int) -> str:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return f"{self.name}/{index}"

    def stored(self, index: int) -> bytes | Pixels:
        key = self.key(index)
        try:
            item = self._dataset[index]
        except Exception as error:  # whatever the data set raises for this one image
            raise UnreadableImage(key, f"{type(error).__name__}: {' '.join(str(error).split())}") from error
        return _stored(_image_of(item), key)

    def fingerprint(self) -> str:
        kind = type(self._dataset)
        facts = f"{kind.__module__}.{kind.__qualname__} {self._count} {self.classes}"
        digest = hashlib.blake2b(facts.encode("utf-8", "backslashreplace"), digest_size=16)
        digest.update(self.labels.tobytes())
        return digest.hexdigest()

    def _try_first(self) -> None:
        """Refuse items of no kind known now, and say of items that change from one read to the next."""
        reasons = []
        for index in range(min(_TRIED, self._count)):
            try:
                first, again = self.stored(index), self.stored(index)
            except UnreadableImage as error:
                reasons.append(str(error))
                continue
            if _bytes(first) != _bytes(again):
                warn(
                    f"the items of {self.name} change from one read to the next (a random transform?): views "
                    "are drawn here, from the seed; leave that transform out, or no run can be repeated"
                )
            return
        if len(reasons) == self._count or all(_ALLOWED in reason for reason in reasons):
            raise DataError(f"no image of this {self.name} can be read: {reasons[0]}")


def _bytes(stored: bytes | Pixels) -> bytes:
    return stored if isinstance(stored, bytes) else stored.tobytes()


def _image_of(item: Any) -> Any:
    """The image of an item that may hold a label too."""
    if isinstance(item, Mapping):
        return next((item[name] for name in _IMAGES if name in item), None)
    return item[0] if isinstance(item, tuple | list) and item else item


def _stored(image: Any, key: str) -> bytes | Pixels:
    """An image of an item as a source stores it. Raises UnreadableImage."""
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | Path):
        return read_file(os.path.expanduser(image), key)
    if hasattr(image, "mode") and hasattr(image, "convert"):
        return stored_of(image)
    values = _values(image)
    if values is None or values.dtype.kind not in "uf":
        what = type(image).__name__ if values is None else f"an array of {values.dtype}"
        raise UnreadableImage(key, f"its item holds {what}; {_ALLOWED}")
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim == 3 and values.shape[2] not in (1, 3) and values.shape[0] in (1, 3):
        values = np.moveaxis(values, 0, 2)
    if values.ndim != 3 or values.shape[2] not in (1, 3) or 0 in values.shape:
        raise UnreadableImage(key, f"its item has shape {list(values.shape)}; {_ALLOWED}")
    if values.dtype.kind == "f":
        values = _from_floats(values, key)
    if values.dtype != np.uint8:
        raise UnreadableImage(key, f"its item holds {values.dtype}; {_ALLOWED}")
    return np.ascontiguousarray(values)


def _values(image: Any) -> NDArray[Any] | None:
    """The numbers of a tensor or an array."""
    if hasattr(image, "detach") and hasattr(image, "cpu"):
        image = image.detach().cpu()
        image = image.float() if image.is_floating_point() else image
    if not hasattr(image, "__array__"):
        return None
    return np.asarray(image)


def _from_floats(values: NDArray[Any], key: str) -> NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0.0 and high <= 1.0):  # NaN too
        raise UnreadableImage(
            key,
            f"its item holds {values.dtype} from {low:g} to {high:g}, which must be in [0, 1]: leave out the "
            f"normalization, which happens here by data.mean and data.std, or divide by 255; {_ALLOWED}",
        )
    rounded: NDArray[np.uint8] = np.rint(values.astype(np.float64) * 255.0).astype(np.uint8)
    return rounded


# --- labels


def _labelled(dataset: Any, count: int) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels [N], -1 where there is none, and the names of the classes."""
    given, names = _targets(dataset, count), _class_names(dataset)
    if given is None:
        first = _label_of(dataset, 0)
        if first is not None and count > _MOST_READ:
            warn(
                f"the labels of this {type(dataset).__name__} are in its {count:,} items and are not read, "
                "which would read every image; give it an attribute `targets` to have them"
            )
        elif first is not None:
            given = [_label_of(dataset, index) for index in range(count)]
    if given is None:
        return _none(count), ()
    return _numbered([_plain(each) for each in given], names, type(dataset).__name__)


def _none(count: int) -> NDArray[np.int64]:
    return np.full(count, UNLABELLED, dtype=np.int64)


def _targets(dataset: Any, count: int) -> list[Any] | None:
    """The labels that a data set, or those it is a part or a chain of, states beside its items."""
    for name in ("targets", "labels", "_labels"):
        given = getattr(dataset, name, None)
        if given is not None and hasattr(given, "__len__") and len(given) == count:
            return list(given)
    if hasattr(dataset, "dataset") and hasattr(dataset, "indices"):  # torch.utils.data.Subset
        whole = _targets(dataset.dataset, len(dataset.dataset))
        return None if whole is None else [whole[int(index)] for index in dataset.indices]
    chained = _chained(dataset)
    if chained:
        parts = [_targets(part, len(part)) for part in chained]
        found = [label for part in parts if part is not None for label in part]
        return found if all(part is not None for part in parts) and len(found) == count else None
    tensors: Any = getattr(dataset, "tensors", ())  # torch.utils.data.TensorDataset
    return list(tensors[1]) if len(tensors) > 1 and len(tensors[1]) == count else None


def _chained(dataset: Any) -> list[Any]:
    """The data sets that a torch.utils.data.ConcatDataset is made of; none of another."""
    parts = getattr(dataset, "datasets", None)
    return list(parts) if isinstance(parts, list | tuple) else []


def _class_names(dataset: Any) -> list[str]:
    inner = next(iter(_chained(dataset)), getattr(dataset, "dataset", None))
    names = getattr(dataset, "classes", None)
    if isinstance(names, list | tuple):
        return [str(name) if isinstance(name, str) else " ".join(map(str, name)) for name in names]
    return [] if inner is None else _class_names(inner)


def _label_of(dataset: Any, index: int) -> Any:
    """The label in an item; None where there is none, or where the item cannot be read."""
    try:
        item = dataset[index]
    except Exception:  # said when its image is read
        return None
    if isinstance(item, Mapping):
        return next((item[name] for name in _LABELS if name in item), None)
    return item[1] if isinstance(item, tuple | list) and len(item) > 1 else None


def _plain(label: Any) -> int | str | None:
    """A label as a whole number or a name; None for anything else."""
    if hasattr(label, "item") and getattr(label, "ndim", getattr(label, "size", 1)) in (0, 1):
        try:
            label = label.item()
        except (ValueError, RuntimeError):  # several numbers
            return None
    return label if isinstance(label, int | str) and not isinstance(label, bool) else None


def _numbered(
    given: list[int | str | None], names: list[str], kind: str
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    words = sorted({each for each in given if isinstance(each, str)})
    if words and any(isinstance(each, int) for each in given):
        raise DataError(f"the labels of this {kind} are numbers and names; give one or the other")
    if all(each is None for each in given):
        warn(f"the labels of this {kind} are neither whole numbers nor names, and are not used")
        return _none(len(given)), ()
    if words:
        number = {word: at for at, word in enumerate(words)}
        labels = [UNLABELLED if each is None else number[str(each)] for each in given]
        return np.array(labels, dtype=np.int64), tuple(words)
    labels = [UNLABELLED if each is None else max(UNLABELLED, int(each)) for each in given]
    count = max(labels) + 1
    classes = names if len(names) >= count else [str(label) for label in range(count)]
    return np.array(labels, dtype=np.int64), tuple(classes)


def _of_main(part: Any, depth: int) -> bool:
    """Whether an object, or one that it holds, is defined in the user's script, which a worker then needs."""
    if depth == 0 or part is None or isinstance(part, str | bytes | int | float | np.ndarray):
        return False
    modules = getattr(part, "__module__", None), type(part).__module__
    if "__main__" in modules or isinstance(part, type):
        return "__main__" in modules
    held: Any = part[:_TRIED] if isinstance(part, list | tuple) else getattr(part, "__dict__", {}).values()
    return any(_of_main(each, depth - 1) for each in held)

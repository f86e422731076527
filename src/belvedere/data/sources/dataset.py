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
from belvedere.data.sources.choice import NotAClassError, as_class, listed, means_label
from belvedere.data.sources.indexed import numbered_classes
from belvedere.data.sources.local import read_file
from belvedere.data.sources.objects import stored_of
from belvedere.data.sources.source import UNLABELLED, Source, source_repr

PREFIX = "python:"
"""What the recipe of a run calls images that were handed over from Python."""

_IMAGES = ("image", "img", "pixel_values", "pixels", "x")
_LABELS = ("label", "labels", "target", "targets", "y")
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
    if of_datasets(given):
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
    except Exception as error:  # whatever the data set raises
        told = "" if isinstance(error, TypeError | NotImplementedError) else f": {_words(error)}"
        raise DataError(f"{kind} has no length (`__len__`), which an epoch needs{told}") from error
    if not count:
        raise DataError(f"{kind} holds no image")
    return DatasetSource(given)


def of_datasets(given: Any) -> bool:
    """Whether it is a data set of Hugging Face's `datasets`."""
    return type(given).__module__.partition(".")[0] == "datasets"


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

    __repr__ = source_repr

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
            raise UnreadableImage(key, _words(error)) from error
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


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


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
    kind = type(dataset).__name__
    given, names = _targets(dataset, count), _class_names(dataset)
    if given is None and not _could_say_labels(dataset, count):
        return _none(count), ()
    if given is None and count > _MOST_READ:
        warn(
            f"the labels of this {kind} are in its {count:,} items and are not read, which would read every "
            "image; give it an attribute `targets` to have them"
        )
        return _none(count), ()
    if given is None:
        given = [_label_of(dataset, index) for index in range(count)]
        given = _by_name(given, chained) if (chained := _chained(dataset)) else given
    return _numbered(given, names, kind)


def _none(count: int) -> NDArray[np.int64]:
    return np.full(count, UNLABELLED, dtype=np.int64)


def _targets(dataset: Any, count: int) -> list[Any] | None:
    """The labels that a data set, or those it is a part or a chain of, states beside its items."""
    for name in ("targets", "labels", "_labels"):
        given = _attribute(dataset, name)
        if given is not None and hasattr(given, "__len__") and len(given) == count:
            return list(given)
    if hasattr(dataset, "dataset") and hasattr(dataset, "indices"):  # torch.utils.data.Subset
        whole = _targets(dataset.dataset, len(dataset.dataset))
        return None if whole is None else [whole[int(index)] for index in dataset.indices]
    chained = _chained(dataset)
    if chained:
        parts = [_targets(part, len(part)) for part in chained]
        found = [label for part in parts if part is not None for label in part]
        whole = found if all(part is not None for part in parts) and len(found) == count else None
        return whole if whole is None else _by_name(whole, chained)
    tensors: Any = getattr(dataset, "tensors", ())  # torch.utils.data.TensorDataset
    return list(tensors[1]) if len(tensors) > 1 and len(tensors[1]) == count else None


def _attribute(dataset: Any, name: str) -> Any:
    try:
        return getattr(dataset, name, None)
    except Exception as error:  # a property that does not work
        warn(f"`{name}` of this {type(dataset).__name__} cannot be read, and is not used: {_words(error)}")
        return None


def _chained(dataset: Any) -> list[Any]:
    """The data sets that a torch.utils.data.ConcatDataset is made of; none of another."""
    parts = getattr(dataset, "datasets", None)
    return list(parts) if isinstance(parts, list | tuple) else []


def _by_name(labels: list[Any], chained: list[Any]) -> list[Any]:
    """The labels of chained data sets, as names where each numbers its classes in another way."""
    names = [_class_names(part) for part in chained]
    if all(each == names[0] for each in names) or not all(names):
        return labels
    of_each = [each for part, each in zip(chained, names, strict=True) for _ in range(len(part))]
    return [_name_of(label, each) for label, each in zip(labels, of_each, strict=True)]


def _name_of(label: Any, names: list[str]) -> Any:
    text = as_class(_plain(label))
    numbered = text is not None and text.isdecimal() and int(text) < len(names)
    return names[int(str(text))] if numbered else label


def _class_names(dataset: Any) -> list[str]:
    """The names of the classes; of chained data sets that number theirs in several ways none."""
    chained = _chained(dataset)
    names = _attribute(dataset, "classes")
    if isinstance(names, list | tuple):
        return [str(name) if isinstance(name, str) else " ".join(map(str, name)) for name in names]
    if chained:
        each = [_class_names(part) for part in chained]
        return each[0] if all(every == each[0] for every in each) else []
    inner = getattr(dataset, "dataset", None)
    return [] if inner is None else _class_names(inner)


def _could_say_labels(dataset: Any, count: int) -> bool:
    """Whether the first items have a place for a label, if only an empty one."""
    for index in range(min(_TRIED, count)):
        try:
            item = dataset[index]
        except Exception:  # said when its image is read
            continue
        several = _label_keys(item) if isinstance(item, Mapping) else []
        if len(several) > 1 and "label" not in several:
            warn(
                f"the items of this {type(dataset).__name__} have several keys that may be the label, "
                f"{listed(several)}, and no label is taken; call the one `label`"
            )
        if _label_key(item) is not None or (isinstance(item, tuple | list) and len(item) > 1):
            return True
    return False


def _label_key(item: Any) -> str | None:
    """The key of an item's label: `label`, or the only one that may be it."""
    if not isinstance(item, Mapping):
        return None
    could = _label_keys(item)
    return "label" if "label" in could else could[0] if len(could) == 1 else None


def _label_keys(item: Mapping[Any, Any]) -> list[Any]:
    return [name for name in item if name in _LABELS or (isinstance(name, str) and means_label(name))]


def _label_of(dataset: Any, index: int) -> Any:
    """The label in an item; None where there is none, or where the item cannot be read."""
    try:
        item = dataset[index]
    except Exception:  # said when its image is read
        return None
    key = _label_key(item)
    if key is not None:
        return item[key]
    return item[1] if isinstance(item, tuple | list) and len(item) > 1 else None


def _plain(label: Any) -> Any:
    """A label as Python's own value, where it is an array or a tensor."""
    if hasattr(label, "tolist"):
        label = label.tolist()
    return label


def _numbered(given: list[Any], names: list[str], kind: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    plain = [_plain(each) for each in given]
    texts, bad = list[str | None](), list[str]()
    for each in plain:
        try:
            texts.append(as_class(each))
        except NotAClassError as error:
            texts.append(None)
            bad.append(str(error))
    if bad:
        every = "neither whole numbers nor names, and are not used"
        some = f"no classes in {len(bad)} of {len(given)} items, which have none"
        warn(
            f"the labels of this {kind} are {every if len(bad) == len(given) else some}: a label is {bad[0]}"
        )
    there = sorted({text for text in texts if text is not None})
    classes = numbered_classes(there, f"this {kind}")
    if classes is None:
        if any(isinstance(each, int) and not isinstance(each, bool) for each in plain) and there:
            raise DataError(f"the labels of this {kind} are numbers and names; give one or the other")
        number = {text: at for at, text in enumerate(there)}
        labels = [UNLABELLED if text is None else number[text] for text in texts]
        return np.array(labels, dtype=np.int64), tuple(there)
    numbers = np.array([UNLABELLED if text is None else int(text) for text in texts], dtype=np.int64)
    said = not any(isinstance(each, str) for each in plain)
    return numbers, tuple(names if said and len(names) >= len(classes) else classes)


def _of_main(part: Any, depth: int) -> bool:
    """Whether an object, or one that it holds, is defined in the user's script, which a worker then needs."""
    if depth == 0 or part is None or isinstance(part, str | bytes | int | float | np.ndarray):
        return False
    modules = getattr(part, "__module__", None), type(part).__module__
    if "__main__" in modules or isinstance(part, type):
        return "__main__" in modules
    held: Any = part[:_TRIED] if isinstance(part, list | tuple) else getattr(part, "__dict__", {}).values()
    return any(_of_main(each, depth - 1) for each in held)

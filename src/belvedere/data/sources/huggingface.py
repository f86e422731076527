"""Data sets of Hugging Face's `datasets`: an object, or a folder that `save_to_disk` wrote."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from multiprocessing.context import get_spawning_popen
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from belvedere.core.errors import DataError, MissingPackageError, UndividedError
from belvedere.core.packages import extra_command
from belvedere.data.decode import UnreadableImage
from belvedere.data.sources.choice import NotAClassError
from belvedere.data.sources.columns import Columns, class_of, columns_of, number_of, unusable
from belvedere.data.sources.indexed import numbered_classes
from belvedere.data.sources.mapped import shared_folder
from belvedere.data.sources.parts import HELD_OUT, TRAIN, part_named
from belvedere.data.sources.source import SHARED_BYTES, UNLABELLED, Source, source_repr

PREFIX = "hf:"
_ROWS_AT_ONCE = 4096
_TOLD_BY = "a datasets.Dataset"


def open_huggingface(
    path: str, split: str | None, *, label: str | None = None, image: str | None = None
) -> Source:
    """The data set in the folder of `hf:DIR`, as `Dataset.save_to_disk` wrote it; nothing is downloaded.

    split: which one of a DatasetDict; all of them without. Raises DataError, or MissingPackageError without
    `datasets`.
    """
    datasets = _package()
    folder = Path(path.removeprefix(PREFIX)).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"data.path is {path!r}, and there is no such folder; {PREFIX} takes a folder that save_to_disk "
            f"wrote (nothing is downloaded)"
        )
    try:
        loaded = datasets.load_from_disk(str(folder.resolve()))
    except Exception as error:  # whatever a damaged description makes the package raise
        raise DataError(
            f"{folder} (data.path) is no folder that save_to_disk wrote, or is damaged: "
            f"{' '.join(str(error).split())}; for Parquet files, leave out {PREFIX}"
        ) from error
    return from_huggingface(loaded, split=split, name=folder.resolve().name, label=label, image=image)


def from_huggingface(
    dataset: Any,
    *,
    split: str | None = None,
    name: str | None = None,
    label: str | None = None,
    image: str | None = None,
) -> Source:
    """The images of a `datasets.Dataset`, or of a DatasetDict's split (all of its splits without one).

    Images are taken as they are stored, in its column of images (`image`, `img`, or the only one), labels
    from the only column that is called a label, a class, a category or a target. label, image: the columns to
    take, where there are several. Raises DataError for other objects, columns or splits.
    """
    datasets = _package()
    if isinstance(dataset, datasets.DatasetDict):
        parts = _parts(dataset, split)
        if len({str(part.features) for part in parts.values()}) > 1:
            raise DataError(f"the splits {', '.join(parts)} have different columns; set data.split")
        dataset = datasets.concatenate_datasets(list(parts.values()))
    elif split is not None:
        raise UndividedError(
            f"data.split is {split!r}, but this is one data set without splits; set data.split=null"
        )
    if not isinstance(dataset, datasets.Dataset):
        kind = type(dataset).__name__
        remedy = "; a streamed data set has no random access" if "Iterable" in kind else ""
        raise DataError(f"{kind} is not {_TOLD_BY} or a DatasetDict{remedy}")
    if not len(dataset):
        raise DataError("the data set holds no image")
    name = name or getattr(dataset.info, "dataset_name", None) or "huggingface"
    return _HuggingFaceSource(dataset, name, label=label, image=image)


def _package() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingPackageError(
            f"Hugging Face data sets need a package that is not installed ({error}); "
            f"{extra_command('huggingface')}"
        ) from error
    return datasets


def _parts(dataset: Any, split: str | None) -> dict[str, Any]:
    """The splits that are wanted, in their order."""
    if split is None:
        return dict(dataset)
    wanted = (TRAIN,) if split == TRAIN else HELD_OUT
    named = {name: part_named(name) for name in dataset}
    part = next((part for part in wanted if part in named.values()), None)
    if part is None:
        raise DataError(f"data.split is {split!r}, but the data set has only {', '.join(dataset)}")
    return {name: dataset[name] for name in dataset if named[name] == part}


class _HuggingFaceSource:
    """Rows of a data set, by number; its own files are mapped into memory, by it."""

    def __init__(self, dataset: Any, name: str, *, label: str | None, image: str | None) -> None:
        import datasets

        self.name = name
        schema = dataset.with_format("arrow").features.arrow_schema
        columns = columns_of(schema, name, image=image, label=label)
        self._column, holder = columns.image, columns.label_column
        wanted = [self._column] if holder is None else [self._column, holder]
        table = dataset.select_columns(wanted)
        if isinstance(table.features[self._column], datasets.Image):
            table = table.cast_column(self._column, datasets.Image(decode=False))
        try:
            self.labels, self.classes = _labelled(table, columns, name)
        except NotAClassError as error:
            columns = columns.without_labels(unusable(columns, error))
            self.labels, self.classes = _labelled(table, columns, name)
        self.skipped = columns.notes
        self._rows = table.select_columns([self._column]).with_format(None)

    __repr__ = source_repr

    def __len__(self) -> int:
        return len(self.labels)

    def key(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return f"{self.name}/{index}"

    def stored(self, index: int) -> bytes:
        key = self.key(index)
        try:
            image = self._rows[index][self._column]
            data = image.get("bytes") if isinstance(image, dict) else image
            path = image.get("path") if isinstance(image, dict) else None
            if not data and path:
                data = Path(path).read_bytes()
        except OSError as error:
            raise UnreadableImage(key, f"cannot be read: {error.strerror or error}") from error
        except Exception as error:  # a table whose file is gone or damaged makes Arrow raise many things
            raise UnreadableImage(key, f"{type(error).__name__}: {' '.join(str(error).split())}") from error
        if not data:
            raise UnreadableImage(key, "the row holds no image")
        return bytes(data)

    def __getstate__(self) -> dict[str, Any]:
        in_memory = not self._rows.cache_files and self._rows.data.nbytes > SHARED_BYTES
        if in_memory and get_spawning_popen() is not None:  # on the way to a worker
            self._rows = _on_disk(self._rows, self)
        return self.__dict__

    def fingerprint(self) -> str:
        digest = hashlib.blake2b(
            f"{len(self)} {self.classes}".encode("utf-8", "surrogateescape"), digest_size=16
        )
        for sizes in _stored_sizes(self._rows, self._column):
            digest.update(sizes.tobytes())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()


def _on_disk(rows: Any, owner: Any) -> Any:
    """The same rows in files that processes map, kept for as long as `owner`."""
    folder = str(shared_folder(rows.data.nbytes, owner))
    rows.save_to_disk(folder)
    return _package().load_from_disk(folder)


def _stored_sizes(rows: Any, column: str) -> Iterator[NDArray[np.int64]]:
    """Bytes of each image (-1: it is in a file of its own), without reading them."""
    import pyarrow.compute as pc
    import pyarrow.types as types

    for table in rows.with_format("arrow").iter(batch_size=_ROWS_AT_ONCE):
        images = table.column(column)
        if types.is_struct(images.type):
            images = pc.struct_field(images, "bytes")
        sizes = pc.fill_null(pc.binary_length(images), -1)
        yield np.asarray(sizes.to_numpy(), dtype=np.int64)


def _labelled(table: Any, columns: Columns, where: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels [N] and the names of the classes. Raises DataError, and NotAClassError as `class_of` does."""
    if columns.label is None:
        return np.full(len(table), UNLABELLED, dtype=np.int64), ()
    column = table.select_columns([columns.label_column]).with_format("arrow")[:].column(columns.label_column)
    given = [class_of(each, columns, where) for each in columns.values(column.to_pylist())]
    texts = sorted({each for each in given if each is not None})
    if columns.classes is None:
        columns = columns._replace(classes=numbered_classes(texts, where))
    if columns.classes is None:
        number = {text: at for at, text in enumerate(texts)}
        labels = [UNLABELLED if each is None else number[each] for each in given]
        return np.array(labels, dtype=np.int64), tuple(texts)
    numbers = [UNLABELLED if each is None else number_of(each, columns, where) for each in given]
    return np.array(numbers, dtype=np.int64), tuple(columns.classes)

"""Images in Parquet files, as Hugging Face keeps data sets: unpacked once to the cache, and read there."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from belvedere.core.errors import DataError
from belvedere.data.sources.access import (
    ReadError,
    Stretches,
    fetched_whole,
    file_system,
    is_url,
    remote_version,
)
from belvedere.data.sources.choice import NotAClassError, listed
from belvedere.data.sources.columns import (
    Columns,
    class_of,
    classes_in,
    classes_of_all,
    columns_of,
    merged,
    number_of,
    unusable,
)
from belvedere.data.sources.index import Index, IndexWriter, open_index
from belvedere.data.sources.index_writer import RACY_NS
from belvedere.data.sources.indexed import NUMBER, IndexedSource, numbered_classes, rows_of_split, value
from belvedere.data.sources.layout import image_name, short_names
from belvedere.data.sources.parts import part_of_file, part_wanted
from belvedere.data.sources.source import UNLABELLED
from belvedere.data.sources.unpacked import BlockFile, InUse, alone, remove_others, unpacked_key

SUFFIX = ".parquet"
_ROWS_AT_ONCE = 64
_RULES = 3  # of what is taken from a file; what was unpacked by other rules is not used again
_EMPTY, _LOST = -1, -2  # in the place of an offset


def open_parquet(
    path: str, split: str | None, *, label: str | None = None, image: str | None = None
) -> IndexedSource:
    """The images of Parquet files: one, a folder (also of folders) or a glob of them; also of a URL.

    A column of {bytes, path} or of bytes holds the images; label, image: the columns to take. Parts are those
    of the files' names (`train-00000-of-00002.parquet`) or of their folders (`test/0000.parquet`). All images
    asked for are unpacked to the cache, once for as long as the files do not change. Raises DataError.
    """
    every = _files(path)
    part = part_wanted({part_of_file(file) for file in every}, split, path)
    files = [file for file in every if part is None or part_of_file(file) == part]
    unnamed = [file for file in every if part is not None and not part_of_file(file)]
    identity = {
        "kind": "parquet",
        "rules": _RULES,
        "label": label,
        "image": image,
        "files": files,
        "remote": [remote_version(file) for file in files],
        "labelled_as": [remote_version(file) or file for file in every],  # they count for the classes
    }
    key = unpacked_key(identity)

    def build(writer: IndexWriter) -> None:
        _settle(every)
        for file in every:
            if not is_url(file):
                with _reading(file):
                    writer.stamp(file)
        if unnamed:
            writer.note(f"{len(unnamed)} files were left out, whose names say no part: {listed(unnamed, 3)}")
        _unpack(writer, files, every, key=key, where=path, label=label, image=image)

    with alone(key, path):
        index = open_index(identity, build, describe=f"and unpacking {path}", kept_from=0)
        reader = BlockReader(Path(index.meta["block"]))  # before another process may remove it
    name = Path(every[0]).stem if len(every) == 1 else Path(path.rstrip("/*")).stem
    source = rows_of_split(name, index, reader, split=None, where=path)
    source.divided = len({part_of_file(file) for file in every} - {""}) > 1
    return source


def is_parquet_folder(folder: Path) -> bool:
    """Whether the first files met below the folder, from the top down, are Parquet files and not images."""
    for _, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        shown = [name for name in files if not name.startswith(".")]
        if any(name.endswith(SUFFIX) for name in shown):
            return True
        if any(image_name(name) for name in shown):
            return False
    return False


def _files(path: str) -> list[str]:
    """The Parquet files that a path names, absolute; raises DataError for none."""
    if is_url(path):
        system, inner = file_system(path)
        if glob.has_magic(inner):
            found = system.glob(inner)
        else:
            found = [inner] if inner.endswith(SUFFIX) else system.find(inner)
        files = [system.unstrip_protocol(each) for each in found if each.endswith(SUFFIX)]
    else:
        root = Path(path).expanduser().absolute()
        if root.is_dir():
            files = [str(each) for each in root.rglob(f"*{SUFFIX}")]
        else:
            files = glob.glob(str(root), recursive=True) if glob.has_magic(str(root)) else [str(root)]
    shown = [each for each in files if not any(part.startswith(".") for part in each.split("/")[-2:])]
    if not shown:
        raise DataError(f"data.path is {path!r}, which names no {SUFFIX} file")
    return sorted(shown)


def _settle(files: list[str]) -> None:
    """Wait until the files are old enough for their times to tell whether they change again: seconds, where
    unpacking them again would be minutes."""
    with suppress(OSError):
        newest = max((os.stat(file).st_mtime_ns for file in files if not is_url(file)), default=0)
        age = time.time_ns() - newest
        if 0 <= age < RACY_NS:
            time.sleep((RACY_NS - age) / 1e9 + 0.01)


# --- unpacking


def _unpack(
    writer: IndexWriter,
    files: list[str],
    every: list[str],
    *,
    key: str,
    where: str,
    label: str | None,
    image: str | None,
) -> None:
    """Write the images of `files` to one file of the cache, and an entry for each."""
    opened = [_opened(file) for file in every]
    schemas = [parquet.schema_arrow for parquet in opened]
    whole = merged(schemas)
    columns = columns_of(whole, every[0] if len(every) == 1 else where, image=image, label=label)
    columns = columns._replace(classes=classes_of_all(schemas, every, columns.label, where=where))
    columns = _with_classes(columns, opened, every, writer=writer, where=where)
    writer.meta["classes"] = columns.classes
    for note in columns.notes:
        writer.note(note)
    names = short_names(every, SUFFIX)
    chosen = [each for each in zip(every, opened, names, strict=True) if each[0] in set(files)]
    need = sum(_image_bytes(parquet, columns.image) for _, parquet, _ in chosen)
    with BlockFile(key, need_bytes=need, what=where) as block:
        for file, parquet, name in chosen:
            _unpack_file(writer, block, file, parquet, columns=columns, name=name)
    writer.meta["block"] = str(block.path)
    remove_others(key, block.path)
    writer.stamp(block.path)


def _with_classes(
    columns: Columns, opened: list[Any], every: list[str], *, writer: IndexWriter, where: str
) -> Columns:
    """The columns with the classes that the labels of all files name; without labels, where they are none."""
    if columns.label is None:
        return columns
    lacking = [
        file
        for file, parquet in zip(every, opened, strict=True)
        if columns.label_column not in parquet.schema_arrow.names
    ]
    if lacking:
        writer.note(
            f"{len(lacking)} files have no column {columns.label_column!r}, and no labels: "
            f"{listed(lacking, 3)}"
        )
    try:
        texts = sorted(_texts(opened, every, columns))
    except NotAClassError as error:
        return columns.without_labels(unusable(columns, error))
    if columns.classes is not None:
        return columns
    classes = numbered_classes(texts, where)
    if classes is None:
        writer.declare(texts)
    return columns._replace(classes=classes)


def _opened(file: str) -> Any:
    import pyarrow.parquet as pq  # slow to import

    with _reading(file):
        if is_url(file):
            system, inner = file_system(file)
            return pq.ParquetFile(system.open(inner, "rb"))
        return pq.ParquetFile(file)


def _texts(opened: list[Any], files: list[str], columns: Columns) -> set[str]:
    """All labels there are in all files, as text."""
    found: set[str] = set()
    label = columns.label_column
    for parquet, file in zip(opened, files, strict=True):
        if label not in parquet.schema_arrow.names:
            continue
        with _reading(file):
            column = parquet.read(columns=[label]).column(label)
            found |= classes_in(columns.values(_distinct(column)), columns, file)
    return found


def _distinct(column: Any) -> list[Any]:
    """The values of a column, each once where Arrow can tell them apart."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        values: list[Any] = pc.unique(column).to_pylist()
    except pa.ArrowNotImplementedError:  # lists and structs
        values = column.to_pylist()
    return values


def _image_bytes(parquet: Any, image: str) -> int:
    """Bytes of the column of images when it is not compressed."""
    metadata = parquet.metadata
    return sum(
        column.total_uncompressed_size
        for group in range(metadata.num_row_groups)
        for column in (metadata.row_group(group).column(at) for at in range(metadata.num_columns))
        if column.path_in_schema.partition(".")[0] == image
    )


def _unpack_file(
    writer: IndexWriter, block: BlockFile, file: str, parquet: Any, *, columns: Columns, name: str
) -> None:
    """Append the images of one file; they are called `NAME/0`, `NAME/1` and so on."""
    label = columns.label_column if columns.label_column in parquet.schema_arrow.names else None
    row = 0
    with _reading(file):
        if columns.image not in parquet.schema_arrow.names:
            raise DataError(f"{file} (data.path) has no column {columns.image!r}, as others have")
        wanted = [columns.image] if label is None else [columns.image, label]
        for batch in parquet.iter_batches(batch_size=_ROWS_AT_ONCE, columns=wanted):
            images = batch.column(columns.image).to_pylist()
            labels = [None] * len(images) if label is None else batch.column(label).to_pylist()
            given = columns.values(labels) if label is not None else labels
            for image, value in zip(images, given, strict=True):
                data, lost = _bytes_of(image, file)
                offset = block.append(data) if data else (_LOST if lost else _EMPTY)
                text = class_of(value, columns, file)
                numbers = {}
                if columns.classes is not None:
                    numbers[NUMBER] = UNLABELLED if text is None else number_of(text, columns, file)
                    text = None if numbers[NUMBER] == UNLABELLED else text
                writer.add(f"{name}/{row}", label=text, size=len(data), offset=offset, **numbers)
                row += 1


def _bytes_of(image: Any, file: str) -> tuple[bytes, bool]:
    """The encoded image of a row, and whether it is in a file that cannot be read. Empty: there is none."""
    data = image.get("bytes") if isinstance(image, dict) else image
    path = image.get("path") if isinstance(image, dict) else None
    if data or not path:
        return data or b"", False
    folder = file.rpartition("/")[0]
    try:
        return (fetched_whole(f"{folder}/{path}") if is_url(file) else Path(folder, path).read_bytes()), False
    except (OSError, ReadError):  # reported when it is asked for
        return b"", True


@contextmanager
def _reading(file: str) -> Iterator[None]:
    """Arrow's errors as DataError naming the file; damaged data is an OSError to it."""
    import pyarrow as pa

    try:
        yield
    except (DataError, NotAClassError):
        raise
    except Exception as error:
        if not is_url(file) and not isinstance(error, pa.ArrowException | OSError):
            raise  # a protocol's package has errors of its own; a local file has none
        text = " ".join(str(error).split())
        raise DataError(f"{file} (data.path) cannot be read as Parquet: {text}") from error


class BlockReader:
    """Reads images from the file they were unpacked to."""

    def __init__(self, path: Path) -> None:
        self._path, self._stretches, self._in_use = str(path), Stretches(), InUse(path)

    def __call__(self, index: Index, row: int) -> bytes:
        offset = value(index, "offset", row)
        if offset == _LOST:
            raise ReadError("the row holds no bytes, and the file it names cannot be read")
        if offset == _EMPTY:
            raise ReadError("the row holds no image")
        return self._stretches.read(self._path, offset, value(index, "size", row))

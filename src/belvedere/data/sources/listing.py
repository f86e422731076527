"""A list of image files, as text, CSV or JSON lines, with labels or without."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np

from belvedere.core.errors import BelvedereError, DataError, MissingPackageError, UndividedError
from belvedere.data.decode import UnreadableImage
from belvedere.data.sources.access import ReadError, fetched_whole, is_url, missing_protocol
from belvedere.data.sources.choice import listed, told_label
from belvedere.data.sources.index import Index, IndexWriter, open_index
from belvedere.data.sources.lines import Line, ListFile, Mistake
from belvedere.data.sources.local import read_file
from belvedere.data.sources.parts import HELD_OUT, TEST, part_named
from belvedere.data.sources.source import source_repr

LISTS = frozenset({".txt", ".csv", ".tsv", ".jsonl"})
_LISTED = 10
_RULES = 3  # of what a list says; an index of other rules is not used again


class ListSource:
    """The files that a list names, in its order.

    Relative names start at `folder`, where the list lies; names with `://` are read through fsspec. Whether a
    file is there shows when it is read.
    """

    def __init__(self, name: str, folder: Path, index: Index) -> None:
        self.name, self.folder, self.index = name, folder, index
        self.classes, self.labels, self.skipped = index.classes, index.labels, index.notes

    def __reduce__(self) -> tuple[Callable[..., ListSource], tuple[str, Path, Index]]:
        return ListSource, (self.name, self.folder, self.index)  # the arrays are the index's, which is mapped

    __repr__ = source_repr

    def __len__(self) -> int:
        return len(self.index)

    def key(self, index: int) -> str:
        return self.index.names[index]

    def stored(self, index: int) -> bytes:
        key = self.index.names[index]
        if is_url(key):
            return _fetched(key)
        try:
            return read_file(os.path.join(self.folder, key), key)
        except UnreadableImage as error:
            if os.path.isabs(key) or not isinstance(error.__cause__, FileNotFoundError):
                raise
            where = f"names start at {os.path.abspath(self.folder)}, where the list lies"
            raise UnreadableImage(key, f"{error.reason}; {where}") from error

    def fingerprint(self) -> str:
        """Over names and labels."""
        return self.index.fingerprint


def open_list(
    path: Path, split: str | None, *, label: str | None = None, image: str | None = None
) -> ListSource:
    """The images that a list names: `.txt`, one a line; `.csv` or `.tsv` with a header, or `.jsonl`, with
    `file` (or `path`), and perhaps `label` and `split`.

    split: only for a list that says it of every image. An empty label is none. label, image: the columns to
    take. What the list says and was not used is in `skipped`. Raises DataError naming all mistakes together,
    with their lines, and MissingPackageError for URLs that need a package.
    """
    path = Path(os.path.abspath(path))
    chosen = {"label": label, "image": image, "rules": _RULES}
    identity = {"kind": "list", "path": str(path), "split": split, **chosen}

    def build(writer: IndexWriter) -> None:
        _find(path, split, writer, label=label, image=image)

    index = open_index(identity, build, describe=str(path))
    for scheme in index.meta["schemes"]:
        _check_scheme(scheme, path)
    return ListSource(path.name, path.parent, index)


def _find(
    path: Path, split: str | None, writer: IndexWriter, *, label: str | None, image: str | None
) -> None:
    """Write down what a list names."""
    mistakes, hashes = _Mistakes(), array("q")
    try:
        writer.stamp(path)
        lines = ListFile(path, image=image, label=label)
        divided = _write_down(lines, split, writer, mistakes=mistakes, hashes=hashes)
        if split is not None and hashes and not divided:
            raise UndividedError(
                f"data.split is {split!r}, but {path} (data.path) says no split of its images; "
                f"set data.split=null, or give each line a `split` (.csv, .tsv, .jsonl)"
            )
        _name_repeated(lines, hashes, mistakes)
    except OSError as error:
        raise DataError(f"{path} (data.path) cannot be read: {error.strerror or error}") from error
    mistakes.raise_all(path)
    if writer.count == 0:
        what = "lists no image" if not hashes else f"has no image of the split {split!r} (data.split)"
        raise DataError(f"{path} (data.path) {what}")


def _write_down(
    lines: ListFile, split: str | None, writer: IndexWriter, *, mistakes: _Mistakes, hashes: array[int]
) -> bool:
    """Write down the lines of one part, and the hashes of all names; returns whether any line says a part."""
    part = split if split != TEST else _held_out(lines)
    schemes, others = set(), dict[str, int]()
    divided = False
    for line in lines:
        if isinstance(line, Mistake):
            mistakes.add(line)
            continue
        hashes.append(hash(line.file))
        divided = divided or line.split is not None
        named = part_named(line.split or "")
        if split is not None and line.split is None:
            mistakes.add(Mistake(line.number, f"{line.file!r} has no split, but data.split is {split!r}"))
        elif part is None or named == part:
            writer.add(line.file, label=line.label)
            if is_url(line.file):
                schemes.add(line.file.split("://")[0])
            continue
        elif not named:
            others[line.split or ""] = others.get(line.split or "", 0) + 1
        if line.label is not None:  # the same numbers in every part
            writer.declare([line.label])
    writer.meta["schemes"] = sorted(schemes)
    _tell(lines, others, writer)
    writer.meta["divided"] = divided
    return divided


def _held_out(lines: ListFile) -> str:
    """What the list has of the parts that are not trained on."""
    found = {part_named(line.split or "") for line in lines if isinstance(line, Line)}
    return next((name for name in HELD_OUT if name in found), TEST)


def _tell(lines: ListFile, others: dict[str, int], writer: IndexWriter) -> None:
    """Note what the list says and was not used."""
    unused = lines.columns.unused
    told = told_label(lines.columns.label, unused, "column")
    if told is not None:
        writer.note(told)
    if unused and (told is None or lines.columns.label is not None):
        writer.note(f"columns that were not used: {listed(unused)}")
    if lines.num_blank:
        writer.note(f"{lines.num_blank} empty lines were left out")
    if lines.num_predicted:
        writer.note(f"{lines.num_predicted} labels that a classifier predicted were left out")
    if others:
        writer.note(
            f"{sum(others.values())} lines were left out, whose split is neither train, val nor test: "
            f"{listed(others)}"
        )


def _name_repeated(lines: ListFile, hashes: array[int], mistakes: _Mistakes) -> None:
    """Find the names that come again by the hashes [N] of all, so that a million names are not held."""
    values, counts = np.unique(np.frombuffer(hashes, dtype=np.int64), return_counts=True)
    again = set(values[counts > 1].tolist())
    if not again:
        return
    first: dict[str, int] = {}
    for line in lines:
        if isinstance(line, Line) and hash(line.file) in again:
            before = first.setdefault(line.file, line.number)
            if before != line.number:
                mistakes.add(Mistake(line.number, f"{line.file!r} again, after line {before}"))


class _Mistakes:
    """The first mistakes, and how many there are."""

    def __init__(self) -> None:
        self._first: list[Mistake] = []
        self._count = 0

    def add(self, mistake: Mistake) -> None:
        self._count += 1
        if len(self._first) < _LISTED:
            self._first.append(mistake)

    def raise_all(self, path: Path) -> None:
        if not self._count:
            return
        listed = "".join(f"\n  line {number}: {text}" for number, text in self._first)
        more = f"\n  and {self._count - _LISTED} more" if self._count > _LISTED else ""
        raise DataError(f"{path} (data.path) is no list of images:{listed}{more}")


def _check_scheme(scheme: str, path: Path) -> None:
    import fsspec  # slow to import, rarely needed

    what = f"{path} (data.path) names files by {scheme}://, "
    try:
        fsspec.get_filesystem_class(scheme.split("::")[-1])
    except ValueError as error:
        raise DataError(what + "which fsspec does not know") from error
    except ImportError as error:
        why = missing_protocol(scheme, error)
        raise MissingPackageError(f"{what}which needs a package: {why}") from error


def _fetched(url: str) -> bytes:
    """What lies at a URL; raises UnreadableImage."""
    try:
        return fetched_whole(url)
    except (ReadError, BelvedereError) as error:
        raise UnreadableImage(url, str(error).removeprefix(f"{url} ")) from error

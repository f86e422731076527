"""A folder of image files, flat or nested, labelled by its sub-folders or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from belvedere.core.errors import DataError
from belvedere.data.sources.folder_layout import folder_layout, is_folder
from belvedere.data.sources.index import Index, IndexWriter, open_index
from belvedere.data.sources.left import Left
from belvedere.data.sources.local import read_file
from belvedere.data.sources.parts import part_wanted
from belvedere.data.sources.source import source_repr

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".avif"}
    | {".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".tga"}
)
_RULES = 3  # of what is found in a folder; an index of other rules is not used again
_LISTED = 5


class FolderSource:
    """Image files below `root`, in the order of their relative POSIX names.

    index: names relative to `root`, and their sizes when they were found. An image's label is the first
    folder below `root`, below the folders that wrap all others, and below `train/`, `val/`, `test/` when it
    is divided so; an image directly there has none. divided: into a part for training and others.
    """

    def __init__(self, root: Path, index: Index) -> None:
        self.root, self.name, self.index = root, root.name, index
        self.classes, self.labels = index.classes, index.labels
        self.skipped, self.divided = index.notes, bool(index.meta["divided"])

    def part(self, index: int) -> str | None:
        """The part that an image is of, where the folder is divided: `train`, `val` or `test`."""
        name = self.index.names[index]
        parts: dict[str, str] = self.index.meta.get("parts", {})
        return next((part for folder, part in parts.items() if name.startswith(f"{folder}/")), None)

    def __reduce__(self) -> tuple[Callable[..., FolderSource], tuple[Path, Index]]:
        return FolderSource, (self.root, self.index)  # the arrays are the index's, which workers map

    __repr__ = source_repr

    def __len__(self) -> int:
        return len(self.index)

    def key(self, index: int) -> str:
        return self.index.names[index]

    def stored(self, index: int) -> bytes:
        key = self.index.names[index]
        return read_file(os.path.join(self.root, key), key)

    def fingerprint(self) -> str:
        """Over names, file sizes when they were found (-1: gone) and labels."""
        return self.index.fingerprint


def open_folder(root: Path, split: str | None) -> FolderSource:
    """The images below a folder.

    split: only for a folder divided into parts: one in which all folders with images are called as parts are
    (`parts.NAMES`). There `train` is the part for training, `test` is the test part, or the one for
    validation where there is no other, and none is all of them. Raises DataError naming `data.path` or
    `data.split`, also where some folders are called as parts are and others are not.
    """
    rules = {"rules": _RULES, "extensions": sorted(EXTENSIONS)}
    identity = {"kind": "folder", "root": str(root), "split": split, **rules}
    index = open_index(identity, lambda writer: _find(root, split, writer), describe=str(root))
    return FolderSource(root, index)


def _find(root: Path, split: str | None, writer: IndexWriter) -> None:
    """Write down all images of a folder, or of one part of it."""
    try:
        writer.stamp(root)
        layout = folder_layout(root, EXTENSIONS, stamp=writer.stamp)
    except OSError as error:
        raise DataError(f"{root} (data.path) cannot be opened: {error.strerror}") from error
    writer.meta["divided"] = len(set(layout.parts.values())) > 1
    writer.meta["parts"] = dict(layout.parts)
    if layout.note is not None:
        writer.note(layout.note)
    part, left = part_wanted(layout.parts.values(), split, str(root)), Left()
    wanted = [""] if part is None else [f"{name}/" for name, its in layout.parts.items() if its == part]
    for prefix in wanted:
        _walk(root, prefix, layout.label_at, writer, left)
    for told in left.told():
        writer.note(told)
    if writer.count == 0:
        notes = writer.notes[:_LISTED]
        raise DataError(
            f"no image file below {root} (data.path); looked for {', '.join(sorted(EXTENSIONS))}"
            + (f"; {'; '.join(notes)}" if notes else "")
        )
    for name in layout.parts:  # the same numbers in every part, also where a class has no image in one
        writer.declare(_classes(root / name / layout.below, writer))


class _Folder(NamedTuple):
    """A folder on the way down: the beginning of its names, the folders above it, and what is left in it.

    left: the names still to come, last first, folders with a slash at their end.
    """

    prefix: str
    above: frozenset[tuple[int, int]]
    left: list[str]


def _walk(root: Path, prefix: str, depth: int, writer: IndexWriter, left: Left) -> None:
    """Write down the image files below `prefix` in the order of their names; follows links, but not into a
    folder above.

    Within a folder, `a/` stands among the names of the files where all names below it belong. depth: which
    folder of a name is its label.
    """
    base = os.path.join(root, "")
    stack = [_opened(root, prefix, frozenset(), writer, left)]
    while stack:
        folder = stack[-1]
        if not folder.left:
            stack.pop()
            continue
        name = folder.prefix + folder.left.pop()
        if name.endswith("/"):
            stack.append(_opened(root, name, folder.above, writer, left))
        else:
            folders = name.split("/", depth + 1)[:-1]
            label = folders[depth] if len(folders) > depth else None
            writer.add(name, label=label, size=_size(base + name))


def _opened(
    root: Path, prefix: str, above: frozenset[tuple[int, int]], writer: IndexWriter, left: Left
) -> _Folder:
    """The folder at `prefix`, with nothing left in it if it lies above itself or cannot be opened; `left` is
    told of what is no image or hidden."""
    path = os.path.join(root, prefix)
    names: list[str] = []
    try:
        status = writer.stamp(path)
        here = (status.st_dev, status.st_ino)
        if here in above:
            return _Folder(prefix, above, [])
        with os.scandir(path) as entries:
            for entry in entries:
                folder = is_folder(entry)
                if entry.name.startswith("."):
                    _tell_hidden(prefix + entry.name, folder, left)
                elif folder or _is_image(entry.name):
                    names.append(entry.name + "/" if folder else entry.name)
                else:
                    suffix = os.path.splitext(entry.name)[1].lower()
                    left.add(f"{suffix or 'other'} files were not used", prefix + entry.name)
    except OSError as error:
        # a permission shows in the folder's times when it changes; anything else may pass by itself
        writer.note(f"{prefix or '.'}: {error.strerror}", passing=not isinstance(error, PermissionError))
        return _Folder(prefix, above, [])
    names.sort(reverse=True)
    return _Folder(prefix, above | {here}, names)


def _tell_hidden(name: str, folder: bool, left: Left) -> None:
    """A hidden file that is no image by its name is nobody's concern."""
    if folder:
        left.add("hidden folders were left out", name + "/")
    elif _is_image(name):
        left.add("hidden images were left out", name)


def _classes(folder: Path, writer: IndexWriter) -> list[str]:
    try:
        writer.stamp(folder)
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if not entry.name.startswith(".") and is_folder(entry)]
    except OSError:  # already among the skipped if its images are wanted
        return []


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _size(path: str) -> int:
    """Bytes; -1 for a link to nowhere: it is reported as unreadable, not forgotten."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1

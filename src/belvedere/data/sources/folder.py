"""A folder of image files, flat or nested, labelled by its sub-folders or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from belvedere.core.errors import DataError, UndividedError
from belvedere.data.sources.index import Index, IndexWriter, open_index
from belvedere.data.sources.local import read_file

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".avif"}
    | {".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".tga"}
)
_HELD_OUT = ("test", "val")  # in this order, for `split: test`
_LISTED = 5


class FolderSource:
    """Image files below `root`, in the order of their relative POSIX names.

    index: names relative to `root`, and their sizes when they were found. An image's label is the first
    folder below `root` (below `train/`, `val/`, `test/` when `root` is divided so); an image directly in
    `root` has none.
    """

    def __init__(self, root: Path, index: Index) -> None:
        self.root, self.name, self.index = root, root.name, index
        self.classes, self.labels = index.classes, index.labels
        self.skipped, self.divided = index.notes, bool(index.meta["divided"])

    def __reduce__(self) -> tuple[Callable[..., FolderSource], tuple[Path, Index]]:
        return FolderSource, (self.root, self.index)  # the arrays are the index's, which workers map

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

    split: only for a folder divided as MSN's ImageFolder is: nothing visible in it but `train/` and `val/`
    or `test/`. There `train` is `train/`, `test` is `test/` (or `val/` where there is no `test/`), and none
    is all of them. Raises DataError naming `data.path` or `data.split`.
    """
    identity = {"kind": "folder", "root": str(root), "split": split, "extensions": sorted(EXTENSIONS)}
    index = open_index(identity, lambda writer: _find(root, split, writer), describe=str(root))
    return FolderSource(root, index)


def _find(root: Path, split: str | None, writer: IndexWriter) -> None:
    """Write down all images of a folder, or of one part of it."""
    try:
        writer.stamp(root)
        parts = _parts(root)
    except OSError as error:
        raise DataError(f"{root} (data.path) cannot be opened: {error.strerror}") from error
    writer.meta["divided"] = bool(parts)
    _walk(root, "" if split is None else f"{_folder_of(root, parts, split)}/", 1 if parts else 0, writer)
    if writer.count == 0:
        notes = writer.notes[:_LISTED]
        raise DataError(
            f"no image file below {root} (data.path); looked for {', '.join(sorted(EXTENSIONS))}"
            + (f"; folders that cannot be opened: {', '.join(notes)}" if notes else "")
        )
    if parts:  # the same numbers in every part, also where a class has no image in one
        for part in parts:
            writer.declare(_classes(root / part, writer))


def _parts(root: Path) -> tuple[str, ...]:
    """The sub-folders of a folder divided into train/ and val/ or test/; none when it is not."""
    folders: list[str] = []
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                folders.append(entry.name)
                if entry.name not in ("train", *_HELD_OUT):
                    return ()
            elif _is_image(entry.name):
                return ()
    return tuple(sorted(folders)) if "train" in folders and len(folders) > 1 else ()


def _folder_of(root: Path, parts: tuple[str, ...], split: str) -> str:
    if not parts:
        raise UndividedError(
            f"data.split is {split!r}, but {root} (data.path) is not divided into train/ and val/ or test/; "
            f"set data.split=null to take all its images"
        )
    if split == "train":
        return "train"
    return next(name for name in _HELD_OUT if name in parts)


class _Folder(NamedTuple):
    """A folder on the way down: the beginning of its names, the folders above it, and what is left in it.

    left: the names still to come, last first, folders with a slash at their end.
    """

    prefix: str
    above: frozenset[tuple[int, int]]
    left: list[str]


def _walk(root: Path, prefix: str, depth: int, writer: IndexWriter) -> None:
    """Write down the image files below `prefix` in the order of their names; follows links, but not into a
    folder above.

    Within a folder, `a/` stands among the names of the files where all names below it belong. depth: which
    folder of a name is its label.
    """
    base = os.path.join(root, "")
    stack = [_opened(root, prefix, frozenset(), writer)]
    while stack:
        folder = stack[-1]
        if not folder.left:
            stack.pop()
            continue
        name = folder.prefix + folder.left.pop()
        if name.endswith("/"):
            stack.append(_opened(root, name, folder.above, writer))
        else:
            folders = name.split("/", depth + 1)[:-1]
            label = folders[depth] if len(folders) > depth else None
            writer.add(name, label=label, size=_size(base + name))


def _opened(root: Path, prefix: str, above: frozenset[tuple[int, int]], writer: IndexWriter) -> _Folder:
    """The folder at `prefix`, with nothing left in it if it lies above itself or cannot be opened."""
    path = os.path.join(root, prefix)
    try:
        status = writer.stamp(path)
        here = (status.st_dev, status.st_ino)
        if here in above:
            return _Folder(prefix, above, [])
        with os.scandir(path) as entries:
            left = [
                entry.name + "/" if folder else entry.name
                for entry in entries
                if not entry.name.startswith(".") and ((folder := _is_folder(entry)) or _is_image(entry.name))
            ]
    except OSError as error:
        # a permission shows in the folder's times when it changes; anything else may pass by itself
        writer.note(f"{prefix or '.'}: {error.strerror}", passing=not isinstance(error, PermissionError))
        return _Folder(prefix, above, [])
    left.sort(reverse=True)
    return _Folder(prefix, above | {here}, left)


def _classes(folder: Path, writer: IndexWriter) -> list[str]:
    try:
        writer.stamp(folder)
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if not entry.name.startswith(".") and _is_folder(entry)]
    except OSError:  # already among the skipped if its images are wanted
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """A link that leads nowhere, in a circle or to where one may not look is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _size(path: str) -> int:
    """Bytes; -1 for a link to nowhere: it is reported as unreadable, not forgotten."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1

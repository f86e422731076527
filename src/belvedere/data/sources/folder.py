"""A folder of image files, flat or nested, labelled by its sub-folders or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from belvedere.core.errors import DataError
from belvedere.data.decode import UnreadableImage
from belvedere.data.sources.names import Names
from belvedere.data.sources.source import UNLABELLED

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".avif"}
    | {".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".tga"}
)
_HELD_OUT = ("test", "val")  # in this order, for `split: test`


class FolderSource:
    """Image files below `root`, in the order of their relative POSIX names.

    names: relative to `root`. An image's label is the first folder below `root` (below `train/`, `val/`,
    `test/` when `root` is divided so); an image directly in `root` has none.
    """

    def __init__(
        self, root: Path, names: list[str], *, divided: bool, classes: set[str], skipped: tuple[str, ...]
    ) -> None:
        """classes: what may be missing among these names, but must count for the numbers of the labels."""
        self.root, self.name, self.skipped, self.divided = root, root.name, skipped, divided
        self._names = Names(names)
        depth = 1 if divided else 0
        folders = [_folder_at(name, depth) for name in names]
        found = {folder for folder in folders if folder is not None}
        self.classes = tuple(sorted(found.union(classes)))
        number = {folder: label for label, folder in enumerate(self.classes)}
        self.labels: NDArray[np.int64] = np.array(
            [UNLABELLED if folder is None else number[folder] for folder in folders], dtype=np.int64
        )

    def __len__(self) -> int:
        return len(self._names)

    def key(self, index: int) -> str:
        return self._names[index]

    def stored(self, index: int) -> bytes:
        key = self._names[index]
        try:
            return (self.root / key).read_bytes()
        except OSError as error:
            raise UnreadableImage(key, f"cannot be read: {error.strerror or error}") from error

    def fingerprint(self) -> str:
        """Over names, file sizes (-1: gone) and labels."""
        digest = hashlib.blake2b(digest_size=16)
        self._names.update(digest)
        sizes = np.array([_size(self.root / name) for name in self._names], dtype=np.int64)
        digest.update(sizes.tobytes())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()


def open_folder(root: Path, split: str | None) -> FolderSource:
    """The images below a folder.

    split: only for a folder divided as MSN's ImageFolder is: nothing visible in it but `train/` and `val/`
    or `test/`. There `train` is `train/`, `test` is `test/` (or `val/` where there is no `test/`), and none
    is all of them. Raises DataError naming `data.path` or `data.split`.
    """
    skipped: list[str] = []
    parts = _parts(root)
    if split is None:
        names = sorted(_walk(root, "", (), skipped))
    else:
        folder = _folder_of(root, parts, split)
        names = sorted(_walk(root / folder, f"{folder}/", (), skipped))
    if not names:
        raise DataError(
            f"no image file below {root} (data.path); looked for {', '.join(sorted(EXTENSIONS))}"
            + (f"; folders that cannot be opened: {', '.join(skipped[:5])}" if skipped else "")
        )
    # the same numbers in every part, also where a class has no image in one
    classes = {folder for part in parts for folder in _folders(root / part)}
    return FolderSource(root, names, divided=bool(parts), classes=classes, skipped=tuple(skipped))


def _parts(root: Path) -> tuple[str, ...]:
    """The sub-folders of a folder divided into train/ and val/ or test/; none when it is not."""
    try:
        visible = {entry.name: entry.is_dir() for entry in os.scandir(root) if not entry.name.startswith(".")}
    except OSError as error:
        raise DataError(f"{root} (data.path) cannot be opened: {error.strerror}") from error
    folders = {name for name, is_folder in visible.items() if is_folder}
    images = any(_is_image(name) for name, is_folder in visible.items() if not is_folder)
    divided = not images and "train" in folders and len(folders) > 1 and folders <= {"train", *_HELD_OUT}
    return tuple(sorted(folders)) if divided else ()


def _folder_of(root: Path, parts: tuple[str, ...], split: str) -> str:
    if not parts:
        raise DataError(
            f"data.split is {split!r}, but {root} (data.path) is not divided into train/ and val/ or test/; "
            f"remove data.split to take all its images"
        )
    if split == "train":
        return "train"
    return next(name for name in _HELD_OUT if name in parts)


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...], skipped: list[str]) -> Iterator[str]:
    """Relative names of the image files below `folder`; follows links, but not into a folder above."""
    try:
        status = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        skipped.append(f"{prefix or '.'}: {error.strerror}")
        return
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(folder / entry.name, f"{prefix}{entry.name}/", (*above, here), skipped)
        elif _is_image(entry.name):  # a broken link too: it is reported as unreadable, not forgotten
            yield prefix + entry.name


def _folders(folder: Path) -> list[str]:
    try:
        return [
            entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")
        ]
    except OSError:  # already among the skipped
        return []


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _folder_at(name: str, depth: int) -> str | None:
    folders = name.split("/")[:-1]
    return folders[depth] if len(folders) > depth else None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1

"""Which class and which part (train, test) an image belongs to, by folders in its name or its file's name.

For containers: archives, shards, remote folders.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

from belvedere.core.errors import DataError, UndividedError
from belvedere.data.sources.folder import EXTENSIONS

TRAIN = "train"
HELD_OUT = ("test", "val")  # in this order, for `split: test`
_FILE_PARTS = {
    "train": TRAIN,
    "test": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
}
_FILE_PART = re.compile(r"(?:.*[-_.])?(train|test|validation|valid|val|dev)(?:[-_.0-9].*)?$", re.IGNORECASE)
_UNUSUAL = re.compile(r"\\|//|^/|(?:^|/)(?:\.|__MACOSX/)")


class Layout(NamedTuple):
    """depth: how many folders wrap all images and say nothing. parts: the folders below those, when they
    divide the images into train and val or test."""

    depth: int
    parts: tuple[str, ...]

    def label(self, folder: str) -> str | None:
        """The first folder below the wrapping ones and the part; None for an image in none."""
        below = folder.split("/") if folder else []
        at = self.depth + (1 if self.parts else 0)
        return below[at] if len(below) > at else None

    def part(self, folder: str) -> str:
        """The part of an image in this folder; empty when there are no parts."""
        return folder.split("/")[self.depth] if self.parts else ""


def layout_of(folders: Iterable[str]) -> Layout:
    """The layout of images that lie in these folders (`a/b`; empty: at the top).

    Folders that all images share are no classes. What is left is divided, when nothing lies at its top but
    the folders train/ and val/ or test/.
    """
    paths = [folder.split("/") if folder else [] for folder in folders]
    depth = _shared(paths)
    tops = {path[depth] if len(path) > depth else "" for path in paths}
    divided = TRAIN in tops and len(tops) > 1 and tops <= {TRAIN, *HELD_OUT}
    return Layout(depth, tuple(sorted(tops)) if divided else ())


def _shared(paths: list[list[str]]) -> int:
    """How many folders all paths begin with."""
    low, high = min(paths), max(paths)  # what these two share, all between them do
    return next((at for at, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))


def short_names(files: list[str], suffix: str) -> list[str]:
    """Each file's name below the folder that all are in, without its suffix."""
    paths = [file.split("/") for file in files]
    depth = _shared([path[:-1] for path in paths])
    return ["/".join(path[depth:]).removesuffix(suffix) for path in paths]


def image_name(name: str) -> str | None:
    """The name of an archive's member with `/` between folders; None when it is no image to take: another
    kind of file, a hidden one, or what macOS adds to archives."""
    if os.path.splitext(name)[1].lower() not in EXTENSIONS:
        return None
    if not _UNUSUAL.search(name):
        return name
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return None
    return "/".join(parts)


def folder_of(name: str) -> str:
    return name.rpartition("/")[0]


def part_of_file(path: str) -> str:
    """The part that a file holds by its name (`train-00000-of-00004.parquet`) or else its folder's
    (`test/0000.parquet`): train, test or val; empty when neither says so."""
    file = PurePosixPath(path)
    match = _FILE_PART.fullmatch(file.stem)
    return _FILE_PARTS.get((match.group(1) if match else file.parent.name).lower(), "")


def part_wanted(parts: Iterable[str], split: str | None, where: str) -> str | None:
    """Which of the parts a data.split names; None for all of them. Raises DataError."""
    if split is None:
        return None
    there = set(parts)
    found = next((part for part in ((TRAIN,) if split == TRAIN else HELD_OUT) if part in there), None)
    if found is None:
        listed = ", ".join(sorted(part for part in there if part))
        kind = DataError if listed else UndividedError
        raise kind(
            f"data.split is {split!r}, but {where} (data.path) "
            + (f"has only the parts {listed}" if listed else "is not divided into train and val or test")
            + "; set data.split=null to take all its images"
        )
    return found


def rows_wanted(
    parts: Mapping[str, tuple[int, int]], total: int, *, split: str | None, where: str
) -> tuple[int, int]:
    """The first row, and the one behind the last, of a split. Raises DataError."""
    part = part_wanted(parts, split, where)
    first, end = (0, total) if part is None else parts[part]
    return first, end

"""Which class and which part (train, test) an image belongs to, by folders in its name or its file's name.

For containers: archives, shards, remote folders.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import NamedTuple

from belvedere.data.sources.folder import EXTENSIONS
from belvedere.data.sources.parts import class_like_part, part_named, parts_of

_UNUSUAL = re.compile(r"\\|//|^/|(?:^|/)(?:\.|__MACOSX/)")


class Layout(NamedTuple):
    """part_at: which folder of a name says the part. parts: what these folders are called, and the part
    (train, val, test) that each of them is; empty when the images are not divided. label_at: which folder is
    the class. note: what to tell about all this."""

    part_at: int
    parts: dict[str, str]
    label_at: int
    note: str | None = None

    def label(self, folder: str) -> str | None:
        """The class of an image in this folder; None for an image in none."""
        below = folder.split("/") if folder else []
        return below[self.label_at] if len(below) > self.label_at else None

    def part(self, folder: str) -> str:
        """The part of an image in this folder; empty when there are no parts."""
        return self.parts[folder.split("/")[self.part_at]] if self.parts else ""


def layout_of(folders: Iterable[str], where: str, *, packed: bool = True) -> Layout:
    """The layout of images that lie in these folders (`a/b`; empty: at the top).

    Folders that all images share are no classes. What is left is divided, when nothing lies at its top but
    folders that are called as parts are; or a shared folder is the only part there is. packed: they are in an
    archive, for errors. Raises DataError where
    some folders are parts and others none.
    """
    paths = [folder.split("/") if folder else [] for folder in folders]
    depth = _shared(paths)
    for at, name in enumerate(min(paths)[:depth]):
        if part_named(name):
            return Layout(at, {name: part_named(name)}, depth)
    tops = {path[depth] if len(path) > depth else "" for path in paths}
    parts = parts_of(tops, where, packed=packed)
    if not parts:
        return Layout(depth, {}, depth, class_like_part(tops))
    rests = [path[depth + 1 :] for path in paths]
    below = min(_shared(rests), max(0, min(map(len, rests)) - 1))  # a last folder is the class
    return Layout(depth, parts, depth + 1 + below)


def _shared(paths: list[list[str]]) -> int:
    """How many folders all paths begin with."""
    low, high = min(paths), max(paths)  # what these two share, all between them do
    return next((at for at, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))


def short_names(files: list[str], suffix: str) -> list[str]:
    """Each file's name below the folder that all are in, without its suffix."""
    paths = [file.split("/") for file in files]
    depth = _shared([path[:-1] for path in paths])
    return ["/".join(path[depth:]).removesuffix(suffix) for path in paths]


def member_name(name: str) -> str | None:
    """The name of an archive's member with `/` between folders; None for a hidden one and for what macOS adds
    to archives."""
    if not _UNUSUAL.search(name):
        return name
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return None
    return "/".join(parts)


def image_name(name: str) -> str | None:
    """`member_name` of an image; None for another kind of file too."""
    return member_name(name) if os.path.splitext(name)[1].lower() in EXTENSIONS else None


def folder_of(name: str) -> str:
    return name.rpartition("/")[0]

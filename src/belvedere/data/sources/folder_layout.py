"""Which folders of a tree wrap all others, which are parts of a divided data set, and which are classes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from belvedere.data.sources.parts import class_like_part, parts_among, parts_of, several_end_in_parts

Stamp = Callable[[str], object]
"""Told each folder before it is looked into, so that an index knows when it changes."""


class FolderLayout(NamedTuple):
    """parts: the folders that divide the images, relative to the root, and the part of each. below: the
    folders that wrap all classes in every part. label_at: which folder of a name is the class. note: what to
    tell."""

    parts: dict[str, str]
    below: str
    label_at: int
    note: str | None = None


class _Level(NamedTuple):
    """What lies in a folder: its visible folders, and whether there are images in it."""

    folders: list[str]
    has_image: bool


def folder_layout(root: Path, extensions: frozenset[str], *, stamp: Stamp) -> FolderLayout:
    """The layout of the images below a folder.

    A folder that holds nothing but one folder with images, which holds folders itself, is seen through.
    Folders are parts when all that hold images are called so; or one alone, which holds all images. Raises
    DataError where some are and others are not, and OSError where the root cannot be opened.
    """
    tree = _Tree(root, extensions, stamp)
    at: list[str] = []
    while True:
        level = tree.level(at)
        named = parts_among(level.folders)
        if several_end_in_parts(level.folders):  # folders without images beside them count for nothing
            named |= parts_among(name for name in level.folders if tree.holds_image([*at, name]))
        others = [name for name in level.folders if name not in named]
        lone = None if level.has_image else _only([*named, *others], at, tree)
        if lone is None:
            return _settled(tree, at, level, named, others)
        if lone in named:
            below = tree.chain([*at, lone])
            parts = {"/".join([*at, name]): part for name, part in named.items()}  # others may be empty
            return FolderLayout(parts, "/".join(below), len(at) + 1 + len(below))
        inner = tree.level([*at, lone])
        if inner.has_image or not tree.holds_folder([*at, lone]):  # it is the only class
            return FolderLayout({}, "", len(at))
        at.append(lone)


def _only(names: list[str], at: list[str], tree: _Tree) -> str | None:
    """The one folder that holds images; None where several do, or none."""
    found: list[str] = []
    for name in names:
        if tree.holds_image([*at, name]):
            found.append(name)
            if len(found) > 1:
                return None
    return found[0] if found else None


def _settled(
    tree: _Tree, at: list[str], level: _Level, named: dict[str, str], others: list[str]
) -> FolderLayout:
    """Parts or classes, where several folders hold images."""
    if not named:
        return FolderLayout({}, "", len(at))
    beside = [""] if level.has_image else []
    if len(set(named.values())) > 1 or (not beside and len(named) > 1):
        held = [name for name in named if tree.holds_image([*at, name])]
        beside += [name for name in others if tree.holds_image([*at, name])]
        tops = [*(named if not beside else held), *beside]
        where = os.path.join(tree.root, *at)
        parts = parts_of(tops, where)
    else:
        tops, parts = [*named, *others, *beside], {}
    if not parts:
        return FolderLayout({}, "", len(at), class_like_part(tops))
    chains = [tree.chain([*at, name]) for name in parts if tree.holds_image([*at, name])]
    below = _shared(chains) if chains else []
    prefixed = {"/".join([*at, name]): part for name, part in parts.items()}
    return FolderLayout(prefixed, "/".join(below), len(at) + 1 + len(below))


def _shared(chains: list[list[str]]) -> list[str]:
    """The names that all begin with."""
    low, high = min(chains), max(chains)
    return low[: next((at for at, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))]


class _Tree:
    """Looks into folders no further than it must."""

    def __init__(self, root: Path, extensions: frozenset[str], stamp: Stamp) -> None:
        self.root, self._extensions, self._stamp = root, extensions, stamp

    def level(self, at: list[str]) -> _Level:
        """What lies in the folder `at`; raises OSError."""
        folders, has_image = [], False
        path = os.path.join(self.root, *at)
        self._stamp(path)
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if is_folder(entry):
                    folders.append(entry.name)
                else:
                    has_image = has_image or self._is_image(entry.name)
        return _Level(sorted(folders), has_image)

    def holds_image(self, at: list[str]) -> bool:
        """Whether there is an image anywhere below; also said of a folder that cannot be opened."""
        seen: set[tuple[int, int]] = set()
        waiting = [at]
        while waiting:
            place = waiting.pop()
            try:
                status = os.stat(os.path.join(self.root, *place))
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                level = self.level(place)
            except OSError:
                return True
            if level.has_image:
                return True
            waiting += [[*place, name] for name in reversed(level.folders)]
        return False

    def holds_folder(self, at: list[str]) -> bool:
        """Whether a folder in it holds images."""
        return any(self.holds_image([*at, name]) for name in self.level(at).folders)

    def chain(self, at: list[str]) -> list[str]:
        """The folders below that wrap everything and hold folders themselves; the last one is a class."""
        names: list[str] = []
        seen: set[tuple[int, int]] = set()
        while True:
            try:
                status = os.stat(os.path.join(self.root, *at, *names))
                level = self.level([*at, *names])
            except OSError:
                return names
            here = (status.st_dev, status.st_ino)
            lone = None if level.has_image or here in seen else _only(level.folders, [*at, *names], self)
            if lone is None:
                return names
            seen.add(here)
            below = self.level([*at, *names, lone])
            if below.has_image or not self.holds_folder([*at, *names, lone]):
                return names
            names.append(lone)

    def _is_image(self, name: str) -> bool:
        return os.path.splitext(name)[1].lower() in self._extensions


def is_folder(entry: os.DirEntry[str]) -> bool:
    """A link that leads nowhere, in a circle or to where one may not look is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False

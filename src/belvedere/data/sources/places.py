"""Where an image lies, so that two sources that hold the same file are known to, whatever they call it."""

from __future__ import annotations

import os
from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

from belvedere.data.sources.access import is_url
from belvedere.data.sources.folder import FolderSource
from belvedere.data.sources.indexed import IndexedSource
from belvedere.data.sources.listing import ListSource
from belvedere.data.sources.mixed import Mixed
from belvedere.data.sources.names import encode_path
from belvedere.data.sources.source import Selected, Source, subset


def places(source: Source, indices: NDArray[np.int64]) -> list[Hashable | None]:
    """For each image at `indices` what tells its place from all others; None where the source has no files.

    A file is told by its device and inode, which links share, a member of an archive or a row of a table by
    the index of the whole and its row there.
    """
    if isinstance(source, Selected):
        return places(source.parts[0], source.indices[indices])
    if isinstance(source, IndexedSource):
        return [source.place(int(index)) for index in indices]
    if isinstance(source, FolderSource | ListSource):
        root = source.root if isinstance(source, FolderSource) else source.folder
        return [_of_file(os.path.join(root, ""), source.key(int(index))) for index in indices]
    if isinstance(source, Mixed):
        found = []
        for index in indices:
            number, within = source.place(int(index))
            found += places(source.parts[number], np.array([within], dtype=np.int64))
        return found
    return [None] * len(indices)


def is_divided(source: Source) -> bool:
    """Whether the source has a training part and others, so that a split of it can be asked for."""
    if isinstance(source, Selected):
        return is_divided(source.parts[0])
    if isinstance(source, ListSource):
        return bool(source.index.meta.get("divided"))
    return isinstance(source, FolderSource | IndexedSource) and source.divided


def part_of(whole: Source, part: Source) -> Source:
    """The images of `whole`, with its labels, that are in `part`, a split of the same source."""
    keys = {part.key(index) for index in range(len(part))}
    return subset(whole, [index for index in range(len(whole)) if whole.key(index) in keys])


def _of_file(folder: str, key: str) -> Hashable | None:
    if is_url(key):
        return key
    try:
        status = os.stat(encode_path(os.path.join(folder, key)))
    except (OSError, ValueError):  # it cannot be read either, which is told of there
        return None
    return status.st_dev, status.st_ino

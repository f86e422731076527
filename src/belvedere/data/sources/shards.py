"""Images in tar files, WebDataset's shards or plain ones, read in place."""

from __future__ import annotations

import glob
import os
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from belvedere.core.counting import Counting
from belvedere.core.errors import DataError
from belvedere.data.sources.access import ReadError, Stretches, file_system, is_url, remote_version, size_of
from belvedere.data.sources.choice import IMAGE, listed
from belvedere.data.sources.index import Index, IndexWriter, open_index
from belvedere.data.sources.indexed import (
    LARGEST_BYTES,
    NUMBER,
    IndexedSource,
    numbered_classes,
    rows_of_split,
    value,
)
from belvedere.data.sources.layout import Layout, folder_of, layout_of, short_names
from belvedere.data.sources.left import Left
from belvedere.data.sources.members import SPARSE
from belvedere.data.sources.names import GrowingNames
from belvedere.data.sources.parts import part_of_file
from belvedere.data.sources.samples import Rows, Samples, Wanted, samples, settle, unread
from belvedere.data.sources.source import UNLABELLED

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_BESIDE = (".json", ".txt", ".md", ".yaml", ".tsv", ".idx")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_SHARDS = 1_000_000
_RULES = 3  # of what is taken from a tar file; an index of other rules is not used again
_KEPT_FROM = 1_000  # finding members reads every shard through


def is_tar_folder(folder: Path) -> bool:
    """Whether there are .tar files in the folder, and nothing else visible but what describes them."""
    found = False
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith((".tar", *COMPRESSED)):
                found = True
            elif not entry.name.startswith(".") and not entry.name.lower().endswith(_BESIDE):
                return False
    return found


def open_tar(
    path: str, split: str | None, *, label: str | None = None, image: str | None = None
) -> IndexedSource:
    """The images of tar files: one, a folder of them, a glob, or `data-{000000..000099}.tar`; also of a URL.

    Labels are those of the samples; where none has any, those of the folders in the tar files. label: the
    ending of the files beside the images that hold them, or a key of the `.json` ones. image: the ending of
    the images to take, where a sample has several. Parts are those of the shards' names
    (`train-000000.tar`), else of the folders in them. Raises DataError.
    """
    shards = _shards(path)
    identity = {
        "kind": "tar",
        "rules": _RULES,
        "shards": shards,
        "label": label,
        "image": image,
        "remote": [remote_version(each) for each in shards],
    }

    def build(writer: IndexWriter) -> None:
        for shard in shards:
            if not is_url(shard):
                writer.stamp(shard)
        _build(writer, shards, path, Wanted(label, image))

    try:
        index = open_index(identity, build, describe=path, kept_from=_KEPT_FROM)
    except OSError as error:
        raise DataError(f"{path} (data.path) cannot be read: {error}") from error
    named = [part_of_file(shard) for shard in shards]
    if split is not None and not index.meta["parts"] and any(named):
        others = [shard for shard, part in zip(shards, named, strict=True) if not part]
        raise DataError(
            f"data.split is {split!r}, but of the files of {path} (data.path) {len(others)} say no part by "
            f"their names, as the others do: {listed(others, 3)}; name the ones to take"
        )
    name = Path(shards[0]).stem if len(shards) == 1 else Path(path.rstrip("/")).stem
    return rows_of_split(name, index, TarReader(), split=split, where=path)


# --- which shards


def _shards(path: str) -> list[str]:
    """The tar files that a path names, absolute; raises DataError for none, missing or compressed ones."""
    remote = is_url(path)
    wanted = list(expanded(path if remote else str(Path(path).expanduser().absolute())))
    found: list[str] = []
    for each in wanted:
        found += _globbed(each) if glob.has_magic(each) else _listed(each)
    packed = [each for each in found if each.lower().endswith(COMPRESSED)]
    if packed:
        raise DataError(
            f"{packed[0]} (data.path) is compressed, so no image in it can be read without all before it; "
            f"decompress it (gunzip, bunzip2, unxz, unzstd): images hardly shrink anyway"
        )
    if not found:
        raise DataError(f"data.path is {path!r}, which names no .tar file")
    missing = [each for each in found if not remote and not Path(each).is_file()]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DataError(f"data.path is {path!r}; missing: {', '.join(missing[:5])}{more}")
    return found


def _globbed(pattern: str) -> list[str]:
    if not is_url(pattern):
        return sorted(glob.glob(pattern))
    system, inner = file_system(pattern)
    return sorted(system.unstrip_protocol(each) for each in system.glob(inner))


def _listed(path: str) -> list[str]:
    if is_url(path) or not Path(path).is_dir():
        return [path]
    return sorted(str(each) for each in Path(path).iterdir() if each.name.endswith((".tar", *COMPRESSED)))


def expanded(pattern: str) -> Iterator[str]:
    """What the braces of a shell stand for: `{00..12}` (zeros kept) and `{a,b}`, one after another.

    Raises DataError for too many.
    """
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    head, body, tail = pattern[: match.start()], match.group(1), pattern[match.end() :]
    span = _RANGE.fullmatch(body)
    if span is None:
        choices: Any = body.split(",")
    else:
        first, last = int(span.group(1)), int(span.group(2))
        if last - first >= _MOST_SHARDS:
            raise DataError(f"data.path names {last - first + 1} files: {pattern!r}")
        width = len(span.group(1)) if span.group(1).startswith("0") else 0
        choices = (f"{number:0{width}}" for number in range(first, last + 1))
    for choice in choices:
        yield from expanded(f"{head}{choice}{tail}")


# --- what is in them


class _Found:
    """The images of all shards in flat arrays, until all their labels and folders are known.

    shard, offset, size, folder: [N]; folder: numbers of `folders`.
    """

    def __init__(self) -> None:
        self.names = GrowingNames()
        self.shard, self.offset, self.size = array("q"), array("q"), array("q")
        self.folder = array("q")
        self.folders: dict[str, int] = {}
        self._labels: list[tuple[int, dict[str, Rows]]] = []

    def add(self, found: Samples, shard: int) -> None:
        for image in found.images:
            self.names.append(image.name)
            self.shard.append(shard)
            self.offset.append(image.offset)
            self.size.append(image.size)
            self.folder.append(self.folders.setdefault(folder_of(image.name), len(self.folders)))
        self._labels.append((len(found.images), found.labels))

    def __len__(self) -> int:
        return len(self.shard)

    def labels(self) -> dict[str, Rows]:
        """The labels of all images [N] by each meaning."""
        names = dict.fromkeys(name for _, labels in self._labels for name in labels)
        return {
            name: np.concatenate(
                [labels.get(name, np.full(count, -1, dtype=np.int64)) for count, labels in self._labels]
            )
            for name in names
        }


def _build(writer: IndexWriter, shards: list[str], where: str, wanted: Wanted) -> None:
    """Add the images of all shards, part by part."""
    found, left = _Found(), Left()
    names = short_names(shards, ".tar")
    with Counting(f"reading through {where}", unit="images") as counting:
        for number, shard in enumerate(shards):
            before = len(found)
            update = lambda count, before=before: counting.update(before + count)  # noqa: E731
            left.prefix = f"{names[number]}/" if len(shards) > 1 else ""
            found.add(samples(shard, wanted, left=left, found=update), number)
    if not len(found):
        raise DataError(_no_image(where, wanted))
    labels, told = settle(wanted, found.labels(), where=where)
    layout = layout_of(found.folders, where)
    for text in (told, layout.note, *left.told(), *unread(wanted, label=labels is not None)):
        if text is not None:
            writer.note(text)
    # by folder and by text; the last one is what -1 stands for
    of_folder = [layout.label(folder) for folder in found.folders]
    of_text: list[str | None] = [*wanted.texts, None]
    there = [] if labels is None else [text for number in np.unique(labels) if (text := of_text[number])]
    writer.meta = {
        "shards": shards,
        "sizes": [None if is_url(shard) else size_of(shard) for shard in shards],
        "classes": numbered_classes(there, where),
        "parts": {},
    }
    for part, rows in _by_part(found, shards, layout):
        first = writer.count
        for row in rows.tolist():
            label = of_folder[found.folder[row]] if labels is None else of_text[labels[row]]
            prefix = f"{names[found.shard[row]]}/" if len(shards) > 1 else ""
            _add(writer, found, row, name=prefix + found.names[row], label=label)
        if part:
            writer.meta["parts"][part] = [first, writer.count]


def _no_image(where: str, wanted: Wanted) -> str:
    if wanted.image is not None and wanted.image_endings:
        return (
            f"{where} (data.path) has no images called {wanted.image!r}, which {IMAGE} names; they end in "
            f"{listed(wanted.image_endings)}"
        )
    other = ", ".join(f"{count} .{ending}" for ending, count in wanted.endings.most_common(10))
    return f"{where} (data.path) holds no image file" + (f"; it holds {other}" if other else "")


def _by_part(found: _Found, shards: list[str], layout: Layout) -> Iterator[tuple[str, NDArray[np.intp]]]:
    """Each part with its rows: by the folders in the shards if these are divided, else by shards' names."""
    of_shard = [part_of_file(shard) for shard in shards]
    by_shard = not layout.parts and all(of_shard)
    parts = of_shard if by_shard else [layout.part(folder) for folder in found.folders]
    numbers = np.array(found.shard if by_shard else found.folder)
    for part in sorted(set(parts)):
        yield part, np.flatnonzero(np.array([each == part for each in parts])[numbers])


def _add(writer: IndexWriter, found: _Found, row: int, *, name: str, label: str | None) -> None:
    numbers = {}
    if writer.meta["classes"] is not None:
        numbers[NUMBER] = UNLABELLED if label is None else int(label)
        label = None if numbers[NUMBER] == UNLABELLED else label
    place = {"size": found.size[row], "offset": found.offset[row], "shard": found.shard[row]}
    writer.add(name, label=label, **place, **numbers)


class TarReader:
    """Reads members of shards by the places that an index knows."""

    def __init__(self) -> None:
        self._stretches = Stretches()

    def __call__(self, index: Index, row: int) -> bytes:
        size, offset = value(index, "size", row), value(index, "offset", row)
        if offset == SPARSE:
            raise ReadError("is stored as a sparse file, which is not read; pack it again without --sparse")
        if size > LARGEST_BYTES:
            raise ReadError(f"has {size} bytes, more than {LARGEST_BYTES}, refused")
        shard = value(index, "shard", row)
        total = index.meta["sizes"][shard]
        return self._stretches.read(index.meta["shards"][shard], offset, size, total=total)

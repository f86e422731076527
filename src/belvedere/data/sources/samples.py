"""The images of tar files with the labels that lie beside them.

A label belongs to the image of its own key (`scan_0.05.cls` to `scan_0.05.png`), wherever in the tar file it
stands; else to an image whose whole name is its key (`photo.jpg.json`), or to the images of its sample, whose
keys go on in words (`x.cls` to `x.left.png` and `x.right.png`; `x.meta.json` to `x.png`).
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from belvedere.core.errors import DataError
from belvedere.data.sources.choice import (
    LABEL,
    LABELS_ARE,
    NO_LABEL,
    NotAClassError,
    as_class,
    dug,
    listed,
    means_label,
    nested_names,
)
from belvedere.data.sources.left import Left
from belvedere.data.sources.members import Beside, Image, members, shorter_keys, split_name
from belvedere.data.sources.names import GrowingNames

CLS, JSON = "cls", "json"
_DEPTH = 2  # words at the end of a key that are looked behind
_MOST_MEANINGS = 16
_MOST_ENDINGS = 12
_MOST_KEYS = 200
_IN_JSON = "json:"

Rows = NDArray[np.int64]


class Wanted:
    """What is looked for beside the images, and what was found in all shards.

    texts: the numbers of all labels. endings, keys: how many files of each ending there are beside the
    images, and keys of JSON objects.
    """

    def __init__(self, label: str | None, image: str | None) -> None:
        self.label, self.image = label, image
        self.ending = None if label is None else label.removeprefix(".").lower()
        self.texts: dict[str, int] = {}
        self.endings: Counter[str] = Counter()
        self.image_endings: Counter[str] = Counter()
        self.keys: Counter[str] = Counter()
        self.bad: dict[str, tuple[int, str]] = {}
        self.meanings: set[str] = set()
        self.num_broken = 0

    def reads(self, ending: str) -> bool:
        """Whether files of this ending may say a label."""
        return ending == JSON or (means_label(ending) if self.ending is None else ending == self.ending)

    def said(self, name: str, content: bytes | None) -> dict[str, int]:
        """The number of the label that a file says, by each of its possible meanings."""
        ending = split_name(name)[1]
        self.endings[ending] += 1
        if not self.reads(ending):
            return {}
        if content is None:
            self.num_broken += 1
            return {}
        values: dict[str, Any] = {}
        if ending != JSON:
            values[f".{ending}"] = content
        else:
            try:
                values = self._in_json(json.loads(content))
            except (ValueError, RecursionError):
                self.num_broken += 1
        return self._numbered(name, values)

    def _in_json(self, content: Any) -> dict[str, Any]:
        if not isinstance(content, Mapping):
            return {f".{JSON}": content} if self.ending in (None, JSON) else {}
        if len(self.keys) < _MOST_KEYS:
            self.keys.update(nested_names(content))
        if self.label is None:
            could = {key: value for key, value in content.items() if means_label(key)}
            if len(self.meanings) < _MOST_MEANINGS:  # more than one is refused anyway
                self.meanings.update(could)
            return {key: value for key, value in could.items() if key in self.meanings}
        key = self.label.removeprefix(_IN_JSON)
        value = content[key] if key in content else dug(content, key.split("."))
        return {} if value is None or self.label.startswith(".") else {key: value}

    def _numbered(self, name: str, values: dict[str, Any]) -> dict[str, int]:
        numbers = {}
        for meaning, value in values.items():
            try:
                text = as_class(_one_line(value) if isinstance(value, bytes) else value)
            except NotAClassError as error:
                count, first = self.bad.get(meaning, (0, f"{name}: the label is {error}"))
                self.bad[meaning] = (count + 1, first)
                continue
            if text is not None:
                numbers[meaning] = self.texts.setdefault(text, len(self.texts))
        return numbers

    def beside(self) -> list[str]:
        """What could be chosen as the label: endings of files, and keys of JSON files."""
        return [f".{ending}" for ending in self.endings] + list(self.keys)


def _one_line(content: bytes) -> bytes:
    """The bytes of a file that holds a label alone. Raises NotAClassError."""
    if b"\0" in content:
        raise NotAClassError("no text: the file holds zero bytes")
    count = len(content.strip().splitlines())
    if count > 1:
        raise NotAClassError(f"a text of {count} lines")
    return content


class Samples:
    """The images that are taken of a tar file, and the label of each by each meaning (-1: none)."""

    def __init__(self, images: list[Image], labels: dict[str, Rows]) -> None:
        self.images, self.labels = images, labels


class _Files:
    """Files beside the images: the hashes of their keys, and what they say."""

    def __init__(self) -> None:
        self.keys, self.shorter = array("q"), array("q")
        self.labels: dict[str, array[int]] = {}
        self.says = array("B")
        self.names = GrowingNames()

    def add(self, name: str, numbers: dict[str, int]) -> None:
        key = split_name(name)[0]
        self.keys.append(hash(key))
        self.shorter.append(hash(next(shorter_keys(key), key)))
        self.says.append(bool(numbers))
        for meaning in numbers.keys() - self.labels.keys():
            self.labels[meaning] = array("q", [-1]) * (len(self.keys) - 1)
        for meaning, column in self.labels.items():
            column.append(numbers.get(meaning, -1))
        self.names.append(name)


def samples(path: str, wanted: Wanted, *, left: Left, found: Callable[[int], None]) -> Samples:
    """The images of a tar file (local path or URL) with their labels.

    left: told what was left out. found: told how many images there are so far. Raises DataError for a file
    that is compressed, cut short or no tar file.
    """
    images, files = _Images(), _Files()
    for member in members(path, read=wanted.reads, left=left):
        if isinstance(member, Beside):
            files.add(member.name, wanted.said(*member))
        else:
            images.add(member)
            wanted.image_endings[images.ending(-1)] += 1
            found(len(images))
    rows = np.flatnonzero(images.chosen(wanted.image, left) if wanted.image else images.own(files, left))
    images.tell_repeated(left)
    labels, used = images.labels(files)
    for row in np.flatnonzero(np.array(files.says, dtype=bool) & ~used).tolist():
        left.add("files of labels are those of no image", files.names[row])
    return Samples(
        [images[row] for row in rows.tolist()], {name: each[rows] for name, each in labels.items()}
    )


class _Images:
    """All images of a tar file, and the hashes of what their labels may be called.

    tried: their keys, their whole names, and their keys without words at the end.
    """

    def __init__(self) -> None:
        self._names = GrowingNames()
        self._places = array("q")
        self._tried = [array("q") for _ in range(2 + _DEPTH)]

    def add(self, image: Image) -> None:
        self._names.append(image.name)
        self._places.extend((image.offset, image.size))
        key = split_name(image.name)[0]
        names = [key, image.name, *shorter_keys(key)][: len(self._tried)]
        for column, name in zip(self._tried, [*names, *[key] * _DEPTH], strict=False):
            column.append(hash(name))

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, row: int) -> Image:
        return Image(self._names[row], self._places[2 * row], self._places[2 * row + 1])

    def ending(self, row: int) -> str:
        """An image's ending with the words of its key: `png`, `left.png`."""
        key, ending = split_name(self._names[row])
        least = min(shorter_keys(key), key=len, default=key)
        return f"{key[len(least) + 1 :]}.{ending}" if least != key else ending

    def chosen(self, image: str, left: Left) -> NDArray[np.bool_]:
        """Which images data.image names: `left`, `left.png` or `png`."""
        name = image.removeprefix(".").lower()
        endings = (self.ending(row).lower() for row in range(len(self)))
        fits = np.array([name in (ending, ending.rpartition(".")[0]) for ending in endings], dtype=bool)
        for row in np.flatnonzero(~fits).tolist():
            left.add("images were left out, which data.image does not name", self._names[row])
        return fits

    def tell_repeated(self, left: Left) -> None:
        """Name the images that have the whole name of one before them."""
        names = self._columns()[1]
        again = np.ones(len(self), dtype=bool)
        again[np.unique(names, return_index=True)[1]] = False
        for row in np.flatnonzero(again).tolist():
            left.add("images have the name of one before them, and are taken too", self._names[row])

    def own(self, files: _Files, left: Left) -> NDArray[np.bool_]:
        """Which images are no companions of another one in their sample (`x.seg.png` of `x.png`, `x.png` of
        `x.jpg`); only where there are other files of the sample."""
        key, *_ = self._columns()
        shorter = self._columns()[2:]
        beside = np.array(files.keys, dtype=np.int64)
        has_own = np.isin(key, beside)
        of_other = np.zeros(len(self), dtype=bool)
        for column in shorter:
            of_other |= (column != key) & np.isin(column, key) & np.isin(column, beside)
        second = np.ones(len(self), dtype=bool)
        second[np.unique(key, return_index=True)[1]] = False
        companion = (of_other & ~has_own) | (second & has_own)
        for row in np.flatnonzero(companion).tolist():
            left.add(
                "images were left out, which stand beside the image of their sample (data.image chooses)",
                self._names[row],
            )
        return ~companion

    def labels(self, files: _Files) -> tuple[dict[str, Rows], NDArray[np.bool_]]:
        """The label of each image by each meaning, and which files were used for one."""
        columns = self._columns()
        keys, shorter = np.array(files.keys, dtype=np.int64), np.array(files.shorter, dtype=np.int64)
        used = np.zeros(len(keys), dtype=bool)
        labels = {name: np.full(len(self), -1, dtype=np.int64) for name in files.labels}
        for sought, offered in (*((column, keys) for column in columns), (columns[0], shorter)):
            idle = ~used  # what is the label of `x.left.png` is none of `x.png`
            for name, column in files.labels.items():
                said = np.array(column, dtype=np.int64)
                rows = _matches(sought, offered, (said >= 0) & (idle | (offered is keys)))
                taken = (rows >= 0) & (labels[name] < 0)
                labels[name][taken] = said[rows[taken]]
                used[rows[taken]] = True
        return labels, used

    def _columns(self) -> list[Rows]:
        return [np.array(column, dtype=np.int64) for column in self._tried]


def _matches(sought: Rows, keys: Rows, counts: NDArray[np.bool_]) -> Rows:
    """For each number that is sought the last row of `keys` that has it, of the rows that count; -1: none."""
    rows = np.flatnonzero(counts)
    if not len(rows):
        return np.full(len(sought), -1, dtype=np.int64)
    order = np.argsort(keys[rows], kind="stable")
    ordered = keys[rows][order]
    at = np.searchsorted(ordered, sought, side="right") - 1
    found = (at >= 0) & (ordered[at] == sought)
    return np.where(found, rows[order[at]], -1)


def settle(wanted: Wanted, columns: dict[str, Rows], *, where: str) -> tuple[Rows | None, str | None]:
    """The label of each image [N], by the one meaning there is or that was chosen, and what to say of it.

    columns: the labels by each meaning [N]; one that says the same as another wherever both say something is
    the same, and so is a key of .json files that stand beside other images than the .cls files. Raises
    DataError for several, and for a chosen one that is not there.
    """
    there = {name: column for name, column in columns.items() if (column >= 0).any()}
    merged: dict[str, Rows] = {}
    kinds: dict[str, list[str]] = {}
    for name in sorted(there, key=lambda name: (name != f".{CLS}", name != "label", name)):
        apart = list(merged) == [f".{CLS}"] and len(kinds[f".{CLS}"]) == 1
        same = next((each for each in merged if _agree(merged[each], there[name], apart=apart)), None)
        kinds.setdefault(same or name, []).append(name)
        if same is None:
            merged[name] = there[name]
        else:
            merged[same] = np.where(merged[same] >= 0, merged[same], there[name])
    if len(merged) > 1:
        raise DataError(_several(wanted, list(merged), where))
    if wanted.label is not None and (not merged or wanted.bad):
        raise DataError(_not_there(wanted, where))
    if merged:
        ((name, labels),) = merged.items()
        plain = set(kinds[name]) <= {f".{CLS}", "label"}
        return labels, None if plain else f"{LABELS_ARE} {' and '.join(map(_meaning, kinds[name]))}"
    if wanted.endings:
        return None, _nothing(wanted)
    return None, None


def _agree(first: Rows, second: Rows, *, apart: bool) -> bool:
    """Whether two meanings say the same; apart: also where no image has both."""
    both = (first >= 0) & (second >= 0)
    return bool((first[both] == second[both]).all()) and (apart or bool(both.any()))


def _meaning(name: str) -> str:
    return f"the {name} files" if name.startswith(".") else f"the key {name!r} of the .json files"


def _several(wanted: Wanted, names: list[str], where: str) -> str:
    kinds = " and ".join(map(_meaning, names))
    if wanted.label is not None:
        return (
            f"{where} (data.path): {LABEL} is {wanted.label!r}, which is {kinds}; write .{wanted.ending} or "
            f"{_IN_JSON}{wanted.label}"
        )
    return (
        f"{where} (data.path) has several labels for an image: {kinds} differ; choose one by {LABEL}, such "
        f"as data.label={names[0]}"
    )


def _not_there(wanted: Wanted, where: str) -> str:
    bad = next(iter(wanted.bad.values()), None)
    if bad is not None:
        return (
            f"{where} (data.path): {LABEL} is {wanted.label!r}, but {bad[0]} of its labels are no classes; "
            f"{bad[1]}"
        )
    return (
        f"{where} (data.path) has no labels called {wanted.label!r}, which {LABEL} names; beside the images "
        f"there are {_there(wanted)}"
    )


def _nothing(wanted: Wanted) -> str:
    return f"{NO_LABEL}; beside the images there are {_there(wanted)}, and {LABEL} chooses one"


def _there(wanted: Wanted) -> str:
    endings = (
        ", ".join(f"{count} .{ending}" for ending, count in wanted.endings.most_common(_MOST_ENDINGS))
        or "no files"
    )
    return endings + (f" with the keys {listed(wanted.keys)}" if wanted.keys else "")


def unread(wanted: Wanted, *, label: bool) -> Iterator[str]:
    """What to say of the files beside the images that gave no label."""
    if wanted.num_broken:
        kinds = " or ".join(f".{ending}" for ending in sorted(wanted.endings) if wanted.reads(ending))
        yield f"{wanted.num_broken} {kinds} files could not be read; their images have no label from them"
    for meaning, (count, first) in wanted.bad.items():
        yield f"{count} labels in {_meaning(meaning)} are no classes and were left out; {first}"
    other = {ending: count for ending, count in wanted.endings.items() if not wanted.reads(ending)}
    if label and other:
        told = ", ".join(f"{count} .{ending}" for ending, count in list(other.items())[:_MOST_ENDINGS])
        more = ", ..." if len(other) > _MOST_ENDINGS else ""
        yield f"files beside the images that were not used: {told}{more}"


__all__ = ["Samples", "Wanted", "samples", "settle", "unread"]

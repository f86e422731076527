"""The parts of a divided data set: one table of their names, for folders, archives, lists and files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import PurePosixPath

from belvedere.core.errors import DataError, UndividedError

TRAIN, VAL, TEST = "train", "val", "test"
HELD_OUT = (TEST, VAL)
"""What `split: test` is: the first of them that is there."""
NAMES = {
    TRAIN: ("train", "training", "trn", "trainval"),
    VAL: ("val", "valid", "validation", "validate", "dev", "devel", "development", "eval", "evaluation"),
    TEST: ("test", "testing", "tst", "heldout", "held-out", "held_out", "holdout", "hold-out", "hold_out"),
}
"""In any case; `train_set`, `test images` and `val2017` are the same parts."""
_ANY = "|".join(
    f"(?P<{part}>{'|'.join(sorted(map(re.escape, names), key=len, reverse=True))})"
    for part, names in NAMES.items()
)
_NAME = re.compile(
    rf"(?:{_ANY})(?:[-_. ]?(?:set|split|data|dataset|images?|imgs?))?(?:[-_ ]?\d{{4}})?", re.IGNORECASE
)
_WITHIN = re.compile(
    rf"(?P<before>.*[-_. ])?(?:{_ANY})(?:set|split|data|dataset)?(?P<behind>(?:[-_. 0-9].*)?)", re.IGNORECASE
)
_COUNTS_NOTHING = re.compile(r"[-_. 0-9]+")
_FILE = re.compile(rf"(?:.*[-_. ])?(?:{_ANY})(?:(?:[-_. 0-9]|(?:set|split|data)(?![a-z])).*)?", re.IGNORECASE)
_LISTED = 5


@lru_cache(maxsize=4096)
def part_named(name: str) -> str:
    """The part (train, val, test) that a folder, a column's value or a split of this name is; empty for
    none."""
    match = _NAME.fullmatch(name.strip())
    return "" if match is None else _part(match)


def part_of_file(path: str) -> str:
    """The part that a file holds by its name (`train-00000-of-00004.parquet`) or else its folder's
    (`test/0000.parquet`): train, test or val; empty when neither says so."""
    file = PurePosixPath(path)
    match = _FILE.fullmatch(file.stem)
    return part_named(file.parent.name) if match is None else _part(match)


def _part(match: re.Match[str]) -> str:
    return next(part for part in NAMES if match.group(part) is not None)


def parts_among(names: Iterable[str]) -> dict[str, str]:
    """The part of each folder, of those that stand beside each other, that is called one.

    Called alone (`train`), or with the same words around different parts (`seg_train` and `seg_test`,
    `train-jpg` and `test-jpg`, `train` and `test1`), or where all end in one (`public_test`, `training`).
    """
    every = [name for name in dict.fromkeys(names) if name]
    alone = {name: part_named(name) for name in every if part_named(name)}
    within = {name: match for name in every if (match := _WITHIN.fullmatch(name.strip()))}
    around: dict[tuple[str, ...], set[str]] = {}
    for match in within.values():
        around.setdefault(_around(match), set()).add(_part(match))
    parts = {name: _part(match) for name, match in within.items()}
    ends = [name for name, match in within.items() if not _around(match)[1]]
    if len({*ends, *alone}) == len(every) and len({*parts.values(), *alone.values()}) > 1:
        return {name: alone.get(name) or parts[name] for name in every}
    paired = {name: parts[name] for name, match in within.items() if len(around[_around(match)]) > 1}
    named = {**paired, **alone}
    return {name: named[name] for name in every if name in named}


def several_end_in_parts(names: Iterable[str]) -> bool:
    """Whether names of two different parts at least end in one: all but these may hold no images."""
    matches = [match for name in names if (match := _WITHIN.fullmatch(name.strip()))]
    return len({_part(match) for match in matches if not _around(match)[1]}) > 1


def _around(match: re.Match[str]) -> tuple[str, str]:
    """The words before and behind the part's own in a name, without numbers."""
    before, behind = ((match.group(side) or "").lower() for side in ("before", "behind"))
    return _COUNTS_NOTHING.sub(" ", before).strip(), _COUNTS_NOTHING.sub(" ", behind).strip()


def parts_of(folders: Iterable[str], where: str, *, packed: bool = False) -> dict[str, str]:
    """The part of each of the folders that all images lie in ({} when they are classes).

    They are parts when each of them is called one, and there are at least two. `folders` has an empty string
    where images lie beside them; packed: they are in an archive. Raises DataError where some are parts and
    some are none, and neither reading is likelier: two different parts beside other folders. One folder of
    such a name among others is a class (`train` among vehicles).
    """
    names = sorted(set(folders))
    named = parts_among(names)
    others = [name for name in names if name not in named]
    if not others:
        return named if len(named) > 1 else {}
    if len(set(named.values())) < 2:
        return {}
    beside = ", ".join(f"{name}/" if name else "images of no folder" for name in others[:_LISTED])
    more = f" and {len(others) - _LISTED} more" if len(others) > _LISTED else ""
    first = sorted(named, key=lambda name: (named[name] != TRAIN, name))[0]
    give = f"give one of them (data.path={where.rstrip('/')}/{first}) or move the others away"
    if packed:
        give = f"pack or unpack them without the others (or give {first}/ alone)"
    raise DataError(
        f"{where} (data.path) can be read in two ways: {', '.join(f'{name}/' for name in named)} may be the "
        f"parts of a divided data set, or classes beside {beside}{more}. For parts, {give}; for classes, "
        f"give a list of the files with their labels (a .csv of file,label)"
    )


def class_like_part(folders: Iterable[str]) -> str | None:
    """What to say where one folder among classes is called as a part is."""
    names = sorted(name for name in folders if name)
    named = [name for name in names if part_named(name)]
    if not named or len(names) < 2:
        return None
    listed = ", ".join(f"{name}/" for name in named)
    return f"{listed} is taken for a class, as it stands among other folders"


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

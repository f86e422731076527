"""The images that a run began with, kept beside its checkpoints.

The order of an epoch depends on how many images there are and on their order. A file that vanishes would
change both for whoever looks again; a run that continues goes by its own record, and finds the file
unreadable.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from belvedere.data.sources.folder import FolderSource
from belvedere.data.sources.index import Index
from belvedere.data.sources.index_file import DamagedFileError
from belvedere.data.sources.mixed import Mixed
from belvedere.data.sources.ranged import with_range
from belvedere.data.sources.source import Source, value_range_of
from belvedere.engine.manifest import checkpoints

ROSTER_NAME = "images.index"
_LISTED = 5


def keep_roster(source: Source, directory: Path, *, anew: bool) -> None:
    """Write down the images of a run, where they are files of folders and that is not done already.

    anew: the run begins now, and what an earlier attempt left there does not count.
    """
    for number, part in enumerate(_parts(source)):
        path = _place(directory, number)
        if not isinstance(part, FolderSource):
            path.unlink(missing_ok=True)
        elif anew or not path.exists():
            part.index.write(path)


def as_begun(source: Source, directory: Path) -> tuple[Source, list[str]]:
    """The images as the run in `directory` began with them, and what to tell.

    Another source than the one given only where files have vanished since and nothing else has changed. Any
    other difference is for the checkpoint to refuse.
    """
    if not checkpoints(directory):
        return source, []
    told: list[str] = []
    parts = [_part_as_begun(part, _place(directory, at), told) for at, part in enumerate(_parts(source))]
    begun = Mixed(parts, source.weights) if isinstance(source, Mixed) else parts[0]
    return with_range(begun, value_range_of(source)), told


def changes(source: Source, directory: Path, *, num_then: int | None) -> str:
    """In what the images differ from those that the run in `directory` began with, with counts; by name
    where their list is kept there. num_then: how many they were, if that is known."""
    counts = (
        f"there are {len(source):,} now" if num_then is None else f"{num_then:,} then, {len(source):,} now"
    )
    told: dict[str, list[str]] = {"new": [], "gone": [], "of another size or label": []}
    known = False
    for at, part in enumerate(_parts(source)):
        path = _place(directory, at)
        if not isinstance(part, FolderSource) or not path.exists():
            continue
        try:
            begun = Index.read(path)
        except (DamagedFileError, OSError):
            continue
        known = True
        then, now = _by_name(begun), _by_name(part.index)
        told["new"] += [name for name in now if name not in then]
        told["gone"] += [name for name in then if name not in now]
        told["of another size or label"] += [
            name for name, what in now.items() if name in then and then[name] != what
        ]
    if not known or not any(told.values()):
        return f"{counts} (names, sizes or labels changed)"
    return "; ".join(
        [counts, *(f"{len(names):,} {what}: {_some(names)}" for what, names in told.items() if names)]
    )


def _by_name(index: Index) -> dict[str, tuple[int, str | None]]:
    return {name: (size, label) for name, size, label in _entries(index)}


def _some(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _parts(source: Source) -> tuple[Source, ...]:
    return source.parts if isinstance(source, Mixed) else (source,)


def is_roster(name: str) -> bool:
    """Whether a file of this name in a run's directory is such a record."""
    return name.startswith("images.") and name.endswith(".index")


def _place(directory: Path, number: int) -> Path:
    return directory / (f"images.{number}.index" if number else ROSTER_NAME)


def _part_as_begun(source: Source, path: Path, told: list[str]) -> Source:
    if not isinstance(source, FolderSource) or not path.exists():
        return source
    try:
        begun = Index.read(path)
    except (DamagedFileError, OSError) as error:
        told.append(f"{path} cannot be read ({error}); it is needed only where images have vanished")
        return source
    if begun.fingerprint != source.fingerprint() and _same_files(begun, source.index):
        told.append(
            "the folders are read as other classes than when the run began (docs/data.md); the run goes on "
            "with the labels it began with, which training does not use"
        )
        return FolderSource(source.root, begun)
    gone = _gone(begun, source.index) if begun.fingerprint != source.fingerprint() else []
    if not gone:
        return source
    told.append(
        f"{len(gone)} of the {len(begun)} images that the run began with are gone; others stand in for them: "
        f"{_some(gone)}"
    )
    return FolderSource(source.root, begun)


def _same_files(begun: Index, now: Index) -> bool:
    """Whether names and sizes are the same, whatever the labels are."""
    if len(begun) != len(now) or (begun.columns["size"] != now.columns["size"]).any():
        return False
    return all(one == other for one, other in zip(begun.names, now.names, strict=True))


def _gone(begun: Index, now: Index) -> list[str]:
    """The names that only `begun` has; none when `now` differs in any other way."""
    gone: list[str] = []
    left = _entries(begun)
    for entry in _entries(now):
        for known in left:
            if known == entry:
                break
            gone.append(known[0])
        else:
            return []
    return gone + [name for name, _, _ in left]


def _entries(index: Index) -> Iterator[tuple[str, int, str | None]]:
    """Name, size and class of each image."""
    sizes = index.columns["size"].tolist()
    for name, size, label in zip(index.names, sizes, index.labels.tolist(), strict=True):
        yield name, size, None if label < 0 else index.classes[label]

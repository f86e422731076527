"""Which image of a source a name in a list means: all candidates, so that none is taken in silence."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from belvedere.data.sources.access import is_url
from belvedere.data.sources.folder import FolderSource
from belvedere.data.sources.listing import ListSource
from belvedere.data.sources.source import Selected, Source


def root_of(source: Source) -> Path | None:
    """The local folder that a source's names start from; None for archives, arrays and tables."""
    if isinstance(source, Selected):
        return root_of(source.parts[0])
    if isinstance(source, FolderSource):
        return source.root
    return source.folder if isinstance(source, ListSource) else None


def look_up(source: Source, names: Sequence[str], *, folder: Path) -> list[list[int]]:
    """For each name the images that it can mean: none, one, or several.

    A name is first taken as a whole key of the source; then as a path, absolute or from the working directory
    or from `folder`, where the list lies; then as the end of a key (`cat/1.png` or `1.png` of
    `photos/cat/1.png`). Each as it is written, then without spaces at its ends, then with `\\` as `/`, then
    with letters and accents joined or not.
    """
    spelt = [_spellings(name) for name in names]
    wanted = {_last(form) for forms in spelt for form in forms}
    keys: dict[str, list[int]] = defaultdict(list)
    named: dict[str, list[str]] = defaultdict(list)
    for index in range(len(source)):
        key = source.key(index)
        last = _last(key)
        if last in wanted:
            if key not in keys:
                named[last].append(key)
            keys[key].append(index)
    root = root_of(source)
    starts = (
        [] if root is None else [os.path.join(os.path.abspath(folder), ""), os.path.join(os.getcwd(), "")]
    )
    roots = [] if root is None else [os.path.abspath(root), os.path.realpath(root)]
    found = []
    for forms in spelt:
        meant = next((keys_ for form in forms if (keys_ := _meant(form, named, starts, roots))), [])
        found.append([index for key in meant for index in keys[key]])
    return found


def _spellings(name: str) -> list[str]:
    stripped = name.strip()
    plain = stripped if is_url(stripped) else str(PurePosixPath(stripped))
    forms = [name, stripped, plain, str(PurePosixPath(stripped.replace("\\", "/")))]
    return list(dict.fromkeys(forms))


def _meant(form: str, named: dict[str, list[str]], starts: list[str], roots: list[str]) -> list[str]:
    """The keys that a spelling means, by the first rule that finds any."""
    candidates = named.get(_last(form), [])
    if not candidates:
        return []
    joined = _joined(form)
    paths = {os.path.normpath(os.path.join(start, form)) for start in starts}
    paths |= {os.path.join(_real(os.path.dirname(path)), os.path.basename(path)) for path in paths}
    rules = (
        lambda key: key == form,
        lambda key: any(os.path.join(root, key) in paths for root in roots),
        lambda key: key.endswith(f"/{form}"),
        lambda key: f"/{_joined(key)}".endswith(f"/{joined}"),
    )
    return next((meant for rule in rules if (meant := [key for key in candidates if rule(key)])), [])


def _real(folder: str) -> str:
    """Without links; as it is where the system can have no such name (a zero byte, a character it lacks)."""
    try:
        return os.path.realpath(folder)
    except ValueError:
        return folder


def _last(name: str) -> str:
    return _joined(name.rpartition("/")[2])


def _joined(name: str) -> str:
    """Letters with their accents as one character each: file systems and spreadsheets differ in that."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)

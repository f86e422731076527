"""Images that are trained on and scored as well, which makes a score worthless.

They are found in two ways: by where they lie (links and the same file under another path, before anything is
computed), and by what the network is given (copies under other names, in other containers or other lossless
formats, while features are computed). Near copies are `belvedere data check`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from belvedere.core.errors import EvaluationError
from belvedere.data.duplicates import first_equal, where_equal
from belvedere.data.sources.places import places
from belvedere.data.sources.source import UNLABELLED, Source, subset
from belvedere.eval.labelled import Labelled

COMPARED = "where files lie, and the pixels that the network is given (of one-coloured images: their bytes)"
_NAMED = 3

Rows = NDArray[np.int64]


class Overlap(NamedTuple):
    """train, scored: images of the two sources, [T] and [S]; pairs: the first few, (scored, trained on)."""

    train: Rows
    scored: Rows
    pairs: Sequence[tuple[str, str]]


def same_places(train: Source, scored: Source) -> Overlap:
    """The labelled images that both sources take from the same places."""
    mine, theirs = (np.flatnonzero(source.labels != UNLABELLED) for source in (train, scored))
    taken = places(train, mine)
    first = {place: int(i) for i, place in zip(mine, taken, strict=True) if place is not None}
    found = [
        (int(i), place) for i, place in zip(theirs, places(scored, theirs), strict=True) if place in first
    ]
    shared = {place for _, place in found}
    rows = [int(i) for i, place in zip(mine, taken, strict=True) if place in shared]
    pairs = [(scored.key(i), train.key(first[place])) for i, place in found[:_NAMED]]
    return Overlap(np.array(rows, dtype=np.int64), np.array([i for i, _ in found], dtype=np.int64), pairs)


def same_content(train: tuple[Source, Labelled], scored: tuple[Source, Labelled]) -> Overlap:
    """The labelled images of two sources that are copies of each other."""
    (source, mine), (other, theirs) = train, scored
    match = where_equal(theirs.content, mine.content)
    at = np.flatnonzero(match >= 0)
    pairs = [(other.key(int(theirs.index[i])), source.key(int(mine.index[match[i]]))) for i in at[:_NAMED]]
    copied = where_equal(mine.content, theirs.content) >= 0
    return Overlap(mine.index[copied], theirs.index[at], pairs)


def refuse(overlap: Overlap, train: Source, scored: Source, *, scored_name: str) -> None:
    """Raise EvaluationError unless the overlap is empty."""
    if not len(overlap.scored):
        return
    num_train, num_scored = (int((source.labels != UNLABELLED).sum()) for source in (train, scored))
    named = ", ".join(a if a == b else f"{a} (trained on as {b})" for a, b in overlap.pairs)
    more = len(overlap.scored) - len(overlap.pairs)
    raise EvaluationError(
        f"{len(overlap.scored)} of the {num_scored} images to score ({scored_name}) are also among the "
        f"{num_train} that are trained on: {named}{f' and {more} more' if more else ''}. Compared: {COMPARED}"
        f". Remove them from one of the two, choose other parts (--split, --val-split), or give "
        f"--leave-out-copies, which trains without them"
    )


def without(source: Source, rows: Rows) -> Source:
    """The source without these images. Raises EvaluationError where no labelled one is left."""
    kept = np.setdiff1d(np.arange(len(source), dtype=np.int64), rows)
    rest = subset(source, kept)
    if not (rest.labels != UNLABELLED).any():
        raise EvaluationError(
            f"every labelled image of {source.name!r} (--data) is also scored (--val), so that "
            f"--leave-out-copies leaves none to train on; give other images"
        )
    return rest


def repeats(found: Labelled) -> Rows:
    """The rows [R] that are copies of an earlier one."""
    return np.flatnonzero(first_equal(found.content) != np.arange(len(found.content)))


def copies_report(found: Labelled) -> dict[str, Any]:
    """images: how many have a copy in the same data; groups: of how many images; conflicting_groups: those
    whose images do not have one label."""
    if not len(found.content):
        return {"images": 0, "groups": 0, "conflicting_groups": 0}
    first = first_equal(found.content)
    sizes = np.bincount(first, minlength=len(first))
    kinds = np.unique(np.stack([first, found.labels]), axis=1)[0]  # each group once for each of its labels
    return {
        "images": int(sizes[sizes > 1].sum()),
        "groups": int((sizes > 1).sum()),
        "conflicting_groups": int((np.bincount(kinds, minlength=1) > 1).sum()),
    }


def num_copies(scored: NDArray[np.uint64], trained: NDArray[np.uint64]) -> int:
    """How many of these contents [N, 2] are among the others [M, 2]."""
    return int((where_equal(scored, trained) >= 0).sum()) if len(scored) else 0

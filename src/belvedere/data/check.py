"""What a survey shows about a source, and what two sources share: plain values, for JSON and for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from belvedere.data.duplicates import (
    MIN_SIDE_PX,
    NEAR,
    NEAR_SMALL,
    SMALL_PX,
    Ints,
    detailed,
    first_equal,
    groups_of_pairs,
    where_equal,
)
from belvedere.data.neighbours import Pictures, alike, near_between, near_within
from belvedere.data.sources.remarks import remarks
from belvedere.data.sources.source import UNLABELLED, value_range_of
from belvedere.data.survey import HASH, Depth, Survey

VIEW_PX = 224
_LITTLE = 0.5  # of the values that a type can hold: half of it is one bit lost of eight
_EXACT, _NEAR, _NEAR_MIRRORED = "equal", "near", "near, mirrored"

Progress = Callable[[int, int], None]


class Copies(NamedTuple):
    """The first image of each image's group [N], by equal bytes, by equal pixels, and by near copies too."""

    stored: Ints
    equal: Ints
    near: Ints


def overview(survey: Survey) -> dict[str, Any]:
    """Counts, sizes, formats, kinds, labels and unreadable images."""
    rows, readable = survey.rows, survey.readable
    num, num_readable = len(survey), int(readable.sum())
    report: dict[str, Any] = {
        "source": survey.source.name,
        "fingerprint": survey.source.fingerprint(),
        "images_in_source": len(survey.source),
        "images": num,
        "readable": num_readable,
        "unreadable": {survey.key(at): reason for at, reason in sorted(survey.reasons.items())},
        "skipped_folders": list(getattr(survey.source, "skipped", ())),
        "remarks": remarks(survey.source),
        "formats": _counted(rows["format"][readable], survey.formats),
        "kinds": _counted(rows["kind"][readable], survey.kinds),
        "values": {kind: _depth(depth) for kind, depth in sorted(survey.depths.items())},
        "range": value_range_of(survey.source),
        "bytes": int(rows["bytes"].sum()),
        "labels": _labels(survey),
        "seconds": round(survey.elapsed_s, 3),
        "decode_seconds": round(survey.decode_s, 3),
    }
    if num_readable:
        report["sizes"] = _sizes(survey)
    return report


def _counted(codes: NDArray[Any], names: Sequence[str]) -> dict[str, int]:
    counts = np.bincount(codes, minlength=len(names))
    named = {name: int(count) for name, count in zip(names, counts, strict=True) if count}
    return dict(sorted(named.items(), key=lambda item: (-item[1], item[0])))


def _depth(depth: Depth) -> dict[str, Any]:
    """What images of more than eight bits hold, and what `data.range` would make more of it."""
    report: dict[str, Any] = {
        "images": depth.images,
        "low": depth.low,
        "high": depth.high,
        "middle": list(depth.middle),
        "pixels_without_a_value": depth.missing,
        "images_with_such_pixels": depth.with_missing,
    }
    span, middle = depth.high - depth.low, depth.middle[1] - depth.middle[0]
    if depth.least is not None and depth.most is not None:
        whole = depth.most - depth.least if depth.low < 0 else depth.most
        report["share_of_range"] = round(span / whole, 6)
        if span <= _LITTLE * whole:
            report["suggested_range"] = [depth.low, depth.high]
    if middle > 0 and middle <= _LITTLE * span:
        report["suggested_range"] = list(depth.middle)
    return report


def _sizes(survey: Survey) -> dict[str, Any]:
    """Pixels: the extremes with their keys, medians, and how many are smaller than a usual view."""
    at = np.flatnonzero(survey.readable)
    height, width = (survey.rows[side][at].astype(np.int64) for side in ("height", "width"))
    area, aspect, short = height * width, width / height, np.minimum(height, width)

    def named(place: np.intp) -> dict[str, Any]:
        return {"key": survey.key(int(at[place])), "width": int(width[place]), "height": int(height[place])}

    return {
        "median_width": float(np.median(width)),
        "median_height": float(np.median(height)),
        "smallest": named(area.argmin()),
        "largest": named(area.argmax()),
        "tallest": named(aspect.argmin()),
        "widest": named(aspect.argmax()),
        "view_px": VIEW_PX,
        "below_view": int((short < VIEW_PX).sum()),
        "megapixels": round(float(area.sum()) / 1e6, 3),
    }


def _labels(survey: Survey) -> dict[str, Any]:
    labels = survey.source.labels[survey.indices]
    labelled = labels[labels != UNLABELLED]
    counts = np.bincount(labelled, minlength=len(survey.source.classes))
    report: dict[str, Any] = {
        "classes": len(survey.source.classes),
        "labelled": len(labelled),
        "unlabelled": len(labels) - len(labelled),
    }
    if len(counts):
        report["images_per_class"] = {
            "min": int(counts.min()),
            "median": float(np.median(counts)),
            "max": int(counts.max()),
        }
        report["counts"] = {
            name: int(count) for name, count in zip(survey.source.classes, counts, strict=True)
        }
    return report


def comparable(survey: Survey) -> NDArray[np.bool_]:
    """Which images [N] can be compared for near copies: readable, not tiny, not flat."""
    rows = survey.rows
    if survey.thumbs is None:
        return np.zeros(len(survey), dtype=np.bool_)
    large = np.minimum(rows["height"], rows["width"]) >= MIN_SIDE_PX
    return np.asarray(survey.readable & large & detailed(survey.thumbs))


def _pictures(survey: Survey, which: NDArray[np.bool_]) -> Pictures:
    assert survey.thumbs is not None
    rows = survey.rows
    small = np.minimum(rows["height"], rows["width"]) < SMALL_PX
    return Pictures(survey.thumbs, rows["color"], small, np.flatnonzero(which))


def find_copies(survey: Survey, *, progress: Progress) -> Copies:
    """Groups of copies within one source."""
    itself = np.arange(len(survey), dtype=np.int64)
    readable = np.flatnonzero(survey.readable)
    stored, equal = itself.copy(), itself.copy()
    stored[readable] = readable[first_equal(survey.rows["stored"][readable])]
    equal[readable] = readable[first_equal(survey.rows["pixels"][readable])]
    if survey.thumbs is None:
        return Copies(stored, equal, equal)
    pictures = _pictures(survey, comparable(survey) & (equal == itself))
    pairs = near_within(pictures, progress=progress)
    near = groups_of_pairs(
        pairs.first,
        pairs.second,
        total=len(survey),
        alike=lambda one, two: alike(pictures, one, two),
    )
    return Copies(stored, equal, near[equal])


def duplicates(survey: Survey, copies: Copies) -> dict[str, Any]:
    """Groups of equal and of near images, the largest first, with the labels of their members."""
    report: dict[str, Any] = {
        "hash": f"{HASH}, over stored bytes and over height, width and RGB pixels",
        "equal_stored": int((copies.stored != np.arange(len(survey))).sum()),
        "equal": _groups(survey, copies.equal),
    }
    if survey.thumbs is not None:
        tried = comparable(survey)
        found = _groups(survey, copies.near, exact=copies.equal)
        report["near"] = {
            "threshold": NEAR,
            "threshold_below_64_px": NEAR_SMALL,
            "compared": int(tried.sum()),
            "not_compared": int((survey.readable & ~tried).sum()),
            **found,
        }
    return report


def _groups(survey: Survey, first: Ints, *, exact: Ints | None = None) -> dict[str, Any]:
    """The groups of `first` [N]; with `exact`, only those that hold more than equal images."""
    extra = np.flatnonzero(first != np.arange(len(first)))
    order = extra[np.argsort(first[extra], kind="stable")]
    leaders, starts = np.unique(first[order], return_index=True)
    labels, groups = survey.source.labels[survey.indices], []
    for leader, members in zip(leaders, np.split(order, starts[1:]), strict=False):
        if exact is not None and bool((exact[members] == leader).all()):
            continue
        whole = np.concatenate([[leader], members])
        named = sorted({int(label) for label in labels[whole]} - {UNLABELLED})
        groups.append((whole, [survey.source.classes[label] for label in named]))
    groups.sort(key=lambda group: (-len(group[0]), int(group[0][0])))
    conflicts = [group for group in groups if len(group[1]) > 1]
    return {
        "groups": len(groups),
        "surplus": sum(len(whole) - 1 for whole, _ in groups),
        "label_conflicts": len(conflicts),
        "list": [{"keys": [survey.key(int(at)) for at in whole], "labels": names} for whole, names in groups],
    }


def leakage(source: Survey, other: Survey, *, progress: Progress) -> dict[str, Any]:
    """Images of `other` that `source` holds too, each with the image that matches it best."""
    num = len(other)
    match = np.full(num, -1, dtype=np.int64)
    kind = np.zeros(num, dtype=np.int8)
    score = np.ones(num, dtype=np.float32)
    at, known = np.flatnonzero(other.readable), np.flatnonzero(source.readable)
    place = where_equal(other.rows["pixels"][at], source.rows["pixels"][known])
    match[at[place >= 0]] = known[place[place >= 0]]
    if source.thumbs is not None and other.thumbs is not None:
        asked = _pictures(other, comparable(other) & (match < 0))
        pairs = near_between(asked, _pictures(source, comparable(source)), progress=progress)
        best = np.lexsort((pairs.second, -pairs.score, pairs.first))
        rows, first = np.unique(pairs.first[best], return_index=True)
        chosen = best[first]
        match[rows], score[rows] = pairs.second[chosen], pairs.score[chosen]
        kind[rows] = np.where(pairs.mirrored[chosen], 2, 1)
    leaked = np.flatnonzero(match >= 0)
    names = (_EXACT, _NEAR, _NEAR_MIRRORED)
    return {
        "source": source.source.name,
        "other": other.source.name,
        "same_source": _is_same(source, other),
        "source_complete": source.complete,
        "other_complete": other.complete,
        "compared_near": source.thumbs is not None and other.thumbs is not None,
        "source_images": len(source),
        "other_images": num,
        "equal": int((kind[leaked] == 0).sum()),
        "near": int((kind[leaked] > 0).sum()),
        "leaked": len(leaked),
        "share": len(leaked) / num if num else 0.0,
        "list": [
            {
                "other": other.key(int(row)),
                "source": source.key(int(match[row])),
                "how": names[kind[row]],
                "similarity": round(float(score[row]), 4),
            }
            for row in leaked[np.lexsort((leaked, -score[leaked], kind[leaked] > 0))]
        ],
    }


def _is_same(source: Survey, other: Survey) -> bool:
    return (
        len(source.source) == len(other.source) and source.source.fingerprint() == other.source.fingerprint()
    )

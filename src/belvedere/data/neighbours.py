"""Near copies among millions of small pictures, without comparing all with all.

Pictures are described by their 34 lowest frequencies and sorted into about sqrt(N) cells around some of them.
Each is compared with those in its eight nearest cells, and the four most similar are then compared in full
(`duplicates.similarity`). Work grows as N ** 1.5 times a small matrix product; memory is 150 bytes an image
beside the pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from belvedere.data.duplicates import (
    NEAR,
    NEAR_SMALL,
    Bools,
    Floats,
    Ints,
    cosines,
    same_color,
    similarity,
    zoomed,
)

_LOW_FREQUENCY, _LOW_POWER = 6.0, 0.5
_LOOSE = 0.65  # similarity of the lowest frequencies from which a pair is compared in full
_CELLS_TRIED = 8
_ZOOMS = (0.0, -0.07, 0.07)  # of half the picture
_MOST_SIMILAR = 4  # kept for each picture
_MAX_CELL = 4096  # a larger cell is cut into slices of similar pictures, and each is compared with its slice
_MAX_CELLS = 4096
_BLOCK = 1024
_FULL_BLOCK = 2048

_BASIS, _ACROSS = cosines(_LOW_FREQUENCY, power=_LOW_POWER)
_MIRROR = np.where(_ACROSS % 2 == 1, -1.0, 1.0).astype(np.float32)


class Pictures(NamedTuple):
    """thumbs uint8 [N, 24, 24]; mean colors int8 [N, 2]; small [N]: whether the image is smaller than
    SMALL_PX; rows [M]: which of them to compare."""

    thumbs: NDArray[np.uint8]
    colors: NDArray[np.int8]
    small: Bools
    rows: Ints


class Pairs(NamedTuple):
    """Near copies: positions among all pictures [P] twice, similarity [P], whether mirrored [P]."""

    first: Ints
    second: Ints
    score: Floats
    mirrored: Bools


def near_within(pictures: Pictures, *, progress: Callable[[int, int], None]) -> Pairs:
    """Pairs of near copies among pictures, each once, the lower position first."""
    found = near_between(pictures, pictures, progress=progress)
    low, high = np.minimum(found.first, found.second), np.maximum(found.first, found.second)
    distinct = low != high
    return _best_of_equal(
        Pairs(low[distinct], high[distinct], found.score[distinct], found.mirrored[distinct])
    )


def near_between(asked: Pictures, table: Pictures, *, progress: Callable[[int, int], None]) -> Pairs:
    """Near copies in `table` (second) of the pictures in `asked` (first); for each at most the few best."""
    num_asked, num_table = len(asked.rows), len(table.rows)
    progress(0, num_asked)
    if not num_asked or not num_table:
        nothing = np.zeros(0, dtype=np.int64)
        return Pairs(nothing, nothing, nothing.astype(np.float32), nothing.astype(np.bool_))
    cells = _Cells(_described(table))
    parts = []
    for start in range(0, num_asked, _BLOCK * 8):
        rows = np.arange(start, min(start + _BLOCK * 8, num_asked))
        for mirrored in (False, True):
            position, other = cells.candidates(_variants(asked, rows, mirrored=mirrored))
            one, two = asked.rows[rows[position]], table.rows[other]
            parts.append(_verified(asked, table, one, two, mirrored=mirrored))
        progress(int(rows[-1]) + 1, num_asked)
    first, second, score, flipped = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _best_of_equal(Pairs(first, second, score, flipped))


def alike(pictures: Pictures, first: Ints, second: Ints) -> Bools:
    """Whether pictures [P] are near copies, mirrored or not, pair by pair."""
    result = np.zeros(len(first), dtype=np.bool_)
    for mirrored in (False, True):
        for start in range(0, len(first), _FULL_BLOCK):
            part = slice(start, start + _FULL_BLOCK)
            one, two = first[part], second[part]
            score = _score(pictures, pictures, one, two, mirrored=mirrored)
            result[part] |= score >= _needed(pictures, pictures, one, two)
    return result


def _described(pictures: Pictures) -> Floats:
    """The lowest frequencies, of norm 1: [M, K]."""
    result = np.empty((len(pictures.rows), len(_BASIS)), dtype=np.float32)
    for start in range(0, len(result), _BLOCK):
        thumbs = pictures.thumbs[pictures.rows[start : start + _BLOCK]]
        result[start : start + _BLOCK] = _unit(thumbs.reshape(len(thumbs), -1).astype(np.float32) @ _BASIS.T)
    return result


def _variants(pictures: Pictures, rows: Ints, *, mirrored: bool) -> list[Floats]:
    """Descriptions [R, K] of pictures as they are, a little enlarged and a little reduced: what a crop of
    them looks like, and what they may be a crop of."""
    thumbs = pictures.thumbs[pictures.rows[rows]].astype(np.float32)
    turn = _MIRROR if mirrored else 1.0
    return [_unit(zoomed(thumbs, zoom).reshape(len(rows), -1) @ _BASIS.T) * turn for zoom in _ZOOMS]


def _unit(rows: Floats) -> Floats:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6))


class _Cells:
    """Descriptions [N, K] sorted into cells around some of them."""

    def __init__(self, described: Floats) -> None:
        num = len(described)
        num_cells = min(_MAX_CELLS, max(1, int(num**0.5)))
        chosen = np.random.Generator(np.random.Philox(0)).choice(num, num_cells, replace=False)
        self._centers = described[np.sort(chosen)]
        cell = np.concatenate(
            [self._nearest(described[start : start + _BLOCK], 1)[:, 0] for start in range(0, num, _BLOCK)]
        )
        order = np.argsort(cell, kind="stable")
        self._described = described
        self._cells = []
        for members in np.split(order, np.searchsorted(cell[order], np.arange(1, num_cells))):
            self._cells.append(_Cell(members, described))

    def _nearest(self, rows: Floats, count: int) -> Ints:
        """The nearest cells [R, count] of descriptions [R, K]."""
        scores = rows @ self._centers.T
        count = min(count, scores.shape[1])
        return np.argpartition(-scores, count - 1, axis=1)[:, :count]

    def candidates(self, variants: list[Floats]) -> tuple[Ints, Ints]:
        """Rows of the descriptions [R, K] asked for, in several variants, and the positions of the few
        descriptions most similar to any of them."""
        found = [part for asked in variants for part in self._similar(asked)]
        row, position, score = (np.concatenate(column) for column in zip(*found, strict=True))
        order = np.lexsort((-score, position, row))
        once = np.ones(len(order), dtype=np.bool_)
        once[1:] = (np.diff(row[order]) != 0) | (np.diff(position[order]) != 0)
        order = order[once]
        order = order[np.lexsort((position[order], -score[order], row[order]))]
        kept = order[_rank(row[order]) <= _MOST_SIMILAR]  # one more than the few: a picture finds itself
        return row[kept], position[kept]

    def _similar(self, asked: Floats) -> Iterator[tuple[Ints, Ints, Floats]]:
        """(rows of `asked`, positions, similarity) in the cells nearest to each."""
        nearest = np.concatenate(
            [
                self._nearest(asked[start : start + _BLOCK], _CELLS_TRIED)
                for start in range(0, len(asked), _BLOCK)
            ]
        )
        row = np.repeat(np.arange(len(asked)), nearest.shape[1])
        cell = nearest.reshape(-1)
        order = np.argsort(cell, kind="stable")
        cell, row = cell[order], row[order]
        edges = np.flatnonzero(np.diff(cell, prepend=-1))
        for start, rows in zip(edges, np.split(row, edges[1:]), strict=True):
            for members, part in self._cells[cell[start]].slices(asked, rows):
                scores = asked[part] @ self._described[members].T
                one, two = _most_similar(scores)
                yield part[one], members[two], scores[one, two]


class _Cell:
    """Members of one cell; a large one lies in slices along the direction in which they differ most."""

    def __init__(self, members: Ints, described: Floats) -> None:
        self._members, self._axis = members, None
        if len(members) <= _MAX_CELL:
            return
        rows = described[members]
        _, _, directions = np.linalg.svd(np.cov(rows.T))
        self._axis = directions[0].astype(np.float32)
        where = rows @ self._axis
        order = np.argsort(where, kind="stable")
        self._members = members[order]
        self._starts = where[order][::_MAX_CELL]

    def slices(self, asked: Floats, rows: Ints) -> Iterator[tuple[Ints, Ints]]:
        """(members, those of `rows` to compare them with), in blocks that fit in memory."""
        if not len(self._members):
            return
        if self._axis is None:
            parts = [(self._members, rows)]
        else:
            number = np.maximum(np.searchsorted(self._starts, asked[rows] @ self._axis, side="right") - 1, 0)
            parts = [
                (self._members[slot * _MAX_CELL : (slot + 1) * _MAX_CELL], rows[number == slot])
                for slot in np.unique(number)
            ]
        for members, part in parts:
            for start in range(0, len(part), _BLOCK):
                yield members, part[start : start + _BLOCK]


def _most_similar(scores: Floats) -> tuple[Ints, Ints]:
    """Rows and columns of the scores [R, M] that are high enough, for each row at most the few best."""
    few = _MOST_SIMILAR + 1  # a picture finds itself
    rows, columns = np.nonzero(scores >= _LOOSE)
    crowded = np.flatnonzero(np.bincount(rows, minlength=len(scores)) > few)
    if crowded.size:
        limit = np.full(len(scores), _LOOSE, dtype=np.float32)
        limit[crowded] = -np.partition(-scores[crowded], few - 1, axis=1)[:, few - 1]
        rows, columns = np.nonzero(scores >= limit[:, None])
        first = _rank(rows) < few  # of many equal scores, those
        rows, columns = rows[first], columns[first]
    return rows, columns


def _rank(rows: Ints) -> Ints:
    """Of each entry of ascending `rows`, how many equal ones stand before it."""
    return np.asarray(np.arange(len(rows)) - np.searchsorted(rows, rows), dtype=np.int64)


def _verified(asked: Pictures, table: Pictures, one: Ints, two: Ints, *, mirrored: bool) -> Pairs:
    """Those pairs that are near copies when compared in full."""
    if asked is table:
        kept = one != two
        one, two = np.minimum(one, two)[kept], np.maximum(one, two)[kept]
    pairs = np.unique(np.stack([one, two], axis=1), axis=0)
    one, two = pairs[:, 0], pairs[:, 1]
    score = np.zeros(len(one), dtype=np.float32)
    for start in range(0, len(one), _FULL_BLOCK):
        part = slice(start, start + _FULL_BLOCK)
        score[part] = _score(asked, table, one[part], two[part], mirrored=mirrored)
    near = score >= _needed(asked, table, one, two)
    return Pairs(one[near], two[near], score[near], np.full(int(near.sum()), mirrored))


def _needed(asked: Pictures, table: Pictures, one: Ints, two: Ints) -> Floats:
    """The similarity [P] from which pairs are near copies."""
    small = asked.small[one] | table.small[two]
    return np.where(small, NEAR_SMALL, NEAR).astype(np.float32)


def _score(asked: Pictures, table: Pictures, one: Ints, two: Ints, *, mirrored: bool) -> Floats:
    """Similarity [P]; 0 where the colors differ."""
    result = np.zeros(len(one), dtype=np.float32)
    rows = np.flatnonzero(same_color(asked.colors[one], table.colors[two]))
    if rows.size:
        other = table.thumbs[two[rows]]
        result[rows] = similarity(asked.thumbs[one[rows]], other[:, :, ::-1] if mirrored else other)
    return result


def _best_of_equal(pairs: Pairs) -> Pairs:
    """Each pair once, with its best score, sorted; unmirrored where that is as good."""
    order = np.lexsort((pairs.mirrored, -pairs.score, pairs.second, pairs.first))
    first, second = pairs.first[order], pairs.second[order]
    new = np.ones(len(order), dtype=np.bool_)
    new[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    kept = order[new]
    return Pairs(first[new], second[new], pairs.score[kept], pairs.mirrored[kept])

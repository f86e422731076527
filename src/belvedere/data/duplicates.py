"""Which images are copies of each other: equal hashes, and small gray pictures that agree.

Two pictures are compared after one has been shifted and stretched a little to fit the other (a crop), in a
basis of frequencies weighted so that fine detail counts as much as the large shapes: skies, white pages and
digits share those without being copies. All functions are pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

THUMB_PX = 24
MIN_SIDE_PX = 16
"""Images with a shorter side hold less than a thumbnail does: they are compared for equality only."""

NEAR = 0.97
"""Two pictures of this similarity are near copies (how it separates: docs/results.md)."""

SMALL_PX = 64
NEAR_SMALL = 0.995
"""What is asked of pictures of which one has a shorter side: at 28 px, two shirts or pairs of trousers of one
cut reach 0.97, and copies are not told from them by shape alone."""

MAX_FREQUENCY = 12.0  # half periods over the picture; above it, JPEG and resizing decide
_WORTH_ALIGNING = 0.6  # similarity to first order below which no small shift makes a copy
_MAX_STRETCH = 0.12  # of half the picture: a crop of 6 % on every side
_NEEDED = (
    -1.0,
    0.8,
    0.9,
    2.0,
)  # correlation from which another Gauss-Newton step is taken; after three, none
_SETTLED = 0.995
_RIDGE = 0.02
_DETAIL = 50.0  # times the detail that rounding to 256 levels makes up
_ROUNDING = 1.0 / 12.0  # variance of a rounding error
_COLORLESS = 2  # levels: a gray copy of a colored image is a copy
_COLOR_LEVELS, _COLOR_SHARE = 6.0, 0.25
_ROUNDS = 64
_ROW_BLOCK = 8192


def cosines(max_frequency: float, *, power: float = 1.0) -> tuple[Floats, Ints]:
    """The weighted cosine basis [K, 24 * 24] up to a frequency, without the mean, and each row's horizontal
    frequency [K] (odd ones change sign in a mirrored picture). Weights: frequency ** power."""
    across = np.arange(THUMB_PX)
    basis = np.cos(np.pi * across[:, None] * (2 * across[None] + 1) / (2 * THUMB_PX))
    basis *= np.sqrt(2 / THUMB_PX)
    basis[0] /= np.sqrt(2)
    frequency = np.hypot(across[:, None], across[None]).ravel()  # [vertical, horizontal]
    kept = np.flatnonzero((frequency > 0) & (frequency <= max_frequency))
    weighted = np.kron(basis, basis)[kept] * frequency[kept, None] ** power
    return weighted.astype(np.float32), kept % THUMB_PX


_BASIS, _ = cosines(MAX_FREQUENCY)
_CENTERED = ((np.arange(THUMB_PX) - (THUMB_PX - 1) / 2) / (THUMB_PX / 2)).astype(np.float32)


def _moved_basis() -> Floats:
    """The basis of the derivatives of a picture by shift and stretch (across, down): [576, 4 * K]."""
    derivative = np.gradient(np.eye(THUMB_PX), 2 / THUMB_PX, axis=0)
    same = np.eye(THUMB_PX)
    stretch = _CENTERED[:, None] * derivative
    moves = (
        np.kron(same, derivative),
        np.kron(derivative, same),
        np.kron(same, stretch),
        np.kron(stretch, same),
    )
    return np.concatenate([(_BASIS @ move).T for move in moves], axis=1).astype(np.float32)


_MOVED_BASIS = _moved_basis()


def detailed(thumbs: NDArray[np.uint8]) -> Bools:
    """Which pictures [N, 24, 24] show enough to be told apart: not flat, nor nearly so. [N]"""
    floor = _DETAIL * _ROUNDING * float(np.square(_BASIS).sum())
    result = np.zeros(len(thumbs), dtype=np.bool_)
    for start in range(0, len(thumbs), _ROW_BLOCK):
        flat = thumbs[start : start + _ROW_BLOCK].reshape(-1, THUMB_PX**2).astype(np.float32)
        result[start : start + _ROW_BLOCK] = np.square(flat @ _BASIS.T).sum(axis=1) >= floor
    return result


def same_color(first: NDArray[np.int8], second: NDArray[np.int8]) -> Bools:
    """Whether mean colors [N, 2] may be of one image: about equal, or one of the two has none. [N]"""
    one, two = first.astype(np.float32), second.astype(np.float32)
    colorless = (np.abs(one).max(axis=1) <= _COLORLESS) | (np.abs(two).max(axis=1) <= _COLORLESS)
    allowed = _COLOR_LEVELS + _COLOR_SHARE * np.maximum(np.abs(one).max(axis=1), np.abs(two).max(axis=1))
    return np.asarray(colorless | (np.abs(one - two).max(axis=1) <= allowed))


def similarity(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> Floats:
    """How alike pictures are, pair by pair: [P, 24, 24] twice to [P], 1 for equal ones, 0 for unrelated.

    The correlation of weighted cosine coefficients after the best small shift and stretch. A pair for which a
    fit to first order shows that none makes it a copy keeps the correlation of that fit.
    """
    one, two = _normalized(first), _normalized(second)
    result, stretch = _first_order(one, two)
    open_ = np.flatnonzero(result >= _WORTH_ALIGNING)
    # the picture that shows more is moved, so that every sample lies within it
    swapped = (stretch[open_] > 0)[:, None]
    moved = np.where(swapped, two[open_], one[open_])
    fixed = np.where(swapped, one[open_], two[open_])
    result[open_] = _aligned(moved, fixed @ _BASIS.T)
    return result


def _normalized(thumbs: NDArray[np.uint8]) -> Floats:
    """[P, 576] with mean 0 and weighted norm 1."""
    flat = thumbs.reshape(len(thumbs), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat @ _BASIS.T, axis=1, keepdims=True), 1e-6)
    return flat


def _slopes(flat: Floats) -> Floats:
    """What shifting and stretching by one half picture changes, to first order: [P, 576] to [P, 4, K]."""
    return (flat @ _MOVED_BASIS).reshape(len(flat), 4, -1)


def _step(slopes: Floats, difference: Floats) -> Floats:
    """The shift and stretch [P, 4] that explain a difference [P, K] best."""
    normal = slopes @ slopes.transpose(0, 2, 1)
    ridge = _RIDGE * np.trace(normal, axis1=1, axis2=2) / 4 + 1e-6
    normal += ridge[:, None, None] * np.eye(4, dtype=np.float32)
    return np.asarray(np.linalg.solve(normal, slopes @ difference[:, :, None])[:, :, 0], dtype=np.float32)


def _first_order(one: Floats, two: Floats) -> tuple[Floats, Floats]:
    """Correlation [P] if pictures changed linearly as they are moved, and how much the first is stretched to
    give the second [P] (negative: the second shows a part of it)."""
    difference = np.subtract(two, one) @ _BASIS.T
    slopes = _slopes(np.float32(0.5) * (one + two))
    step = np.clip(_step(slopes, difference), -_MAX_STRETCH, _MAX_STRETCH)
    rest = difference - (step[:, None] @ slopes)[:, 0]
    return 1 - np.square(rest).sum(axis=1) / 2, step[:, 2] + step[:, 3]


def _aligned(pictures: Floats, wanted: Floats) -> Floats:
    """The best correlation [P] over a few Gauss-Newton steps of moving pictures [P, 576] onto coefficients
    [P, K]; pairs that fall behind what a copy reaches are left."""
    best = np.full(len(pictures), -1.0, dtype=np.float32)
    rows, flat = np.arange(len(pictures)), pictures
    move = np.zeros((len(pictures), 4), dtype=np.float32)
    for needed in _NEEDED:
        found = flat @ _BASIS.T
        found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-6)
        best[rows] = np.maximum(best[rows], (found * wanted[rows]).sum(axis=1))
        going = np.flatnonzero((best[rows] >= needed) & (best[rows] < _SETTLED))
        if not going.size:
            break
        rows, move = rows[going], move[going]
        move += _step(_slopes(flat[going]), wanted[rows] - found[going])
        np.clip(move, -_MAX_STRETCH, _MAX_STRETCH, out=move)
        flat = _sampled(pictures[rows].reshape(-1, THUMB_PX, THUMB_PX), move).reshape(len(rows), -1)
    return best


def _sampled(images: Floats, move: Floats) -> Floats:
    """Images [P, 24, 24] at shifted and stretched positions, bilinear; the edge continues outwards."""
    half, last = THUMB_PX / 2, THUMB_PX - 1
    x = np.clip((_CENTERED * (1 + move[:, 2:3]) + move[:, 0:1]) * half + last / 2, 0, last)  # [P, 24]
    y = np.clip((_CENTERED * (1 + move[:, 3:4]) + move[:, 1:2]) * half + last / 2, 0, last)
    left, top = np.minimum(x.astype(np.int64), last - 1), np.minimum(y.astype(np.int64), last - 1)
    right_share, low_share = (x - left).astype(np.float32)[:, None], (y - top).astype(np.float32)[:, :, None]
    pair = np.arange(len(images))[:, None, None]
    row, column = top[:, :, None], left[:, None]
    upper = images[pair, row, column] * (1 - right_share) + images[pair, row, column + 1] * right_share
    row = row + 1
    lower = images[pair, row, column] * (1 - right_share) + images[pair, row, column + 1] * right_share
    return np.asarray(upper * (1 - low_share) + lower * low_share, dtype=np.float32)


def zoomed(images: Floats, by: float) -> Floats:
    """Images [P, 24, 24] enlarged (by < 0: their middle fills them) or reduced, by a share of a half."""
    move = np.broadcast_to(np.array([0, 0, by, by], dtype=np.float32), (len(images), 4))
    return images if by == 0 else _sampled(images, move)


def first_equal(hashes: NDArray[np.uint64]) -> Ints:
    """For each hash [N, 2], the lowest position with the same one. [N]"""
    _, first, inverse = np.unique(_joined(hashes), return_index=True, return_inverse=True)
    return np.asarray(first[inverse.reshape(-1)], dtype=np.int64)


def where_equal(hashes: NDArray[np.uint64], table: NDArray[np.uint64]) -> Ints:
    """For each hash [N, 2], the lowest position in the table [M, 2] with the same one, or -1. [N]"""
    if not len(table):
        return np.full(len(hashes), -1, dtype=np.int64)
    known, first = np.unique(_joined(table), return_index=True)
    asked = _joined(hashes)
    place = np.minimum(np.searchsorted(known, asked), len(known) - 1)
    return np.where(known[place] == asked, first[place], -1).astype(np.int64)


def _joined(hashes: NDArray[np.uint64]) -> NDArray[Any]:
    """[N, 2] as one sortable value each."""
    return np.ascontiguousarray(hashes).view([("high", "u8"), ("low", "u8")]).reshape(-1)


def groups_of_pairs(first: Ints, second: Ints, *, total: int, alike: Callable[[Ints, Ints], Bools]) -> Ints:
    """Groups whose members are all alike to the group's lowest position: that position for each [total].

    first, second [P]: pairs found alike. A chain of pairs may lead from an image to one that is nothing like
    it; so what a chain joins is compared (`alike`) with its first image, and what is not alike is grouped
    again by itself.
    """
    leader = np.arange(total, dtype=np.int64)
    for _ in range(_ROUNDS):
        if not first.size:
            break
        chain = _chains(first, second, total)
        members = np.unique(np.concatenate([first, second]))
        members = members[chain[members] != members]
        joined = members[alike(chain[members], members)]
        leader[joined] = chain[joined]
        taken = np.zeros(total, dtype=np.bool_)
        taken[joined] = taken[chain[members]] = True
        left = ~taken[first] & ~taken[second]
        first, second = first[left], second[left]
    return leader


def _chains(first: Ints, second: Ints, total: int) -> Ints:
    """The lowest position that pairs lead to, for each. [total]"""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(len(first), dtype=np.int8)
    _, component = connected_components(coo_array((ones, (first, second)), shape=(total, total)))
    _, lowest, inverse = np.unique(component, return_index=True, return_inverse=True)
    return np.asarray(lowest[inverse.reshape(-1)], dtype=np.int64)

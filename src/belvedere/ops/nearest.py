"""Which centroid each embedding is most similar to, by the largest dot product, in float32 or better.

Where the processor multiplies bfloat16 natively, bfloat16 products narrow the choice first: their error has a
bound, so a centroid that is further below the best than the bound allows cannot be the best. Of most
embeddings one or two are left, and these are compared in full precision. The answer is that of the full
product.

Legend: n embeddings, b of one chunk, D columns, K centroids, S members of each of G groups of centroids.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

_HALVINGS = 5
_MEMBERS = 2**_HALVINGS  # S: the largest of 32 scores is found by 5 elementwise maxima
_FEWEST_CENTROIDS = 4 * _MEMBERS
_MOST_CANDIDATES = 16
"""Per embedding of a chunk, on average. With more (embeddings that are almost the same) the full product is
faster, and memory stays bounded."""
_NARROWED_ROWS = 512  # whose bfloat16 scores stay in a processor's cache
_FULL_SCORES = 1 << 22  # scores of one full product: 16 MiB of float32
_ROUNDING = 2.0**-8  # the largest relative error of one rounding to bfloat16
_SLACK = 1.05  # for the rounding of the bound's own arithmetic


@cache
def _multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for it; torch emulates them elsewhere, which is slower."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def narrowing_is_fast(bank: Tensor) -> bool:
    """Whether narrowing the choice in bfloat16 saves time: float32 on a processor made for it."""
    return bank.device.type == "cpu" and bank.dtype == torch.float32 and _multiplies_bfloat16()


def nearest(bank: Tensor, centroids: Tensor, *, narrow: bool | None = None) -> Tensor:
    """The centroid with the largest dot product of every embedding [n] (int64), the first where several are.

    bank [n, D], centroids [K, D] at least float32. narrow: whether bfloat16 narrows the choice first (None:
    where that is fast). In float32, two centroids that differ by less than a product's rounding may swap.
    """
    if not len(bank):
        return torch.zeros(0, dtype=torch.int64, device=bank.device)
    narrow = narrowing_is_fast(bank) if narrow is None else narrow
    with torch.autocast(bank.device.type, enabled=False):
        if not narrow or len(centroids) < _FEWEST_CENTROIDS:
            rows = max(1, _FULL_SCORES // max(1, len(centroids)))
            parts = [_by_full_product(chunk, centroids) for chunk in bank.split(rows)]
        else:
            rough = _roughened(centroids)
            parts = [_by_candidates(chunk, centroids, rough) for chunk in bank.split(_NARROWED_ROWS)]
    return torch.cat(parts)


def _by_full_product(rows: Tensor, centroids: Tensor) -> Tensor:
    scores = rows.to(centroids.dtype) @ centroids.T  # [b, K]
    return scores.max(1).indices


class _Rough(NamedTuple):
    """Centroids in bfloat16 [S * G, D], padded by copies of the first; the largest norm of a centroid and of
    what its rounding lost."""

    centroids: Tensor
    norm: Tensor
    lost: Tensor


def _roughened(centroids: Tensor) -> _Rough:
    padding = -len(centroids) % _MEMBERS
    padded = torch.cat([centroids, centroids[:1].expand(padding, -1)]).bfloat16()
    lost = (centroids - padded[: len(centroids)].float()).norm(dim=1).max()
    return _Rough(padded, centroids.norm(dim=1).max(), lost)


def _by_candidates(rows: Tensor, centroids: Tensor, rough: _Rough) -> Tensor:
    """`_by_full_product`, comparing only the centroids that a rough product leaves."""
    rough_rows = rows.bfloat16()
    scores = rough_rows @ rough.centroids.T  # [b, S * G] bfloat16
    groups = scores
    for _ in range(_HALVINGS):
        left, right = groups.chunk(2, dim=1)
        groups = torch.maximum(left, right)  # at last [b, G]: group g has the centroids g, g + G, g + 2 G ...
    lowest = _lowest_of_a_best(groups.amax(1).float(), rows, rough_rows, rough)  # [b]

    row, group = (groups >= lowest.unsqueeze(1)).nonzero(as_tuple=True)
    if len(row) > _MOST_CANDIDATES * len(rows):
        return _by_full_product(rows, centroids)
    members = scores.unflatten(1, (_MEMBERS, -1))[row, :, group]  # [groups found, S]
    found, member = (members >= lowest[row].unsqueeze(1)).nonzero(as_tuple=True)
    row, index = row[found], member * groups.shape[1] + group[found]  # one entry per candidate
    if len(row) > _MOST_CANDIDATES * len(rows):
        return _by_full_product(rows, centroids)
    real = index < len(centroids)
    best = _best_of(rows, centroids, row[real], index[real])
    if bool((best == len(centroids)).any()):  # not a number: no comparison holds
        return _by_full_product(rows, centroids)
    return best


def _lowest_of_a_best(highest: Tensor, rows: Tensor, rough_rows: Tensor, rough: _Rough) -> Tensor:
    """The least rough score [b] that an embedding's nearest centroid can have; highest [b]: its largest one.

    A rough product differs from x . c by at most |x'| |c - c'| + |x - x'| |c|, with x' and c' what is left of
    x and c, by the float32 sum over D and by the rounding of the result.
    """
    kept = rough_rows.float()
    norm = kept.norm(dim=1)
    lost = (rows - kept).norm(dim=1)
    error = norm * rough.lost + lost * rough.norm
    error = error + norm * (rough.norm + rough.lost) * (rows.shape[1] * torch.finfo(torch.float32).eps)
    lowest: Tensor = highest - _SLACK * 2 * (error + _ROUNDING * highest.abs())
    return lowest


def _best_of(rows: Tensor, centroids: Tensor, row: Tensor, index: Tensor) -> Tensor:
    """Of each row's candidates the one with the largest product [b]; K where a row has none.

    row, index: the candidates, ordered by row. A maximum does not depend on the order it is taken in.
    """
    alone = torch.bincount(row, minlength=len(rows))[row] == 1
    best = torch.full((len(rows),), len(centroids), device=rows.device)
    best[row[alone]] = index[alone]
    row, index = row[~alone], index[~alone]
    exact = (rows[row] * centroids[index]).sum(1)
    top = exact.new_full((len(rows),), -torch.inf).scatter_reduce_(0, row, exact, "amax")
    winner = exact == top[row]
    return best.scatter_reduce_(0, row[winner], index[winner], "amin")

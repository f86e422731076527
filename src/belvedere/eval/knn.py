"""Weighted k-nearest neighbours (Wu et al. 2018, section 3.4; the published k and temperature).

Features are l2-normalized; the k most similar bank images vote for their class with weight exp(cosine /
0.07).

Q queries, M bank images, D features, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from belvedere.core.errors import EvaluationError

K = 20
TEMPERATURE = 0.07
PUBLISHED_K = (10, 20, 100, 200)


class Neighbours(NamedTuple):
    """similarity [Q, k] float32 and rows [Q, k] int64 into the bank, by falling similarity, of equals the
    lower index first; -inf and -1 fill the places of a bank smaller than k."""

    similarity: Tensor
    rows: Tensor


def nearest(
    queries: Tensor,
    bank: Tensor,
    *,
    k: int,
    exclude: Tensor | None = None,
    query_chunk: int = 1024,
    bank_chunk: int = 65536,
) -> Neighbours:
    """The k bank rows most similar to each query, holding query_chunk x bank_chunk similarities at a time.

    queries [Q, D], bank [M, D], any scale; exclude [Q]: a bank row that is not to be used (the query itself),
    -1 none.
    """
    if k < 1:
        raise EvaluationError(f"--k must be at least 1; got {k}")
    if len(bank) == 0:
        raise EvaluationError("k-NN needs at least one labelled image in its bank; there is none")
    found = [
        _nearest_of_chunk(
            normalize(queries[first : first + query_chunk].float(), dim=1),
            bank,
            k=k,
            exclude=None if exclude is None else exclude[first : first + query_chunk],
            bank_chunk=bank_chunk,
        )
        for first in range(0, len(queries), query_chunk)
    ]
    if not found:
        return Neighbours(torch.empty(0, k), torch.empty(0, k, dtype=torch.int64))
    return Neighbours(torch.cat([f.similarity for f in found]), torch.cat([f.rows for f in found]))


def votes(
    neighbours: Neighbours, bank_labels: Tensor, *, num_classes: int, temperature: float = TEMPERATURE
) -> Tensor:
    """Votes [Q, C] float32: exp(similarity / temperature) summed per class over the neighbours."""
    similarity, index = neighbours.similarity.cpu(), neighbours.rows.cpu()  # sums in one order on any device
    weight = (similarity / temperature).exp()  # 0 in an empty place
    label = bank_labels.cpu()[index.clamp_min(0)]
    return torch.zeros(len(index), num_classes).scatter_add_(1, label, weight)


def knn_predict(
    queries: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    *,
    num_classes: int,
    k: int = K,
    temperature: float = TEMPERATURE,
    exclude: Tensor | None = None,
) -> Tensor:
    """Classes [Q]; of equal votes the lower class."""
    neighbours = nearest(queries, bank, k=k, exclude=exclude)
    return votes(neighbours, bank_labels, num_classes=num_classes, temperature=temperature).argmax(1)


def _nearest_of_chunk(
    queries: Tensor, bank: Tensor, *, k: int, exclude: Tensor | None, bank_chunk: int
) -> Neighbours:
    best = queries.new_full((len(queries), k), -torch.inf)
    index = torch.full((len(queries), k), -1, dtype=torch.int64, device=queries.device)
    for first in range(0, len(bank), bank_chunk):
        part = normalize(bank[first : first + bank_chunk].to(queries.device).float(), dim=1)
        similarity = queries @ part.T  # [q, chunk]
        if exclude is not None:
            own = exclude.to(queries.device) - first
            inside = ((own >= 0) & (own < len(part))).nonzero()[:, 0]
            similarity[inside, own[inside]] = -torch.inf
        # the bank so far stands left of the chunk and has lower indices: columns are in the order of ties
        best, column = _top(torch.cat([best, similarity], 1), k)
        index = torch.where(column < k, index.gather(1, column.clamp_max(k - 1)), first + column - k)
    return Neighbours(best, torch.where(best == -torch.inf, -1, index))


def _top(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their columns, falling; of equals the lower column, which topk leaves
    open."""
    value, column = similarity.topk(k + 1, dim=1)  # there is always one column more than k
    tied = value[:, k] == value[:, k - 1]
    column = column[:, :k]
    if bool(tied.any()):  # equals across the edge: only a stable sort of the whole row knows which belong
        column[tied] = similarity[tied].argsort(dim=1, descending=True, stable=True)[:, :k]
    column = column.sort(dim=1).values
    value = similarity.gather(1, column)
    order = value.argsort(dim=1, descending=True, stable=True)
    return value.gather(1, order), column.gather(1, order)

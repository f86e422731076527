"""Spherical k-means over the embeddings of all processes, as DeepCluster-v2 clusters its memory.

Sums are float64 and run over rows sorted by cluster, each cluster's in the order of the rows, chunk after
chunk: the same bits every run, on a GPU too, and but for a last bit the same centroids however rows are
spread over processes. Memory beyond the embeddings is bounded by a chunk.

Legend: n embeddings of this process, N of all, D columns, K clusters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.core import dist
from belvedere.core.errors import RecipeError
from belvedere.ops.nearest import nearest

_CHUNK_ROWS = 8192


@torch.no_grad()
def cluster(
    bank: Tensor,
    *,
    start: Tensor,
    positions: Tensor | None = None,
    iterations: int = 10,
    key: str = "method.prototypes",
) -> tuple[Tensor, Tensor]:
    """Centroids [K, D] with unit rows, the same on every process, and each embedding's cluster [n] (int64).

    bank [n, D]: this process's embeddings, unit rows. start [K]: positions of the embeddings that are the
    first centroids, the same on every process. positions [n]: where each embedding stands among those of all
    processes (None: process after process); they are what makes processes agree with one larger one.
    iterations: how often centroids move; the assignment is to the last ones, so it is found one time more.

    An embedding goes to the centroid with the largest dot product. A centroid becomes the mean of its
    members, one without members stays as it is, and all are scaled to length 1. SwAV, appendix
    (DeepCluster-v2).

    Raises `RecipeError` that names `key` where there are more clusters than embeddings.
    """
    counts = _rows_of_all(bank)
    _fits(len(start), sum(counts), key)
    if positions is None:
        before = sum(counts[: dist.rank()])
        positions = torch.arange(before, before + len(bank), device=bank.device)
    centroids = _rows_at(bank, positions, start.to(bank.device))  # [K, D]
    for _ in range(iterations):
        sums, sizes = cluster_sums(bank, nearest(bank, centroids), len(start))
        dist.all_reduce_(sums)
        dist.all_reduce_(sizes)
        means = (sums / sizes.clamp(min=1).unsqueeze(1)).to(centroids.dtype)
        centroids = F.normalize(torch.where(sizes.unsqueeze(1) > 0, means, centroids))
    return centroids, nearest(bank, centroids)


def cluster_sums(bank: Tensor, assignments: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """The sum of every cluster's rows [K, D] (float64) and how many it has [K] (int64), of this process.

    bank [n, D], assignments [n]: sums[k] = sum over rows i with assignments[i] = k of bank[i].
    """
    sums = torch.zeros(clusters, bank.shape[1], dtype=torch.float64, device=bank.device)
    sizes = torch.zeros(clusters, dtype=torch.int64, device=bank.device)
    edges = torch.arange(clusters + 1, device=bank.device)
    for rows, labels in zip(bank.split(_CHUNK_ROWS), assignments.split(_CHUNK_ROWS), strict=True):
        labels, order = labels.sort(stable=True)
        bounds = torch.searchsorted(
            labels, edges
        )  # [K + 1]: cluster k's rows are order[bounds[k]:bounds[k + 1]]
        sums += F.embedding_bag(order, rows.double(), bounds, mode="sum", include_last_offset=True)
        sizes += bounds.diff()
    return sums, sizes


def _rows_of_all(bank: Tensor) -> list[int]:
    return [int(rows) for rows in dist.gather_objects(len(bank))]


def _fits(clusters: int, embeddings: int, key: str) -> None:
    if clusters > embeddings:
        raise RecipeError(
            f"{key}: {clusters} clusters cannot be found among {embeddings} embeddings; set it to at most "
            f"{embeddings}, or give more images: an epoch is a whole number of batches (train.global_batch)"
        )


def _rows_at(bank: Tensor, positions: Tensor, wanted: Tensor) -> Tensor:
    """The embeddings [K, D] at the `wanted` positions, whichever process has them."""
    rows = torch.zeros(len(wanted), bank.shape[1], device=bank.device, dtype=_at_least_float32(bank.dtype))
    found = torch.zeros(len(wanted), device=bank.device, dtype=torch.int64)
    if len(bank):
        ordered, order = positions.to(bank.device).sort()
        slot = torch.searchsorted(ordered, wanted).clamp(max=len(bank) - 1)
        here = ordered[slot] == wanted
        rows[here] = bank[order[slot[here]]].to(rows.dtype)
        found += here
    dist.all_reduce_(rows)
    dist.all_reduce_(found)
    if not bool((found == 1).all()):
        wrong = int(wanted[found != 1][0])
        raise ValueError(
            f"position {wrong} is held by {int(found[found != 1][0])} embeddings; it must be one"
        )
    return rows


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)

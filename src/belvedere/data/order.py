"""Which image stands at which row of which step: pure functions of a seed and a position."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from belvedere.core.errors import DataError
from belvedere.core.rng import fold, generator, uniforms
from belvedere.data.sources.mixed import Mixed
from belvedere.data.sources.source import Source

_SORTED_AT_ONCE = 1 << 20


def steps_per_epoch(num_images: int, global_batch: int) -> int:
    """Whole batches in one pass over the images; the rest is left out. Raises DataError for none."""
    steps = num_images // global_batch
    if steps == 0:
        raise DataError(
            f"train.global_batch is {global_batch}, but data.path holds only {num_images} images; "
            f"lower train.global_batch to at most {num_images}"
        )
    return steps


@lru_cache(maxsize=1)
def permutation(num_images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of the images in one epoch [N]; read-only, and kept while the epoch lasts."""
    order = generator(seed, "order", epoch).permutation(num_images).astype(np.int64)
    order.flags.writeable = False
    return order


def epoch_order(source: Source, seed: int, epoch: int) -> NDArray[np.int64]:
    """The images of one epoch in their order [N].

    A permutation of all images; where several sources are mixed, each gives its share, some images more than
    once and others not at all.
    """
    if isinstance(source, Mixed) and len(source.parts) > 1:
        return mixture(source.sizes, source.shares, seed=seed, epoch=epoch)
    return permutation(len(source), seed, epoch)


@lru_cache(maxsize=1)
def mixture(sizes: tuple[int, ...], shares: tuple[int, ...], *, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of one epoch [sum of `shares`] that takes `shares[i]` images from part i; read-only.

    sizes: images in each part; the result counts them through, part after part. A part is gone through in
    full passes, each in an order of its own, and every epoch continues where the one before stopped: images
    of one part are never asked for more than once more often than others of it.
    """
    starts = np.cumsum([0, *sizes[:-1]], dtype=np.int64)
    taken = [
        start + _stretch(size, epoch * share, share, key=fold(seed, "part", number))
        for number, (start, size, share) in enumerate(zip(starts, sizes, shares, strict=True))
    ]
    order = generator(seed, "order", epoch).permutation(np.concatenate(taken))
    order.flags.writeable = False
    return order


def _stretch(size: int, start: int, count: int, *, key: int) -> NDArray[np.int64]:
    """Places `start` to `start + count` - 1 of an endless row of permutations of `size` images."""
    first, last = start // size, (start + count - 1) // size
    at_once = max(1, _SORTED_AT_ONCE // size)
    passes = []
    for at in range(first, last + 1, at_once):
        drawn = uniforms(key, range(at, min(at + at_once, last + 1)), size)  # [passes, size]
        passes.append(np.argsort(drawn, axis=1, kind="stable").reshape(-1))
    skipped = start - first * size
    return np.concatenate(passes)[skipped : skipped + count].astype(np.int64)


def positions(
    step: int, *, steps_per_epoch: int, global_batch: int, rank: int = 0, world_size: int = 1
) -> tuple[int, NDArray[np.int64]]:
    """The epoch of a step, and the positions in it of this rank's rows [B].

    Rank r holds rows r*B to (r+1)*B of the global batch, B = global_batch / world_size.
    """
    epoch, within = divmod(step, steps_per_epoch)
    rows = rows_of(global_batch, rank=rank, world_size=world_size)
    return epoch, within * global_batch + np.arange(rows.start, rows.stop, dtype=np.int64)


def rows_of(global_batch: int, *, rank: int = 0, world_size: int = 1) -> range:
    """The rows of the global batch that a rank holds."""
    per_rank, rest = divmod(global_batch, world_size)
    if rest:
        raise DataError(
            f"train.global_batch is {global_batch}, which {world_size} processes cannot share equally"
        )
    return range(rank * per_rank, (rank + 1) * per_rank)

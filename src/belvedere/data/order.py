"""Which image stands at which row of which step: pure functions of a seed and a position."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from belvedere.core.errors import DataError
from belvedere.core.rng import generator
from belvedere.data.sources.source import Source


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
    """The images of one epoch in their order [N]."""
    return permutation(len(source), seed, epoch)


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

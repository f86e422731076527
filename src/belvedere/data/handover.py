"""Handing batches to the training process by value, where shared memory is too small for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from belvedere.data.fetch import Failed, Fetch, Fetched, Wanted


class _Packed:
    """A batch that reaches the other process through a pipe, by value; it arrives as the batch itself."""

    def __init__(self, batch: Fetched) -> None:
        self._batch = batch

    def __reduce__(self) -> tuple[Callable[..., Fetched], tuple[Any, ...]]:
        batch = self._batch
        views = {role: _plain(view) for role, view in batch.views.items()}
        flags = {name: flag.numpy() for name, flag in batch.flags.items()}
        rest = (batch.rows, batch.index.numpy(), batch.asked, batch.kinds, batch.failed, batch.replaced)
        return _unpacked, (views, flags, *rest)


def _plain(view: Tensor) -> tuple[torch.dtype, tuple[int, ...], bytearray]:
    content = view.contiguous().flatten().view(torch.uint8).numpy()
    return view.dtype, tuple(view.shape), bytearray(content.data)


def _unpacked(
    views: dict[str, tuple[torch.dtype, tuple[int, ...], bytearray]],
    flags: dict[str, NDArray[np.bool_]],
    rows: dict[str, NDArray[np.float64]],
    index: NDArray[np.int64],
    *rest: Any,
) -> Fetched:
    tensors = {
        role: torch.frombuffer(content, dtype=dtype).view(shape)
        for role, (dtype, shape, content) in views.items()
    }
    batch = Fetched(tensors, rows, torch.from_numpy(index), *rest)
    batch.flags = {name: torch.from_numpy(flag) for name, flag in flags.items()}
    return batch


class ByPipe:
    """Batches that are handed over without shared memory."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch

    def __getitem__(self, wanted: Wanted) -> _Packed | Failed:
        item = self._fetch[wanted]
        return item if isinstance(item, Failed) else _Packed(item)

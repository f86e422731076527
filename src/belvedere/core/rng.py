"""Random numbers as pure functions of a seed and a position; no generator state survives a call.

`fold` turns a seed and a path of names and integers into one 64-bit key. `uniforms` fills a whole batch of
rows at once, each row a function of its own key, so any split of the rows over workers or ranks gives the
same numbers. `scope` is how the loop hands a network its per-row randomness (drop path): keyed by
(seed, step, draw, row of the *global* batch), never by rank, worker or micro-batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15  # splitmix64's increment: 2**64 / golden ratio
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # splitmix64's finalizer


def fold(seed: int, *path: int | str) -> int:
    """A 64-bit key for `seed` and `path`; different paths give unrelated keys (BLAKE2b)."""
    text = "/".join([str(seed), *(f"{type(part).__name__[0]}{part}" for part in path)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def generator(seed: int, *path: int | str) -> np.random.Generator:
    """A fresh numpy generator (Philox) for `seed` and `path`."""
    return np.random.Generator(np.random.Philox(key=fold(seed, *path)))


def torch_generator(seed: int, *path: int | str) -> torch.Generator:
    """A fresh CPU torch generator for `seed` and `path`, for initial values."""
    generator = torch.Generator(device="cpu")
    generator.manual_seed(fold(seed, *path) & 0x7FFF_FFFF_FFFF_FFFF)
    return generator


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX_1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_MIX_2)
    return x ^ (x >> np.uint64(31))


def uniforms(key: int, rows: Sequence[int] | NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), one line per row [len(rows), count] float64.

    Line i depends on `key` and `rows[i]` alone: a counter-based generator (splitmix64's finalizer applied
    twice over key, row and column), so a batch is drawn in one vectorized call.
    """
    row = np.asarray(rows, dtype=np.int64).astype(np.uint64)[:, None]  # [R, 1]
    column = np.arange(1, count + 1, dtype=np.uint64)[None, :]  # [1, C]
    golden = np.uint64(_GOLDEN)
    base = _mixed(np.uint64(key) + (row + np.uint64(1)) * golden)
    bits = _mixed(_mixed(base + column * golden) ^ np.uint64(key))  # [R, C]
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


class Scope:
    """The rows one forward call works on, and how many draws it has made so far."""

    def __init__(self, seed: int, step: int, rows: Sequence[int]) -> None:
        self.seed, self.step, self.rows = seed, step, np.asarray(rows, dtype=np.int64)
        self.draws = 0

    def row_uniforms(self, views: int) -> NDArray[np.float64]:
        """The next draw of this scope: [views, rows], the same for a row however the batch is cut."""
        key = fold(self.seed, "rows", self.step, self.draws)
        self.draws += 1
        return uniforms(key, self.rows, views).T

    def shared_uniforms(self, count: int) -> NDArray[np.float64]:
        """The next draw of this scope: [count], the same whatever its rows."""
        key = fold(self.seed, "shared", self.step, self.draws)
        self.draws += 1
        drawn: NDArray[np.float64] = uniforms(key, [0], count)[0]
        return drawn


_scope: ContextVar[Scope | None] = ContextVar("scope", default=None)


@contextmanager
def scope(seed: int, step: int, rows: Sequence[int]) -> Iterator[None]:
    """Open a scope for the rows (positions in the global batch) of one forward call."""
    token = _scope.set(Scope(seed, step, rows))
    try:
        yield
    finally:
        _scope.reset(token)


def _current() -> Scope:
    current = _scope.get()
    if current is None:
        raise RuntimeError("a network drew random numbers outside a scope; only the training loop opens one")
    return current


def row_uniforms(num_rows: int) -> Tensor:
    """Uniforms [num_rows] for a view-major stack of the current scope's rows, float32 on the CPU."""
    current = _current()
    views, rest = divmod(num_rows, len(current.rows))
    if rest:
        raise RuntimeError(f"{num_rows} rows are no whole number of views of {len(current.rows)} images")
    return torch.from_numpy(current.row_uniforms(views).reshape(-1).astype(np.float32))


def shared_integers(low: int, high: int, count: int) -> list[int]:
    """Integers from `low` to below `high` that all rows of the global batch share: the same on every rank and
    in every micro-batch, another draw for each forward call of a scope."""
    drawn = _current().shared_uniforms(count)
    return [low + int(u * (high - low)) for u in drawn]

"""Many names in two flat arrays, so that loader workers share them and a million cost tens of megabytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray


class Names:
    """An immutable sequence of strings, stored as one block of bytes and the end of each name in it.

    File names that are not valid UTF-8 survive (surrogateescape).
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self._block = b"".join(encoded)
        self._ends: NDArray[np.int64] = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._block[self._ends[index] : self._ends[index + 1]].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def update(self, digest: hashlib.blake2b) -> None:
        """Add all names to a digest."""
        digest.update(self._ends.tobytes())
        digest.update(self._block)

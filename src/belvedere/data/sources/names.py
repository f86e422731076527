"""Many names in two flat arrays, so that loader workers share them and a million cost tens of megabytes."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray


def encode_name(name: str) -> bytes:
    """UTF-8; bytes of a file name that are no UTF-8 survive. Raises UnicodeEncodeError for a lone surrogate
    that stands for no byte."""
    return name.encode("utf-8", "surrogateescape")


class GrowingNames:
    """Names that are added one by one, kept as flat as `Names`."""

    def __init__(self) -> None:
        self._block, self._ends = bytearray(), array("q", [0])

    def append(self, name: str) -> None:
        self._block += encode_name(name)
        self._ends.append(len(self._block))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> str:
        row = row if row >= 0 else len(self) + row
        return self._block[self._ends[row] : self._ends[row + 1]].decode("utf-8", "surrogateescape")


def encode_path(path: str) -> bytes:
    """The bytes by which the system knows a path made of names that `Names` has kept.

    Names are kept as UTF-8, so where the locale's encoding is another one (LC_ALL=C without Python's UTF-8
    mode) a name may hold characters that it lacks.
    """
    try:
        return os.fsencode(path)
    except UnicodeEncodeError:
        return encode_name(path)


class Names:
    """An immutable sequence of strings, stored as one block of bytes and the end of each name in it.

    File names that are not valid UTF-8 survive (surrogateescape).
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [encode_name(name) for name in names]
        self._block: NDArray[np.uint8] = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends: NDArray[np.int64] = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    @classmethod
    def view(cls, block: NDArray[np.uint8], ends: NDArray[np.int64]) -> Names:
        """The names whose bytes lie in `block` one after another, name i from ends[i] to ends[i + 1].

        block: [bytes]; ends: [N + 1], rising from 0. Neither is copied.
        """
        names = cls.__new__(cls)
        names._block, names._ends = block, ends
        return names

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        name = self._block[self._ends[index] : self._ends[index + 1]]
        return name.tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def update(self, digest: hashlib.blake2b) -> None:
        """Add all names to a digest."""
        digest.update(np.ascontiguousarray(self._ends).data)
        digest.update(np.ascontiguousarray(self._block).data)

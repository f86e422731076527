"""Several sources as one, each with a weight: its share of what training sees."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from belvedere.core.errors import DataError
from belvedere.data.decode import Pixels
from belvedere.data.sources.source import Source, source_repr


class Mixed:
    """The images of all parts, one part after another.

    weights: one positive number for each part, of which only the ratios count; they say what `epoch_order`
    takes from each part, in `shares`: images of each part in an epoch, which has as many as all parts
    together. Classes are those of all parts, by name. Keys start with the part's name, or with its number
    (from 0) where names are not told apart. Raises DataError for a weight that is no positive number, or
    that is too small for one image in an epoch, and for an empty part.
    """

    def __init__(self, parts: Sequence[Source], weights: Sequence[float]) -> None:
        self.parts, self.weights = tuple(parts), tuple(float(weight) for weight in weights)
        if len(self.parts) != len(self.weights):
            raise ValueError("as many weights as parts")
        self.sizes = tuple(len(part) for part in self.parts)
        names = [part.name for part in self.parts]
        self.shares = _shares(names, self.sizes, self.weights)
        self.name = "+".join(names)
        apart = len(set(names)) == len(names) and not any("/" in name or not name for name in names)
        self._prefixes = names if apart else [str(number) for number in range(len(names))]
        self._ends = tuple(accumulate(self.sizes))
        self.classes: tuple[str, ...] = tuple(sorted(set().union(*(part.classes for part in self.parts))))

    def __reduce__(self) -> tuple[Callable[..., Mixed], tuple[tuple[Source, ...], tuple[float, ...]]]:
        return Mixed, (self.parts, self.weights)  # without the labels: a worker does not need them

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """The parts' labels [N] in the numbers of all classes."""
        number = {name: label for label, name in enumerate(self.classes)}
        numbered = []
        for part in self.parts:
            table = np.array([*(number[name] for name in part.classes), -1], dtype=np.int64)  # [-1] is -1
            numbered.append(table[part.labels])
        return np.concatenate(numbered)

    @property
    def skipped(self) -> tuple[str, ...]:
        """Folders that could not be opened, with reasons, of all parts."""
        return tuple(
            f"{prefix}/{note}"
            for prefix, part in zip(self._prefixes, self.parts, strict=True)
            for note in getattr(part, "skipped", ())
        )

    __repr__ = source_repr

    def __len__(self) -> int:
        return self._ends[-1]

    def key(self, index: int) -> str:
        number, within = self.place(index)
        return f"{self._prefixes[number]}/{self.parts[number].key(within)}"

    def stored(self, index: int) -> bytes | Pixels:
        number, within = self.place(index)
        return self.parts[number].stored(within)

    def place(self, index: int) -> tuple[int, int]:
        """The number of the part that holds an image, and the image's index there."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self._ends, index)
        return number, index - self._ends[number] + self.sizes[number]

    def fingerprint(self) -> str:
        """Over the parts' fingerprints, their classes, which number the labels, and the weights."""
        digest = hashlib.blake2b(digest_size=16)
        for part, weight in zip(self.parts, self.weights, strict=True):
            digest.update(
                repr((part.fingerprint(), part.classes, weight)).encode("utf-8", "backslashreplace")
            )
        return digest.hexdigest()


def _shares(names: Sequence[str], sizes: Sequence[int], weights: Sequence[float]) -> tuple[int, ...]:
    """Images of each part in an epoch: the weights' shares of all images, by largest remainders.

    Of equal remainders the first part's counts more. Exact: a float is a fraction.
    """
    if not sizes:
        raise DataError("data.path is an empty list; name at least one part")
    for name, size, weight in zip(names, sizes, weights, strict=True):
        if not (math.isfinite(weight) and weight > 0.0):
            raise DataError(f"data.path: the weight of {name!r} is {weight}; it must be a positive number")
        if size == 0:
            raise DataError(f"data.path: {name!r} holds no image; remove it from the list")
    total, whole = sum(sizes), sum(map(Fraction, weights))
    quotas = [Fraction(weight) * total / whole for weight in weights]
    shares = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(shares)), key=lambda number: shares[number] - quotas[number])
    for number in by_remainder[: total - sum(shares)]:
        shares[number] += 1
    for name, share, weight in zip(names, shares, weights, strict=True):
        if share == 0:
            least = sum(weights) / total
            raise DataError(
                f"data.path: the weight of {name!r} is {weight:g}, less than one of the {total} images of an "
                f"epoch; give it at least {least:.3g}, or remove it from the list"
            )
    return tuple(shares)

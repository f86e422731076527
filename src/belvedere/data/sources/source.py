"""What a set of images is to the rest: its interface, and the set that lies in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from multiprocessing.context import get_spawning_popen
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from belvedere.data.decode import Decoded, Pixels, open_image
from belvedere.data.levels import Range
from belvedere.data.sources.mapped import MappedFile, shared_copy
from belvedere.data.sources.names import Names

UNLABELLED = -1
SHARED_BYTES = 1 << 20
"""What lies in memory and is larger is not copied to each worker."""
_HASHED_BYTES = 1 << 30  # of larger arrays, a fingerprint takes images spread evenly over them


class Source(Protocol):
    """Images by index, each with a key (relative file name, or `digits/12`) and a label (-1 = none).

    A source finds and reads; it does not decode. What it stores is turned into pixels by `read` and `inspect`
    below, so that every kind of source shares one set of rules.
    """

    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def labels(self) -> NDArray[np.int64]: ...

    def __len__(self) -> int: ...

    def key(self, index: int) -> str: ...

    def stored(self, index: int) -> bytes | Pixels:
        """An encoded image, or pixels uint8 [H, W, 3 or 1] where the source holds those.

        Raises UnreadableImage when there is nothing to be read. May be called from several threads.
        """
        ...

    def fingerprint(self) -> str:
        """A hash of names, sizes and labels: another data set has another one."""
        ...


def value_range_of(source: Source) -> Range | None:
    """The values that become black and white in images of more than eight bits, if the source was opened with
    such a range."""
    found: Range | None = getattr(source, "value_range", None)
    return found


def source_repr(source: Source) -> str:
    """`FolderSource('photos', 802 images, 17 classes)`: the `__repr__` of every source."""
    images, classes = len(source), len(source.classes)
    return (
        f"{type(source).__name__.lstrip('_')}({source.name!r}, {images:,} image{'s' if images != 1 else ''}, "
        f"{classes or 'no'} class{'es' if classes != 1 else ''})"
    )


def inspect(source: Source, index: int) -> Decoded:
    """One image's pixels uint8 [H, W, 3], and what they were converted from; raises UnreadableImage."""
    opened = open_image(source.stored(index), source.key(index), value_range=value_range_of(source))
    return opened.decoded()


def read(source: Source, index: int) -> Pixels:
    """One image's pixels uint8 [H, W, 3]; raises UnreadableImage."""
    return inspect(source, index).pixels


class Numbered:
    """The keys `PREFIX0`, `PREFIX1` and so on of `count` images, none of which is stored."""

    def __init__(self, prefix: str, count: int) -> None:
        self._prefix, self._count = prefix, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return f"{self._prefix}{index}"

    def update(self, digest: hashlib.blake2b) -> None:
        """Add all keys to a digest."""
        digest.update(f"{self._prefix} {self._count}".encode("utf-8", "surrogateescape"))


class ArraySource:
    """Equally sized images in memory or in a mapped file: pixels uint8 [N, H, W, C], C = 3 or 1 (gray).

    Loader workers share the pixels: what they are sent is where a file with them lies.
    """

    def __init__(
        self,
        name: str,
        pixels: NDArray[np.uint8],
        *,
        labels: NDArray[np.int64],
        classes: tuple[str, ...],
        keys: Iterable[str] | Numbered,
        file: MappedFile | None = None,
        scaled_from: str | None = None,
    ) -> None:
        """file: where exactly these pixels lie, when they are mapped from there. scaled_from: the type of the
        values that they were scaled from by a range."""
        self.scaled_from = scaled_from
        self.skipped: tuple[str, ...] = ()
        self.name, self.classes = name, classes
        self.pixels = np.ascontiguousarray(pixels)
        self.labels = np.asarray(labels, dtype=np.int64)
        self._keys = keys if isinstance(keys, Names | Numbered) else Names(keys)
        self._file = file
        if not len(self.pixels) == len(self.labels) == len(self._keys):
            raise ValueError("pixels, labels and keys must be of equal length")

    __repr__ = source_repr

    def __len__(self) -> int:
        return len(self.pixels)

    def key(self, index: int) -> str:
        return self._keys[index]

    def stored(self, index: int) -> Pixels:
        image: Pixels = self.pixels[index]
        return image

    def fingerprint(self) -> str:
        digest = hashlib.blake2b(str(self.pixels.shape).encode(), digest_size=16)
        self._keys.update(digest)
        digest.update(self.labels.tobytes())
        every = -(-self.pixels.nbytes // _HASHED_BYTES)
        for image in self.pixels if every <= 1 else self.pixels[::every]:
            digest.update(image.data)
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        # only on the way to a worker: a pickle that is kept must not depend on a temporary file
        if get_spawning_popen() is None or self.pixels.nbytes <= SHARED_BYTES:
            return {**self.__dict__, "_file": None}
        if self._file is None:
            self._file = shared_copy(self.pixels, self)
            self.pixels = self._file.open()  # lets go of the private copy
        return {**self.__dict__, "pixels": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._file is not None:
            self.pixels = self._file.open()


class Selected:
    """Some images of another source, in a given order, perhaps with labels of their own."""

    def __init__(
        self,
        source: Source,
        indices: NDArray[np.int64],
        *,
        labels: NDArray[np.int64] | None = None,
        classes: tuple[str, ...] | None = None,
    ) -> None:
        self._source, self.indices = source, np.asarray(indices, dtype=np.int64)
        self.parts = (source,)
        self.name = source.name
        self.value_range = value_range_of(source)
        self.labels = source.labels[self.indices] if labels is None else np.asarray(labels, dtype=np.int64)
        self.classes = source.classes if classes is None else classes

    __repr__ = source_repr

    def __len__(self) -> int:
        return len(self.indices)

    def key(self, index: int) -> str:
        return self._source.key(int(self.indices[index]))

    def stored(self, index: int) -> bytes | Pixels:
        return self._source.stored(int(self.indices[index]))

    def fingerprint(self) -> str:
        digest = hashlib.blake2b(self._source.fingerprint().encode(), digest_size=16)
        digest.update(self.indices.tobytes())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()


def subset(source: Source, indices: Iterable[int] | NDArray[np.int64]) -> Source:
    """The images at `indices`, in that order, with their labels and the same classes."""
    chosen = np.asarray(list(indices), dtype=np.int64)
    if chosen.size and (chosen.min() < 0 or chosen.max() >= len(source)):
        raise IndexError(f"indices must lie in 0..{len(source) - 1}")
    return _selected(source, chosen, source.labels[chosen], source.classes)


def relabelled(source: Source, labels: NDArray[np.int64], classes: tuple[str, ...]) -> Source:
    """The same images with other labels [N] and classes."""
    return _selected(source, np.arange(len(source), dtype=np.int64), labels, classes)


def _selected(
    source: Source, indices: NDArray[np.int64], labels: NDArray[np.int64], classes: tuple[str, ...]
) -> Source:
    if isinstance(source, ArraySource):  # stays an array, for the vectorized renderer
        everything = np.array_equal(indices, np.arange(len(source)))
        pixels = source.pixels if everything else source.pixels[indices]
        keys = Names(source.key(int(index)) for index in indices)
        return ArraySource(source.name, pixels, labels=labels, classes=classes, keys=keys)
    return Selected(source, indices, labels=labels, classes=classes)

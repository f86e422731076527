"""One pass over a source: what every image is, and what is needed to find its copies.

A row of numbers per image and, for near copies, a small gray picture of it; no Python object per image. That
is 60 bytes an image, and 576 more with pictures: 0.8 GB for 1.28 million images.
"""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from belvedere.data.decode import FORMATS, Pixels, UnreadableImage, open_image
from belvedere.data.duplicates import THUMB_PX
from belvedere.data.levels import Values
from belvedere.data.sources.source import Source, value_range_of
from belvedere.data.tiff import layout_of

HASH = "BLAKE2b, 128 bits"
ARRAY = "array"
"""Format of an image that its source holds as pixels."""

UNREADABLE, READABLE = 0, 1
ROW = np.dtype(
    [
        ("state", "u1"),
        ("format", "u2"),
        ("kind", "u2"),
        ("height", "u4"),
        ("width", "u4"),
        ("bytes", "i8"),
        ("stored", "u8", 2),  # hash of what is stored
        ("pixels", "u8", 2),  # hash of what it decodes to, and of its size
        ("color", "i1", 2),  # mean blue and red difference from gray (Cb, Cr)
    ]
)
_CHUNK = 16
_CHUNKS_AHEAD = 3  # a worker
_REDUCING_GAP = 3.0  # a large image is first averaged to three times the thumbnail's size

Progress = Callable[[int, int], None]
"""Told how many images are done, of how many."""


@dataclass
class Survey:
    """What was met. indices [N]: which images of the source; rows [N] of dtype ROW; thumbs uint8 [N, 24, 24],
    or None; formats, kinds: what the codes in the rows mean; reasons {position in rows: why unreadable};
    depths {type of the values: what those of more than eight bits hold};
    decode_s: seconds of processor time that reading and decoding took in all; elapsed_s: how long it took.
    """

    source: Source
    indices: NDArray[np.int64]
    rows: NDArray[Any]
    thumbs: NDArray[np.uint8] | None
    formats: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    depths: dict[str, Depth] = field(default_factory=dict)
    decode_s: float = 0.0
    elapsed_s: float = 0.0

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def complete(self) -> bool:
        """Whether every image of the source was looked at."""
        return len(self) == len(self.source)

    @property
    def readable(self) -> NDArray[np.bool_]:
        return np.asarray(self.rows["state"] == READABLE)

    def key(self, position: int) -> str:
        """The key of the image at a position of `rows`."""
        return self.source.key(int(self.indices[position]))


class _Seen(NamedTuple):
    """One image, or why it is none."""

    size: int
    stored: bytes
    format: str
    reason: str | None
    decode_s: float
    kind: str = ""
    height: int = 0
    width: int = 0
    pixels: bytes = b""
    color: tuple[int, int] = (0, 0)
    thumb: NDArray[np.uint8] | None = None
    values: Values | None = None


class Depth:
    """What images of more than eight bits hold, of all those met with values of one kind.

    images: how many; low, high: extremes over all; middle: extremes of what each image's values lie between
    but for a thousandth on either side; missing: pixels without a value, in so many images.
    """

    def __init__(self, first: Values) -> None:
        self.images, self.missing, self.with_missing = 0, 0, 0
        self.least, self.most = first.least, first.most
        self.low, self.high = first.low, first.high
        self.middle = first.middle

    def add(self, values: Values) -> None:
        """Another image."""
        self.images += 1
        self.missing += values.missing
        self.with_missing += values.missing > 0
        self.low, self.high = min(self.low, values.low), max(self.high, values.high)
        self.middle = min(self.middle[0], values.middle[0]), max(self.middle[1], values.middle[1])


def spread(total: int, limit: int | None) -> NDArray[np.int64]:
    """At most `limit` indices below `total`, evenly spread, ascending; all of them without a limit."""
    if limit is None or limit >= total:
        return np.arange(total, dtype=np.int64)
    return (np.arange(limit, dtype=np.int64) * total) // limit


def survey(
    source: Source, *, limit: int | None = None, workers: int = 1, thumbs: bool = True, progress: Progress
) -> Survey:
    """Read and decode the images of a source once, or an even sample of `limit` of them.

    workers: threads; decoding releases the interpreter lock. `source.stored` is called from all of them.
    An interruption or an error in the source ends them at their next image, before it leaves here.
    """
    indices = spread(len(source), limit)
    num = len(indices)
    pictures = np.zeros((num, THUMB_PX, THUMB_PX), dtype=np.uint8) if thumbs else None
    result = Survey(source, indices, np.zeros(num, dtype=ROW), pictures)
    start, done = time.perf_counter(), 0
    progress(0, num)
    for first, found in _in_threads(source, indices, workers=workers, thumbs=thumbs):
        for position, seen in enumerate(found, start=first):
            _note(result, position, seen)
        done += len(found)
        progress(done, num)
    result.elapsed_s = time.perf_counter() - start
    return result


def _in_threads(
    source: Source, indices: NDArray[np.int64], *, workers: int, thumbs: bool
) -> Iterator[tuple[int, list[_Seen]]]:
    """(first position, what was seen from there), in the order they are ready; a bounded number ahead."""
    stop = threading.Event()

    def look(first: int) -> tuple[int, list[_Seen]]:
        found = []
        for index in indices[first : first + _CHUNK]:
            if stop.is_set():
                break
            found.append(_see(source, int(index), thumbs=thumbs))
        return first, found

    waiting: set[Future[tuple[int, list[_Seen]]]] = set()
    with ThreadPoolExecutor(workers, thread_name_prefix="belvedere-survey") as pool:
        try:
            for first in range(0, len(indices), _CHUNK):
                waiting.add(pool.submit(look, first))
                if len(waiting) >= _CHUNKS_AHEAD * workers:
                    ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in ready)
            while waiting:
                ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in ready)
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _see(source: Source, index: int, *, thumbs: bool) -> _Seen:
    start = time.thread_time()
    size, hashed, kept_as = 0, b"", ""
    try:
        stored = source.stored(index)
        read_s = time.thread_time() - start
        size, hashed, kept_as = _num_bytes(stored), _hash_stored(stored), _format(stored)
        start = time.thread_time()
        opened = open_image(stored, source.key(index), value_range=value_range_of(source))
        decoded = opened.decoded()
    except UnreadableImage as error:
        return _Seen(size, hashed, kept_as, error.reason, 0.0)
    decode_s = read_s + time.thread_time() - start
    pixels = np.ascontiguousarray(decoded.pixels)
    height, width = pixels.shape[:2]
    color, thumb = _small(pixels) if thumbs else ((0, 0), None)
    return _Seen(
        size,
        hashed,
        kept_as,
        None,
        decode_s,
        decoded.kind,
        height,
        width,
        _hash_pixels(pixels),
        color,
        thumb,
        decoded.values,
    )


def _num_bytes(stored: bytes | Pixels) -> int:
    return stored.nbytes if isinstance(stored, np.ndarray) else len(stored)


def _hash_stored(stored: bytes | Pixels) -> bytes:
    if isinstance(stored, np.ndarray):
        return _hash_pixels(np.ascontiguousarray(stored))
    return hashlib.blake2b(stored, digest_size=16).digest()


def _hash_pixels(pixels: Pixels) -> bytes:
    digest = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
    digest.update(pixels.data)
    return digest.digest()


def _format(stored: bytes | Pixels) -> str:
    """`JPEG`, `PNG` and so on, as the bytes have it, whatever the file is called; empty when unknown."""
    if isinstance(stored, np.ndarray):
        return ARRAY
    if stored[:2] in (b"II", b"MM") and layout_of(stored) is not None:  # Pillow does not know them all
        return "TIFF"
    try:
        with Image.open(io.BytesIO(stored), formats=FORMATS) as image:
            return image.format or ""
    except Exception:  # why it cannot be read, `open_image` says
        return ""


def _small(pixels: Pixels) -> tuple[tuple[int, int], NDArray[np.uint8]]:
    """Mean color difference, and the thumbnail [24, 24]: luma, squashed to a square, antialiased."""
    small = Image.fromarray(pixels).resize(
        (THUMB_PX, THUMB_PX), Image.Resampling.BILINEAR, reducing_gap=_REDUCING_GAP
    )
    luma, blue, red = np.asarray(small.convert("YCbCr")).transpose(2, 0, 1)
    color = (round(float(blue.mean())) - 128, round(float(red.mean())) - 128)
    return (max(-128, min(127, color[0])), max(-128, min(127, color[1]))), luma


def _note(result: Survey, position: int, seen: _Seen) -> None:
    row = result.rows[position]
    row["bytes"], row["format"] = seen.size, _code(result.formats, seen.format)
    if seen.stored:
        row["stored"] = np.frombuffer(seen.stored, dtype="u8")
    if seen.reason is not None:
        row["state"] = UNREADABLE
        result.reasons[position] = seen.reason
        return
    row["state"], row["kind"] = READABLE, _code(result.kinds, seen.kind)
    row["height"], row["width"], row["color"] = seen.height, seen.width, seen.color
    row["pixels"] = np.frombuffer(seen.pixels, dtype="u8")
    result.decode_s += seen.decode_s
    if seen.values is not None:
        result.depths.setdefault(seen.values.kind, Depth(seen.values)).add(seen.values)
    if result.thumbs is not None and seen.thumb is not None:
        result.thumbs[position] = seen.thumb


def _code(names: list[str], name: str) -> int:
    if name not in names:
        names.append(name)
    return names.index(name)

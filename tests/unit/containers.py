"""What the tests of archives, tables and arrays share: tiny images, and a loader over a source."""

from __future__ import annotations

import io
import os
import pickle
import struct
from multiprocessing.context import set_spawning_popen
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from belvedere.data.loader import Loader
from belvedere.data.spec import DataSpec, Photometry, ViewSpec

LONG_AGO = 1_000_000_000
_LOOKS = Photometry(flip=0.5, jitter=None, gray=0.2, blur=None, solarize=0.1)
_VIEW = ViewSpec(
    count=2, px=8, scale=(0.3, 1.0), aspect=(0.75, 1.25), interpolation="bilinear", photometry=_LOOKS
)
_DATA = DataSpec(path=None, split=None, mean=(0.5,) * 3, std=(0.5,) * 3, max_bad_share=0.5)


def image(seed: int, kind: str = "PNG") -> bytes:
    """An encoded image of noise, 12 x 10 pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def old(*paths: Path) -> None:
    """Let files look as if nobody had written to them lately, so that their times are trusted."""
    for path in paths:
        os.utime(path, (LONG_AGO, LONG_AGO))


def again(source):
    """What a loader worker gets of a source."""
    return pickle.loads(pickle.dumps(source))


def sent(source) -> tuple:
    """What a process that is being started gets of a source, and how many bytes travel."""
    set_spawning_popen(source)
    try:
        data = pickle.dumps(source)
    finally:
        set_spawning_popen(None)
    return pickle.loads(data), len(data)


def keys(source) -> list[str]:
    return [source.key(index) for index in range(len(source))]


def same_with_a_worker(source) -> None:
    """Batches over a source are the same bits, whether this process reads it or another one."""
    batches = []
    for workers in (0, 1):
        with Loader(
            source, {"target": _VIEW}, data=_DATA, seed=1, global_batch=4, total_steps=3, workers=workers
        ) as loader:
            batches.append(list(loader))
    for here, there in zip(*batches, strict=True):
        assert torch.equal(here.views["target"], there.views["target"])
        assert torch.equal(here.index, there.index)
        assert torch.equal(here.label, there.label)


def widened(data: bytearray, *, before: bytes = b"") -> bytearray:
    """A zip archive with 64-bit fields throughout its directory, as one of more than 4 GiB has them.

    before: an extra field of each entry that stands in front of the one with its sizes.
    """
    end = data.rfind(b"PK\x05\x06")
    count, size, start = struct.unpack_from("<HII", data, end + 10)
    entries, at = bytearray(), start
    while at < start + size:
        entry = bytearray(data[at : at + 46])
        packed, whole, named, extra, comment = struct.unpack_from("<IIHHH", entry, 20)
        (offset,) = struct.unpack_from("<I", entry, 42)
        wide = before + struct.pack("<HHQQQ", 1, 24, whole, packed, offset)
        struct.pack_into("<IIHHH", entry, 20, 0xFFFFFFFF, 0xFFFFFFFF, named, len(wide), 0)
        struct.pack_into("<I", entry, 42, 0xFFFFFFFF)
        entries += entry + data[at + 46 : at + 46 + named] + wide
        at += 46 + named + extra + comment
    record = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, count, count, len(entries), start)
    locator = struct.pack("<IIQI", 0x07064B50, 0, start + len(entries), 1)
    ending = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, *[0xFFFF] * 2, *[0xFFFFFFFF] * 2, 0)
    return data[:start] + entries + record + locator + ending

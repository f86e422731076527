"""Arrays in files, which loader workers map into memory instead of receiving a copy each."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from belvedere.core.errors import DataError
from belvedere.core.files import free_bytes, readable_size

_SPARE_BYTES = 64 << 20  # left free for others where a temporary file is written
_CHUNK_BYTES = 64 << 20


class MappedFile(NamedTuple):
    """Where the bytes of an array uint8 `shape` lie: from `offset` on in the file `path`."""

    path: str
    offset: int
    shape: tuple[int, ...]

    def open(self) -> NDArray[np.uint8]:
        """The array, read-only; its pages are shared by all processes that map it. Raises DataError."""
        try:
            mapped = np.memmap(self.path, dtype=np.uint8, mode="r", offset=self.offset, shape=self.shape)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path} (data.path) cannot be mapped into memory: {error}") from error
        return mapped.view(np.ndarray)


def shared_copy(pixels: NDArray[np.uint8], owner: Any) -> MappedFile:
    """Write an array to a temporary file that is removed when `owner` or this process ends.

    The file lies in the system's folder for temporary files, on a disk where there is one: unlike shared
    memory it needs no room in /dev/shm, and its pages can be dropped and read again. Raises DataError when
    there is no room for it.
    """
    path = shared_folder(pixels.nbytes, owner) / "pixels"
    flat = pixels.reshape(-1)
    with path.open("wb") as file:  # written and not only sized: a full disk is an error here
        for start in range(0, flat.size, _CHUNK_BYTES):
            file.write(flat[start : start + _CHUNK_BYTES].data)
    return MappedFile(str(path), 0, pixels.shape)


def shared_folder(need_bytes: int, owner: Any) -> Path:
    """A temporary folder for what loader workers share, removed when `owner` or this process ends.

    Raises DataError when there is no room for `need_bytes`.
    """
    root = Path(tempfile.gettempdir())
    free = free_bytes(root)
    if free < need_bytes + _SPARE_BYTES:
        raise DataError(
            f"loader workers share the images in memory through a file of {readable_size(need_bytes)} in "
            f"{root}, where {readable_size(free)} are free; set TMPDIR to a folder with room, or "
            f"run.workers to 0"
        )
    folder = Path(tempfile.mkdtemp(prefix="belvedere-shared-", dir=root))
    weakref.finalize(owner, _remove, folder, os.getpid())
    return folder


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # and not a child that inherited the finalizer
        shutil.rmtree(folder, ignore_errors=True)

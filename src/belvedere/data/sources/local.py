"""Reading one file that ought to be an image and may be anything."""

from __future__ import annotations

import os
import stat

from belvedere.core.files import readable_size
from belvedere.data.decode import UnreadableImage
from belvedere.data.sources.names import encode_path

LARGEST_BYTES = 1 << 30
"""A file that is larger is refused before it is read."""


def read_file(path: str, key: str) -> bytes:
    """All bytes of the file at `path`; `key` names it in errors.

    Raises UnreadableImage for a file that is missing or larger than LARGEST_BYTES, and for pipes, devices and
    folders.
    """
    try:
        handle = os.open(
            encode_path(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        )  # a pipe would wait for its writer
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableImage(key, "is a folder, a pipe or a device, not a file")
            if status.st_size > LARGEST_BYTES:
                size, limit = readable_size(status.st_size), readable_size(LARGEST_BYTES)
                raise UnreadableImage(key, f"is {size} large; more than {limit} is refused")
            with open(handle, "rb", buffering=0, closefd=False) as file:
                return file.readall()
        finally:
            os.close(handle)
    except OSError as error:
        raise UnreadableImage(key, f"cannot be read: {error.strerror or error}") from error

"""The images of one tar file, with what lies beside them.

A sample of WebDataset is a run of members of the same name up to the first dot: an image and files beside it
(`.cls`: its class, `.json`: its class as "label"). Where nothing lies beside an image, it stands for itself.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from belvedere.core.errors import DataError
from belvedere.data.sources.access import file_system, is_url
from belvedere.data.sources.layout import image_name

SPARSE = -1
"""In the place of an offset: a member that is not stored in one piece."""
_MAGICS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_SAMPLE = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)")
_LARGEST_LABEL = 1 << 20


class Image(NamedTuple):
    """An encoded image: its member's name, and where in the file its bytes are."""

    name: str
    offset: int
    size: int


class _Sample:
    """The members of one name up to the first dot."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.images: list[Image] = []
        self.beside = False
        self.label: str | None = None

    def images_of_it(self) -> list[Image]:
        """One image where there is something beside it (`x.jpg` before `x.mask.png`), else all."""
        if not self.beside or len(self.images) < 2:
            return self.images
        plain = [image for image in self.images if image.name.rpartition("/")[2].count(".") == 1]
        return (plain or self.images)[:1]


def samples(path: str, *, note: Callable[[str], None]) -> Iterator[tuple[Image, str | None]]:
    """Each image of a tar file (local path or URL) and its label, None where nothing beside it says one.

    note: told what was left out. Raises DataError for a file that is compressed, cut short or no tar file.
    """
    num_images, num_links, num_bad = 0, 0, 0
    sample = _Sample("")
    try:
        with _opened(path) as file:
            _refuse_compressed(file, path)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in _members(tar, path):
                    match = _SAMPLE.fullmatch(member.name.removeprefix("./"))
                    key = match.group(1) if match else member.name
                    if key != sample.key:
                        yield from ((image, sample.label) for image in sample.images_of_it())
                        sample = _Sample(key)
                    name = image_name(member.name)
                    num_links += name is not None and not member.isreg()
                    if name is not None and member.isreg():
                        sample.images.append(_image(name, member))
                        num_images += 1
                    elif member.isreg() and match:
                        num_bad += not _beside(sample, tar, member, match.group(2).lower())
                yield from ((image, sample.label) for image in sample.images_of_it())
    except DataError:
        raise
    except Exception as error:
        if not is_url(path) and not isinstance(error, tarfile.TarError | EOFError | OSError):
            raise  # a protocol's package has errors of its own; a local file has none
        raise DataError(
            f"{path} (data.path) is no whole tar file: {error} (after {num_images} images); copy or "
            f"pack it anew"
        ) from error
    if num_links:
        note(f"{path}: {num_links} images that are links to other members were left out")
    if num_bad:
        note(f"{path}: {num_bad} .cls or .json files could not be read; their images have no label")


def _opened(path: str) -> IO[bytes]:
    if not is_url(path):
        return open(path, "rb")
    system, inner = file_system(path)
    file: IO[bytes] = system.open(inner, "rb")
    return file


def _refuse_compressed(file: IO[bytes], path: str) -> None:
    head = file.read(6)
    kind = next((kind for magic, kind in _MAGICS.items() if head.startswith(magic)), None)
    if kind is not None:
        raise DataError(
            f"{path} (data.path) is compressed with {kind}, so no image in it can be read without all before "
            f"it; decompress it (images hardly shrink anyway)"
        )
    file.seek(0)


def _members(tar: tarfile.TarFile, path: str) -> Iterator[tarfile.TarInfo]:
    """The members one by one, none of which is kept."""
    while (member := tar.next()) is not None:
        yield member
        tar.members = []  # type: ignore[attr-defined]
    # a header that makes no sense ends the file for `tarfile`, as an empty one does
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"no header where one should be, at byte {tar.offset}")


def _image(name: str, member: tarfile.TarInfo) -> Image:
    return Image(name, SPARSE if member.issparse() else member.offset_data, member.size)


def _beside(sample: _Sample, tar: tarfile.TarFile, member: tarfile.TarInfo, extension: str) -> bool:
    """Take note of a file beside an image; False when it should say a label and cannot be read."""
    sample.beside = True
    if extension not in ("cls", "json"):
        return True
    file = tar.extractfile(member)
    if file is None or member.size > _LARGEST_LABEL:
        return False
    content = file.read()
    if extension == "cls":
        sample.label = content.decode("utf-8", "replace").strip() or None
        return True
    if sample.label is not None:
        return True
    try:
        sample.label = _said(json.loads(content))
    except (ValueError, RecursionError):
        return False
    return True


def _said(content: Any) -> str | None:
    """The "label" of a JSON object: a whole number or a name."""
    label = content.get("label") if isinstance(content, dict) else None
    if isinstance(label, bool) or not isinstance(label, int | str):
        return None
    return str(label).strip() or None

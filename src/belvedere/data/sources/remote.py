"""Images behind a URL that fsspec understands: a folder of them, or an archive, shards or a table."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from belvedere.core.errors import DataError
from belvedere.data.levels import Range
from belvedere.data.sources.access import ReadError, fetched_whole, file_system, is_url
from belvedere.data.sources.archives import open_zip
from belvedere.data.sources.arrays import open_loaded_array
from belvedere.data.sources.choice import no_choice
from belvedere.data.sources.index import Index, IndexWriter, open_index
from belvedere.data.sources.indexed import rows_of_split
from belvedere.data.sources.layout import folder_of, image_name, layout_of, member_name
from belvedere.data.sources.left import Left
from belvedere.data.sources.parquet import SUFFIX as PARQUET
from belvedere.data.sources.parquet import open_parquet
from belvedere.data.sources.shards import COMPRESSED, open_tar
from belvedere.data.sources.source import Source

_UNKNOWN_SIZE = -1

OF_ARRAY = "labels are an array of their own, `labels` or `y`"
BY_FOLDER = "its labels are the folders that the images lie in"

__all__ = ["BY_FOLDER", "OF_ARRAY", "is_url", "open_remote"]


def open_remote(
    path: str,
    split: str | None,
    *,
    label: str | None = None,
    image: str | None = None,
    value_range: Range | None = None,
) -> Source:
    """The images behind a URL (`s3://`, `gs://`, `https://`, `file://` and whatever else fsspec knows).

    .zip, .tar (also a glob or braces), .parquet (also a glob), .npy and .npz by their names; anything else is
    a folder of images or of Parquet or tar files. value_range: for arrays, which may have other types than
    uint8 then. Raises DataError, or MissingPackageError for a protocol
    whose package is not installed.
    """
    name = path.rstrip("/").lower()
    file_system(path)  # a protocol that is not there is said first
    if name.endswith(".zip"):
        no_choice(path, label=label, image=image, why=BY_FOLDER)
        return open_zip(path, split)
    if name.endswith((".tar", *COMPRESSED)):
        return open_tar(path, split, label=label, image=image)
    if name.endswith(PARQUET):
        return open_parquet(path, split, label=label, image=image)
    if name.endswith((".npy", ".npz")):
        no_choice(path, label=label, image=image, why=OF_ARRAY)
        try:
            return open_loaded_array(fetched_whole(path), split, path, value_range=value_range)
        except ReadError as error:
            raise DataError(f"data.path: {error}") from error
    return _open_folder(path.rstrip("/"), split, label=label, image=image)


def _open_folder(url: str, split: str | None, *, label: str | None, image: str | None) -> Source:
    """The images below a remote folder, by the rules of archives: labels and parts by folder."""
    found = _listing(url)
    names = sorted(name for name in found if image_name(name) == name)
    if not names:
        return _open_files(url, list(found), split, label=label, image=image)
    no_choice(url, label=label, image=image, why=BY_FOLDER)
    layout = layout_of({folder_of(name) for name in names}, url, packed=False)
    names.sort(key=lambda name: layout.part(folder_of(name)))
    sizes = [found[name] for name in names]
    left = Left()
    for name in found.keys() - set(names):
        if image_name(name) is None and member_name(name) is not None:
            left.add(f"{os.path.splitext(name)[1].lower() or 'other'} files were not used", name)
        else:
            left.add("hidden files were left out", name)

    def build(writer: IndexWriter) -> None:
        parts: dict[str, list[int]] = {}
        for name, size in zip(names, sizes, strict=True):
            folder = folder_of(name)
            part = layout.part(folder)
            if part:
                parts.setdefault(part, [writer.count, 0])[1] = writer.count + 1
            writer.add(name, label=layout.label(folder), size=size)
        writer.meta["parts"] = parts
        for told in (layout.note, *left.told()):
            if told is not None:
                writer.note(told)

    listed = hashlib.blake2b(
        repr((names, sizes, sorted(found.keys() - set(names)))).encode("utf-8", "surrogateescape")
    ).hexdigest()
    identity = {"kind": "remote folder", "rules": 2, "path": url, "listed": listed}
    index = open_index(identity, build, describe=url)
    return rows_of_split(url.rpartition("/")[2] or url, index, RemoteReader(url), split=split, where=url)


def _open_files(
    url: str, names: list[str], split: str | None, *, label: str | None, image: str | None
) -> Source:
    """A remote folder of containers."""
    if any(name.endswith(PARQUET) for name in names):
        return open_parquet(url, split, label=label, image=image)
    tars = [name for name in names if name.endswith(".tar") and "/" not in name]
    if tars:
        return open_tar(f"{url}/*.tar", split, label=label, image=image)
    listed = ", ".join(names[:5]) or "nothing"
    raise DataError(f"no image file below {url} (data.path); found {listed}")


def _listing(url: str) -> dict[str, int]:
    """Files below a remote folder, and their sizes where the protocol tells; raises DataError."""
    system, root = file_system(url)
    try:
        system.invalidate_cache()  # another process may have written there since
        if not system.isdir(root):
            kind = "a file of no kind that is known" if system.exists(root) else "not there"
            raise DataError(
                f"data.path is {url!r}, which is {kind}; give a folder of images, or a .zip, .tar, "
                f".parquet, .npy or .npz file"
            )
        found: dict[str, Any] = system.find(root, detail=True)
    except DataError:
        raise
    except Exception as error:  # every protocol's package has errors of its own
        text = " ".join(str(error).split())
        raise DataError(f"{url} (data.path) cannot be listed: {type(error).__name__}: {text}") from error
    prefix = root.rstrip("/") + "/"
    return {
        path.removeprefix(prefix): _UNKNOWN_SIZE if facts.get("size") is None else int(facts["size"])
        for path, facts in found.items()
        if path.startswith(prefix)
    }


class RemoteReader:
    """Fetches whole files below a URL by their names."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __call__(self, index: Index, row: int) -> bytes:
        return fetched_whole(f"{self._url}/{index.names[row]}")

"""Opening sets of images by what a path or name says they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from belvedere.core.errors import DataError
from belvedere.data.levels import Range
from belvedere.data.sources.access import is_url
from belvedere.data.sources.archives import open_zip
from belvedere.data.sources.arrays import open_array
from belvedere.data.sources.builtin import is_idx_folder, open_digits, open_idx
from belvedere.data.sources.folder import open_folder
from belvedere.data.sources.huggingface import open_huggingface
from belvedere.data.sources.listing import LISTS, open_list
from belvedere.data.sources.mixed import Mixed
from belvedere.data.sources.parquet import SUFFIX as PARQUET
from belvedere.data.sources.parquet import is_parquet_folder, open_parquet
from belvedere.data.sources.ranged import with_range
from belvedere.data.sources.remote import open_remote
from belvedere.data.sources.shards import COMPRESSED, is_tar_folder, open_tar
from belvedere.data.sources.source import Source
from belvedere.data.sources.torchvision import open_torchvision
from belvedere.data.spec import Part

SPLITS = ("train", "test")

_BY_PREFIX: tuple[tuple[str, Callable[[str, str | None], Source]], ...] = (
    ("torchvision:", open_torchvision),
    ("hf:", open_huggingface),
)
_BY_ENDING: tuple[tuple[tuple[str, ...], Callable[[str, str | None], Source]], ...] = (
    ((".zip",), open_zip),
    ((".tar", *COMPRESSED), open_tar),
    ((PARQUET,), open_parquet),
    ((".npy", ".npz"), open_array),
)


def open_source(
    path: str | Sequence[Part], *, split: str | None = None, value_range: Range | None = None
) -> Source:
    """The images that `data.path` and `data.split` name.

    path: a folder of images (flat or nested), of IDX files, of tar shards or of Parquet files; a list of
    files (`.txt`, `.csv`, `.tsv`, `.jsonl`); `.zip`; `.tar` and `.parquet`, also several by a pattern
    (`*`, `{000..099}`); `.npy`, `.npz`; a URL of any of these; `torchvision:NAME`, `hf:DIR`, `digits`; or
    parts with weights, which are mixed. value_range: the values that become black and white in images of more
    than eight bits (`data.range`). Raises DataError for a path that is missing, empty, of no kind
    known, or that does not have the split.
    """
    if value_range is not None:
        return _open_ranged(path, split=split, value_range=value_range)
    if split is not None and split not in SPLITS:
        raise DataError(f"data.split is {split!r}; it must be train, test or null")
    if not isinstance(path, str):
        return _open_parts(path, split)
    if path == "digits":
        return open_digits(split)
    for prefix, opener in _BY_PREFIX:
        if path.startswith(prefix):
            return opener(path, split)
    if is_url(path):
        return open_remote(path, split)
    for endings, opener in _BY_ENDING:
        if path.lower().endswith(endings) and not Path(path).expanduser().is_dir():
            return opener(str(Path(path).expanduser()), split)
    return _open_local(path, split)


def _open_ranged(path: str | Sequence[Part], *, split: str | None, value_range: Range) -> Source:
    """The same with a range of values, which arrays of other types than uint8 need when they are opened."""
    if not isinstance(path, str) and split is None:
        opened = [open_source(part.path, split=part.split, value_range=value_range) for part in path]
        source: Source = Mixed(opened, [part.weight for part in path])
    elif isinstance(path, str) and path.lower().endswith((".npy", ".npz")) and not is_url(path):
        source = open_array(path, split, value_range=value_range)
    else:
        source = open_source(path, split=split)
    return with_range(source, value_range)


def _open_parts(parts: Sequence[Part], split: str | None) -> Source:
    if split is not None:
        raise DataError(f"data.split is {split!r}, but data.path is a list; give each of its parts a split")
    opened = [open_source(part.path, split=part.split) for part in parts]
    return Mixed(opened, [part.weight for part in parts])


def _open_local(path: str, split: str | None) -> Source:
    """A list of files, or a folder."""
    place = Path(path).expanduser()
    if not path or not place.exists():
        raise DataError(
            f"data.path is {path!r}, which does not exist; give a folder of images, a list of files "
            f"({', '.join(sorted(LISTS))}), an archive (.zip, .tar), .parquet, .npy, or `digits`"
        )
    if not place.is_dir():
        if place.suffix.lower() in LISTS:
            return open_list(place, split)
        raise DataError(
            f"data.path is {path!r}, a file that is no list ({', '.join(sorted(LISTS))}), .zip, .tar, "
            ".parquet, .npy or .npz; give the folder that holds the images"
        )
    if is_idx_folder(place):
        return open_idx(place, split)
    if is_tar_folder(place):
        return open_tar(str(place), split)
    if is_parquet_folder(place):
        return open_parquet(str(place), split)
    return open_folder(place.resolve(), split)

"""Opening sets of images by what a path or name says they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from belvedere.core.errors import DataError
from belvedere.data.levels import Range
from belvedere.data.sources.access import is_url
from belvedere.data.sources.archives import open_zip
from belvedere.data.sources.arrays import open_array
from belvedere.data.sources.builtin import is_idx_folder, open_digits, open_idx
from belvedere.data.sources.choice import no_choice
from belvedere.data.sources.dataset import PREFIX as GIVEN
from belvedere.data.sources.dataset import as_source, of_datasets
from belvedere.data.sources.folder import open_folder
from belvedere.data.sources.huggingface import from_huggingface, open_huggingface
from belvedere.data.sources.listing import LISTS, open_list
from belvedere.data.sources.mixed import Mixed
from belvedere.data.sources.parquet import SUFFIX as PARQUET
from belvedere.data.sources.parquet import is_parquet_folder, open_parquet
from belvedere.data.sources.ranged import with_range
from belvedere.data.sources.remote import BY_FOLDER, OF_ARRAY, open_remote
from belvedere.data.sources.shards import COMPRESSED, is_tar_folder, open_tar
from belvedere.data.sources.source import Source
from belvedere.data.sources.torchvision import PREFIX as TORCHVISION
from belvedere.data.sources.torchvision import open_torchvision
from belvedere.data.spec import Part

SPLITS = ("train", "test")

_CHOOSING: tuple[tuple[str, Callable[..., Source]], ...] = (("hf:", open_huggingface),)
_BY_ENDING: tuple[tuple[tuple[str, ...], Callable[..., Source]], ...] = (
    ((".tar", *COMPRESSED), open_tar),
    ((PARQUET,), open_parquet),
)


class _Chosen(NamedTuple):
    """What is taken of a source."""

    split: str | None
    label: str | None
    image: str | None


def open_source(
    path: str | Path | Sequence[Part] | Any,
    *,
    split: str | None = None,
    label: str | None = None,
    image: str | None = None,
    value_range: Range | None = None,
) -> Source:
    """The images that `data.path` and `data.split` name.

    path: a folder of images (flat or nested), of IDX files, of tar shards or of Parquet files; a list of
    files (`.txt`, `.csv`, `.tsv`, `.jsonl`); `.zip`; `.tar` and `.parquet`, also several by a pattern
    (`*`, `{000..099}`); `.npy`, `.npz`; a URL of any of these; `torchvision:NAME`, `hf:DIR`, `digits`; or
    parts with weights, which are mixed; or a data set itself, such as a map-style torch.utils.data.Dataset
    of PIL images, arrays, tensors or (image, label). label, image: the column, key or ending that holds the
    labels and the images, where the source has several (lists, shards, Parquet, `hf:`). value_range: the
    values that become black and white in images of more than eight bits (`data.range`). Raises DataError for
    a path that is missing, empty, of no kind known, or that does not have the split or the column.
    """
    chosen = _Chosen(split, label, image)
    if split is not None and split not in SPLITS:
        raise DataError(f"data.split is {split!r}; it must be train, test or null")
    if isinstance(path, Path):
        path = str(path)
    if value_range is not None:
        return _open_ranged(path, chosen, value_range=value_range)
    if not isinstance(path, str):
        return _open_parts(path, chosen) if _are_parts(path) else _given(path, chosen)
    if path.startswith(GIVEN):
        raise DataError(
            f"data.path is {path!r}: this run was begun from Python with images of its own; continue it "
            "there, belvedere.pretrain(recipe, images=...), or set data.path"
        )
    for prefix, opener in _CHOOSING:
        if path.startswith(prefix):
            return opener(path, split, label=label, image=image)
    if is_url(path):
        return open_remote(path, split, label=label, image=image)
    place = str(Path(path).expanduser())
    for endings, opener in _BY_ENDING:
        if path.lower().endswith(endings) and not Path(place).is_dir():
            return opener(place, split, label=label, image=image)
    return _open_local(path, split, label=label, image=image)


def _are_parts(path: Any) -> bool:
    return isinstance(path, list | tuple) and all(isinstance(part, Part) for part in path)


def _given(images: Any, chosen: _Chosen) -> Source:
    """A data set that was handed over."""
    if of_datasets(images):
        return from_huggingface(images, split=chosen.split, label=chosen.label, image=chosen.image)
    why = "its items, or its `targets`, give the labels"
    no_choice(type(images).__name__, label=chosen.label, image=chosen.image, why=why)
    return as_source(images, split=chosen.split)


def _open_ranged(path: Any, chosen: _Chosen, *, value_range: Range) -> Source:
    """The same with a range of values, which arrays of other types than uint8 need when they are opened."""
    if _are_parts(path):
        source: Source = _open_parts(path, chosen, value_range=value_range)
    elif isinstance(path, str) and path.lower().endswith((".npy", ".npz")) and not Path(path).is_dir():
        no_choice(path, label=chosen.label, image=chosen.image, why=OF_ARRAY)
        opener = open_remote if is_url(path) else open_array
        source = opener(path, chosen.split, value_range=value_range)
    else:
        source = open_source(path, split=chosen.split, label=chosen.label, image=chosen.image)
    return with_range(source, value_range)


def has_columns(path: str) -> bool:
    """Whether a path names a source in which labels and images can be chosen, as far as its name tells."""
    if path.startswith("hf:"):
        return True
    endings = (".tar", *COMPRESSED, PARQUET, *LISTS)
    place = Path(path).expanduser()
    if is_url(path) or not place.is_dir():
        return path.lower().endswith(endings)
    return is_tar_folder(place) or is_parquet_folder(place)


def _open_parts(parts: Sequence[Part], chosen: _Chosen, *, value_range: Range | None = None) -> Source:
    for key, given in chosen._asdict().items():
        if given is not None:
            raise DataError(
                f"data.{key} is {given!r}, but data.path is a list; give each of its parts a {key}"
            )
    opened = [
        open_source(part.path, split=part.split, label=part.label, image=part.image, value_range=value_range)
        for part in parts
    ]
    return Mixed(opened, [part.weight for part in parts])


def _open_local(path: str, split: str | None, *, label: str | None, image: str | None) -> Source:
    """A data set by name, a file or a folder."""
    if path == "digits":
        no_choice(path, label=label, image=image, why="it has labels of its own")
        return open_digits(split)
    if path.startswith(TORCHVISION):
        no_choice(path, label=label, image=image, why="its class gives the labels; options go behind a `?`")
        return open_torchvision(path, split)
    place = Path(path).expanduser()
    if not path or not place.exists():
        raise DataError(
            f"data.path is {path!r}, which does not exist; give a folder of images, a list of files "
            f"({', '.join(sorted(LISTS))}), an archive (.zip, .tar), .parquet, .npy, or `digits`"
        )
    if place.is_dir():
        return _open_folder(place, split, label=label, image=image)
    if place.suffix.lower() in LISTS:
        return open_list(place, split, label=label, image=image)
    if path.lower().endswith(".zip"):
        no_choice(path, label=label, image=image, why=BY_FOLDER)
        return open_zip(str(place), split)
    if path.lower().endswith((".npy", ".npz")):
        no_choice(path, label=label, image=image, why=OF_ARRAY)
        return open_array(str(place), split)
    raise DataError(
        f"data.path is {path!r}, a file that is no list ({', '.join(sorted(LISTS))}), .zip, .tar, "
        ".parquet, .npy or .npz; give the folder that holds the images"
    )


def _open_folder(place: Path, split: str | None, *, label: str | None, image: str | None) -> Source:
    if is_tar_folder(place):
        return open_tar(str(place), split, label=label, image=image)
    if is_parquet_folder(place):
        return open_parquet(str(place), split, label=label, image=image)
    no_choice(str(place), label=label, image=image, why=BY_FOLDER)
    if is_idx_folder(place):
        return open_idx(place, split)
    return open_folder(place.resolve(), split)

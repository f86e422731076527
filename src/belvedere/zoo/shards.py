"""Weights in several files, as Hugging Face saves large ones: an index that says which tensor is in which.

DIR/
  model.safetensors.index.json   {"metadata": {...}, "weight_map": {tensor: file}}
  model-00001-of-00002.safetensors, ...
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from belvedere.core.errors import WeightsError
from belvedere.core.files import MOST_TEXT_BYTES, require_regular

INDEX_SUFFIX = ".index.json"
_LISTED = 6
_LONGEST_NAME = 255


def read_json(path: Path) -> Mapping[str, Any]:
    """The JSON object in a file. Raises `WeightsError` if it is anything else, NaN and infinity included."""
    try:
        require_regular(path, most_bytes=MOST_TEXT_BYTES)
        content = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_refused)
    except (OSError, ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise WeightsError(f"{path} cannot be read: {what}") from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} is a {type(content).__name__}, must be an object")
    return content


def _refused(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON's")


def read_index(path: Path) -> dict[str, str]:
    """Which file beside the index `path` each tensor is in. Raises `WeightsError` for an index that names
    files elsewhere, or none."""
    places = read_json(path).get("weight_map")
    if not isinstance(places, Mapping) or not places:
        raise WeightsError(f"{path} has no weight_map, which says what file each tensor is in")
    for tensor, name in places.items():
        if not isinstance(name, str) or not name or Path(name).name != name or name in (".", ".."):
            raise WeightsError(
                f"{path}: {tensor} is said to be in {name!r}, must be the name of a file beside it"
            )
        if "\0" in name or "\\" in name or len(name) > _LONGEST_NAME:
            shown = repr(name[:_LONGEST_NAME])
            raise WeightsError(f"{path}: {tensor} is said to be in {shown}, which is no file's name")
    return {str(tensor): str(name) for tensor, name in places.items()}


def read_shards(path: Path, read: Callable[[Path], Any]) -> dict[str, Any]:
    """All tensors that the index `path` names, each from its file. read: what a file holds.

    Raises `WeightsError` naming a file that is missing, a tensor that is not in its file, or one in a file
    that the index does not place there.
    """
    places = read_index(path)
    names = sorted(set(places.values()))
    if missing := [name for name in names if not (path.parent / name).is_file()]:
        raise WeightsError(
            f"{path.parent} lacks {len(missing)} of {len(names)} files that {path.name} names: "
            f"{_few(missing)}"
        )
    content: dict[str, Any] = {}
    for name in names:
        held = read(path.parent / name)
        if not isinstance(held, Mapping):
            raise WeightsError(f"{path.parent / name} is a {type(held).__name__}, must be a state dict")
        expected = {tensor for tensor, place in places.items() if place == name}
        found = {str(tensor) for tensor in held}
        if expected - found:
            raise WeightsError(
                f"{path.parent / name} lacks what {path.name} places there: {_few(expected - found)}"
            )
        if found - expected:
            raise WeightsError(
                f"{path.parent / name} has what {path.name} does not place there: {_few(found - expected)}"
            )
        content |= {str(tensor): value for tensor, value in held.items()}
    return content


def _few(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _LISTED} more" if len(ordered) > _LISTED else ""
    return ", ".join(ordered[:_LISTED]) + more

"""The manifest of a checkpoint: what it must contain, so that a truncated or altered one is recognised.

runs/<name>/checkpoints/
  000012500/            a complete checkpoint, named by its step
    tensors-0.safetensors  what process 0 wrote; one file for each process that wrote something
    manifest.json       written last: names, shapes, dtypes, sizes and SHA-256 of the files, and its own
  .writing-000013000/   a save that did not end
  .replaced-000012500/  the former checkpoint of a step that was saved again
  .deleting-000010000/  a rotated checkpoint

A run directory may come from anyone, and a checksum is renewed as easily as it is made: it tells damage, not
malice. So nothing here is believed before it is checked, and nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from belvedere.core.errors import CheckpointError
from belvedere.core.files import read_json, sha256

FORMAT = 2
"""Format 1 (torch.distributed.checkpoint) is still read; see `format_1`."""
MANIFEST_NAME = "manifest.json"
FOLDER_NAME = "checkpoints"
DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
"""The types that a checkpoint keeps, by their names in torch and in safetensors."""
_STEP_NAME = re.compile(r"\d{9,}")


class UnsoundError(Exception):
    """A checkpoint that is truncated or altered; the message says how."""


def step_name(step: int) -> str:
    """The name of the checkpoint of a step: nine digits, so that names sort as steps do."""
    return f"{step:09d}"


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints of a run directory, oldest first, sound or not."""
    folder = directory / FOLDER_NAME
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _STEP_NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name))


def dtype_name(tensor: Tensor) -> str:
    """A type as the manifest keeps it: `float32`."""
    return str(tensor.dtype).removeprefix("torch.")


def describe(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Shape and dtype of every tensor, as the manifest keeps them."""
    return {
        name: {"shape": list(tensor.shape), "dtype": dtype_name(tensor)} for name, tensor in tensors.items()
    }


def num_bytes(entry: Mapping[str, Any]) -> int:
    """The size of a tensor that `describe` has described."""
    dtype: torch.dtype = getattr(torch, entry["dtype"])
    count: int = math.prod(entry["shape"])
    return count * dtype.itemsize


def seal(content: dict[str, Any]) -> dict[str, Any]:
    """The manifest with this content, as it reads back from JSON, with a checksum of itself."""
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return {**plain, "sha256": _checksum(plain)}


def read(folder: Path) -> dict[str, Any]:
    """The manifest in `folder`.

    Raises `UnsoundError` if it is missing or altered, or a file has another size than it says (contents are
    not read); `CheckpointError` if it was written in a format that this version does not know.
    """
    manifest = _parse(folder / MANIFEST_NAME)
    for name, file in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise UnsoundError(f"{name} is missing")
        if path.stat().st_size != file["bytes"]:
            raise UnsoundError(f"{name} has {path.stat().st_size} bytes instead of {file['bytes']}")
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """The manifest in `folder`, after checking every file against its checksum. Raises as `read` does."""
    manifest = read(folder)
    for name, file in manifest["files"].items():
        try:
            found = sha256(folder / name)
        except OSError as error:
            raise UnsoundError(f"{name} cannot be read ({error})") from error
        if found != file["sha256"]:
            raise UnsoundError(f"{name} is altered (SHA-256 {found[:12]} instead of {file['sha256'][:12]})")
    return manifest


def _parse(path: Path) -> dict[str, Any]:
    try:
        manifest = read_json(path)
    except FileNotFoundError as error:
        raise UnsoundError(f"{path.name} is missing") from error
    except (OSError, ValueError) as error:
        raise UnsoundError(f"{path.name} cannot be read ({error})") from error
    if not isinstance(manifest, dict):
        raise UnsoundError(f"{path.name} is altered (not a mapping)")
    checksum = manifest.pop("sha256", None)
    if checksum != _checksum(manifest):
        raise UnsoundError(f"{path.name} is altered (its checksum does not hold)")
    _refuse_another_format(path, manifest)
    mistakes = list(_mistakes(manifest))
    if mistakes:
        raise UnsoundError(f"{path.name} is altered ({'; '.join(mistakes[:3])})")
    return manifest


def _refuse_another_format(path: Path, manifest: Mapping[str, Any]) -> None:
    found = manifest.get("format")
    if type(found) is int and found not in (1, FORMAT):
        versions = manifest.get("versions")
        with_it = versions.get("belvedere") if isinstance(versions, dict) else None
        raise CheckpointError(
            f"{path} is of format {found}, this version of belvedere reads formats 1 and {FORMAT}; "
            f"continue with belvedere {with_it or 'of its time'}"
        )


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# What a manifest must be


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_positive(value: Any) -> bool:
    return _is_count(value) and value > 0


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


_KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "format": (_is_count, "a whole number"),
    "step": (_is_count, "a whole number"),
    "milestone": (lambda value: isinstance(value, bool), "true or false"),
    "world_size": (_is_positive, "a whole number of at least 1"),
    "threads": (_is_positive, "a whole number of at least 1"),
    "versions": (_is_mapping, "a mapping"),
    "meta": (_is_mapping, "a mapping"),
    "tensors": (_is_mapping, "a mapping"),
    "files": (_is_mapping, "a mapping"),
}
_FILE_NAME = re.compile(r"tensors-\d+\.safetensors|__\d+_\d+\.distcp|\.metadata")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def _mistakes(manifest: Mapping[str, Any]) -> Iterator[str]:
    """What of a manifest cannot be, whoever sealed it."""
    absent = [key for key in _KEYS if key not in manifest]
    yield from (f"{key} is missing" for key in absent)
    wrong = [key for key, (fits, _) in _KEYS.items() if key not in absent and not fits(manifest[key])]
    yield from (f"{key} must be {_KEYS[key][1]}, is {_short(manifest[key])}" for key in wrong)
    if absent or wrong:
        return
    if not isinstance(manifest["versions"].get("torch"), str):
        yield "versions.torch is missing"
    unfit = [*_unfit_files(manifest["files"]), *_unfit_tensors(manifest)]
    yield from unfit
    if not unfit:
        claimed = sum(num_bytes(entry) for entry in manifest["tensors"].values())
        there = sum(file["bytes"] for file in manifest["files"].values())
        if claimed > there:
            yield f"its tensors would take {claimed} bytes, its files have {there}"


def _unfit_files(files: Mapping[str, Any]) -> Iterator[str]:
    for name, file in files.items():
        if not _FILE_NAME.fullmatch(name):
            yield f"files: {_short(name)} is no name of a checkpoint's file"
        elif not (isinstance(file, dict) and _is_count(file.get("bytes")) and _is_sum(file.get("sha256"))):
            yield f"files: {name} must have bytes and sha256, is {_short(file)}"


def _is_sum(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _unfit_tensors(manifest: Mapping[str, Any]) -> Iterator[str]:
    placed = manifest["format"] > 1
    for name, entry in manifest["tensors"].items():
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if not (isinstance(shape, list) and all(map(_is_count, shape))):
            yield f"tensors: {_short(name)} has no shape, is {_short(entry)}"
        elif not isinstance(entry.get("dtype"), str) or entry["dtype"] not in DTYPES:
            yield f"tensors: {_short(name)} is of type {_short(entry.get('dtype'))}"
        elif placed and not (isinstance(entry.get("file"), str) and entry["file"] in manifest["files"]):
            yield f"tensors: {_short(name)} lies in {_short(entry.get('file'))}, which is not in files"


def _short(value: Any) -> str:
    return repr(value)[:80]

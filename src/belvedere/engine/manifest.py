"""The manifest of a checkpoint: what it must contain, so that a truncated or altered one is recognised.

runs/<name>/checkpoints/
  000012500/            a complete checkpoint, named by its step
    __0_0.distcp        tensors, one file per process (torch.distributed.checkpoint)
    .metadata           where each tensor lies in those files (a pickle: run directories are trusted)
    manifest.json       written last: names, shapes, dtypes, sizes and SHA-256 of the files, and its own
  .writing-000013000/   a save that did not end
  .replaced-000012500/  the former checkpoint of a step that was saved again
  .deleting-000010000/  a rotated checkpoint
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from belvedere.core.errors import CheckpointError
from belvedere.core.files import sha256

FORMAT = 1
MANIFEST_NAME = "manifest.json"
FOLDER_NAME = "checkpoints"
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


def describe(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Shape and dtype of every tensor, as the manifest keeps them."""
    return {
        name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
        for name, tensor in tensors.items()
    }


def record_files(paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file, by name."""
    return {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in paths}


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
        manifest = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UnsoundError(f"{path.name} is missing") from error
    except (OSError, ValueError) as error:
        raise UnsoundError(f"{path.name} cannot be read ({error})") from error
    if not isinstance(manifest, dict):
        raise UnsoundError(f"{path.name} is altered (not a mapping)")
    checksum = manifest.pop("sha256", None)
    if checksum != _checksum(manifest):
        raise UnsoundError(f"{path.name} is altered (its checksum does not hold)")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is of format {manifest.get('format')}, this version of belvedere reads format {FORMAT}; "
            f"continue with belvedere {manifest.get('versions', {}).get('belvedere', 'of its time')}"
        )
    return manifest


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

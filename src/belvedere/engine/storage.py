"""Tensors to files and back: one safetensors file for each process, `tensors-<rank>.safetensors`.

    8 bytes     length of the header, little-endian
    header      JSON: type, shape and place of each tensor, padded by spaces to a multiple of 8
    tensors     one after another, those of the largest numbers first, little-endian

Nothing in such a file can run when it is read. It is written and read here and not by the safetensors
package, so that a state that fills the memory is never there twice: a tensor goes from where it is to the
file and from the file to where it belongs. Any reader of safetensors opens the files.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from belvedere.core.errors import CheckpointError
from belvedere.core.files import write_errors
from belvedere.engine import format_1
from belvedere.engine import manifest as manifests

FILE_NAME = "tensors-{rank}.safetensors"
Observer = Callable[[str], None]

_LENGTH = struct.Struct("<Q")
_LONGEST_HEADER = 100_000_000  # as the format allows
_CHUNK_BYTES = 1 << 24


def file_name(rank: int) -> str:
    """The file of a process in a checkpoint."""
    return FILE_NAME.format(rank=rank)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write a new file with these tensors, forced to the disk; returns its size and SHA-256.

    Raises `CheckpointError` for a type that the format lacks, `WriteError` where the disk is full.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header = _header(path, ordered)
    digest = hashlib.sha256()
    with write_errors(path), path.open("xb", buffering=0) as file:
        _append(file, memoryview(_LENGTH.pack(len(header)) + header), digest)
        for _, tensor in ordered:
            _append(file, _memory(tensor.detach().cpu().contiguous()), digest)
        os.fsync(file.fileno())
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def read_tensors(folder: Path, targets: Mapping[str, Tensor]) -> None:
    """Fill the targets (on the CPU, contiguous) from the checkpoint in `folder`, of this format or the first.

    Raises `CheckpointError` if a file is not what the manifest says.
    """
    manifest = manifests.read(folder)
    if manifest["format"] == 1:
        format_1.read_tensors(folder, targets, manifest)
    else:
        by_file: dict[str, dict[str, Tensor]] = {}
        for name, target in targets.items():
            by_file.setdefault(manifest["tensors"][name]["file"], {})[name] = target
        for file, wanted in by_file.items():
            _read_file(folder / file, wanted)
    for name, target in targets.items():
        if target.dtype == torch.bool and bool((target.view(torch.uint8) > 1).any()):
            raise CheckpointError(f"{folder}: {name} has a truth value that is neither 0 nor 1")


def _header(path: Path, ordered: list[tuple[str, Tensor]]) -> bytes:
    content: dict[str, Any] = {}
    at = 0
    for name, tensor in ordered:
        dtype = manifests.dtype_name(tensor)
        if dtype not in manifests.DTYPES:
            raise CheckpointError(f"{path}: {name} is of type {dtype}, which checkpoints cannot keep")
        end = at + tensor.numel() * tensor.element_size()
        content[name] = {
            "dtype": manifests.DTYPES[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(content, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def _memory(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, where they are."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _append(file: BinaryIO, content: memoryview, digest: hashlib._Hash) -> None:
    for start in range(0, len(content), _CHUNK_BYTES):
        chunk = content[start : start + _CHUNK_BYTES]
        digest.update(chunk)
        while chunk:  # a disk that fills takes part of it
            chunk = chunk[file.write(chunk) :]


def _read_file(path: Path, wanted: Mapping[str, Tensor]) -> None:
    try:
        with path.open("rb", buffering=0) as file:
            entries, start = _entries(path, file)
            for name, target in wanted.items():
                begin, end = _place(path, name, entries.get(name), target)
                if start + end > os.fstat(file.fileno()).st_size:
                    raise CheckpointError(f"{path} is truncated: {name} lies behind its end")
                file.seek(start + begin)
                _fill(path, file, target)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def _entries(path: Path, file: BinaryIO) -> tuple[dict[str, Any], int]:
    """The header, and where the tensors begin."""
    size = os.fstat(file.fileno()).st_size
    first = file.read(_LENGTH.size)
    length = _LENGTH.unpack(first)[0] if len(first) == _LENGTH.size else size
    if length > min(_LONGEST_HEADER, size - _LENGTH.size):
        raise CheckpointError(f"{path} is no safetensors file: its header is longer than the file")
    try:
        entries = json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no safetensors file: its header is no JSON") from error
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path} is no safetensors file: its header names no tensors")
    return entries, _LENGTH.size + length


def _place(path: Path, name: str, entry: Any, target: Tensor) -> tuple[int, int]:
    """Begin and end of a tensor's bytes. Raises `CheckpointError` unless the file and the manifest agree."""
    code, shape = manifests.DTYPES[manifests.dtype_name(target)], list(target.shape)
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if (
        not isinstance(entry, dict)
        or (entry.get("dtype"), entry.get("shape")) != (code, shape)
        or not isinstance(offsets, list)
        or not all(type(one) is int and one >= 0 for one in offsets)
        or len(offsets) != 2
        or offsets[1] - offsets[0] != target.nbytes
    ):
        told = str(entry)[:100]
        raise CheckpointError(f"{path}: {name} must be {code} {shape} by the manifest; the file says {told}")
    return offsets[0], offsets[1]


def _fill(path: Path, file: BinaryIO, target: Tensor) -> None:
    left = _memory(target)
    while left:
        count = file.readinto(left[:_CHUNK_BYTES])  # type: ignore[attr-defined]
        if not count:
            raise CheckpointError(f"{path} became shorter while it was read")
        left = left[count:]

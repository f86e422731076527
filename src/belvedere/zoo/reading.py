"""Reads files that others wrote: pickles, of which only plain data is let through, safetensors, and folders
as Hugging Face writes them. A file is mapped into memory where its format allows it, and never read twice.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from belvedere.core.errors import WeightsError
from belvedere.core.files import require_regular, sha256
from belvedere.zoo.cards import CARD_NAME, WEIGHTS_NAME
from belvedere.zoo.convert.checkpoint import Checkpoint
from belvedere.zoo.shards import INDEX_SUFFIX, read_index, read_json, read_shards
from belvedere.zoo.statement import of_safetensors, of_zip

FOLDER_FILES = ("model.safetensors", "pytorch_model.bin", "model.bin")
"""What a folder's weights are called, best first."""
BESIDE = ("config.json", "preprocessor_config.json")
_GRAPH = (
    "is an ONNX graph, which holds operations and no state dict; import the weights that it was made of, or "
    "export them with --to safetensors"
)
_CHECKPOINTS = (".pth", ".pt", ".tar", ".ckpt", ".bin", ".safetensors")

_SCALARS = "float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool"
_ZIP = b"PK\x03\x04"
_DAMAGED = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    MemoryError,
    struct.error,
)
"""What reading a file raises whose bytes are not what they should be; one of them may ask for any memory."""
_LENGTH_BYTES = 8  # of a safetensors file's header, before its `{`


def weights_file(path: Path) -> Path:
    """The file that holds the weights of `path`: a file, or a folder of Hugging Face's, of an export or of
    belvedere's own; of weights in several files, their index. Raises `WeightsError` if there is none, or if
    two could be meant."""
    if path.suffix == ".onnx" and path.is_file():
        raise WeightsError(f"{path} {_GRAPH}")
    if not path.is_dir():
        return path
    if (path / CARD_NAME).is_file() and (path / WEIGHTS_NAME).is_file():
        return path / WEIGHTS_NAME
    for name in FOLDER_FILES:
        single, index = path / name, path / f"{name}{INDEX_SUFFIX}"
        if single.is_file() and index.is_file():
            raise WeightsError(
                f"{path} has {single.name} and {index.name}, which may hold different weights; give the "
                f"one that is "
                f"meant: {single} or {index}"
            )
        for one in (single, index):
            if one.is_file():
                return one
    others = sorted(one for one in path.iterdir() if one.suffix in _CHECKPOINTS and one.is_file())
    if len(others) == 1:
        return others[0]
    if others:
        listed = ", ".join(one.name for one in others[:6])
        raise WeightsError(f"{path} holds {len(others)} checkpoints ({listed}); give the one that is meant")
    if graphs := sorted(path.glob("*.onnx")):
        raise WeightsError(f"{graphs[0]} {_GRAPH}")
    raise WeightsError(f"{path} is a folder without {', '.join(FOLDER_FILES)}; give a checkpoint file")


def source_sha256(path: Path) -> str:
    """What identifies the weights that `weights_file` gives: the SHA-256 of the file; of an index, of the
    SHA-256 of it and of every shard."""
    if not path.name.endswith(INDEX_SUFFIX):
        return sha256(path)
    files = [path, *(path.parent / name for name in sorted(set(read_index(path).values())))]
    return hashlib.sha256("".join(f"{one.name} {sha256(one)}\n" for one in files).encode()).hexdigest()


def read_checkpoint(path: Path) -> Checkpoint:
    """What the file `path` holds, and the settings that lie beside it.

    Raises `WeightsError` if it is missing, unreadable, damaged, or holds anything but plain data.
    """
    statement = None
    try:
        require_regular(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    if path.name.endswith(INDEX_SUFFIX):
        content: Any = read_shards(path, _read_file)
    else:
        content = _read_file(path)
        statement = of_safetensors(path) if _is_safetensors(path) else of_zip(path)
    beside, notes = {}, {}
    if path.name.removesuffix(INDEX_SUFFIX) in FOLDER_FILES or path.suffix == ".safetensors":
        beside = {name: read_json(path.parent / name) for name in BESIDE if (path.parent / name).is_file()}
        notes = _not_read(path)
    elif (path.parent / BESIDE[0]).is_file():
        known = ", ".join(FOLDER_FILES)
        notes = {
            "not read": f"{BESIDE[0]} beside it, which is read for files called {known} or *.safetensors"
        }
    return Checkpoint(content, path.name, beside, statement, notes)


def _read_file(path: Path) -> Any:
    return _read_safetensors(path) if _is_safetensors(path) else read_pickle(path)


def _not_read(path: Path) -> dict[str, str]:
    """The same weights in another format, which a folder of Hugging Face's often has too."""
    names = (*FOLDER_FILES, *(f"{name}{INDEX_SUFFIX}" for name in FOLDER_FILES))
    others = [name for name in names if name != path.name and (path.parent / name).is_file()]
    return {"not read": f"{', '.join(others)} beside {path.name}"} if others else {}


def read_pickle(path: Path) -> Any:
    """What a checkpoint holds, read without running anything it asks to run.

    Besides tensors and plain containers only `argparse.Namespace` and numpy's numbers pass.
    """
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(_ZIP)) == _ZIP
        with torch.serialization.safe_globals(_allowed()):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except FileNotFoundError as error:
        raise WeightsError(f"{path} does not exist") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is refused: it is damaged, or asks to run code or build objects that no checkpoint "
            f"needs ({_reason(error)})"
        ) from error
    except _DAMAGED as error:
        raise WeightsError(f"{path} is no readable checkpoint ({type(error).__name__}: {error})") from error
    _refuse_claims(content, path)
    return content


def _refuse_claims(content: Any, path: Path) -> None:
    """Raise `WeightsError` for tensors whose numbers are not in the file as they are: sparse or quantized
    ones, ones without numbers, and views that repeat a few so often that a copy would fill the memory."""
    num_bytes, left, seen = path.stat().st_size, [content], {id(content)}
    while left:
        value = left.pop()
        if isinstance(value, torch.Tensor):
            if kind := _unusual(value):
                raise WeightsError(f"{path} holds a {kind} tensor; save it with all its numbers, dense")
            if value.numel() > num_bytes:
                shape = list(value.shape)
                raise WeightsError(f"{path} has {num_bytes} bytes and announces a tensor of shape {shape}")
            continue
        held = value.values() if isinstance(value, Mapping) else value
        if isinstance(held, Iterable) and not isinstance(held, str | bytes | np.ndarray):
            fresh = [one for one in held if id(one) not in seen]
            seen.update(map(id, fresh))
            left.extend(fresh)


def _unusual(tensor: torch.Tensor) -> str:
    """What keeps a tensor from being read as it is, or ""."""
    if tensor.is_quantized:
        return "quantized"
    if tensor.layout is not torch.strided:
        return "sparse"
    return "" if tensor.device.type == "cpu" else tensor.device.type


def _is_safetensors(path: Path) -> bool:
    """Whether the file begins as a safetensors file does: with a length and an opening brace."""
    try:
        with path.open("rb") as file:
            start = file.read(_LENGTH_BYTES + 1)
    except OSError:
        return False  # reading it says what is wrong
    return path.suffix == ".safetensors" or (len(start) > _LENGTH_BYTES and start[_LENGTH_BYTES:] == b"{")


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        return dict(load_file(path, device="cpu"))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise WeightsError(f"{path} is no valid safetensors file: {error}") from error


def _allowed() -> list[Any]:
    """Learning rates in published files are numpy numbers; their module was renamed in numpy 2."""
    scalar = np.float64(0.0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    kinds = {type(np.dtype(name)) for name in _SCALARS.split()}
    return [argparse.Namespace, np.dtype, *kinds, *((scalar, name) for name in names)]


def _reason(error: pickle.UnpicklingError) -> str:
    """Why a file is refused, out of torch's long explanation, without its advice to trust the file: the line
    that names an object, or what its reader stumbled over."""
    named = [line for line in str(error).splitlines() if "GLOBAL" in line]
    said = named[0] if named else str(error)
    told = said.partition("WeightsUnpickler error: ")[2].strip() or "\n".join(named) or "no pickle"
    return told.splitlines()[0].partition(" Please use")[0].strip()

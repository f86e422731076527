"""Checkpoints of format 1, which torch.distributed.checkpoint wrote, read without unpickling anything.

<step>/
  __0_0.distcp   one file per process: for each tensor a zip archive as `torch.save` makes it
  .metadata      a pickle: where in those files each tensor's archive lies

A pickle is a program: it may name any function and have it called. Here one is read as a list of
instructions by a reader that knows numbers, texts, lists and dictionaries; what would name a class or call a
function makes a `Record`, a note of what was asked for. No code of a run directory can run.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from belvedere.core.errors import CheckpointError

INDEX_NAME = ".metadata"
_HARMLESS = ("torch", "collections", "pathlib")
_MOST_BYTES = 1 << 28  # of a pickle; those of real runs have some hundred bytes for each tensor
_DAMAGED = (zipfile.BadZipFile, LookupError, ValueError, RuntimeError, TypeError, AttributeError)


class UnreadableError(Exception):
    """A pickle that is none of ours."""


@dataclass(eq=False)
class Record:
    """What a pickle asked for instead of plain data.

    what: the name of a class or function; args: what it would have been called with; state: what its
    attributes would have been set to.
    """

    what: str
    args: Any = None
    state: Any = field(default=None)


_MARK = object()


class _Reader:
    """Carries out a pickle's instructions that build plain data; `result` after the last one."""

    def __init__(self) -> None:
        self.result: Any = None
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def follow(self, name: str, arg: Any) -> None:
        """One instruction, by pickletools' name for it."""
        if name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _VALUES:
            self._stack.append(arg)
        elif name in _EMPTY:
            self._stack.append(_EMPTY[name]())
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[len(self._memo) if arg is None else int(arg)] = self._stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self._stack.append(self._memo[int(arg)])
        elif name == "STOP":
            self.result = self._stack.pop()
        elif name not in ("PROTO", "FRAME"):
            getattr(self, f"_{name.lower()}", self._unknown)(arg)

    def _unknown(self, arg: Any) -> None:
        raise UnreadableError("an instruction that no checkpoint has")

    def _taken(self, count: int) -> list[Any]:
        taken = self._stack[len(self._stack) - count :]
        if len(taken) < count:
            raise UnreadableError("more is taken than was put")
        del self._stack[len(self._stack) - count :]
        return taken

    def _since_mark(self) -> list[Any]:
        start = len(self._stack) - 1
        while self._stack[start] is not _MARK:  # an IndexError where there is none
            start -= 1
        taken = self._stack[start + 1 :]
        del self._stack[start:]
        return taken

    def _tuple(self, arg: Any) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _tuple1(self, arg: Any) -> None:
        self._stack.append(tuple(self._taken(1)))

    def _tuple2(self, arg: Any) -> None:
        self._stack.append(tuple(self._taken(2)))

    def _tuple3(self, arg: Any) -> None:
        self._stack.append(tuple(self._taken(3)))

    def _append(self, arg: Any) -> None:
        (item,) = self._taken(1)
        self._top(list).append(item)

    def _appends(self, arg: Any) -> None:
        items = self._since_mark()
        self._top(list).extend(items)

    def _setitem(self, arg: Any) -> None:
        key, value = self._taken(2)
        self._top(dict)[key] = value

    def _setitems(self, arg: Any) -> None:
        items = self._since_mark()
        self._top(dict).update(zip(items[::2], items[1::2], strict=True))

    def _top(self, kind: type) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise UnreadableError(f"no {kind.__name__} where one is filled")
        return self._stack[-1]

    def _global(self, arg: Any) -> None:
        self._name(*str(arg).split(" ", 1))

    def _stack_global(self, arg: Any) -> None:
        self._name(*map(str, self._taken(2)))

    def _name(self, module: str, name: str) -> None:
        if module.partition(".")[0] not in _HARMLESS:
            raise UnreadableError(f"it asks for {module}.{name}, which no checkpoint needs; nothing was run")
        self._stack.append(Record(f"{module}.{name}"))

    def _reduce(self, arg: Any) -> None:
        what, args = self._taken(2)
        if not isinstance(what, Record):
            raise UnreadableError("something is called that is no function")
        self._stack.append(Record(what.what, args))

    _newobj = _reduce

    def _build(self, arg: Any) -> None:
        (state,) = self._taken(1)
        self._top(Record).state = state

    def _binpersid(self, arg: Any) -> None:
        self._stack.append(Record("storage", self._taken(1)[0]))


_CONSTANTS: dict[str, Any] = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
    "EMPTY_TUPLE": (),
    "MARK": _MARK,
}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
_VALUES = {
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "SHORT_BINUNICODE",
    "BINUNICODE",
    "SHORT_BINSTRING",
    "BINSTRING",
}


def plain(content: bytes) -> Any:
    """What a pickle holds as plain data, with a `Record` for all else; runs nothing.

    Raises UnreadableError.
    """
    if len(content) > _MOST_BYTES:
        raise UnreadableError(f"{len(content)} bytes are too many")
    reader = _Reader()
    try:
        for code, arg, _ in pickletools.genops(content):
            reader.follow(code.name, arg)
    except (ValueError, LookupError, TypeError, UnicodeError, RecursionError) as error:
        raise UnreadableError(f"it is damaged ({error})") from error
    return reader.result


def read_tensors(folder: Path, targets: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> None:
    """Fill the targets from a checkpoint of format 1. Raises `CheckpointError` naming the file."""
    path = folder / INDEX_NAME
    try:
        places = dict(_places(plain(path.read_bytes())))
        for name, target in targets.items():
            file, offset, length = places[name]
            path = folder / file
            if file not in manifest["files"] or file == INDEX_NAME:
                raise UnreadableError("the manifest does not know it")
            found = _tensor(path, offset, length, target.dtype)
            if found.shape != target.shape:
                raise UnreadableError(f"{name} is {list(found.shape)}, by the manifest {list(target.shape)}")
            target.copy_(found)
    except KeyError as error:
        raise CheckpointError(f"{path} does not say where {error} is") from error
    except (UnreadableError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _places(metadata: Any) -> Iterator[tuple[str, tuple[str, int, int]]]:
    """(name, (file, offset, length)) of every tensor."""
    for index, info in _state(metadata)["storage_data"].items():
        place = _state(info)
        found = (place.get("relative_path"), place.get("offset"), place.get("length"))
        name = _state(index).get("fqn")
        if not (isinstance(name, str) and [type(one) for one in found] == [str, int, int]):
            raise UnreadableError("an entry without a name or a place")
        yield name, (str(found[0]), int(found[1] or 0), int(found[2] or 0))


def _state(record: Any) -> dict[str, Any]:
    """The attributes of an object."""
    state = record.state if isinstance(record, Record) else None
    if not isinstance(state, dict) or not isinstance(state.get("storage_data", {}), dict):
        raise UnreadableError("an entry that is none of torch.distributed.checkpoint's")
    return state


def _tensor(path: Path, offset: int, length: int, dtype: torch.dtype) -> Tensor:
    """The tensor in the `length` bytes at `offset`, as it was: its strides too."""
    if offset < 0 or length < 0 or offset + length > path.stat().st_size:
        raise UnreadableError("a place behind its end")
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read(length)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise UnreadableError("compressed numbers")
            parts = {name.partition("/")[2]: name for name in archive.namelist()}
            kept, first, size, stride = _described(plain(archive.read(parts["data.pkl"])))
            if "byteorder" in parts and archive.read(parts["byteorder"]) != b"little":
                raise UnreadableError("numbers in another byte order")
            numbers = bytearray(archive.read(parts[f"data/{kept}"]))
        whole = torch.frombuffer(numbers, dtype=dtype) if numbers else torch.empty(0, dtype=dtype)
        return torch.as_strided(whole, size, stride, first)
    except _DAMAGED as error:
        raise UnreadableError(f"a damaged tensor ({error})") from error


def _described(record: Any) -> tuple[str, int, tuple[int, ...], tuple[int, ...]]:
    """Name of the numbers, where among them the tensor begins, its size and strides."""
    while isinstance(record, Record) and record.what == "torch._utils._rebuild_parameter":
        record = record.args[0]
    if not isinstance(record, Record) or record.what != "torch._utils._rebuild_tensor_v2":
        raise UnreadableError("an entry that is no tensor")
    storage, first, size, stride = record.args[:4]
    return str(storage.args[2]), int(first), tuple(size), tuple(stride)

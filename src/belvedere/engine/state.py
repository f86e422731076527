"""Training state on disk: a flat `{name: tensor}` dictionary, saved so that any interruption loses nothing.

`save` writes a checkpoint (see `manifest` for the folder) into a hidden sibling, the manifest last, and
renames it; `load` takes the newest one whose checksums hold. All processes call both. Entries that differ
between processes are named `rank{r}/...` and passed by process r only; all other entries are the same
everywhere and are written once. Only the holder of the run directory's lock may call either.

Nothing of a checkpoint can run: tensors lie in safetensors files, the rest is JSON, and a checkpoint of an
earlier version, part of which is a pickle, is read without unpickling (`format_1`).
"""

from __future__ import annotations

import errno
import platform
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from belvedere.core import dist
from belvedere.core.errors import CheckpointError
from belvedere.core.files import free_bytes, readable_size, sync_folder, write_json
from belvedere.core.match import mismatches
from belvedere.engine import manifest as manifests
from belvedere.engine.agreement import FailedError, agree
from belvedere.engine.manifest import FOLDER_NAME, MANIFEST_NAME, checkpoints, step_name
from belvedere.engine.moments import PREFIX as OPTIM_PREFIX
from belvedere.engine.moments import flatten_optimizer, unflatten_optimizer_
from belvedere.engine.rotation import newest_sound, publish, rotate, tidy
from belvedere.engine.storage import Observer, file_name, read_tensors, write_tensors

__all__ = [
    "Found",
    "Loaded",
    "checkpoints",
    "find",
    "flatten_optimizer",
    "load",
    "look",
    "read",
    "save",
    "unflatten_optimizer_",
]

EVENTS = ("before_files", "first_file", "files_done", "before_rename", "after_rename")
"""What an observer of `save` hears, in this order."""

_RANK_ENTRY = re.compile(r"rank(\d+)/")
_SLACK_BYTES = 1 << 20  # room for names and headers beside the tensors' own bytes


@dataclass(frozen=True)
class Loaded:
    """A training state as read. tensors: on the CPU, this process's `rank{r}/` entries and all shared ones.
    skipped: newer checkpoints that could not be used, and why."""

    step: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    manifest: dict[str, Any]
    path: Path
    skipped: list[tuple[Path, str]]


@dataclass(frozen=True)
class Found:
    """A sound checkpoint of a run that is only looked at; its tensors are for `read`. skipped: as in
    `Loaded`."""

    step: int
    path: Path
    manifest: dict[str, Any]
    skipped: list[tuple[Path, str]]


def _ignore(event: str) -> None: ...


def save(
    directory: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    *,
    keep_last: int,
    milestone: bool,
    observer: Observer = _ignore,
) -> Path:
    """Write `directory/checkpoints/<step>/`, then delete the checkpoints that rotate out; returns its path.

    meta: whatever JSON can hold (it reads back as JSON does: tuples as lists, keys as strings). keep_last:
    how many checkpoints stay besides milestones, this one included. A checkpoint of the same step is
    replaced. observer: hears `EVENTS`, for tests that interrupt a save.

    Raises `CheckpointError` on every process if any of them failed, as on a full disk: the checkpoints that
    were there are untouched and nothing else is left behind.
    """
    assert keep_last >= 1, "keep_last counts the checkpoint just written"
    folder = directory / FOLDER_NAME
    writing, final = folder / f".writing-{step_name(step)}", folder / step_name(step)
    described = _described(tensors)
    try:
        agree(lambda: _prepare(directory, writing, _num_bytes(described)), only_main=True)
        observer("before_files")
        records = agree(lambda: _write_share(writing, tensors, described, observer))
        observer("files_done")
        files = {name: record for by_rank in records for name, record in by_rank.items()}
        content = {**_content(step, described, meta, milestone=milestone), "files": files}
        agree(lambda: write_json(writing / MANIFEST_NAME, manifests.seal(content)), only_main=True)
        observer("before_rename")
        agree(lambda: publish(writing, final), only_main=True)
    except BaseException as error:
        if dist.is_main():
            with suppress(OSError):  # what stays is removed at the next start
                tidy(folder)
        if isinstance(error, FailedError):
            raise CheckpointError(_refusal(directory, step, error, _num_bytes(described))) from error
        raise
    observer("after_rename")
    agree(lambda: rotate(directory, step, keep_last=keep_last), only_main=True)
    return final


def load(directory: Path, *, like: Mapping[str, Tensor] | None = None) -> Loaded | None:
    """The newest training state in `directory/checkpoints/` whose checksums hold; None if there is none yet.

    like: the tensors to be filled; names (this process's and the shared ones) and shapes must be the same.
    The optimizer's entries, `optim/...`, are left out of that comparison: `unflatten_optimizer_` makes it.
    First removes what interrupted saves left behind.

    Raises `CheckpointError` if there are checkpoints and none can be used, if names or shapes differ from
    `like`, or if processes have state of their own and their number changed.
    """
    path, manifest, skipped = agree(lambda: newest_sound(directory), only_main=True)[0]
    if path is None:
        return None
    shapes = {name: tuple(entry["shape"]) for name, entry in _mine(manifest, path).items()}
    if like is not None:
        agree(lambda: _compare(path, like, shapes))
    targets = {
        name: torch.empty(shapes[name], dtype=getattr(torch, manifest["tensors"][name]["dtype"]))
        for name in shapes
    }
    agree(lambda: read_tensors(path, targets))
    return Loaded(manifest["step"], targets, manifest["meta"], manifest, path, skipped)


def look(directory: Path, *, like: Mapping[str, Tensor]) -> Loaded | None:
    """`load` without changing anything in `directory`, and without its lock: for a dry run."""
    found = find(directory)
    if found is None:
        return None
    shapes = {name: tuple(entry["shape"]) for name, entry in _mine(found.manifest, found.path).items()}
    agree(lambda: _compare(found.path, like, shapes))
    tensors = read(found, shapes)
    return Loaded(found.step, tensors, found.manifest["meta"], found.manifest, found.path, found.skipped)


def find(directory: Path, *, step: int | None = None) -> Found | None:
    """The newest sound checkpoint of the run in `directory`, or that of `step`; None if there is none.

    Nothing in `directory` is changed, and its lock is not needed: for a run that another one begins from.
    Raises `CheckpointError` if there are checkpoints (of that step) and none can be used.
    """
    return agree(lambda: _find(directory, step), only_main=True)[0]


def read(found: Found, names: Iterable[str]) -> dict[str, Tensor]:
    """These entries of a checkpoint, on the CPU, by their names there. All processes call it, each with the
    names it needs; `found.manifest["tensors"]` has all names with shape and dtype."""
    entries = found.manifest["tensors"]
    targets = {
        name: torch.empty(entries[name]["shape"], dtype=getattr(torch, entries[name]["dtype"]))
        for name in names
    }
    agree(lambda: read_tensors(found.path, targets))
    return targets


# Saving, in the order in which it happens.


def _described(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Shapes, dtypes and files of the entries of all processes."""
    mine = manifests.describe(tensors)
    foreign = [name for name in mine if (owner := _owner(name)) is not None and owner != dist.rank()]
    assert not foreign, f"process {dist.rank()} passed entries of others: {foreign}"
    merged: dict[str, dict[str, Any]] = {}
    for by_rank in dist.gather_objects(mine):
        merged.update(by_rank)
    for name, writer in _writers(merged).items():
        merged[name]["file"] = file_name(writer)
    return merged


def _writers(described: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Which process writes each entry: its owner; of the shared ones the largest first, each the process that
    has least to write. The same on all of them."""
    writers = {name: owner for name in described if (owner := _owner(name)) is not None}
    load = [0] * dist.world_size()
    for name, writer in writers.items():
        load[writer] += manifests.num_bytes(described[name])
    shared = [name for name in described if name not in writers]
    for name in sorted(shared, key=lambda name: (-manifests.num_bytes(described[name]), name)):
        writers[name] = load.index(min(load))
        load[writers[name]] += manifests.num_bytes(described[name])
    return writers


def _num_bytes(described: Mapping[str, Mapping[str, Any]]) -> int:
    return _SLACK_BYTES + sum(map(manifests.num_bytes, described.values()))


def _write_share(
    writing: Path,
    tensors: Mapping[str, Tensor],
    described: Mapping[str, Mapping[str, Any]],
    observer: Observer,
) -> dict[str, Any]:
    """Write what this process has to; its file's size and checksum, by name."""
    name = file_name(dist.rank())
    share = {entry: tensor for entry, tensor in tensors.items() if described[entry]["file"] == name}
    written = {name: write_tensors(writing / name, share)} if share or dist.is_main() else {}
    observer("first_file")
    return written


def _prepare(directory: Path, writing: Path, num_bytes: int) -> None:
    folder = writing.parent
    folder.mkdir(parents=True, exist_ok=True)
    sync_folder(directory)
    tidy(folder)
    if free_bytes(folder) < num_bytes:
        raise OSError(errno.ENOSPC, "the disk would be full")
    writing.mkdir()


def _content(
    step: int, described: Mapping[str, Mapping[str, Any]], meta: Mapping[str, Any], *, milestone: bool
) -> dict[str, Any]:
    return {
        "format": manifests.FORMAT,
        "step": step,
        "milestone": milestone,
        "world_size": dist.world_size(),
        "threads": torch.get_num_threads(),
        "versions": {
            "belvedere": version("belvedere"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "meta": dict(meta),
        "tensors": dict(described),
    }


def _refusal(directory: Path, step: int, error: FailedError, num_bytes: int) -> str:
    """What to tell the person when a save failed."""
    there = checkpoints(directory)
    newest = f"at step {int(there[-1].name)}" if there else "of no step yet"
    told = (
        f"the checkpoint of step {step} could not be written to {directory / FOLDER_NAME} ({error}); "
        f"training state on disk is {newest}"
    )
    free = free_bytes(directory)
    if error.no_space or free < num_bytes:
        told += (
            f". It needs {readable_size(num_bytes)}, {readable_size(free)} are free: make room, keep fewer "
            "checkpoints (run.keep_last, run.milestone_epochs) or choose another disk (run.dir)"
        )
    return told


# Loading.


def _find(directory: Path, step: int | None) -> Found | None:
    skipped: list[tuple[Path, str]] = []
    for path in reversed(checkpoints(directory)):
        if step is not None and int(path.name) != step:
            continue
        try:
            manifest = manifests.verify(path)
        except manifests.UnsoundError as error:
            skipped.append((path, str(error)))
            continue
        return Found(manifest["step"], path, manifest, skipped)
    if skipped:
        listed = "\n  ".join(f"{path}: {reason}" for path, reason in skipped)
        raise CheckpointError(f"no checkpoint of {directory} can be used\n  {listed}")
    return None


def _owner(name: str) -> int | None:
    """The process that an entry belongs to; None for a shared one."""
    found = _RANK_ENTRY.match(name)
    return int(found[1]) if found else None


def _mine(manifest: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The entries that this process loads.

    Refuses another number of processes if any have state of their own.
    """
    owned = [name for name in manifest["tensors"] if _owner(name) is not None]
    saved, now = manifest["world_size"], dist.world_size()
    if owned and saved != now:
        raise CheckpointError(
            f"{path} was written by {saved} processes that have state of their own ({owned[0]} and "
            f"{len(owned) - 1} more), this run has {now}; continue with {saved} processes "
            f"(torchrun --nproc-per-node={saved} on one machine) or start a new run (another run.dir)"
        )
    entries: dict[str, Any] = manifest["tensors"]
    return {name: entry for name, entry in entries.items() if _owner(name) in (None, dist.rank())}


def _compare(path: Path, like: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    expected = {
        name: tuple(tensor.shape) for name, tensor in like.items() if not name.startswith(OPTIM_PREFIX)
    }
    found = {name: shape for name, shape in shapes.items() if not name.startswith(OPTIM_PREFIX)}
    if wrong := mismatches(expected, found):
        raise CheckpointError(f"{path} does not fit this run's method and backbone\n  " + "\n  ".join(wrong))

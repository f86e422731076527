"""A folder that is either a whole export or not there at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from belvedere.core.errors import UsageError, WriteError
from belvedere.core.files import (
    read_json,
    real_path,
    sha256,
    sync_file,
    sync_folder,
    write_errors,
    write_json,
)

MANIFEST_NAME = "export.json"
_WRITING, _REPLACED = ".{name}.{pid}.writing", ".{name}.{pid}.replaced"


@contextmanager
def placing(out: Path, *, target: str, source: str) -> Iterator[Path]:
    """An empty folder to write to; it takes the place of `out` at the end of the block.

    `export.json` is added: target and source as given, and the SHA-256 of every file. An error in the block
    leaves `out` as it was and nothing beside it. Raises UsageError if `out` holds anything but an earlier
    export of the same source to the same target, WriteError if the disk is full or `out` may not be written.
    """
    out = real_path(out)
    check_replaceable(out, target=target, source=source)
    temporary = out.parent / _WRITING.format(name=out.name, pid=os.getpid())
    with write_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(out)
        temporary.mkdir()
        try:
            yield temporary
            _finish(temporary, {"target": target, "source": source})
            _swap(temporary, out)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, WriteError) and temporary in Path(error.filename).parents:
                place = out / Path(error.filename).relative_to(temporary)
                raise WriteError(error.errno, error.strerror, str(place)) from error
            raise


def check_replaceable(out: Path, *, target: str, source: str) -> None:
    """Raise UsageError if writing to `out` would remove anything but an earlier export like this one."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; give a directory")
    if real_path(out).is_symlink():
        raise UsageError(f"--out {out}: its symbolic links lead to each other; give a directory")
    if not out.exists() or not any(out.iterdir()):
        return
    try:
        manifest = read_json(out / MANIFEST_NAME)
        before, listed = (manifest["target"], manifest["source"]), set(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"--out {out} is not empty and no export of belvedere; give another directory"
        ) from error
    if before != (target, source):
        raise UsageError(
            f"--out {out} holds an export to {before[0]} of another backbone or format ({before[1]}); give "
            "another directory"
        )
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()}
    if foreign := sorted(found - listed - {MANIFEST_NAME}):
        raise UsageError(f"--out {out} holds {foreign[0]!r}, which an export did not write; move it away")


def _finish(folder: Path, origin: Mapping[str, Any]) -> None:
    """Write the manifest and force everything to the disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {path.relative_to(folder).as_posix(): sha256(path) for path in files}
    write_json(folder / MANIFEST_NAME, {**origin, "files": sums})
    umask = os.umask(0)
    os.umask(umask)
    for path in files:
        path.chmod(0o666 & ~umask)  # safetensors writes files that nobody else may read
        sync_file(path)
    sync_folder(folder)


def _swap(temporary: Path, out: Path) -> None:
    """Put `temporary` in the place of `out`, which is put back if that fails."""
    replaced = out.parent / _REPLACED.format(name=out.name, pid=os.getpid())
    if out.exists():
        out.replace(replaced)
    try:
        temporary.replace(out)
    except BaseException:
        if replaced.exists():
            replaced.replace(out)
        raise
    sync_folder(out.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _remove_leftovers(out: Path) -> None:
    """Remove what killed exports left beside `out`; if one was killed between its two renames, put the older
    export back first."""
    for pattern in (_REPLACED, _WRITING):
        for leftover in out.parent.glob(pattern.format(name=out.name, pid="*")):
            if _runs(leftover):
                continue
            if pattern is _REPLACED and not out.exists():
                leftover.replace(out)
            else:
                shutil.rmtree(leftover, ignore_errors=True)


def _runs(leftover: Path) -> bool:
    """Whether the process in the name of a folder is still there."""
    with suppress(ValueError, ProcessLookupError):
        os.kill(int(leftover.suffixes[-2][1:]), 0)
        return True
    return False

"""Which checkpoints stand in a run directory: publish one, rotate old ones out, find the newest sound one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from belvedere.core.errors import CheckpointError
from belvedere.core.files import sync_folder
from belvedere.engine.manifest import FOLDER_NAME, UnsoundError, checkpoints, read, step_name, verify


def publish(writing: Path, final: Path) -> None:
    """Give the checkpoint its name; a former one of this step stays recoverable until that is done."""
    replaced = final.parent / f".replaced-{final.name}"
    if final.exists():
        final.rename(replaced)
    writing.rename(final)
    sync_folder(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def tidy(folder: Path) -> None:
    """Remove what interrupted saves left behind; a replaced checkpoint without its successor is put back."""
    for leftover in sorted(folder.glob(".*-*")):
        kind, _, name = leftover.name.partition("-")
        if not name.isdecimal():
            continue
        if kind == ".replaced" and not (folder / name).exists():
            leftover.rename(folder / name)
        elif kind in (".writing", ".replaced", ".deleting"):
            shutil.rmtree(leftover)


def rotate(directory: Path, step: int, *, keep_last: int) -> None:
    """Delete all but milestones and the last `keep_last` checkpoints up to `step`; unsound ones do not count.

    Later steps belong to a part of the run that is being repeated and say nothing about what is needed now.
    """
    former = [path for path in checkpoints(directory) if int(path.name) <= step]
    kept = 0
    for path in reversed(former):
        try:
            sound, milestone = True, read(path)["milestone"]
        except UnsoundError:
            sound, milestone = False, False
        if kept >= keep_last and not milestone:
            doomed = path.rename(path.parent / f".deleting-{path.name}")
            shutil.rmtree(doomed)
        elif sound and not milestone:
            kept += 1


def newest_sound(directory: Path) -> tuple[Path | None, dict[str, Any], list[tuple[Path, str]]]:
    """Path (None: no checkpoint yet), manifest, and the newer ones that could not be used, and why."""
    if (directory / FOLDER_NAME).is_dir():
        tidy(directory / FOLDER_NAME)
    skipped: list[tuple[Path, str]] = []
    for path in reversed(checkpoints(directory)):
        try:
            manifest = verify(path)
        except UnsoundError as error:
            skipped.append((path, str(error)))
            continue
        if step_name(manifest["step"]) == path.name:
            return path, manifest, skipped
        skipped.append((path, f"is the checkpoint of step {manifest['step']}, renamed"))
    if skipped:
        listed = "\n  ".join(f"{path}: {reason}" for path, reason in skipped)
        raise CheckpointError(
            f"no checkpoint of {directory} can be used; restore one from a copy, or delete "
            f"{directory / FOLDER_NAME} to start again from step 0\n  {listed}"
        )
    return None, {}, []

"""The files of an evaluation, and the folder they are written into: tried before anything is computed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from belvedere.core.errors import UsageError
from belvedere.core.files import check_writable, read_json, sha256, write_errors
from belvedere.core.log import named_few, say

SPLITS, PREDICTIONS, REPORT = "splits.json", "predictions.csv", "report.json"
_TRIED_BYTES = 1 << 16


def written_names(*, splits: bool, predicted: object) -> list[str]:
    """The files that `Evaluation.save` will write."""
    return [*([SPLITS] if splits else []), *([PREDICTIONS] if predicted else []), REPORT]


def check_out(folder: Path, names: Sequence[str]) -> None:
    """Try that these files can be written into `folder`, which must be new, empty, or an evaluation's.

    Raises UsageError for a folder that holds other things, and WriteError.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder} is a file; give a folder")
    others = sorted(each.name for each in folder.iterdir() if not _is_ours(each)) if folder.exists() else []
    if others:
        raise UsageError(
            f"--out {folder} holds other things than an evaluation: {named_few(others)}; give a new folder"
        )
    earlier = _read_report(folder / REPORT) if (folder / REPORT).exists() else {}
    if earlier is None:
        raise UsageError(f"--out {folder} holds a {REPORT} that no evaluation wrote; give a new folder")
    table, before = folder / PREDICTIONS, earlier.get("predict", {}).get("sha256")
    if PREDICTIONS in names and before is not None and table.exists() and sha256(table) != before:
        raise UsageError(
            f"{table} was changed since it was written, and would be replaced: move it away (as a table for "
            f"--labels, perhaps), or give another --out"
        )
    for name in sorted({SPLITS, PREDICTIONS} - {*names}):
        if (folder / name).exists():
            say(f"{folder / name} is an earlier evaluation's and stays as it is")
    for name in names:
        try_writing(folder / name)


def try_writing(path: Path) -> None:
    """Raise WriteError if a file at `path` cannot be written: a file without a name is, where `path` or the
    first of its folders that exists lies, so that nothing is left behind."""
    check_writable(path)
    if path.exists() and not path.is_file():  # a device or a pipe: what is written there is read
        return
    folder = next(each for each in path.absolute().parents if each.exists())
    with write_errors(path):
        try:
            with TemporaryFile(dir=folder) as file:
                file.write(bytes(_TRIED_BYTES))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # not about the temporary file's name, which nobody gave
            raise OSError(error.errno, error.strerror) from error


def _is_ours(path: Path) -> bool:
    return path.name in (SPLITS, PREDICTIONS, REPORT) or path.name.startswith(".")


def _read_report(path: Path) -> dict[str, Any] | None:
    """An earlier report; None for a file that no evaluation wrote."""
    try:
        content = read_json(path)
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(content, dict) and {"training", "scored", "features", "data"} <= content.keys()
    return content if ours and isinstance(content.get("predict", {}), dict) else None

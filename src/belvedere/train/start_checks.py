"""What a run needs of this machine, asked before anything is read for long and before anything is written.

`pretrain` and its dry run ask the same questions, so what one refuses the other does, and a start that fails
leaves nothing behind that is in the way of the corrected command.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from belvedere.core.errors import UsageError
from belvedere.core.files import LOCK_NAME, refuse_locked
from belvedere.engine.manifest import FOLDER_NAME, checkpoints
from belvedere.recipe.plan import run_dir
from belvedere.recipe.schema import Recipe
from belvedere.train.directory import RECIPE_NAME
from belvedere.train.record import METRICS_NAME
from belvedere.train.roster import is_roster
from belvedere.train.sinks import SINKS, require
from belvedere.zoo.load import BACKBONE_FOLDER

_WRITTEN = {
    RECIPE_NAME,
    METRICS_NAME,
    "plan.json",
    "data_report.json",
    "bad-steps",
    "evaluation",
    FOLDER_NAME,
    BACKBONE_FOLDER,
    *(name for sink in SINKS.values() for name in sink.writes),
}
"""What runs, and evaluations of them, write to a run's directory."""
_OF_THE_SYSTEM = {"lost+found"}
_NAMED = 3
_WHAT_TO_DO = "set run.dir=DIR, a directory that is empty or does not exist"


def check_start(recipe: Recipe) -> None:
    """Raise what a start of this recipe would be refused with: a run directory that cannot be one, a sink
    that is not installed. Reads little and writes nothing."""
    directory = run_dir(recipe)
    _check_directory(directory)
    refuse_locked(directory)
    for name in recipe.run.sinks:
        require(name)


def _check_directory(directory: Path) -> None:
    """Raise UsageError unless a run can be written to `directory`."""
    try:
        mode = directory.stat().st_mode
    except FileNotFoundError:
        if directory.is_symlink():
            raise UsageError(f"run.dir: {directory} is a link that leads nowhere; {_WHAT_TO_DO}") from None
        _check_parent(directory)
        return
    except (OSError, ValueError) as error:  # ValueError: a zero byte in a name
        raise _refusal(directory, error) from error
    if not stat.S_ISDIR(mode):
        what = "a file" if stat.S_ISREG(mode) else "no directory"
        raise UsageError(f"run.dir: {directory} is {what}; {_WHAT_TO_DO}")
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise UsageError(f"run.dir: {directory} cannot be written, it is read-only; set run.dir=DIR")
    _refuse_other_content(directory)


def _check_parent(directory: Path) -> None:
    """Raise UsageError unless `directory` can be made."""
    there = directory.absolute().parent
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise UsageError(f"run.dir: {directory} cannot be made: {there} is no directory; {_WHAT_TO_DO}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"run.dir: {directory} cannot be written: {there} is read-only; set run.dir=DIR")
    longest = os.pathconf(there, "PC_NAME_MAX")
    for part in directory.absolute().relative_to(there).parts:
        if len(os.fsencode(part)) > longest:
            raise UsageError(f"run.dir: a name of {len(os.fsencode(part))} bytes is too long: {part[:40]}...")


def _refusal(directory: Path, error: OSError | ValueError) -> UsageError:
    if isinstance(error, OSError) and error.errno == errno.ENOTDIR:
        in_the_way = next((one for one in directory.parents if one.exists() and not one.is_dir()), directory)
        return UsageError(f"run.dir: {directory} cannot be made: {in_the_way} is no directory; {_WHAT_TO_DO}")
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return UsageError(f"run.dir: {directory!s} cannot be used: {reason}; {_WHAT_TO_DO}")


def _refuse_other_content(directory: Path) -> None:
    """Raise UsageError for a directory that holds other things than a run, or what is left of a start."""
    names = sorted(path.name for path in directory.iterdir())
    visible = [name for name in names if not name.startswith(".") and name not in _OF_THE_SYSTEM]
    if not visible or checkpoints(directory):
        return
    foreign = [name for name in visible if name not in _WRITTEN and not is_roster(name)]
    if not foreign and LOCK_NAME in names:
        return  # a start that failed or was killed before its first checkpoint
    listed = foreign or visible
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    raise UsageError(
        f"run.dir: {directory} holds {', '.join(map(repr, listed[:_NAMED]))}{more} and no run of belvedere; "
        f"nothing was changed. To train there, move that away; or {_WHAT_TO_DO}"
    )

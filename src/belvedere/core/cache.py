"""The directory for what can be computed again: $BELVEDERE_CACHE, or one of ours in the user's cache."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from belvedere.core.log import warn

VARIABLE = "BELVEDERE_CACHE"


def cache_root() -> Path | None:
    """$BELVEDERE_CACHE, else $XDG_CACHE_HOME/belvedere, else ~/.cache/belvedere; None for a user without a
    home. It need not exist."""
    own = os.environ.get(VARIABLE, "")
    if own:
        return Path(os.path.abspath(os.path.expanduser(own)))
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(shared):  # a relative one is to be ignored (XDG base directory specification)
        return Path(shared) / "belvedere"
    home = os.path.expanduser("~")
    return Path(home) / ".cache" / "belvedere" if os.path.isabs(home) else None


def readable_folders(part: str) -> list[Path]:
    """The folders in which something may have been kept before; nothing is created."""
    roots = [cache_root(), *_temporary_roots]
    return [root / part for root in roots if root is not None and (root / part).is_dir()]


def writable_folder(part: str) -> Path:
    """A folder of the cache that exists and can be written to.

    Where the cache cannot be written, that is said once, and the folder lies in a temporary directory that is
    removed when this process ends.
    """
    root = cache_root()
    if root is not None:
        reason = _refusal(root / part)
        if reason is None:
            return root / part
        where = f"the cache {root} cannot be written ({reason})"
    else:
        where = "there is no home directory to keep a cache in"
    folder = _temporary_root(where) / part
    folder.mkdir(exist_ok=True)
    return folder


def _refusal(folder: Path) -> str | None:
    """Why no file can be made in `folder`, which is created if need be; None if one can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)


_temporary_roots: list[Path] = []


@cache
def _temporary_root(why: str) -> Path:
    """One for each reason, so that each is said once."""
    folder = Path(tempfile.mkdtemp(prefix="belvedere-"))
    _temporary_roots.append(folder)
    atexit.register(_remove, folder, os.getpid())
    warn(f"{why}; what would be kept there is made anew by each run. Set {VARIABLE} to a directory of yours")
    return folder


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child must not remove what its parent uses
        shutil.rmtree(folder, ignore_errors=True)

"""What all processes do together either succeeds on all or fails on all."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TypeVar

from belvedere.core import dist
from belvedere.core.errors import BelvedereError, CheckpointError

T = TypeVar("T")
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class FailedError(CheckpointError):
    """Something failed on one process; raised on all of them."""

    def __init__(self, text: str, *, no_space: bool = False) -> None:
        super().__init__(text)
        self.no_space = no_space


def failed(error: Exception, process: int) -> FailedError:
    """What to tell all processes of an error on one."""
    no_space = isinstance(error, OSError) and error.errno in _NO_SPACE
    where = f"process {process}: " if dist.world_size() > 1 else ""
    kind = "" if isinstance(error, BelvedereError) else f"{type(error).__name__}: "
    return FailedError(f"{where}{kind}{error}", no_space=no_space)


def agree(action: Callable[[], T], *, only_main: bool = False) -> list[T]:
    """Run `action` on every process, or rank 0 alone: results in rank order, or the same error everywhere.

    Without this a process whose disk is full would leave the others waiting for it.
    """
    result: T | None = None
    failure: Exception | None = None
    cause: Exception | None = None
    if dist.is_main() or not only_main:
        try:
            result = action()
        except Exception as error:
            ours = isinstance(error, BelvedereError) and not isinstance(error, OSError)
            failure, cause = error if ours else failed(error, dist.rank()), error
    outcomes = dist.gather_objects((result, failure))
    for _, told in outcomes:
        if told is not None:
            raise told from cause
    return [outcome[0] for outcome in outcomes][: 1 if only_main else None]

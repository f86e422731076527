"""Loader workers that give nothing: slow, or stuck?

A slow worker computes, or wakes up again and again to read: it is waited for, which is said once. One that
does neither for a long time is stopped, or waits for something that does not come.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from belvedere.core.errors import DataError
from belvedere.core.log import warn
from belvedere.core.machine import PROC

LOOK_S = 5.0
"""How long a batch is waited for before the workers are looked at, and then between two looks."""
_SAID_AFTER_S = 60.0
_USUAL_LIMIT_S = 300.0
_LIMIT_VARIABLE = "BELVEDERE_STALL_LIMIT_S"
_BUSY = 0.01  # share of the time that a process computes, from which on it is at work
_WAKES_PER_S = 2.0  # and how often it wakes up: one that waits for orders does so every few seconds
_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
_STATES = {
    "R": "running",
    "S": "sleeping: it waits for a disk, a network or a lock",
    "D": "uninterruptible: it waits for a disk or a network file system that does not answer",
    "T": "stopped (SIGSTOP, or Ctrl-Z)",
    "t": "stopped by a debugger",
    "Z": "dead",
    "X": "dead",
}


class Worker(Protocol):
    """A process."""

    @property
    def pid(self) -> int | None: ...


class _Look(NamedTuple):
    """What the kernel says of a process: its state, seconds it computed, times it went to sleep by itself."""

    state: str
    computed_s: float
    wakes: int


def stall_limit_s() -> float:
    """Seconds without any progress after which a run ends: 300, or what the environment variable says."""
    given = os.environ.get(_LIMIT_VARIABLE)
    if given is None:
        return _USUAL_LIMIT_S
    try:
        limit = float(given)
    except ValueError:
        limit = 0.0
    if not limit > 0.0:
        raise DataError(f"{_LIMIT_VARIABLE} is {given!r}; it must be a number of seconds above 0")
    return limit


class Stall:
    """Watches workers while a batch is waited for: `look` is called every `look_s` seconds, `reset` when one
    comes.

    Where the kernel has no /proc, only the time is known, and nothing is ended for it.
    """

    def __init__(self, *, look_s: float = LOOK_S, proc: Path = PROC) -> None:
        self._limit_s, self._longest_s, self._proc = stall_limit_s(), 4 * look_s, proc
        self._said = False
        self.reset()

    def reset(self) -> None:
        """A batch came."""
        self._waited_s, self._idle_s = 0.0, 0.0
        self._at, self._last = time.monotonic(), dict[int, _Look]()

    def look(self, workers: Sequence[tuple[int, Worker]]) -> None:
        """Look at the workers (number, process) that are waited for. Says so after a minute, and raises
        DataError after the limit without any progress."""
        now = time.monotonic()
        # a whole process group that was stopped and continued has missed looks, and no worker is to blame
        passed, self._at = min(now - self._at, self._longest_s), now
        looks = {
            worker.pid: look
            for _, worker in workers
            if worker.pid is not None and (look := _look_at(worker.pid, self._proc)) is not None
        }
        at_work = any(_progressed(self._last.get(pid), look, passed) for pid, look in looks.items())
        known = bool(looks)
        self._waited_s += passed
        self._idle_s = 0.0 if at_work or not known else self._idle_s + passed
        self._last = looks
        if known and self._idle_s >= self._limit_s:
            raise DataError(self._told(workers, looks) + self._remedy(looks))
        if self._waited_s >= min(_SAID_AFTER_S, self._limit_s / 2) and not self._said:
            self._said = True
            slow = ": it is slow, and waited for" if at_work else ""
            end = "" if at_work or not known else f"; the run ends after {self._limit_s:g} s without progress"
            warn(f"{self._told(workers, looks)}{slow}{end}")

    def _told(self, workers: Sequence[tuple[int, Worker]], looks: dict[int, _Look]) -> str:
        named = []
        for number, worker in workers:
            look = None if worker.pid is None else looks.get(worker.pid)
            state = "of unknown state" if look is None else _STATES.get(look.state, f"in state {look.state}")
            used = "" if look is None else f", {look.computed_s:.1f} s of CPU time used"
            named.append(f"loader worker {number} (process {worker.pid}) is {state}{used}")
        return f"no batch for {self._waited_s:.0f} s: {'; '.join(named)}"

    def _remedy(self, looks: dict[int, _Look]) -> str:
        stopped = [pid for pid, look in looks.items() if look.state in "Tt"]
        if stopped:
            cure = f"let it go on (kill -CONT {stopped[0]}) the next time; the same command continues the run"
        else:
            cure = "see whether what holds data.path answers; the same command then continues the run"
        wait = f"to wait longer, set {_LIMIT_VARIABLE} (now {self._limit_s:g} s)"
        return (
            f". It made no progress for {self._idle_s:.0f} s: {cure}; {wait}; run.workers=0 needs no workers"
        )


def _progressed(before: _Look | None, now: _Look, passed_s: float) -> bool:
    if now.state in "TtZX":
        return False
    if before is None:
        return True  # nothing to compare with yet
    computed = now.computed_s - before.computed_s >= max(_BUSY * passed_s, _TICK_S)
    return computed or now.wakes - before.wakes >= max(2.0, _WAKES_PER_S * passed_s)


def _look_at(pid: int, proc: Path) -> _Look | None:
    try:
        words = (proc / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
        wakes = sum(_wakes(status) for status in (proc / str(pid) / "task").glob("*/status"))
    except (OSError, IndexError, ValueError):
        return None
    return _Look(words[0], (int(words[11]) + int(words[12])) * _TICK_S, wakes)


def _wakes(status: Path) -> int:
    for line in status.read_text().splitlines():
        if line.startswith("voluntary_ctxt_switches:"):
            return int(line.split()[1])
    return 0

"""What a person sees while something runs: one live bar on a terminal, greppable log lines elsewhere.

It knows no method: it shows whatever numbers it is given.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from belvedere.core import log
from belvedere.core.log import Text, visible

LINE_INTERVAL_S = 10.0
QUIET_S = 8.0
"""After so long a time without a word a run says what it is doing."""
WINDOW_S = 30.0
_MUCH_WAITING = 0.2  # from here on the share is colored: more workers would help
_SHOWN_S = 2.0
_MARK_INTERVAL_S = 0.25  # the window holds at most WINDOW_S / _MARK_INTERVAL_S marks, however short a step is


@dataclass(frozen=True)
class _Mark:
    """A moment: how many steps were finished, and how long the run had waited for data in all."""

    time_s: float
    step: int
    waited_s: float


@dataclass(frozen=True)
class Pace:
    """Speed over the last half minute. waiting: share of that time spent waiting for data, in [0, 1], or None
    if that was not told."""

    images_per_s: float
    eta_s: float
    waiting: float | None


class Progress:
    """Shows how far a run is; use as a context manager.

    `show` is false on all processes but the first: then nothing is printed. On a terminal there is one live
    bar; elsewhere a line for the first update that carries numbers, for the last update, and for others with
    numbers at least ten seconds apart; while there are no numbers, every ten seconds. `clock` (seconds) and
    `console` are for tests.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        start_step: int = 0,
        images_per_step: int,
        title: str,
        show: bool,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total_steps, self.images_per_step, self.title, self.show = (
            total_steps,
            images_per_step,
            title,
            show,
        )
        self._console = console or log.console()
        self._clock = clock
        self._numbers: dict[str, float] = {}
        self._marks: deque[_Mark] = deque([_Mark(clock(), start_step, 0.0)])
        self._now = self._marks[0]
        self._began_s = self._now.time_s
        self._num_updates = 0
        self._knows_waiting = False
        self._line_step: int | None = None
        self._line_time_s = 0.0
        self._live = show and self._console.is_interactive
        self._open = ExitStack()
        self._doing, self._doing_since_s, self._doing_told_s = "", 0.0, 0.0
        self._parts: tuple[int, int] | None = None
        self._ended = threading.Event()

    def __enter__(self) -> Progress:
        self._marks = deque([_Mark(self._clock(), self._now.step, 0.0)])
        self._now = self._marks[0]
        self._began_s = self._now.time_s
        self._line_time_s = self._now.time_s
        if self._live:
            self._open.enter_context(
                Live(get_renderable=self._bar, console=self._console, refresh_per_second=4)
            )
        elif self.show:
            watcher = threading.Thread(target=self._watch, name="belvedere-progress", daemon=True)
            watcher.start()
            self._open.callback(watcher.join)
            self._open.callback(self._ended.set)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
        if self.show and not self._live and self._num_updates and self._line_step != self._now.step:
            self._print_line()

    def update(
        self, step: int, numbers: Mapping[str, float] | None = None, *, waited_s: float | None = None
    ) -> None:
        """Report that `step` steps are finished.

        numbers: by name, what to show; between the intervals at which they are read from the device, leave
        them out and the last ones stay. waited_s: seconds waited for data since the update before; left out,
        no waiting is shown.
        """
        self._doing = ""
        self._num_updates += 1
        self._knows_waiting = self._knows_waiting or waited_s is not None
        self._now = _Mark(self._clock(), step, self._now.waited_s + (waited_s or 0.0))
        self._slide()
        if numbers:
            self._numbers = dict(numbers)
        if not self.show or self._live:
            return
        due = self._now.time_s - self._line_time_s >= LINE_INTERVAL_S
        first = self._line_step is None and bool(numbers)
        if first or (due and (numbers or not self._numbers)) or step >= self.total_steps:
            self._print_line()

    @property
    def elapsed_s(self) -> float:
        """Seconds since it was opened."""
        return self._now.time_s - self._began_s

    def begin(self, what: str) -> None:
        """Say what is being done from now on. It is shown if it takes long: after seconds, and ever more
        rarely."""
        self._doing_since_s = self._doing_told_s = self._clock()
        self._parts, self._doing = None, what

    def part(self, done: int, total: int) -> None:
        """Report that `done` of `total` parts of what is being done are finished."""
        self._parts = (done, total)
        if self.show and not self._live:
            self.look()

    def look(self) -> None:
        """Print what is being done if it has taken long since that was last said; another thread does this
        every second."""
        doing, now = self._doing, self._clock()
        since_told, since = now - self._doing_told_s, now - self._doing_since_s
        if doing and since >= QUIET_S and since_told >= max(QUIET_S, since / 3):
            self._doing_told_s = now
            step = f"step={self._now.step}/{self.total_steps}"
            stamp = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
            log.print_line(self._console, f"{stamp} {visible(self.title)} {step} {doing}{self._taken(since)}")

    def _taken(self, since: float) -> str:
        """How long what is being done has taken, and, where its parts are known, how long it will."""
        taken = f", {spoken(since)} so far"
        if self._parts is None or not self._parts[0]:
            return taken
        done, total = self._parts
        return f", {done / total:.0%} done{taken}, about {spoken(since * (total - done) / done)} left"

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            self.look()

    def say(self, text: str) -> None:
        """Print a message, above the bar if there is one."""
        if self.show:
            log.print_line(self._console, text)

    def pace(self) -> Pace | None:
        """Speed, time left and waiting; None before the first step is finished."""
        since, now = self._marks[0], self._now
        seconds, num_steps = now.time_s - since.time_s, now.step - since.step
        if seconds <= 0 or num_steps <= 0:
            return None
        waiting = min(1.0, (now.waited_s - since.waited_s) / seconds) if self._knows_waiting else None
        eta_s = max(0, self.total_steps - now.step) * seconds / num_steps
        return Pace(num_steps * self.images_per_step / seconds, eta_s, waiting)

    def _slide(self) -> None:
        """Move the window's start to the latest mark that is at least WINDOW_S old."""
        if self._num_updates == 2:
            self._marks.popleft()  # the first step compiles and fills the workers: no measure of the others
        while len(self._marks) > 1 and self._now.time_s - self._marks[1].time_s >= WINDOW_S:
            self._marks.popleft()
        if self._num_updates == 1 or self._now.time_s - self._marks[-1].time_s >= _MARK_INTERVAL_S:
            self._marks.append(self._now)

    def _print_line(self) -> None:
        self._line_step, self._line_time_s = self._now.step, self._now.time_s
        parts = [
            f"{datetime.now():%Y-%m-%d %H:%M:%S}",
            visible(self.title),
            f"step={self._now.step}/{self.total_steps}",
        ]
        pace = self.pace()
        if pace is not None:
            parts += [f"eta={duration(pace.eta_s)}", f"images_per_s={_speed(pace.images_per_s)}"]
            parts += [] if pace.waiting is None else [f"waiting={pace.waiting:.0%}"]
        parts += [f"{name}={value:.5g}" for name, value in self._numbers.items()]
        log.print_line(self._console, " ".join(parts))

    def _bar(self) -> RenderableType:
        pace, step = self.pace(), self._now.step
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(no_wrap=True, overflow="ellipsis")
        row.add_column(ratio=1, min_width=8)
        for _ in range(4):
            row.add_column(no_wrap=True, justify="right")
        eta = duration(pace.eta_s) if pace else "-:--:--"
        speed = _speed(pace.images_per_s) if pace else "-"
        share = pace.waiting if pace else None
        slow = share is not None and share >= _MUCH_WAITING
        row.add_row(
            Text(self.title, style="bold"),
            ProgressBar(total=max(1, self.total_steps), completed=step),
            Text(f"{step}/{self.total_steps}"),
            Text(f"ETA {eta}"),
            Text(f"{speed} images/s"),
            Text("" if share is None else f"waiting {share:.0%}", style="yellow" if slow else ""),
        )
        since = self._clock() - self._doing_since_s
        if self._doing and since >= _SHOWN_S:
            doing = Text(f"{self._doing}{self._taken(since)}", style="dim")
            doing.no_wrap, doing.overflow = True, "ellipsis"
            return Group(row, doing)
        return Group(row, Text("  ".join(f"{name} {value:.4g}" for name, value in self._numbers.items())))


def duration(seconds: float) -> str:
    """Seconds as `0:01:05`, or with days `2 days, 3:00:00`."""
    return str(timedelta(seconds=round(seconds)))


def spoken(seconds: float) -> str:
    """A duration for a person, in its two largest units: `40 s`, `3 min 10 s`, `3 h 10 min`, `2 days 4 h`."""
    left = max(0, round(seconds))
    parts: list[tuple[int, str]] = []
    if left >= 600:
        left = round(left / 60) * 60
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or (parts and len(parts) < 2):
            parts.append((count, "day" if unit == "days" and count == 1 else unit))
    told = [f"{count} {unit}" for count, unit in parts[:2] if count]
    return " ".join(told) or "0 s"


def _speed(images_per_s: float) -> str:
    return f"{images_per_s:.1f}" if images_per_s < 100 else f"{images_per_s:.0f}"

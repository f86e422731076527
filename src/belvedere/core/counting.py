"""How many things have been found so far, for a person who waits; quick work shows nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from belvedere.core import log
from belvedere.core.log import Text, visible

DELAY_S = 1.0
LINE_INTERVAL_S = 10.0


class Counting:
    """A live count on a terminal, from the second second on; elsewhere a line every ten seconds.

    Use as a context manager. The total is unknown, so the bar only says that something moves. `clock`
    (seconds) and `console` are for tests.
    """

    def __init__(
        self,
        title: str,
        *,
        unit: str,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title, self.unit, self.count = title, unit, 0
        self._console = console or log.console()
        self._clock, self._start = clock, clock()
        self._said, self._said_count = self._start, 0
        self._live = False
        self._open = ExitStack()

    def __enter__(self) -> Counting:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
        if kind is None and self._said > self._start and self._said_count != self.count:
            self._print_line()

    def update(self, count: int) -> None:
        """`count` things have been found in all."""
        self.count = count
        now = self._clock()
        if self._live or log.process_rank() != 0 or now - self._start < DELAY_S:
            return
        if self._console.is_interactive:
            self._live = True
            live = Live(get_renderable=self._row, console=self._console, refresh_per_second=4, transient=True)
            self._open.enter_context(live)
        elif now - self._said >= LINE_INTERVAL_S:
            self._said, self._said_count = now, count
            self._print_line()

    def _print_line(self) -> None:
        seconds = self._clock() - self._start
        log.print_line(self._console, f"{visible(self.title)}: {self.count:,} {self.unit} in {seconds:.0f} s")

    def _row(self) -> RenderableType:
        seconds = max(self._clock() - self._start, 1e-9)
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(no_wrap=True, overflow="ellipsis")
        row.add_column(ratio=1, min_width=8)
        row.add_column(no_wrap=True, justify="right")
        row.add_column(no_wrap=True, justify="right")
        row.add_row(
            Text(self.title, style="bold"),
            ProgressBar(total=None, pulse=True),
            Text(f"{self.count:,} {self.unit}"),
            Text(f"{self.count / seconds:,.0f}/s"),
        )
        return row

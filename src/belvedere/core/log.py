"""What a command tells a person: one console on stderr, where plain lines and a live bar share the screen."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache

from rich.console import Console
from rich.table import Table
from rich.text import Text


class _LastingConsole(Console):
    """Falls silent when nobody reads any more (`belvedere pretrain ... 2>&1 | head`) where rich would end the
    process: a run is recorded in its files, not on the screen."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


@cache
def console() -> Console:
    """The console of this process. It writes to whatever `sys.stderr` is at the time."""
    return _LastingConsole(stderr=True, highlight=False, emoji=False, markup=False)


def process_rank() -> int:
    """This process's number as torchrun names it, known before the processes have met."""
    return int(os.environ.get("RANK", "0"))


def say(text: str) -> None:
    """Print one message on the first process, above a live bar if there is one; never wrapped or cut."""
    if process_rank() == 0:
        print_line(console(), text)


def warn(text: str) -> None:
    """`say`, marked as a warning."""
    if process_rank() == 0:
        print_line(console(), f"warning: {text}", style="yellow")


def table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print (what, value) rows under a title; where there is no terminal, one line for each row."""
    if process_rank() != 0:
        return
    print_line(console(), title, style="bold")
    if not console().is_terminal:
        width = max((len(what) for what, _ in rows), default=0)
        for what, value in rows:
            print_line(console(), f"  {what:<{width}}  {value}")
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for what, value in rows:
        grid.add_row(Text(f"  {what}"), Text(value))
    console().print(grid)


def print_line(target: Console, text: str, *, style: str = "") -> None:
    """Print `text` word for word: a line of a log stays one line, whatever the width of the screen."""
    target.print(Text(text, style=style), soft_wrap=True)

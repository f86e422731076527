"""What a command tells a person: messages on one console on stderr, where lines and a live bar share the
screen; results on stdout.

Names of files and classes come from others, and a terminal obeys what it is sent. So everything is printed
through this module, which shows control characters as escapes and never interprets markup.
"""

from __future__ import annotations

import os
import sys
import textwrap
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any, TextIO

import rich.text
from rich.console import Console
from rich.table import Table

_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories: control characters (escape sequences), formats (bidirectional overrides, zero widths),
lone surrogates (bytes of a name that are not UTF-8), line and paragraph separators."""
_COMMANDS = ("start with: ", "continue with: ", "next: ", "belvedere ", "torchrun ", "python")
"""How lines begin that hold a command to copy."""
_NARROW = 40
_NAMED = 5
_JOINERS = "\u200c\u200d"  # part of ordinary spelling in Persian, Hindi and emoji


def visible(text: str, *, lines: bool = False) -> str:
    """`text` with control characters as escapes: `\\x1b`, `\\n`, `\\u202e`, `\\udcff`.

    lines: the text may have several lines; then a line break stays where the next line is indented by two
    spaces, as those of our own messages are, so that no name looks like a line of its own.
    """
    if text.isprintable():
        return text
    shown = [
        char.encode("unicode_escape").decode() if char not in _JOINERS and _is_unseen(char) else char
        for char in text
    ]
    if lines:
        for place in (i for i, char in enumerate(text) if char == "\n" and text[i + 1 : i + 3] == "  "):
            shown[place] = "\n"
    return "".join(shown)


def _is_unseen(char: str) -> bool:
    return unicodedata.category(char) in _UNSEEN


class Text(rich.text.Text):
    """Words with a style, control characters shown as escapes. lines: see `visible`."""

    def __init__(self, text: str = "", *, style: str = "", lines: bool = False) -> None:
        super().__init__(visible(text, lines=lines), style=style)


class SafeConsole(Console):
    """A console that obeys nothing in what it prints: no markup, no emoji names, no control characters; what
    the encoding lacks becomes an escape."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, emoji=False, markup=False, **options)

    def render_str(self, text: str, **options: Any) -> rich.text.Text:
        """A plain string, as a title or in a cell; its line breaks are the program's."""
        plain = "\n".join(visible(line) for line in text.split("\n"))
        return super().render_str(plain, **options)


class _LastingConsole(SafeConsole):
    """Falls silent when nobody reads any more (`belvedere pretrain ... 2>&1 | head`) where rich would end the
    process: a run is recorded in its files, not on the screen."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


def console() -> Console:
    """The console of this process. It writes to whatever `sys.stderr` is at the time."""
    never_refuse(sys.stderr)
    return _console()


@cache
def _console() -> Console:
    return _LastingConsole(stderr=True)


def screen() -> Console:
    """A console on stdout, for results; its width is that of the terminal."""
    never_refuse(sys.stdout)
    return SafeConsole()


def output(text: str) -> None:
    """Print one line of a result on stdout; never wrapped or cut."""
    print_line(screen(), text)


def never_refuse(stream: TextIO) -> None:
    """Let `stream` write characters that its encoding lacks (LANG=C, a Windows code page) as escapes; as it
    comes, stdout raises UnicodeEncodeError, after whatever took hours."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None and getattr(stream, "errors", None) != "backslashreplace":
        reconfigure(errors="backslashreplace")


def named_few(names: Sequence[str], *, of: int | None = None) -> str:
    """The first five names, and how many more there are; of: how many in all, where these are the first."""
    more = (len(names) if of is None else of) - len(names[:_NAMED])
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more else "")


def process_rank() -> int:
    """This process's number as torchrun names it, known before the processes have met."""
    return int(os.environ.get("RANK", "0"))


def say(text: str) -> None:
    """Print one message on the first process, above a live bar if there is one; see `print_line`."""
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
    print_line(console(), visible(title), style="bold")
    rows = [(visible(what), visible(value)) for what, value in rows]
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
    """Print `text` word for word. On a terminal it is folded between words, so that it fits the width; a
    command to copy is not. Elsewhere a line of a log stays one line."""
    if target.is_terminal:
        text = folded(visible(text, lines=True), target.width)
    target.print(Text(text, style=style, lines=True), soft_wrap=True)


def folded(text: str, width: int) -> str:
    """The lines of a message at most `width` wide, but for words that are longer and for commands to copy;
    what goes on in the next line is indented by two spaces more."""
    lines: list[str] = []
    for line in text.split("\n"):
        start = line.lstrip()
        if len(line) <= width or start.lower().startswith(_COMMANDS):
            lines.append(line)
            continue
        indent = " " * (len(line) - len(start))
        lines += textwrap.wrap(
            start,
            max(width, _NARROW),
            initial_indent=indent,
            subsequent_indent=f"{indent}  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)

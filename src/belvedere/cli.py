"""The command `belvedere`: picks a sub-command, turns errors into one message and an exit status.

Sub-commands live in `belvedere.commands`, one module each with `parser()` and `run(args)`; only the one asked
for is imported, so that `belvedere --help` needs no torch.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from types import FrameType
from typing import Protocol, cast

from belvedere.commands import COMMANDS
from belvedere.commands.options import HelpFormatter, Parser
from belvedere.core.errors import EXIT_DONE, EXIT_ERROR, EXIT_USAGE, BelvedereError
from belvedere.core.log import Text, console, never_refuse, print_line, process_rank

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
EXIT_TERMINATED = 143  # 128 + SIGTERM


class TerminatedError(KeyboardInterrupt):
    """SIGTERM ends a command as Ctrl-C does: files that are half written are removed on the way out. By
    itself it would end the process where it stands, or, as a container's first process, not at all."""


_EXAMPLES = """\
examples:
  belvedere demo                                 see it work, in three minutes
  belvedere pretrain msn/vits16 data.path=DIR    pretrain on a folder of images
  belvedere evaluate runs/msn/vits16 --data DIR  what do few labels reach?

`belvedere COMMAND --help` tells more. Exit status: 0 done, 1 an error, 2 a wrong command line or recipe,
75 stopped with everything saved (run the same command again), 130 interrupted, 143 terminated.
"""


class Command(Protocol):
    """What a module of `belvedere.commands` offers."""

    def parser(self) -> argparse.ArgumentParser:
        """The options of the sub-command."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; the exit status."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: that of this process) and return its exit status."""
    # Threads of an operation wait for each other by spinning: for too long, and they starve the loader beside
    # them; not at all, and a small network takes twice the time. Read once, when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        never_refuse(stream)
    try:
        with ExitStack() as muted:
            if process_rank() != 0:  # the first process says what all of them would
                silence = muted.enter_context(open(os.devnull, "w"))
                muted.enter_context(redirect_stdout(silence))
                muted.enter_context(redirect_stderr(silence))
            command, args = _parsed(words)
    except SystemExit as end:  # argparse has printed the help or what is wrong
        return int(end.code or EXIT_DONE)
    return _guarded(command, args)


def _parsed(words: list[str]) -> tuple[Command, argparse.Namespace]:
    top = _top_parser()
    chosen = top.parse_args(words[:1])
    if chosen.version:
        from belvedere import __version__

        sys.stdout.write(f"belvedere {__version__}\n")
        top.exit(EXIT_DONE)
    if chosen.command is None:
        top.print_help()
        top.exit(EXIT_USAGE)
    command = cast(Command, import_module(f"belvedere.commands.{COMMANDS[chosen.command].module}"))
    parser = command.parser()
    parser.add_argument("--debug", action="store_true", help="show where in the program an error arose")
    # Intermixed: `pretrain RECIPE --dry-run key=value` is as good as `pretrain RECIPE key=value --dry-run`.
    return command, parser.parse_intermixed_args(words[1:])


def _top_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    parser = Parser(
        prog="belvedere",
        usage="belvedere COMMAND ...",
        description="Learn image representations without labels, so that a handful of labels is enough "
        f"afterwards.\n\ncommands:\n{listed}",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print belvedere's version and exit")
    parser.add_argument(
        "command", nargs="?", choices=tuple(COMMANDS), metavar="COMMAND", help=argparse.SUPPRESS
    )
    return parser


def _guarded(command: Command, args: argparse.Namespace) -> int:
    """The command's exit status; a user's mistake is one message, a mistake of ours a traceback."""
    try:
        with _terminable():
            return command.run(args)
    except TerminatedError:
        print_line(console(), "terminated")
        return EXIT_TERMINATED
    except KeyboardInterrupt:
        print_line(console(), "interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
        return EXIT_ERROR
    except BelvedereError as error:
        _tell(error, str(error), debug=args.debug)
        return error.exit_code
    except OSError as error:
        _tell(error, f"{error} (--debug shows where)", debug=args.debug)
        return EXIT_ERROR


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises `TerminatedError`, where Python lets it and nobody else listens."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise TerminatedError

    if threading.current_thread() is not threading.main_thread() or (
        signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _tell(error: Exception, message: str, *, debug: bool) -> None:
    """Print the message: on every process, because it may be this one's alone, but a mistake in the command
    line or the recipe, which all of them find, once."""
    rank = process_rank()
    if rank != 0 and getattr(error, "exit_code", EXIT_ERROR) == EXIT_USAGE:
        return
    if debug:
        for line in "".join(traceback.format_exception(error)).splitlines():
            print_line(console(), line)
    where = f" (process {rank})" if rank else ""
    told = Text(f"error{where}:", style="bold red")
    console().print(told, Text(message, lines=True), soft_wrap=True)

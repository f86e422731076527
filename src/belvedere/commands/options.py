"""What the parsers of the sub-commands have in common."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from belvedere.core.errors import UsageError
from belvedere.core.log import say, visible


class Parser(argparse.ArgumentParser):
    """argparse's, whose messages show control characters of what was typed as escapes.

    unknown: what to add where an option is not known.
    """

    unknown = ""

    def error(self, message: str) -> NoReturn:
        """Print usage and message on stderr and exit with status 2."""
        added = self.unknown if message.startswith("unrecognized arguments") else ""
        super().error(visible(message + added))


class HelpFormatter(argparse.HelpFormatter):
    """Paragraphs are filled to the width of the screen; lists, tables and examples stay as written."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=min(shutil.get_terminal_size().columns, _WIDEST) - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(_filled(part, width, indent) for part in text.split("\n\n"))


_WIDEST = 110


def _filled(paragraph: str, width: int, indent: str) -> str:
    lines = paragraph.splitlines()
    if any(line.startswith(" ") for line in lines):
        return "\n".join(indent + line for line in lines)
    return textwrap.fill(
        " ".join(lines),
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def command_parser(name: str, description: str, *, examples: str) -> Parser:
    """An empty parser of `belvedere NAME`, whose help ends in the examples, printed as they are."""
    return Parser(
        prog=f"belvedere {name}",
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )


def path(text: str) -> Path:
    """A path as a person types it: `~` is the home directory also where no shell expands it."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path")
    return Path(text).expanduser()


def counts(text: str) -> tuple[int, ...]:
    """`1,2,5` as numbers of at least one, each once, ascending."""
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r}; give whole numbers parted by commas, such as 1,2,5"
        ) from error
    if numbers[0] < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; each number must be at least 1")
    return tuple(numbers)


def count(text: str) -> int:
    """A whole number of at least one."""
    numbers = counts(text)
    if len(numbers) > 1:
        raise argparse.ArgumentTypeError(f"{text!r}; give one whole number")
    return numbers[0]


def positive(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}; give a number above 0")
    return value


def add_lambda(parser: argparse._ActionsContainer) -> None:
    """How strongly a classifier of few labels is regularized, as `lambd`."""
    parser.add_argument(
        "--lambda",
        dest="lambd",
        type=positive,
        metavar="X",
        help="fixed regularization (default: published for one label, else cross-validated)",
    )


def add_range(parser: argparse._ActionsContainer, *, default: str) -> None:
    """The values that become black and white in images of more than eight bits, as `range`."""
    parser.add_argument(
        "--range",
        nargs=2,
        type=number,
        metavar=("LOW", "HIGH"),
        help=f"values that become black and white in images of more than 8 bits (default: {default})",
    )


def range_for(args: argparse.Namespace, card: object) -> tuple[float, float] | None:
    """--range, or else what the card says that its backbone was trained with, and says so."""
    trained: tuple[float, float] | None = getattr(card, "value_range", None)
    given: tuple[float, float] | None = None if args.range is None else tuple(args.range)
    if given is None and trained is not None:
        say(f"images of more than 8 bits are scaled from {trained[0]:g}..{trained[1]:g}, as the card says")
    return trained if given is None else given


def number(text: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r}; give a number")
    return value


def refuse_ineffective(needs: Iterable[tuple[str, object, bool, str]]) -> None:
    """Raise UsageError for the first option that is given and changes nothing.

    needs: (option, its value or None, whether it has an effect here, what it belongs to).
    """
    for option, value, effective, what in needs:
        if value is not None and not effective:
            raise UsageError(f"{option} has no effect here: it belongs to {what}; leave it out")


def refuse_torchrun(name: str) -> None:
    """Raise UsageError in one of several processes: all of them would write the same files."""
    num_processes = os.environ.get("WORLD_SIZE", "1")
    if num_processes != "1":
        raise UsageError(
            f"belvedere {name} runs as one process, not as {num_processes}: start it without torchrun"
        )


def add_columns(parser: argparse._ActionsContainer, what: str) -> None:
    """Which columns of a source hold labels and images, as `label` and `image`."""
    for name in ("label", "image"):
        parser.add_argument(
            f"--{name}",
            metavar="NAME",
            help=f"the column, key or ending of {what} that holds the {name}s, where there are several",
        )


def add_backbone(parser: argparse.ArgumentParser) -> None:
    """What is needed to compute features: weights, device, precision, batch size."""
    parser.add_argument(
        "weights", type=path, metavar="RUN_OR_WEIGHTS", help="a run's directory, or an exported backbone"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="where to compute (default: the GPU if there is one)"
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "bf16"),
        default="float32",
        help="of the backbone (default: float32)",
    )
    parser.add_argument(
        "--batch-size", type=count, default=64, metavar="N", help="images at a time (default: 64)"
    )

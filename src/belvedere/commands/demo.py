"""`belvedere demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from belvedere.commands.options import command_parser, path, refuse_torchrun

_DESCRIPTION = """\
Pretrain MSN on the handwritten digits that come with scikit-learn, without their labels, and answer: are
these features better than pixels, with 1, 2, 5 or 10 labels per class? Needs no download and no GPU; about
three minutes on two cores.

Writes to DIR: report.json, pictures of the views, the curves and the confusions, and a CSV with a label for
each of the 450 digits that took no part in training. Ctrl-C saves; the same command continues."""


def parser() -> argparse.ArgumentParser:
    """The options of `belvedere demo`."""
    parser = command_parser(
        "demo", _DESCRIPTION, examples="  belvedere demo\n  belvedere demo --out /tmp/digits"
    )
    parser.add_argument(
        "--out",
        type=path,
        default=Path("belvedere-demo"),
        metavar="DIR",
        help="where to write, an empty or a new directory (default: belvedere-demo)",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the demonstration; its exit status."""
    refuse_torchrun("demo")
    from belvedere.demo import run as run_demo

    return run_demo(args.out).exit_code

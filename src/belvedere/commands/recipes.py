"""`belvedere recipes`."""

from __future__ import annotations

import argparse
import sys

from rich import box
from rich.table import Table

from belvedere.commands.options import command_parser
from belvedere.core.errors import EXIT_DONE, RecipeError
from belvedere.core.log import Text, screen
from belvedere.core.match import with_nearest
from belvedere.recipe.shipped import recipe_names, recipe_text
from belvedere.recipe.text import read

_DESCRIPTION = """\
List the shipped recipes, or print one as it is written, comments included. A recipe is complete in one file:
to change more than a few values, save it, edit it and give the file to `belvedere pretrain`."""

_EXAMPLES = """\
  belvedere recipes
  belvedere recipes msn/vits16 > mine.yaml"""

_PIPED_WIDTH = 200  # for `belvedere recipes | grep`: one line for each recipe


def parser() -> argparse.ArgumentParser:
    """The options of `belvedere recipes`."""
    parser = command_parser("recipes", _DESCRIPTION, examples=_EXAMPLES)
    parser.add_argument("name", nargs="?", metavar="NAME", help="the recipe to print")
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the list, or the recipe."""
    if args.name is None:
        console = screen()
        if not console.is_terminal:
            console.width = _PIPED_WIDTH
        console.print(_table(), crop=False)
        return EXIT_DONE
    name = args.name.removesuffix(".yaml")
    if name not in recipe_names():
        listed = "\n  ".join(recipe_names())
        raise RecipeError(f"there is no recipe {with_nearest(name, recipe_names())}. Shipped:\n  {listed}")
    sys.stdout.write(recipe_text(name))
    return EXIT_DONE


def _table() -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    table.add_column("epochs", justify="right")
    table.add_column("batch", justify="right")
    table.add_column("what it is")
    table.add_column("published top-1")
    for name in recipe_names():
        text = recipe_text(name)
        values = read(text).values
        accuracy = (values.get("published") or {}).get("accuracy", {})
        published = next((f"{score:g} %, {protocol}" for protocol, score in accuracy.items()), "")
        train = values["train"]
        cells = (name, str(train["epochs"]), str(train["global_batch"]), _summary(text), published)
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _summary(text: str) -> str:
    """The first sentence of the comment that a recipe file opens with, without what follows a colon."""
    lines = []
    for line in text.splitlines():
        words = line.removeprefix("#").strip()
        if not line.startswith("#") or not words:
            break
        lines.append(words)
    return " ".join(lines).partition(": ")[0].rstrip(".")

"""The recipes that come with belvedere: their names and their text."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable


@cache
def _recipes() -> dict[str, Traversable]:
    found = {}
    for folder in (files("belvedere") / "recipes").iterdir():
        if folder.is_dir():
            for file in folder.iterdir():
                if file.name.endswith(".yaml"):
                    found[f"{folder.name}/{file.name.removesuffix('.yaml')}"] = file
    return dict(sorted(found.items()))


def recipe_names() -> tuple[str, ...]:
    """The names of the shipped recipes, sorted: `msn/vits16` is `recipes/msn/vits16.yaml`."""
    return tuple(_recipes())


def recipe_text(name: str) -> str:
    """The shipped recipe as it is written, comments included. Raises KeyError."""
    return _recipes()[name].read_text(encoding="utf-8")

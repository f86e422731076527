"""Finds method pages by listing this folder: adding a method needs no registration.

Folders hold no pages, but what serves them.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Protocol, cast

import belvedere.methods
from belvedere.methods.method import Method, MethodOptions

_NOT_PAGES = {"method", "pages"}


class Page(Protocol):
    """A method's module: its options in a recipe, and the class that makes the method of them."""

    Options: type[MethodOptions]
    build: type[Method]


@cache
def method_names() -> tuple[str, ...]:
    """The names of all methods, sorted."""
    modules = pkgutil.iter_modules(belvedere.methods.__path__)
    found = {module.name for module in modules if not module.ispkg}
    return tuple(sorted(found - _NOT_PAGES))


def page(name: str) -> Page:
    """The page of the method called `name`."""
    return cast(Page, importlib.import_module(f"belvedere.methods.{name}"))

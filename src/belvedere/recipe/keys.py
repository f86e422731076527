"""Every key that a recipe may have, with the values it admits, its default and what it means.

What a key means stands below it in its class, as a string; a key without one is found by a test.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Literal, Union

from pydantic.fields import FieldInfo

from belvedere.core.settings import Settings
from belvedere.methods.method import MethodOptions
from belvedere.methods.pages import method_names, page
from belvedere.recipe.explain import allowed, flat_metadata
from belvedere.recipe.schema import Recipe
from belvedere.recipe.text import write

ROLE, KEY, ITEM = "ROLE", "NAME", "[i]"
"""What stands in a dotted key for the name of a view, any name, and the number of an item."""


@dataclass(frozen=True)
class Key:
    """One key. of: the methods, networks or optimizers that have it; empty where all recipes do. allowed:
    its values in words; default: as YAML, None where it must be given; about: what it means."""

    key: str
    of: tuple[str, ...]
    allowed: str
    default: str | None
    about: str


def all_keys() -> list[Key]:
    """Every key of every recipe, in the order of the schema; equal ones of several kinds together."""
    found: dict[tuple[str, str, str | None, str], list[str]] = {}
    for key in _keys_of(Recipe, "", ""):
        kinds = found.setdefault((key.key, key.allowed, key.default, key.about), [])
        kinds += [kind for kind in key.of if kind not in kinds]
    return [Key(key, tuple(of), words, default, about) for (key, words, default, about), of in found.items()]


def _keys_of(model: type[Settings], path: str, kind: str) -> Iterator[Key]:
    about = _descriptions(model)
    for name, field in model.model_fields.items():
        key = f"{path}.{name}".removeprefix(".")
        metadata = flat_metadata(field.metadata)
        words = allowed(field.annotation, metadata)
        if field.annotation is MethodOptions:
            words = "a section with the keys of its method"
        kinds = tuple(kind for kind in (kind,) if kind)
        yield Key(key, kinds, words, _default(field), field.description or about.get(name, ""))
        for inner, inner_key, inner_kind in _sections(field.annotation, key):
            yield from _keys_of(inner, inner_key, inner_kind or kind)


def _sections(annotation: Any, key: str) -> Iterator[tuple[type[Settings], str, str]]:
    """The sections that may stand under a key: (class, dotted key, the kind that it is of)."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        yield from _sections(arguments[0], key)
    elif origin in (Union, types.UnionType):
        for part in arguments:
            yield from _sections(part, key)
    elif origin is dict:
        yield from _sections(arguments[1], f"{key}.{ROLE if key == 'views' else KEY}")
    elif origin is tuple:
        yield from _sections(arguments[0], f"{key}{ITEM}")
    elif annotation is MethodOptions:
        for name in method_names():
            yield page(name).Options, key, name
    elif isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation, key, _kind(annotation)


def _kind(model: type[Settings]) -> str:
    """What `name` must be in a section of this class, if it tells kinds apart."""
    field = model.model_fields.get("name")
    names = (
        typing.get_args(field.annotation) if field and typing.get_origin(field.annotation) is Literal else ()
    )
    return str(names[0]) if names else ""


def _default(field: FieldInfo) -> str | None:
    if field.is_required():
        return None
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Settings):
        return "{}"
    return write({"default": [value]}).strip().removeprefix("default: [").removesuffix("]")


@cache
def _descriptions(model: type[Settings]) -> dict[str, str]:
    """By key, the string that stands below it in its class or in one of those that it derives from."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if not issubclass(base, Settings) or base is Settings or base.__module__ == "pydantic.main":
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError):  # a class that was made without a source (`from` has a description)
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for key, below in pairwise(body):
            if not (isinstance(key, ast.AnnAssign) and isinstance(key.target, ast.Name)):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                found[key.target.id] = inspect.cleandoc(str(below.value.value)).replace("\n", " ")
    return found

"""Everything that is wrong with a recipe's values, found at once.

A key that is wrong hides what does not fit together with it, and a `name` that is none hides a whole section.
So wrong keys are replaced by values that they may have, several times over: what is wrong with every such
recipe is wrong whatever the keys will be, and what is wrong with some is left for when they are mended.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, Union, cast

from pydantic import ValidationError

from belvedere.core.settings import KEYS_ALONE, Settings
from belvedere.methods.method import MethodOptions
from belvedere.methods.pages import method_names, page
from belvedere.recipe.checks import Finding, check, check_published
from belvedere.recipe.explain import closest, explain, fields_at, flat_metadata, section_names
from belvedere.recipe.schema import Recipe
from belvedere.recipe.text import Path

_FEWEST = 3  # replacements of a wrong key: enough that what is said of one of them differs for another
_MOST_ROUNDS = 30


def validated(
    values: dict[str, Any], *, unreadable: Iterable[Path] = ()
) -> tuple[Recipe | None, list[Finding]]:
    """The recipe if it is one, and everything that is wrong, as (path of the key, words), none twice.

    unreadable: keys whose values could not be read, which is told elsewhere.
    """
    told = tuple(unreadable)
    wrong = _wrong_alone(values)[1]
    names = [_names(path, values) for path in (*wrong, *told)]
    count = max([_FEWEST if wrong or told else 1, *(len(found) for found in names)])
    first, *others = (_Replaced(values, told, number) for number in range(count))
    found = first.found
    for other in others:
        paths, whole = {path for path, _ in other.found}, set(other.found)
        found = [one for one in found if one in whole or (one[0] in first.wrong and one[0] in paths)]
    found = list(dict.fromkeys(found))
    assert found or not wrong or told, wrong
    return (None if found or told else first.recipe), found


class _Replaced:
    """A recipe whose wrong keys have got values that they may have, the `number`-th of each.

    wrong: what was wrong with keys alone, by path. recipe: what the rest is then; None if it is none still.
    found: all that is wrong and is no matter of a replaced value.
    """

    def __init__(self, values: dict[str, Any], unreadable: Iterable[Path], number: int) -> None:
        self.given, self.values, self.number = values, values, number
        self.wrong: dict[Path, str] = {}
        self.replaced: set[Path] = set()
        self.recipe: Recipe | None = None
        for path in unreadable:
            self._replace(path)
        for _ in range(_MOST_ROUNDS):
            self.recipe, wrong = _wrong_alone(self.values)
            if self.recipe is not None:
                break
            self.wrong |= {path: words for path, words in wrong.items() if not self._is_replaced(path)}
            for path in wrong:
                self._replace(path)
        self.found = list(self._findings())

    def _findings(self) -> Iterator[Finding]:
        """What is wrong with keys alone, then what does not fit together."""
        if self.recipe is None:
            yield from self.wrong.items()
            return
        views = self.given.get("views")
        names: dict[str, Any] = {"method_name": self.recipe.method.name}
        names |= {"roles": tuple(views)} if isinstance(views, Mapping) else {}
        of_roles = check(names)  # views that are unknown or missing; what stands in them does not matter
        roles = {path for path, _ in of_roles}
        yield from of_roles
        for path, words in self.wrong.items():
            if path[:2] not in roles:
                yield path, words
        for path, words in self._together(self.recipe):
            if path[:2] not in roles and not self._is_replaced(path):
                yield path, words

    def _together(self, recipe: Recipe) -> list[Finding]:
        apart = list(_contradictions(recipe))
        sections = {name: value for name, value in dict(recipe).items() if (name,) not in self.replaced}
        sections["method_name"] = recipe.method.name
        found = apart + check(sections, sound=not apart)
        if sections.get("published") is not None:
            found += check_published(sections["published"], _key_paths(self.given))
        return found

    def _is_replaced(self, path: Path) -> bool:
        return any(path[: len(section)] == section for section in self.replaced)

    def _replace(self, path: Path) -> None:
        """Give the key at `path` a value that it may have, or take it out if it is no key."""
        for cut in range(1, len(path) + 1):  # a list is replaced as a whole
            fields = fields_at(path[: cut - 1], self.values)
            inner = _at(self.values, path[: cut - 1])
            if fields is not None and path[cut - 1] not in fields:
                self.values = _with(self.values, path[:cut], _GONE)
                return
            if cut == len(path) or not isinstance(_at(inner, path[cut - 1 : cut]), Mapping):
                path = path[:cut]
                break
        self.replaced.add(path)
        self.values = _with(self.values, path, self._example_at(path))

    def _example_at(self, path: Path) -> Any:
        names = _names(path, self.values)
        if names:
            return names[self.number % len(names)]
        fields = fields_at(path[:-1], self.values)
        if fields is not None and path[-1] in fields:
            field = fields[path[-1]]
            return _example(field.annotation, self.number, flat_metadata(field.metadata))
        of = fields_at(path[:-2], self.values) if len(path) > 1 else None
        if of is not None and path[-2] in of:  # a section of any keys: `views`, `published.accuracy`
            return _example(typing.get_args(of[path[-2]].annotation)[1], self.number)
        return None


def _wrong_alone(values: dict[str, Any]) -> tuple[Recipe | None, dict[Path, str]]:
    """The recipe if every key alone may be what it is, and else what is wrong with keys."""
    try:
        return Recipe.model_validate(values, context=KEYS_ALONE), {}
    except ValidationError as error:
        return None, dict(explain(error, values))


def _contradictions(section: Any, path: Path = ()) -> Iterator[Finding]:
    """Of a section and those in it."""
    if isinstance(section, Settings):
        for key, words in section.contradictions():
            yield (*path, *(key.split(".") if key else ())), words
    items: Iterable[tuple[str, Any]] = ()
    if isinstance(section, Settings):
        items = vars(section).items()
    elif isinstance(section, Mapping):
        items = section.items()
    elif isinstance(section, tuple):
        items = ((str(at), item) for at, item in enumerate(section))
    for name, inner in items:
        yield from _contradictions(inner, (*path, str(name)))


def _names(path: Path, values: Mapping[str, Any]) -> list[str]:
    """What `name` may be in the section that it tells apart from others, the one meant first; or []."""
    if path == ("method", "name"):
        names = list(method_names())
    elif len(path) == 2 and path[1] == "name":
        names = section_names(path[0])
    else:
        return []
    section = values.get(path[0])
    meant = closest(str(section.get("name")), names) if isinstance(section, Mapping) else None
    return sorted(names, key=lambda name: name != meant)


_GONE = object()


def _at(values: Any, path: Path) -> Any:
    for part in path:
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _with(values: Any, path: Path, value: Any) -> Any:
    """A copy of nested sections in which the key at `path` has this value, or is not there."""
    section = dict(values) if isinstance(values, Mapping) else {}
    if len(path) > 1:
        section[path[0]] = _with(section.get(path[0]), path[1:], value)
    elif value is _GONE:
        section.pop(path[0], None)
    else:
        section[path[0]] = value
    return section


def _key_paths(values: Mapping[str, Any], path: Path = ()) -> set[Path]:
    found = set()
    for key, value in values.items():
        found.add((*path, key))
        if isinstance(value, Mapping):
            found |= _key_paths(value, (*path, key))
    return found


def _example(annotation: Any, number: int, metadata: Iterable[Any] = ()) -> Any:
    """The `number`-th value that a type admits; the first few differ wherever there are several."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _example(arguments[0], number, [*metadata, *flat_metadata(arguments[1:])])
    if origin is Literal:
        return arguments[number % len(arguments)]
    if origin in (Union, types.UnionType):
        kinds = sorted(arguments, key=lambda kind: kind is not type(None))
        return _example(kinds[number % len(kinds)], number // len(kinds), metadata)
    if origin is tuple:
        length = 1 + number if arguments[-1] is Ellipsis else len(arguments)
        return tuple(_example(arguments[0], number) for _ in range(length))
    if origin is dict or annotation is None or annotation is type(None):
        return {} if origin is dict else None
    if annotation is MethodOptions:
        return _example(page(method_names()[number % len(method_names())]).Options, number)
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return {
            name: _example(field.annotation, number, flat_metadata(field.metadata))
            for name, field in annotation.model_fields.items()
            if field.is_required()
        }
    if annotation in (int, float):
        return _number(cast(type, annotation), number, metadata)
    return bool(number % 2) if annotation is bool else "abcdefgh"[number % 8]


def _number(kind: type, number: int, metadata: Iterable[Any]) -> Any:
    """One inside the limits, and not at them."""
    limits = {
        name: float(getattr(item, name))
        for item in metadata
        for name in ("ge", "gt", "le", "lt")
        if getattr(item, name, None) is not None
    }
    low, high = limits.get("ge", limits.get("gt", 0.0)), limits.get("le", limits.get("lt"))
    if kind is int:
        value = int(low) + (number**2 if "ge" in limits else number**2 + 1)
        return value if high is None else min(value, int(high))
    return low + 0.5 * 2**number if high is None else low + (high - low) * (1 + number % 8) / 9

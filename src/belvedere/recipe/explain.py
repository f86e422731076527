"""What is wrong with a recipe, in plain words: what was given, what is allowed, what was probably meant."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Union

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from belvedere.core.settings import Settings
from belvedere.data.spec import ONE_PATH, PARTS
from belvedere.methods.method import MethodOptions
from belvedere.methods.pages import method_names, page
from belvedere.recipe.schema import Recipe
from belvedere.recipe.text import Path

_LONGEST = 60  # letters of what was given that are repeated


def dotted(path: Sequence[str]) -> str:
    """`views.focal.scale[0]` for ("views", "focal", "scale", "0")."""
    words = (part if len(part) <= _LONGEST else f"{part[: _LONGEST - 3]}..." for part in path)
    return "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in words).removeprefix(".")


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """`; did you mean X?` for the closest allowed word, or nothing."""
    word = closest(given, allowed)
    return f"; did you mean {word}?" if word else ""


def closest(given: str, allowed: Iterable[str]) -> str | None:
    """The allowed word that is most like this one, if any is."""
    words = {word.lower(): word for word in allowed}
    close = difflib.get_close_matches(given[:_LONGEST].lower(), words, n=1, cutoff=0.6)
    return words[close[0]] if close else None


def given(value: Any) -> str:
    """A value as a person would have written it, shortened."""
    if isinstance(value, str):
        text = repr(value) if len(value) <= _LONGEST else repr(value[: _LONGEST - 3] + "...")
        return f"the text {text}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "a section"
    if isinstance(value, tuple):
        text = ", ".join(given(item).removeprefix("the text ") for item in value[:6])
        return f"the list [{text}{', ...' if len(value) > 6 else ''}]"
    text = f"{value}"
    return text if len(text) <= _LONGEST else f"{text[:20]}... ({len(text):,} digits)"


def allowed(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """The values that a type admits: `a number from 0 to 1`, `one of bf16, float32`, `null or text`."""
    limits = list(metadata)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return allowed(arguments[0], [*limits, *flat_metadata(arguments[1:])])
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(str(item) for item in arguments)
    if origin in (Union, types.UnionType):
        parts = ["null" if part is type(None) else allowed(part, limits) for part in arguments]
        return " or ".join(sorted(parts, key="null".__eq__))
    if origin is tuple:
        items = arguments[0]
        if arguments[-1] is Ellipsis:
            return f"a list, each item {allowed(items)}"
        return f"a list of {len(arguments)}, each {allowed(items)}"
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return f"a section with the keys {', '.join(annotation.model_fields)}"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if annotation in names:
        return names[annotation] + _limits(limits)
    return f"a section, each value {allowed(arguments[1])}" if origin is dict else "a section"


def flat_metadata(metadata: Iterable[Any]) -> list[Any]:
    """The limits that stand in an annotation, those inside of pydantic's fields too."""
    return [item for part in metadata for item in (part.metadata if isinstance(part, FieldInfo) else [part])]


def _limits(metadata: Iterable[Any]) -> str:
    found = {
        name: getattr(item, name)
        for item in metadata
        for name in ("ge", "gt", "le", "lt", "min_length")
        if getattr(item, name, None) is not None
    }
    if "ge" in found and "le" in found:
        return f" from {found['ge']:g} to {found['le']:g}"
    if "min_length" in found:
        return " that is not empty"
    words = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
    parts = [f"{words[name]} {found[name]:g}" for name in words if name in found]
    return f" {' and '.join(parts)}" if parts else ""


def fields_at(path: Path, values: Mapping[str, Any]) -> dict[str, FieldInfo] | None:
    """The keys that the section at `path` may have; None where it is no section of fixed keys.

    values: the recipe's, which name the method whose options stand under `method`.
    """
    model: Any = Recipe
    inner: Any = values
    for part in path:
        if isinstance(model, type) and issubclass(model, Settings):
            field = model.model_fields.get(part)
            inner = inner.get(part) if isinstance(inner, Mapping) else None
            model = None if field is None else _model(field.annotation, values, inner)
        elif typing.get_origin(model) is dict:
            inner = inner.get(part) if isinstance(inner, Mapping) else None
            model = _model(typing.get_args(model)[1], values, inner)
        elif typing.get_origin(model) is tuple and part.isdecimal():
            at = int(part)
            inner = inner[at] if isinstance(inner, tuple) and at < len(inner) else None
            model = _model(typing.get_args(model)[0], values, inner)
        else:
            return None
    return model.model_fields if isinstance(model, type) and issubclass(model, Settings) else None


def _model(annotation: Any, values: Mapping[str, Any], section: Any) -> Any:
    """The settings class or dict type that an annotation holds; of several, the one `section` names."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _model(typing.get_args(annotation)[0], values, section)
    if annotation is MethodOptions:
        section = values.get("method")
        name = section.get("name") if isinstance(section, Mapping) else None
        return page(name).Options if name in method_names() else MethodOptions
    if typing.get_origin(annotation) in (Union, types.UnionType):
        found = [_model(part, values, section) for part in typing.get_args(annotation)]
        known: list[Any] = [part for part in found if part is not None]
        named = {name: part for part in known for name in _names_of(part)}
        name = section.get("name") if isinstance(section, Mapping) else None
        return named.get(name if isinstance(name, str) else None, known[0] if known else None)
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    origin = typing.get_origin(annotation)
    if origin is tuple and _model(typing.get_args(annotation)[0], values, None) is None:
        return None  # a list of plain values
    return annotation if origin in (dict, tuple) else None


def _names_of(model: Any) -> tuple[Any, ...]:
    """What `name` may be in a section of this class, where that tells it apart from others."""
    fields = model.model_fields if isinstance(model, type) and issubclass(model, Settings) else {}
    annotation: Any = fields["name"].annotation if "name" in fields else None
    return typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()


def section_names(key: str) -> list[str]:
    """What `name` may be in the section `key` of a recipe, where it tells kinds of that section apart."""
    field = Recipe.model_fields.get(key)
    kinds = typing.get_args(field.annotation) if field is not None else ()
    return [name for kind in kinds for name in _names_of(kind)]


def allowed_at(path: Path, values: Mapping[str, Any]) -> str | None:
    """The values that the key at `path` may have, in words; None where nothing is known of it."""
    section = fields_at(path, values)
    if section is not None:
        return f"a section with the keys {', '.join(section)}"
    for cut in range(len(path), 0, -1):  # a list's item is told by its list
        fields = fields_at(path[: cut - 1], values)
        if fields is not None and path[cut - 1] in fields:
            field = fields[path[cut - 1]]
            if cut < len(path) and typing.get_origin(field.annotation) is dict:
                return allowed(typing.get_args(field.annotation)[1])
            return allowed(field.annotation, flat_metadata(field.metadata))
    return None


def _value_at(path: Path, values: Any) -> tuple[Path, Any]:
    """The part of `path` that exists in `values`, and the value there."""
    for depth, part in enumerate(path):
        if isinstance(values, Mapping) and part in values:
            values = values[part]
        elif isinstance(values, tuple) and part.isdecimal() and int(part) < len(values):
            values = values[int(part)]
        else:
            return path[:depth], values
    return path, values


def explain(error: ValidationError, values: Mapping[str, Any]) -> list[tuple[Path, str]]:
    """Each mistake as (path of the key, words), one per path, in the order found."""
    found: dict[Path, str] = {}
    for part in error.errors(include_url=False):
        full = _without_tags(tuple(str(step) for step in part["loc"]), values)
        path, value = _value_at(full, values)
        is_list, least = isinstance(value, tuple), part.get("ctx", {}).get("min_length", 0)
        if part["type"] == "too_short" and is_list and len(value) >= least:
            continue  # pydantic counts the items that are right, and tells of the others beside it
        if part["type"] == "missing" and isinstance(value, Mapping):
            found.setdefault(full, f"is missing; it must be {allowed_at(full, values)}")
        elif part["type"] == "extra_forbidden":
            found.setdefault(path, _unknown_key(path, values))
        elif part["type"] in ("union_tag_invalid", "union_tag_not_found"):
            found.setdefault(*_unknown_tag(path, value, part["type"] == "union_tag_invalid"))
        elif part["type"] == "method_name":
            found.setdefault(*_unknown_method(value))
        elif part["type"] == "value_error":
            found.setdefault(path, str(part["ctx"]["error"]))
        else:
            found.setdefault(path, _wrong_value(path, value, values, part["msg"]))
    return list(found.items())


def _wrong_value(path: Path, value: Any, values: Mapping[str, Any], message: str) -> str:
    words = f"{given(value)} is not allowed"
    expected = allowed_at(path, values)
    words += f"; it must be {expected}" if expected else f": {message}"
    if isinstance(value, str) and expected and "one of " in expected:
        word = closest(value, expected.split("one of ")[1].split(" or ")[0].split(", "))
        listed = expected.startswith("a list") and not path[-1].isdecimal()
        words += f"; did you mean {f'[{word}]' if listed else word}?" if word else ""
    elif expected and expected.startswith(("text", "null or text")) and not isinstance(value, (str, Mapping)):
        words += " (put it in quotes if it is meant as text)"
    return words


def _without_tags(path: Path, values: Mapping[str, Any]) -> Path:
    """A location without the names of classes that stand behind a section told apart by its name."""
    section: Any = values
    kept: list[str] = []
    for part in path:
        if isinstance(section, Mapping) and part not in section and section.get("name") == part:
            continue
        if not isinstance(section, Mapping) and part in (ONE_PATH, PARTS):
            continue
        kept.append(part)
        if isinstance(section, tuple):
            section = section[int(part)] if part.isdecimal() and int(part) < len(section) else None
        else:
            section = section.get(part) if isinstance(section, Mapping) else None
    return tuple(kept)


def _unknown_tag(path: Path, section: Any, is_given: bool) -> tuple[Path, str]:
    names = section_names(path[0])
    words = f"it must be one of {', '.join(names)}"
    if not is_given:
        return (*path, "name"), f"is missing; {words}"
    name = section["name"]
    return (*path, "name"), f"{given(name)} is not allowed; {words}{did_you_mean(str(name), names)}"


def _unknown_method(section: Any) -> tuple[Path, str]:
    name = section.get("name") if isinstance(section, Mapping) else section
    words = f"is missing; it must be one of {', '.join(method_names())}"
    if name is not None:
        words = f"{given(name)} is no method; it must be one of {', '.join(method_names())}"
        words += did_you_mean(str(name), method_names())
    return ("method", "name"), words


def _unknown_key(path: Path, values: Mapping[str, Any]) -> str:
    siblings = fields_at(path[:-1], values) or {}
    hint = did_you_mean(path[-1], siblings)
    if not hint:
        elsewhere = [where for where in _all_keys((), values) if where[-1] == path[-1]]
        hint = f"; did you mean {' or '.join(dotted(where) for where in elsewhere)}?" if elsewhere else ""
    return f"unknown key{hint} (keys here: {', '.join(siblings)})"


def _all_keys(path: Path, values: Mapping[str, Any]) -> Iterable[Path]:
    for name in fields_at(path, values) or {}:
        yield (*path, name)
        if (*path, name) == ("views",) and isinstance(values.get("views"), Mapping):
            for role in values["views"]:
                yield from _all_keys(("views", role), values)
        else:
            yield from _all_keys((*path, name), values)

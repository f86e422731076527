"""Which column or key says an image's label, which one its image, and which values can be a class."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from belvedere.core.errors import DataError

LABEL = "data.label (on the command line: --label)"
IMAGE = "data.image (on the command line: --image)"
NO_LABEL, LABELS_ARE = "no label was found", "the labels are those of"
_LABEL_WORDS = frozenset(
    {
        *("label", "labels", "class", "classes", "cls", "superclass"),
        *("category", "categories", "target", "targets"),
    }
)
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_WORD = re.compile(r"[a-z]+")
_WHOLE = re.compile(r"(-?[0-9]+)\.0+")
_NONE = frozenset({"", "-1", "nan", "NaN"})
_LISTED = 20


class NotAClassError(Exception):
    """Why a value cannot be the class of an image; it follows the words "the label is"."""


def means_label(name: str) -> bool:
    """Whether a column or key of this name could hold labels: `class_id`, `coarse_label`, `Target`."""
    return not _LABEL_WORDS.isdisjoint(_WORD.findall(_CAMEL.sub("_", name).lower()))


def as_class(value: Any) -> str | None:
    """The class that a value names; None for no label (null, an empty text or list, NaN, -1).

    Whole numbers, also as floats, and true and false are classes, and so is the one entry of a list. Numbers
    may be written as text, where a table holds nothing else. Raises NotAClassError for everything else.
    """
    if isinstance(value, str):
        return _of_text(value)
    if isinstance(value, list | tuple):
        if len(value) > 1:
            raise NotAClassError(f"a list of {len(value)} values, and an image has one class")
        return as_class(value[0]) if value else None
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return _of_text(value.decode("utf-8", "surrogateescape"))
    if isinstance(value, int):
        return _of_text(str(value))
    if isinstance(value, float | Decimal):
        if math.isnan(value):
            return None
        if math.isfinite(value) and value == int(value):
            return _of_text(str(int(value)))
        raise NotAClassError(f"{value!r}, which is no whole number")
    if isinstance(value, Mapping):
        raise NotAClassError(f"an object with the keys {listed(value)}; choose one of them as KEY.NAME")
    raise NotAClassError(f"a {type(value).__name__}, neither a name nor a whole number")


def _of_text(text: str) -> str | None:
    """The class that a text names, without a byte-order mark; a whole number that was written as a float
    (`3.0`, where a column had gaps) is that number."""
    name = text.removeprefix("\ufeff").strip()
    whole = _WHOLE.fullmatch(name)
    name = name if whole is None else whole[1]
    return None if name in _NONE else name


def dug(content: Any, path: Sequence[str]) -> Any:
    """What an object holds under nested keys; None where it lacks them."""
    for key in path:
        if not isinstance(content, Mapping) or key not in content:
            return None
        content = content[key]
    return content


def nested_names(content: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    """The keys of an object, those of objects in it behind a dot."""
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from nested_names(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def chosen_label(names: Iterable[str], *, given: str | None, where: str, noun: str) -> str | None:
    """The column or key that holds the labels; None for none.

    names: all there are. given: data.label. noun: "column", "key". Raises DataError for one that is not
    there, and without `given` where several could be meant.
    """
    every = list(dict.fromkeys(names))
    if given is not None:
        return _given(given, every, option=LABEL, where=where, noun=noun)
    could = [name for name in every if means_label(name)]
    if len(could) > 1:
        raise DataError(
            f"{where} (data.path) has several {plural(noun)} that may be the label: {listed(could)}; choose "
            f"one by {LABEL}, such as data.label={could[0]}"
        )
    return could[0] if could else None


def _given(given: str, every: list[str], *, option: str, where: str, noun: str) -> str:
    """The name that was given, or the only one that differs from it in its case."""
    alike = [given] if given in every else [name for name in every if name.lower() == given.lower()]
    if len(alike) == 1:
        return alike[0]
    raise DataError(
        f"{where} (data.path) has no {noun} {given!r}, which {option} names; "
        + (f"the {plural(noun)} are {listed(every)}" if every else f"it has no {noun} at all")
    )


def chosen_image(names: Iterable[str], given: str, *, where: str, noun: str) -> str:
    """The column or key that data.image names. Raises DataError for one that is not there."""
    return _given(given, list(dict.fromkeys(names)), option=IMAGE, where=where, noun=noun)


def no_choice(where: str, *, label: str | None, image: str | None, why: str) -> None:
    """Raise DataError when a column is chosen in a source that has none."""
    for option, given in ((LABEL, label), (IMAGE, image)):
        if given is not None:
            raise DataError(
                f"{option} is {given!r}, which has no effect on {where} (data.path): {why}; leave it out"
            )


def told_label(label: str | None, others: Iterable[str], noun: str) -> str | None:
    """What to say about where labels come from; None where the documented name says them."""
    if label is not None:
        return None if label == "label" else f"{LABELS_ARE} the {noun} {label!r}"
    there = list(others)
    if not there:
        return None
    return f"{NO_LABEL}; the {plural(noun)} are {listed(there)}, and {LABEL} chooses one"


def listed(names: Iterable[str], most: int = _LISTED) -> str:
    """Names in quotes, the first of many."""
    every = [repr(name) for name in names]
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")


def plural(noun: str) -> str:
    return f"{noun}s"

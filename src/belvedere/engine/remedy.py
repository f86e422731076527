"""What to change first when a run collapses: declared by a method's page, chosen by what the recipe says now.

The page knows which keys help and how far to move them; a remedy that the recipe has taken already, or whose
key it does not have, is passed over for the next one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal[
    "non-finite values",
    "one prototype takes all",
    "constant embedding",
    "uniform assignment",
    "dead prototypes",
]
"""The ways in which a run fails to learn, causes before what they bring about."""

Value = float | int | bool | str | None | Mapping[str, float | int | str]
_ABSENT = object()


@dataclass(frozen=True)
class Remedy:
    """One change of a recipe against one kind of collapse.

    key: dotted. `raise` and `lower` bring the value to `to` and are passed over where it is there or beyond;
    null can be raised and not lowered. `set` gives it `to`; `scale` multiplies it by `to` and applies to any
    number but 0. A mapping gives each of its keys its value and applies where one of them needs it.
    why: half a sentence, for a person.
    """

    kind: Kind
    key: str
    move: Literal["raise", "lower", "set", "scale"]
    to: Value
    why: str


@dataclass(frozen=True)
class Change:
    """A remedy made out for one recipe. override: as a command line takes it; was: the value it replaces."""

    override: str
    was: str
    why: str


def first_change(remedies: Sequence[Remedy], kind: Kind, settings: Mapping[str, Any]) -> Change | None:
    """The first remedy of this kind that would change the recipe, or None where all are taken.

    settings: the recipe as nested mappings.
    """
    for remedy in remedies:
        now = value_at(settings, remedy.key)
        if remedy.kind == kind and now is not _ABSENT and _needed(now, remedy):
            to = now * remedy.to if remedy.move == "scale" else remedy.to
            return Change(f"{remedy.key}={written(to)}", written(now), remedy.why)
    return None


def value_at(settings: Mapping[str, Any], key: str) -> Any:
    """The value under a dotted key; a marker that equals nothing where the recipe has no such key."""
    value: Any = settings
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _ABSENT
        value = value[part]
    return value


def written(value: Any) -> str:
    """A value as YAML on one line: `0.1`, `null`, `{start: 0.25, final: 0.25}`."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {written(item)}" for name, item in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(written(item) for item in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _needed(now: Any, remedy: Remedy) -> bool:
    if remedy.move == "scale":
        return isinstance(now, int | float) and not isinstance(now, bool) and now != 0
    if isinstance(remedy.to, Mapping) and isinstance(now, Mapping):
        return any(_moves(now.get(name), remedy.move, to) for name, to in remedy.to.items())
    return _moves(now, remedy.move, remedy.to)


def _moves(now: Any, move: str, to: Any) -> bool:
    if move == "set":
        return bool(now != to)
    if now is None:
        return move == "raise"
    return bool(now < to) if move == "raise" else bool(now > to)


STEADIER = (Remedy("non-finite values", "optim.lr.peak", "scale", 0.3, "smaller steps keep values in range"),)
"""What helps any method against values that are not finite."""

"""What to change first when a run collapses: declared by a method's page, chosen by what the recipe says now.

The page knows which keys help and how far to move them; a remedy that the recipe has taken already, or whose
key it does not have, is passed over for the next one.
"""

from __future__ import annotations

import math
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

Value = float | int | bool | str | None | tuple[float, ...] | Mapping[str, float | int | str]
_ABSENT = object()


@dataclass(frozen=True)
class Remedy:
    """One change of a recipe against one kind of collapse.

    key: dotted. `raise` and `lower` bring the value to `to` and are passed over where it is there or beyond;
    null can be raised and not lowered. `set` gives it `to`; `scale` multiplies it by `to` and applies to any
    number but 0. A mapping gives each of its keys its value and applies where one of them needs it; a pair is
    compared by its first part, then by its second.
    why: half a sentence, for a person. given: a key and the value that the recipe must have there, for what
    is right for one optimizer only. under: what a value that is raised must be below, so that a smaller step
    that was advised is not taken back.
    """

    kind: Kind
    key: str
    move: Literal["raise", "lower", "set", "scale"]
    to: Value
    why: str
    given: tuple[str, Value] | None = None
    under: float = math.inf


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
        if remedy.kind == kind and now is not _ABSENT and _applies(remedy, settings) and _needed(now, remedy):
            to = _scaled(now, remedy.to) if remedy.move == "scale" else remedy.to
            override, was = _with_its_neighbours(settings, remedy.key, to)
            return Change(override, was, remedy.why)
    return None


def _with_its_neighbours(settings: Mapping[str, Any], key: str, to: Any) -> tuple[str, str]:
    """The override that gives `key` its value, and what it replaces.

    A recipe refuses a learning rate that starts or ends above its peak, and one without a warm-up that starts
    elsewhere: such a peak takes the schedule with it.
    """
    if key == "optim.lr.peak":
        lr = value_at(settings, "optim.lr")
        start = min(lr["start"], to) if lr["warmup_epochs"] else to
        if start != lr["start"] or lr["final"] > to:
            moved = {**lr, "start": start, "peak": to, "final": min(lr["final"], to)}
            return f"optim.lr={written(moved)}", written(lr)
    return f"{key}={written(to)}", written(value_at(settings, key))


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


def _applies(remedy: Remedy, settings: Mapping[str, Any]) -> bool:
    return remedy.given is None or value_at(settings, remedy.given[0]) == remedy.given[1]


def _needed(now: Any, remedy: Remedy) -> bool:
    if remedy.move == "scale":
        is_number = isinstance(now, int | float) and not isinstance(now, bool) and now != 0
        return is_number and _scaled(now, remedy.to) != now
    if isinstance(remedy.to, Mapping) and isinstance(now, Mapping):
        return any(_moves(now.get(name), remedy.move, to) for name, to in remedy.to.items())
    if isinstance(now, int | float) and now >= remedy.under:
        return False
    return _moves(now, remedy.move, remedy.to)


def _scaled(now: Any, by: Any) -> Any:
    """A count stays a whole number of at least 2."""
    return max(2, int(now * by)) if isinstance(now, int) else now * by


def _moves(now: Any, move: str, to: Any) -> bool:
    if move == "set":
        return bool(now != to)
    if now is None:
        return move == "raise"
    return bool(now < to) if move == "raise" else bool(now > to)


_LARC, _ADAMW = ("optim.name", "larc"), ("optim.name", "adamw")


def smaller_steps(kind: Kind, why: str) -> tuple[Remedy, ...]:
    """Down to the largest peak that a published run has with its optimizer, in short runs of AdamW ten times
    that; below it applies nothing."""
    return (
        Remedy(kind, "optim.lr.peak", "lower", 4.8, why, given=_LARC),
        Remedy(kind, "optim.lr.peak", "lower", 0.01, why, given=_ADAMW),
    )


def larger_steps(kind: Kind, why: str, *, total_steps: int) -> tuple[Remedy, ...]:
    """From less than a twentieth of the peak that published runs have with their optimizer, up to it; more
    where there are few steps."""
    short = total_steps < 10_000
    larc, adamw = (3.0, 5e-3) if short else (0.6, 1e-3)
    return (
        Remedy(kind, "optim.lr.peak", "raise", larc, why, given=_LARC, under=larc / 20),
        Remedy(kind, "optim.lr.peak", "raise", adamw, why, given=_ADAMW, under=adamw / 20),
    )


def weaker_decay(kind: Kind, why: str) -> tuple[Remedy, ...]:
    """Down to what published runs have, or begin with, with their optimizer."""
    return (
        Remedy(kind, "optim.weight_decay", "lower", {"start": 1e-6, "final": 1e-6}, why, given=_LARC),
        Remedy(kind, "optim.weight_decay", "lower", {"start": 0.04, "final": 0.04}, why, given=_ADAMW),
    )


def softer_crops(kind: Kind) -> tuple[Remedy, ...]:
    """Where views are `global` and `local` ones: larger, fewer, larger."""
    small = "views this small may have nothing in common"
    return (
        Remedy(kind, "views.global.scale", "raise", (0.4, 1.0), small),
        Remedy(kind, "views.local.count", "lower", 2, "small views are the hardest to predict from"),
        Remedy(kind, "views.local.scale", "raise", (0.2, 0.6), "views of one image are then more alike"),
    )


STEADIER = (
    *smaller_steps("non-finite values", "steps of this size overflow"),
    Remedy("non-finite values", "optim.lr.peak", "scale", 0.3, "smaller steps keep values in range"),
)
"""What helps any method against values that are not finite."""

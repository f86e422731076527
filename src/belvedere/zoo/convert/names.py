"""A tensor's name in a published file and in the method's state: one table for each system, read both ways.

A table holds pairs of beginnings, published and ours; the first that fits counts. It is of the names within
one network, without what wraps them (`module.`). Ours are `backbone.<name>` and `<head>.<name>`, as they
stand in the state of a student or teacher.
"""

from __future__ import annotations

from belvedere.core.errors import WeightsError

BACKBONE = "backbone."
Parts = tuple[tuple[str, str], ...]


def unchanged(*beginnings: str) -> Parts:
    """Pairs for parts that have the same name on both sides."""
    return tuple((name, name) for name in beginnings)


def to_ours(name: str, parts: Parts) -> str:
    """What we call a tensor of this published name."""
    return _replaced(name, parts)


def to_published(name: str, parts: Parts) -> str:
    """What published files call a tensor that has this name here."""
    return _replaced(name, tuple((ours, published) for published, ours in parts))


def _replaced(name: str, pairs: Parts) -> str:
    for before, after in pairs:
        if name.startswith(before):
            return after + name.removeprefix(before)
    raise WeightsError(f"{name} has no place in this layout, which has {', '.join(one for one, _ in pairs)}")

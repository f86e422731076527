"""Do the tensors of a file fit the tensors that are expected, name by name and shape by shape?"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

Shape = tuple[int, ...]
_LISTED = 12


def mismatches(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> list[str]:
    """One line for each kind of difference: missing, unexpected and mis-shaped names; empty if all fit.

    A missing or unexpected name comes with the nearest one on the other side. Long lists are cut, with the
    number of names left out.
    """
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    misshaped = [
        f"{name} is {list(found[name])}, must be {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    lines = [
        _line("missing", (with_nearest(name, unexpected) for name in missing), len(missing)),
        _line("unexpected", (with_nearest(name, missing) for name in unexpected), len(unexpected)),
        _line("mis-shaped", iter(misshaped), len(misshaped)),
    ]
    return [line for line in lines if line]


def with_nearest(name: str, others: Iterable[str]) -> str:
    """`name`, and the nearest of the other names if there is one."""
    near = difflib.get_close_matches(name, list(others), n=1)
    return f"{name} (nearest: {near[0]})" if near else name


def _line(kind: str, entries: Iterable[str], count: int) -> str:
    if not count:
        return ""
    listed = [entry for entry, _ in zip(entries, range(_LISTED), strict=False)]
    more = f", and {count - len(listed)} more" if count > len(listed) else ""
    return f"{kind} ({count}): {', '.join(listed)}{more}"

"""What a source leaves out, counted and with the first names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

_NAMED = 3


class Left:
    """Counts what was left out, by kind, and keeps the first names of each."""

    def __init__(self) -> None:
        self.num: Counter[str] = Counter()
        self.first: dict[str, list[str]] = {}

    def add(self, what: str, name: str) -> None:
        self.num[what] += 1
        names = self.first.setdefault(what, [])
        if len(names) < _NAMED:
            names.append(name)

    def told(self) -> Iterator[str]:
        """One line for each kind of what was left out."""
        for what, count in self.num.items():
            more = ", ..." if count > len(self.first[what]) else ""
            yield f"{count} {what}: {', '.join(self.first[what])}{more}"

"""What a source leaves out, counted and with the first names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

_NAMED = 3
_MOST_KINDS = 12
_MORE = "files of yet other kinds were left out"


class Left:
    """Counts what was left out, by kind, and keeps the first names of each.

    prefix: stands before the names that are added next.
    """

    def __init__(self) -> None:
        self.prefix = ""
        self.num: Counter[str] = Counter()
        self.first: dict[str, list[str]] = {}

    def add(self, what: str, name: str) -> None:
        if what not in self.num and len(self.num) >= _MOST_KINDS:
            what = _MORE
        self.num[what] += 1
        names = self.first.setdefault(what, [])
        if len(names) < _NAMED:
            names.append(self.prefix + name)

    def told(self) -> Iterator[str]:
        """One line for each kind of what was left out."""
        for what, count in self.num.items():
            more = ", ..." if count > len(self.first[what]) else ""
            yield f"{count} {what}: {', '.join(self.first[what])}{more}"

"""What was found in the data: how images had to be converted, and which could not be read."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from belvedere.data.decode import PLAIN
from belvedere.data.sources.source import Source

_UNTRIED, _UNREADABLE = 0, 1
_EXAMPLES = 20
_USUAL = (PLAIN, "gray")  # nothing is lost in reading them


class DataReport:
    """One byte per image, so that an image seen a hundred times counts once and reports can be merged."""

    def __init__(self, num_images: int) -> None:
        self._codes: NDArray[np.uint8] = np.zeros(num_images, dtype=np.uint8)
        self._kinds: list[str] = []  # code - 2
        self._reasons: dict[int, str] = {}

    def record(self, index: int, kind: str = PLAIN) -> None:
        """Image `index` was read, and was of this kind."""
        if kind not in self._kinds:
            self._kinds.append(kind)
        self._codes[index] = self._kinds.index(kind) + 2

    def fail(self, index: int, reason: str) -> None:
        """Image `index` could not be read."""
        self._codes[index] = _UNREADABLE
        self._reasons[index] = reason

    def merge(self, other: DataReport) -> None:
        """Add what another report of the same source knows."""
        for code, kind in enumerate(other._kinds, start=2):
            for index in np.flatnonzero(other._codes == code):
                self.record(int(index), kind)
        for failed, reason in other._reasons.items():
            self.fail(failed, reason)

    @property
    def num_tried(self) -> int:
        return int((self._codes != _UNTRIED).sum())

    @property
    def num_unreadable(self) -> int:
        return len(self._reasons)

    @property
    def kinds(self) -> dict[str, int]:
        """How many distinct images of each kind were read."""
        counts = np.bincount(self._codes, minlength=len(self._kinds) + 2)[2:]
        return {kind: int(count) for kind, count in zip(self._kinds, counts, strict=True) if count}

    def first_failures(self, count: int) -> list[tuple[int, str]]:
        """The unreadable images of lowest index, with reasons."""
        return sorted(self._reasons.items())[:count]

    def to_json(self, source: Source) -> dict[str, Any]:
        """Counts by kind, the first files of each kind that was converted, and every unreadable file."""
        examples = {
            kind: [source.key(int(i)) for i in np.flatnonzero(self._codes == code)[:_EXAMPLES]]
            for code, kind in enumerate(self._kinds, start=2)
            if kind not in _USUAL
        }
        return {
            "source": source.name,
            "images": len(self._codes),
            "tried": self.num_tried,
            "read": dict(sorted(self.kinds.items())),
            "converted": {kind: names for kind, names in sorted(examples.items()) if names},
            "unreadable": {source.key(index): reason for index, reason in sorted(self._reasons.items())},
            "skipped_folders": list(getattr(source, "skipped", ())),
        }

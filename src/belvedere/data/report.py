"""What was found in the data: how images had to be converted, and which could not be read."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from belvedere.data.decode import PLAIN
from belvedere.data.sources.remarks import remarks
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
        """Image `index` was read, and was of this kind. One that could not be read once stays so."""
        if index not in self._reasons:
            self._codes[index] = self._code(kind)

    def _code(self, kind: str) -> int:
        if kind not in self._kinds:
            self._kinds.append(kind)
        return self._kinds.index(kind) + 2

    def fail(self, index: int, reason: str) -> None:
        """Image `index` could not be read."""
        self._codes[index] = _UNREADABLE
        self._reasons[index] = reason

    def merge(self, other: DataReport) -> None:
        """Add what another report of the same source knows."""
        for code, kind in enumerate(other._kinds, start=2):
            self._codes[other._codes == code] = self._code(kind)
        for failed, reason in (self._reasons | other._reasons).items():
            self.fail(failed, reason)

    def state(self) -> dict[str, Any]:
        """All it knows, as JSON can hold it: what a checkpoint keeps."""
        return {
            "codes": base64.b85encode(zlib.compress(self._codes.tobytes(), 1)).decode("ascii"),
            "kinds": list(self._kinds),
            "reasons": {str(index): reason for index, reason in sorted(self._reasons.items())},
        }

    @classmethod
    def from_state(cls, state: Any, num_images: int) -> DataReport:
        """The report of so many images that `state` was taken of. Raises ValueError for what is none."""
        report = cls(num_images)
        try:
            packed = base64.b85decode(state["codes"])
            codes = zlib.decompressobj().decompress(packed, num_images + 1)  # no more, whatever it claims
            report._codes[:] = np.frombuffer(codes, dtype=np.uint8)
            report._kinds = [str(kind) for kind in state["kinds"]]
            report._reasons = {int(index): str(reason) for index, reason in state["reasons"].items()}
        except (zlib.error, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"no report of images: {error!r}") from error
        known = report._codes.max(initial=0) < len(report._kinds) + 2
        if not known or not all(0 <= index < num_images for index in report._reasons):
            raise ValueError("a report of other images")
        return report

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
        """Counts by kind, the first files of each kind that was converted, and every unreadable file.

        An image counts once, however often it was tried.
        """
        examples = {
            kind: [source.key(int(i)) for i in np.flatnonzero(self._codes == code)[:_EXAMPLES]]
            for code, kind in enumerate(self._kinds, start=2)
            if kind not in _USUAL
        }
        return {
            "source": source.name,
            "images": len(self._codes),
            "tried": self.num_tried,
            "not_read": self.num_unreadable,
            "read": dict(sorted(self.kinds.items())),
            "converted": {kind: names for kind, names in sorted(examples.items()) if names},
            "unreadable": {source.key(index): reason for index, reason in sorted(self._reasons.items())},
            "skipped_folders": list(getattr(source, "skipped", ())),
            "remarks": remarks(source),
        }

"""`metrics.jsonl`: the record of a run, one line of JSON per logged step."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from belvedere.core import log
from belvedere.core.files import encode_text, replacing, require_regular, write_errors
from belvedere.train.sinks import Sink

METRICS_NAME = "metrics.jsonl"


class Metrics:
    """Appends to the record of a run and passes every line on to the sinks.

    A line is `{"step": 120, "epoch": 1.5, "loss": ...}`: the step's number counted from 0, then the numbers
    in the order given. Each line is flushed when it is written; a kill can cut off the last one only, and the
    next start removes what it left.
    """

    def __init__(self, path: Path, *, sinks: Sequence[Sink] = ()) -> None:
        self.path = path
        self._sinks = tuple(sinks)
        self._file: BinaryIO | None = None

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Append the numbers of one step. JSON has no NaN or infinity: both are written as null."""
        if self._file is None:
            with write_errors(self.path):
                self._file = _open_to_append(self.path)
        record: dict[str, Any] = {"step": step}
        record |= {name: _json_number(value) for name, value in numbers.items()}
        with write_errors(self.path):
            self._file.write(encode_text(json.dumps(record, allow_nan=False, ensure_ascii=False)) + b"\n")
            self._file.flush()
        for sink in self._sinks:
            sink.write(step, numbers)

    def cut_back(self, step: int) -> None:
        """Remove the lines of `step` and later: a run that continues from there writes them again.

        The file is replaced as a whole or not at all. A last line cut off by a kill is removed; any other
        line that cannot be read is removed too, and said.
        """
        self._close_file()
        if not self.path.exists():
            return
        unreadable = []
        with write_errors(self.path):
            require_regular(self.path)
        with replacing(self.path) as temporary, self.path.open("rb") as old, temporary.open("wb") as new:
            for number, line in enumerate(old, start=1):
                if not line.endswith(b"\n"):
                    break
                found = _record(line)
                if found is None:
                    unreadable.append(number)
                elif found["step"] < step:
                    new.write(line)
        if unreadable:
            some = ", ".join(str(number) for number in unreadable[:5])
            log.warn(f"{self.path}: {len(unreadable)} lines are no records and were removed (lines {some})")

    def close(self) -> None:
        """Close the file and the sinks; the sinks also if closing another one fails."""
        self._close_file()
        sinks, self._sinks = self._sinks, ()
        _close_all(sinks)

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a `metrics.jsonl`, in the order of the file."""
    with path.open("rb") as file:
        found = [_record(line) for line in file if line.endswith(b"\n")]
    return [record for record in found if record is not None]


def _open_to_append(path: Path) -> BinaryIO:
    """The file, at the end of its last complete line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    require_regular(path)
    file = path.open("a+b")
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 4096)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    file.truncate(end)
    return file


def _record(line: bytes) -> dict[str, Any] | None:
    """A line's step and numbers; None for a line that is no record."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    numbers = all(value is None or type(value) in (int, float) for value in record.values())
    return record if numbers else None


def _json_number(value: float) -> float | int | None:
    if isinstance(value, int):
        return value
    value = float(value)
    return value if math.isfinite(value) else None


def _close_all(sinks: Sequence[Sink]) -> None:
    if sinks:
        try:
            sinks[0].close()
        finally:
            _close_all(sinks[1:])

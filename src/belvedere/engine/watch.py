"""Watches a run for collapse: says once which kind it is, by what evidence, and what to change first.

It is fed the numbers of logged steps and keeps no state that a run's record could not give back: a run that
continues feeds it the record first (`replay`), and nothing is said twice. Only how often each prototype was
chosen is counted anew.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from belvedere.engine.diagnosis import Finding, Patience, Reading, diagnose, recovered
from belvedere.engine.health import NAMES, Measures
from belvedere.engine.remedy import Kind, Remedy, first_change

_IMAGES_PER_PROTOTYPE = 5
_MAX_READINGS = 20_000


class Watch:
    """One run's readings and what was said of them. remedies: of the method, most promising first; settings:
    the recipe as nested mappings."""

    def __init__(self, patience: Patience, remedies: Sequence[Remedy], settings: Mapping[str, Any]) -> None:
        self.patience, self.remedies, self.settings = patience, tuple(remedies), settings
        self.active: dict[Kind, Finding] = {}
        self._history: list[Reading] = []
        self._choices = Choices()

    @property
    def finding(self) -> Finding | None:
        """What is wrong now: the latest kind found that has not recovered."""
        return next(reversed(self.active.values()), None)

    def feed(self, step: int, measures: Measures, *, grad_norm: float) -> list[str]:
        """Take the numbers of a logged step; returns what there is to say, usually nothing."""
        numbers = {**measures.numbers, "grad_norm": grad_norm}
        share = self._choices.add(measures.first_choices, measures.images)
        if share is not None:
            numbers["share_in_use"] = share
        return self._look(Reading(step, numbers))

    def replay(self, lines: Iterable[Mapping[str, Any]], *, until: int) -> None:
        """Take the lines of the record before step `until`, saying nothing. null reads as not finite; a line
        without the watch's numbers is left out."""
        for line in lines:
            if "ln_k" in line and line["step"] < until:
                numbers = {
                    name: float("nan") if value is None else value
                    for name, value in line.items()
                    if name in NAMES or name == "grad_norm"
                }
                self._look(Reading(line["step"], numbers))

    def not_finite(self, step: int) -> str:
        """What to say of a step that ended the run, whose numbers were never logged."""
        nothing = Reading(step, {"loss or gradient": float("nan")})
        found = diagnose([*self._history, nothing], self.patience)
        assert found is not None
        return self.words(found)

    def words(self, finding: Finding) -> str:
        """A finding with its evidence and the one change to try first."""
        lasted = finding.step - finding.since
        when = f"since step {finding.since}" + (f", for {lasted} steps" if lasted else "")
        change = first_change(self.remedies, finding.kind, self.settings)
        if change is None:
            first = "every change that its page knows is taken already; try other views or more images"
        else:
            first = f"try first: {shlex.quote(change.override)} (now {change.was}): {change.why}"
        return f"collapse: {finding.kind} {when}: {finding.evidence}\n  {first}"

    def _look(self, reading: Reading) -> list[str]:
        self._history.append(reading)
        del self._history[:-_MAX_READINGS]
        said = []
        for kind, earlier in list(self.active.items()):
            if recovered(self._history, earlier, self.patience):
                del self.active[kind]
                said.append(f"recovered at step {reading.step}: {kind}, which began at step {earlier.since}")
        found = diagnose(self._history, self.patience)
        if found is not None and found.kind not in self.active:
            self.active[found.kind] = found
            said.append(self.words(found))
        return said


class Choices:
    """Which prototypes were any row's first choice of late: a batch is too small to tell where K is large.

    Counts in two stretches, each of at least five images per prototype (of an equally used prototype, e ** -5
    would go unseen): the last full one and the one under way.
    """

    def __init__(self) -> None:
        self._before: Tensor | None = None
        self._now: Tensor | None = None
        self._images = 0

    def add(self, first_choices: Tensor, images: int) -> float | None:
        """Take one step's shares [K]; returns the share of prototypes in use, None until it can be told."""
        chosen = first_choices > 0
        self._now = chosen if self._now is None else self._now | chosen
        self._images += images
        seen = self._now if self._before is None else self._now | self._before
        full = self._images >= _IMAGES_PER_PROTOTYPE * len(chosen)
        known = full or self._before is not None
        if full:
            self._before, self._now, self._images = self._now, torch.zeros_like(chosen), 0
        return float(seen.float().mean()) if known else None

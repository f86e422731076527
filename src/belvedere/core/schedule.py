"""Every schedule, as a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class WarmupCosine:
    """Linear from `start` to `peak` over `warmup_steps`, then half a cosine to `final` at `total_steps`.

    `first` is what step 0 counts as: 1 where a paper's code advances its schedule before the update.
    `peak_twice`: the last warm-up step has `peak` already, and the first of the cosine again (SwAV).
    Past `total_steps` the cosine turns back, as it does in the authors' code; the value never passes `final`.
    """

    start: float
    peak: float
    final: float
    warmup_steps: int
    total_steps: int
    first: int = 0
    peak_twice: bool = False

    def __call__(self, step: int) -> float:
        s = step + self.first
        if s < self.warmup_steps:
            rise = max(1, self.warmup_steps - 1) if self.peak_twice else self.warmup_steps
            return self.start + s / rise * (self.peak - self.start)
        progress = (s - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        value = self.final + (self.peak - self.final) * 0.5 * (1 + math.cos(math.pi * progress))
        return max(self.final, value) if self.final <= self.peak else min(self.final, value)


@dataclass(frozen=True)
class Linear:
    """From `start`, by equal parts, to `final` at `total_steps` (which need not be whole)."""

    start: float
    final: float
    total_steps: float

    def __call__(self, step: int) -> float:
        return self.start + step * ((self.final - self.start) / self.total_steps)

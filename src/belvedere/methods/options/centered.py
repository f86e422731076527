"""What recipes say alike of the methods whose targets are centered."""

from __future__ import annotations

from belvedere.core.settings import Settings
from belvedere.methods.method import Extent
from belvedere.methods.options.ranges import Epochs, Positive


class TeacherTemperature(Settings):
    """Of the targets: from `start` to `final` over the first `warmup_epochs`, by equal steps an epoch."""

    start: Positive
    """Temperature of the targets in the first epoch."""
    final: Positive
    """Temperature after the warm-up."""
    warmup_epochs: Epochs
    """How many epochs the change takes, by equal steps an epoch."""

    def __call__(self, epoch: int) -> float:
        risen = self.start + epoch * (self.final - self.start) / max(1, self.warmup_epochs - 1)
        return risen if epoch < self.warmup_epochs else self.final

    def misfits(self, extent: Extent, *, at: str) -> list[tuple[str, str]]:
        """The warm-up ends within the run. at: the section that this stands in."""
        if self.warmup_epochs <= extent.epochs:
            return []
        words = (
            f"{self.warmup_epochs} is longer than the run, train.epochs {extent.epochs}; give at most that"
        )
        return [(f"{at}.teacher_temperature.warmup_epochs", words)]

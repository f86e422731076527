"""What one step sees."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Batch:
    """The rows of this process in one global batch.

    views {role: [V, B, 3, H, W]}, view-major as in the papers' code; index [B] (of the image in the data set)
    and label [B] (-1 = none), int64; rows: positions of these rows in the global batch, which key their
    randomness; flags: what a method needs to know of a batch; draws: what a method draws for the whole batch
    (MSN's patch order), so that recorded numbers can be handed in.
    """

    views: dict[str, Tensor]
    index: Tensor
    label: Tensor
    rows: range
    flags: dict[str, Tensor] = field(default_factory=dict)
    draws: dict[str, Tensor] = field(default_factory=dict)

    def part(self, start: int, stop: int) -> Batch:
        """Rows start..stop of this batch, as a micro-batch; `draws` belong to the whole batch and stay."""
        return Batch(
            views={role: view[:, start:stop] for role, view in self.views.items()},
            index=self.index[start:stop],
            label=self.label[start:stop],
            rows=self.rows[start:stop],
            flags={name: flag[start:stop] for name, flag in self.flags.items()},
            draws=self.draws,
        )

"""What one step sees."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Batch:
    """The rows of this process in one global batch.

    views {role: [V, B, 3, H, W]}, view-major as in the papers' code; index [B] (of the image in the data set)
    and label [B] (-1 = none), int64; rows: positions of these rows in the global batch, which key their
    randomness; flags [B, ...]: what a method needs to know of a batch (`weak`, bool [B], where views may be
    strong: whether an image's views with the images' coin are weak); draws: what a method draws for the whole
    batch (MSN's patch order), so that recorded numbers can be handed in.
    """

    views: dict[str, Tensor]
    index: Tensor
    label: Tensor
    rows: range
    flags: dict[str, Tensor] = field(default_factory=dict)
    draws: dict[str, Tensor] = field(default_factory=dict)

    def runs(self, roles: Iterable[str]) -> list[Tensor]:
        """The views of these roles in order, consecutive ones of one size together: [V, B, 3, H, W] each."""
        runs: list[list[Tensor]] = []
        for role in roles:
            view = self.views.get(role)
            if view is None:
                continue
            if runs and runs[-1][0].shape[-1] == view.shape[-1]:
                runs[-1].append(view)
            else:
                runs.append([view])
        return [run[0] if len(run) == 1 else torch.cat(run) for run in runs]

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

"""Projection heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from belvedere.nn.spec import HeadSpec


class ProjectionHead(nn.Module):
    """Three linear layers, the first two followed by BatchNorm (optional) and GELU: [R, width] -> [R, out].

    MSN, appendix: `fc1, bn1, fc2, bn2, fc3`, all with bias.
    """

    def __init__(self, width: int, spec: HeadSpec) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, spec.hidden)
        self.fc2 = nn.Linear(spec.hidden, spec.hidden)
        self.fc3 = nn.Linear(spec.hidden, spec.out)
        if spec.batch_norm:
            self.bn1: nn.Module = nn.BatchNorm1d(spec.hidden)
            self.bn2: nn.Module = nn.BatchNorm1d(spec.hidden)
        self.batch_norm = spec.batch_norm

    def initialize_(self, generator: torch.Generator) -> None:
        """Linear layers N(0, 0.02) without bias; BatchNorm keeps its ones and zeros."""
        for layer in (self.fc1, self.fc2, self.fc3):
            nn.init.trunc_normal_(layer.weight, std=0.02, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, h: Tensor) -> Tensor:
        x = self.fc1(h)
        x = F.gelu(self.bn1(x) if self.batch_norm else x)
        x = self.fc2(x)
        x = F.gelu(self.bn2(x) if self.batch_norm else x)
        out: Tensor = self.fc3(x)
        return out

"""The linear layer of the backbones: torch's, by the faster kernel."""

from __future__ import annotations

from torch import Tensor, nn

from belvedere.ops.linear import linear


class Linear(nn.Linear):
    """Tokens [B, ..., I] -> [B, ..., O]."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

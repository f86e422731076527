"""SwAV's, DeepCluster-v2's and SeLa-v2's files, without what wraps them."""

from __future__ import annotations

import torch
from published_files import drawn, prefixed, small_resnet
from torch import Tensor

from belvedere.nn.heads import PrototypeHeads, mlp_head
from belvedere.nn.spec import MLPHeadSpec, ResNetSpec

HEADS = {
    "usual": MLPHeadSpec(hidden=10, out=4, batch_norm=True),
    "w5": MLPHeadSpec(hidden=10, out=4, batch_norm=False),
    "linear": MLPHeadSpec(hidden=0, out=4, batch_norm=False),
}


def published(
    spec: ResNetSpec | None = None, *, head: str = "usual", counts: tuple[int, ...] | None = None
) -> dict[str, Tensor]:
    """A bare state dict, as the authors' network has it. counts: of several sets of prototypes."""
    spec = spec or small_resnet()
    width = spec.channels(3)
    state = drawn(spec) | prefixed(drawn(mlp_head(width, HEADS[head])), "projection_head.")
    several = prefixed(drawn(PrototypeHeads(4, counts or ())), "prototypes.")
    return state | (several or {"prototypes.weight": torch.randn(6, 4)})

"""MSN's files, as its code saves them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from belvedere.nn.heads import ProjectionHead
from belvedere.nn.spec import HeadSpec, ViTSpec
from belvedere.nn.vit import ViT


def published(
    spec: ViTSpec, *, prefix: str = "module.", batch_norm: bool = True, head: bool = True
) -> dict[str, Any]:
    network = ViT(spec)
    network.initialize_(torch.Generator().manual_seed(1))
    state = {prefix + name: tensor for name, tensor in network.state_dict().items()}
    if head:
        projection = ProjectionHead(spec.width, HeadSpec(hidden=10, out=4, batch_norm=batch_norm))
        state |= {f"{prefix}fc.{name}": tensor for name, tensor in projection.state_dict().items()}
    return {
        "encoder": {name: tensor + 1 for name, tensor in state.items()},
        "target_encoder": state,
        "prototypes": torch.randn(6, 4),
        "opt": {"param_groups": [{"lr": np.float64(0.1)}]},
        "epoch": 800,
        "loss": np.float32(2.5),
        "batch_size": 64,
        "world_size": 16,
        "lr": np.float64(0.001),
        "temperature": 0.1,
    }

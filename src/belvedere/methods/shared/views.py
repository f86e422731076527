"""From views to features, and from features to what a head makes of them.

Legend: B images of this process, V views, D columns of a feature, O of what a head makes of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from belvedere.data.batch import Batch
from belvedere.methods.method import Encoded


def encode_views(network: nn.Module, batch: Batch, roles: Iterable[str]) -> Encoded:
    """Features of all views [V, B, ...], by name and number of the run: one pass per run of equal sizes, each
    with its own BatchNorm statistics. network: its backbone gives features by name, or one."""
    encoded: Encoded = {}
    for number, views in enumerate(batch.runs(roles)):  # [V, B, 3, H, W]
        given = network(views.flatten(0, 1), part="backbone")
        features = given if isinstance(given, Mapping) else {"pooled": given}
        encoded |= {f"{name}_{number}": h.unflatten(0, views.shape[:2]) for name, h in features.items()}
    return encoded


def runs_of(encoded: Encoded, name: str) -> list[Tensor]:
    """One feature of each run of views [V, B, ...]."""
    return [h for key, h in encoded.items() if key.startswith(f"{name}_")]


def all_views(encoded: Encoded, name: str = "pooled") -> Tensor:
    """One feature of all views [V, B, D]."""
    return torch.cat(runs_of(encoded, name))


def through_head(network: nn.Module, part: str, h: Tensor) -> Tensor:
    """What a head makes of features h [V, B, D]: [V, B, O]. It sees all views at once, in one BatchNorm."""
    z: Tensor = network(h.flatten(0, 1), part=part)
    return torch.unflatten(z, 0, h.shape[:2])


def through_last_layer(network: nn.Module, part: str, h: Tensor) -> tuple[Tensor, Tensor]:
    """What a head's last layer reads of features h [V, B, D]: [V, B, O]; and that layer's matrix [K, O]."""
    z, weight = network(h.flatten(0, 1), part=part)
    return z.unflatten(0, h.shape[:2]), weight

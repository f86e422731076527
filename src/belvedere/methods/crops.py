"""What the methods of several crops and one network share: views to features, features to the sphere.

Legend: B images of this process, V views, D columns of an embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from belvedere.data.batch import Batch
from belvedere.engine.precision import at_least_float32
from belvedere.methods.method import Encoded

ROLES = ("global", "local")
"""Their views, numbered in this order."""


def encode_views(student: nn.Module, batch: Batch) -> Encoded:
    """Backbone features [V, B, width] of all views: one pass per run of equal sizes, each with its own
    BatchNorm statistics."""
    encoded: Encoded = {}
    for number, views in enumerate(batch.runs(ROLES)):  # [V, B, 3, H, W]
        h = student(views.flatten(0, 1), part="backbone")
        encoded[f"views_{number}"] = h.unflatten(0, views.shape[:2])
    return encoded


def embeddings(student: nn.Module, encoded: Encoded) -> Tensor:
    """Unit embeddings [V, B, D] in at least float32: the head sees all views at once, in one BatchNorm."""
    h = torch.cat(list(encoded.values()))  # [V, B, width]
    z = unit(student(h.flatten(0, 1), part="head"))  # [V * B, D]
    return torch.unflatten(z, 0, h.shape[:2])


def unit(z: Tensor) -> Tensor:
    """Rows [R, D] of length 1, in at least float32."""
    return F.normalize(at_least_float32(z), dim=1, eps=1e-12)

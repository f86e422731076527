"""What the methods of several crops and one network share: SwAV's student, and embeddings on the sphere.

Legend: B images of this process, V views, D columns of an embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from belvedere.core import rng
from belvedere.engine.precision import at_least_float32
from belvedere.methods.method import Encoded, Kept
from belvedere.methods.shared.views import all_views
from belvedere.nn.build import Backbone
from belvedere.nn.heads import Projector, initialize_linears_
from belvedere.nn.spec import MLPHeadSpec

ROLES = ("global", "local")
"""Their views, numbered in this order."""


def projector(backbone: Backbone, head: MLPHeadSpec, *, seed: int) -> Projector:
    """The student: a backbone and a projection head, each drawn from its own stream."""
    student = Projector(backbone, backbone.width, head)
    backbone.initialize_(rng.torch_generator(seed, "backbone"))
    initialize_linears_(student.projection_head, rng.torch_generator(seed, "head"))
    return student


def embeddings(student: nn.Module, encoded: Encoded) -> Tensor:
    """Unit embeddings [V, B, D] in at least float32: the head sees all views at once, in one BatchNorm."""
    h = all_views(encoded)  # [V, B, width]
    z = unit(student(h.flatten(0, 1), part="head"))  # [V * B, D]
    return torch.unflatten(z, 0, h.shape[:2])


def unit(z: Tensor) -> Tensor:
    """Rows [R, D] of length 1, in at least float32."""
    return F.normalize(at_least_float32(z), dim=1, eps=1e-12)


@torch.no_grad()
def onto_sphere_(prototypes: nn.Module) -> None:
    """Give every prototype length 1 again."""
    for weight in prototypes.parameters():
        weight.copy_(unit(weight))


def kept(student: Projector, prototypes: nn.Module) -> Kept:
    """What outlives training."""
    heads = {"projection_head": student.projection_head, "prototypes": prototypes}
    return Kept(student.backbone, heads)

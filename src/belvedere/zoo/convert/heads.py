"""The shapes of published heads: what a head has whose sizes are those of a file's.

Sizes that are missing in a file are taken as the least there may be, so that a comparison then finds them
missing by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from belvedere.core.match import Shape
from belvedere.nn.granular import ContrastiveHead
from belvedere.nn.heads import WeightNormHead
from belvedere.nn.spec import ContrastiveHeadSpec, WeightNormHeadSpec
from belvedere.zoo.convert.checkpoint import shapes_of, size

_LEAST_PROTOTYPES = 2


def weight_norm_shapes(shapes: Mapping[str, Shape], prefix: str, width: int) -> dict[str, Shape]:
    """Of DINO's head (`mlp.*`, `last_layer.*`) under `prefix`; {} if there is no entry of it."""
    if not any(name.startswith(prefix) for name in shapes):
        return {}
    matrices = matrices_of(shapes, f"{prefix}mlp.")
    spec = WeightNormHeadSpec(
        hidden=size(shapes, matrices[0]),
        bottleneck=size(shapes, matrices[-1]),
        out=max(_LEAST_PROTOTYPES, size(shapes, f"{prefix}last_layer.weight_v")),
        layers=len(matrices),
        batch_norm=_has_statistics(shapes, f"{prefix}mlp.") and len(matrices) > 1,
        norm_last_layer=False,
    )
    with torch.device("meta"):
        return shapes_of(WeightNormHead(width, spec).state_dict(), prefix)


def contrastive_shapes(shapes: Mapping[str, Shape], prefix: str, width: int) -> dict[str, Shape]:
    """Of Mugs' head (`projector.*`, of a student `predictor.*`) under `prefix`; {} if there is no entry."""
    if not any(name.startswith(prefix) for name in shapes):
        return {}
    matrices = matrices_of(shapes, f"{prefix}projector.")
    spec = ContrastiveHeadSpec(
        hidden=size(shapes, matrices[0]),
        out=size(shapes, matrices[-1]),
        layers=len(matrices),
        predictor=size(shapes, f"{prefix}predictor.0.weight"),
        batch_norm=_has_statistics(shapes, f"{prefix}projector.") and len(matrices) > 1,
        norm_before_predictor=True,
    )
    with torch.device("meta"):
        head = ContrastiveHead(width, spec)
    if not any(name.startswith(f"{prefix}predictor.") for name in shapes):
        head.predictor = None
    return shapes_of(head.state_dict(), prefix)


def matrices_of(shapes: Mapping[str, Shape], prefix: str) -> list[str]:
    """The names of the linear layers' weights in order; one that is not there if there are none."""
    found = [name for name in shapes if name.startswith(prefix) and name.endswith("weight")]
    matrices = [name for name in found if len(shapes[name]) == 2]
    return sorted(matrices, key=_number) or [f"{prefix}0.weight"]


def _number(name: str) -> int:
    found = re.search(r"\.(\d+)\.weight$", name)
    return int(found[1]) if found else -1


def _has_statistics(shapes: Mapping[str, Shape], prefix: str) -> bool:
    return any(name.startswith(prefix) and name.endswith("running_mean") for name in shapes)

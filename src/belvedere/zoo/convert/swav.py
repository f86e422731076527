"""SwAV's, DeepCluster-v2's and SeLa-v2's files (facebookresearch/swav): a ResNet, a head and prototypes.

Published files are bare state dicts; training saves one under `state_dict`, beside counts and the optimizer.
The widest network's head has no BatchNorm. A single set of prototypes is SwAV's; several (`prototypes0`, ...)
are DeepCluster-v2's or SeLa-v2's, which the file's name or `--as` tells apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from belvedere.core.errors import WeightsError
from belvedere.core.match import Shape
from belvedere.nn.heads import mlp_head
from belvedere.nn.spec import FeatureSpec, MLPHeadSpec, ResNetSpec
from belvedere.zoo.convert.checkpoint import (
    Asked,
    Checkpoint,
    Converted,
    named_tensors,
    names_of,
    plain_values,
    refuse_unknown,
    require_fit,
    shapes_of,
    size,
)
from belvedere.zoo.convert.described import described
from belvedere.zoo.convert.moments import moments_of, parameters_of
from belvedere.zoo.convert.names import BACKBONE, Parts, to_ours, unchanged
from belvedere.zoo.convert.networks import network_of

SYSTEMS = ("swav", "deepcluster", "sela")
FEATURES = FeatureSpec(
    source="pooled", blocks=1, norm="none", resize_px=256, crop_px=224, interpolation="bilinear"
)
DROPPED = {
    "epoch": "a count, kept in this card under data",
    "amp": "the state of apex's mixed precision, which belvedere does not use",
}

_HEAD, _PROTOTYPES = "projection_head.", "prototypes."
PARTS: Parts = (*unchanged(_HEAD, _PROTOTYPES), ("", BACKBONE))
FILES = {"swav": "swav", "deepclusterv2": "deepcluster", "selav2": "sela"}
"""How the names of published files begin, and the system each is of."""


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether this is a ResNet with SwAV's head or prototypes."""
    if not isinstance(checkpoint.content, Mapping):
        return False
    names = names_of(_stored(checkpoint.content))
    own = any(name.startswith((_HEAD, _PROTOTYPES)) for name in names)
    return own and any(name.startswith("layer1.0.conv1.") for name in names)


identifies = recognises


def convert(checkpoint: Checkpoint, asked: Asked) -> Converted:
    """Backbone, heads and card, and of a training file the optimizer's moments.

    Raises `WeightsError` listing every entry that is missing, unexpected or mis-shaped, or if names do not
    tell which of the three systems it is.
    """
    content, origin = checkpoint.content, checkpoint.origin
    wraps = _stored(content) is not content
    if wraps:
        known = {"state_dict", "optimizer", *DROPPED}
        refuse_unknown(content, known, what="SwAV's checkpoints", origin=origin)
    state = named_tensors(_stored(content), "state_dict", origin=origin)
    system = _system(set(state), asked, origin=origin)
    if system != "swav" and f"{_PROTOTYPES}weight" in state:
        state[f"{_PROTOTYPES}prototypes0.weight"] = state.pop(f"{_PROTOTYPES}weight")
    heads = {name: tensor for name, tensor in state.items() if name.startswith((_HEAD, _PROTOTYPES))}
    backbone = {name: tensor for name, tensor in state.items() if name not in heads}
    spec = network_of(backbone, asked, origin=origin)
    assert isinstance(spec, ResNetSpec)
    expected = _head_shapes(shapes_of(heads), spec.out_width, system)
    require_fit(expected, shapes_of(heads), "its heads", origin=origin)
    dropped = {key: reason for key, reason in DROPPED.items() if wraps and key in content}
    training: dict[str, Tensor] = {}
    if wraps and "optimizer" in content:
        parameters = parameters_of(state)
        training, reason = moments_of(content["optimizer"], [list(parameters)], parameters, _ours)
        dropped |= {"optimizer": reason} if reason else {}
    card = described(
        checkpoint,
        asked,
        system=system,
        backbone=spec,
        features=FEATURES,
        dropped=dropped,
        data=plain_values(content, DROPPED) if wraps else {},
    )
    return Converted(backbone, heads, card, training)


def _stored(content: Mapping[str, Any]) -> Mapping[str, Any]:
    wrapped = content.get("state_dict")
    return wrapped if isinstance(wrapped, Mapping) else content


def _system(names: set[str], asked: Asked, *, origin: str) -> str:
    """Which of the three a file is of: by what was asked for, its prototypes, or its name."""
    several = any(name.startswith(f"{_PROTOTYPES}prototypes") for name in names)
    if asked.system in SYSTEMS:
        if asked.system == "swav" and several:
            raise WeightsError(
                f"{origin} has several sets of prototypes, SwAV has one; it is of deepcluster or sela"
            )
        return asked.system
    for beginning, system in FILES.items():
        if origin.startswith(beginning):
            return system
    if several:
        raise WeightsError(
            f"{origin} has several sets of prototypes, as DeepCluster-v2 and SeLa-v2 have; say which it is "
            "with --as deepcluster or --as sela"
        )
    return "swav"


def _head_shapes(shapes: Mapping[str, Shape], width: int, system: str) -> dict[str, Shape]:
    """What heads of these sizes have; sizes that are missing are found missing later, by name."""
    expected: dict[str, Shape] = {}
    with torch.device("meta"):
        if any(name.startswith(_HEAD) for name in shapes):
            expected |= shapes_of(mlp_head(width, _head_spec(shapes)).state_dict(), _HEAD)
    out = expected[_last(expected)][0] if expected else 0
    count = len({name for name in shapes if name.startswith(_PROTOTYPES)})
    names = ["weight"] if system == "swav" else [f"prototypes{number}.weight" for number in range(count)]
    for name in (_PROTOTYPES + name for name in names if count):
        expected[name] = (size(shapes, name), out or size(shapes, name, -1))
    return expected


def _last(shapes: Mapping[str, Shape]) -> str:
    """The name of the head's last matrix."""
    numbers = [name for name in shapes if name.startswith(_HEAD) and len(shapes[name]) == 2]
    return max(numbers, default="")


def _head_spec(shapes: Mapping[str, Shape]) -> MLPHeadSpec:
    last = _last(shapes)
    if f"{_HEAD}weight" in shapes:
        return MLPHeadSpec(hidden=0, out=size(shapes, last), batch_norm=False)
    batch_norm = any(name.startswith(f"{_HEAD}1.") for name in shapes)
    return MLPHeadSpec(hidden=size(shapes, f"{_HEAD}0.weight"), out=size(shapes, last), batch_norm=batch_norm)


def _ours(name: str) -> str:
    """A published name in the method's state."""
    return name if name.startswith(_PROTOTYPES) else f"student.{to_ours(name, PARTS)}"

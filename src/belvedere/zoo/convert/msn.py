"""MSN's published checkpoints (facebookresearch/msn): a dictionary around two state dicts.

Evaluation reads `target_encoder`, so that is the backbone; its `fc.*` is the projection head. Names carry
`module.` where training used several processes. Every entry is used or dropped by a rule that stands here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from belvedere.core.errors import WeightsError
from belvedere.core.match import Shape
from belvedere.nn.heads import ProjectionHead
from belvedere.nn.spec import FeatureSpec, HeadSpec, ViTSpec
from belvedere.zoo.convert.checkpoint import (
    Asked,
    Checkpoint,
    Converted,
    checked,
    named_tensors,
    plain_values,
    refuse_unknown,
    require_fit,
    shape,
    shapes_of,
    size,
)
from belvedere.zoo.convert.described import described
from belvedere.zoo.convert.moments import moments_of, parameters_of
from belvedere.zoo.convert.names import BACKBONE, Parts, to_ours
from belvedere.zoo.convert.networks import backbone_shapes, spec_of

SYSTEMS = ("msn",)
FEATURES = FeatureSpec(
    source="cls", blocks=1, norm="none", resize_px=256, crop_px=224, interpolation="bilinear"
)
DROPPED = {
    "epoch": "a count, kept in this card under data",
    "loss": "a count, kept in this card under data",
    "batch_size": "a count, kept in this card under data",
    "world_size": "a count, kept in this card under data",
    "lr": "a setting, kept in this card under data",
    "temperature": "a setting, kept in this card under data",
}
"""Entries that are not tensors to continue with, and why each is not kept as one."""

ENTRIES = ("encoder", "target_encoder", "prototypes", "opt", *DROPPED)
"""What a whole file has."""

_HEAD = "fc."
PARTS: Parts = ((_HEAD, "head."), ("", BACKBONE))


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether this is what MSN's code saves."""
    content = checkpoint.content
    return isinstance(content, Mapping) and isinstance(content.get("target_encoder"), Mapping)


identifies = recognises


def convert(checkpoint: Checkpoint, asked: Asked) -> Converted:
    """Backbone, heads and card, and of a whole file the student and its moments.

    Raises `WeightsError` listing every entry that is missing, unexpected or mis-shaped.
    """
    content, origin = checkpoint.content, checkpoint.origin
    refuse_unknown(content, ENTRIES, what="MSN's checkpoints", origin=origin)
    state = named_tensors(content["target_encoder"], "target_encoder", origin=origin)
    spec = spec_of(shapes_of(state), asked, origin=origin)
    if not isinstance(spec, ViTSpec):
        raise WeightsError(f"{origin} is a {spec.name}; MSN's networks are ViTs")
    heads = {to_ours(name, PARTS): tensor for name, tensor in state.items() if name.startswith(_HEAD)}
    found, expected = shapes_of(state), backbone_shapes(spec) | _head_shapes(shapes_of(state), spec.width)
    if content.get("prototypes") is not None:
        heads["prototypes"] = checked(content["prototypes"], "prototypes", origin=origin)
        found["prototypes"] = tuple(heads["prototypes"].shape)
        count, columns = shape(found, "prototypes", 2, origin=origin)
        out = expected[f"{_HEAD}fc3.weight"][0] if f"{_HEAD}fc3.weight" in expected else columns
        expected["prototypes"] = (count, out)
    require_fit(expected, found, spec, origin=origin)
    training, dropped = _training(content, found, origin=origin)
    card = described(
        checkpoint,
        asked,
        system="msn",
        backbone=spec,
        features=FEATURES,
        dropped=dropped | {key: reason for key, reason in DROPPED.items() if key in content},
        data=plain_values(content, DROPPED),
    )
    backbone = {name: tensor for name, tensor in state.items() if not name.startswith(_HEAD)}
    return Converted(backbone, heads, card, training)


def _training(
    content: Mapping[str, Any], teacher: Mapping[str, Shape], *, origin: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The student and its moments under the method's names, and what is left out of them."""
    if content.get("encoder") is None:
        reason = "without the encoder it was of, it fits nothing"
        return {}, {"opt": reason} if "opt" in content else {}
    student = named_tensors(content["encoder"], "encoder", origin=origin)
    expected = {name: shape for name, shape in teacher.items() if name != "prototypes"}
    require_fit(expected, shapes_of(student), "the encoder, as the target encoder is", origin=origin)
    training = {_ours(name): tensor for name, tensor in student.items()}
    if "opt" not in content:
        return training, {}
    parameters = parameters_of(student)
    decayed = [n for n, p in parameters.items() if p.ndim != 1 and "bias" not in n and "bn" not in n]
    groups = [decayed, [name for name in parameters if name not in set(decayed)]]
    if content.get("prototypes") is not None:
        groups.append(["prototypes"])
        parameters["prototypes"] = content["prototypes"]
    moments, reason = moments_of(content["opt"], groups, parameters, _ours)
    return training | moments, {"opt": reason} if reason else {}


def _ours(name: str) -> str:
    """A name of the encoder in the method's state."""
    return name if name == "prototypes" else f"student.{to_ours(name, PARTS)}"


def _head_shapes(shapes: Mapping[str, Shape], width: int) -> dict[str, Shape]:
    """What a projection head of these sizes has; sizes that are missing are found missing later, by name."""
    if not any(name.startswith(_HEAD) for name in shapes):
        return {}
    spec = HeadSpec(
        hidden=size(shapes, f"{_HEAD}fc1.weight"),
        out=size(shapes, f"{_HEAD}fc3.weight"),
        batch_norm=any(name.startswith(f"{_HEAD}bn") for name in shapes),
    )
    with torch.device("meta"):
        return shapes_of(ProjectionHead(width, spec).state_dict(), _HEAD)

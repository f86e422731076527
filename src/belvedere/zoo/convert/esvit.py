"""EsViT's checkpoints (microsoft/esvit): student, teacher, centers and optimizer, or one of the two networks.

Names carry `module.` where a network was wrapped for several processes: the student's always, the teacher's
where it has BatchNorm. A torchvision network stands under `backbone.backbone.`, all others at the top, with
`head.*` and, of runs with the region task, `head_dense.*` beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from belvedere.core.errors import WeightsError
from belvedere.core.match import Shape
from belvedere.nn.spec import BackboneSpec, FeatureSpec
from belvedere.zoo.convert.checkpoint import (
    DROPPED,
    Asked,
    Checkpoint,
    Converted,
    checked,
    drop,
    named_tensors,
    names_of,
    plain_values,
    refuse_unknown,
    require_fit,
    shapes_of,
    state_dicts,
)
from belvedere.zoo.convert.described import described
from belvedere.zoo.convert.heads import weight_norm_shapes
from belvedere.zoo.convert.moments import moments_with_or_without_lengths, vectors_apart
from belvedere.zoo.convert.names import BACKBONE, Parts, to_ours, unchanged
from belvedere.zoo.convert.networks import network_of
from belvedere.zoo.convert.vil import without_shared

SYSTEMS = ("esvit",)
BUFFERS = {
    "relative_position_index": "follows from the window",
    "attn_mask": "follows from the size of the map",
}
"""Tables that networks of the authors' store and ours compute, by the last part of their names."""

ENTRIES = ("student", "teacher", "dino_loss", "optimizer", *DROPPED)
"""What a whole file has."""

WRAPPED = "backbone.backbone."
"""What stands before the names of a torchvision network."""

_HEADS = ("head.", "head_dense.")
PARTS: Parts = (*unchanged(*_HEADS), ("", BACKBONE))
_SIGNS = ("head.last_layer.", "head.mlp.")
_CENTERS = ("center", "center_grid")


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether there is a network with DINO's head beside it, at the top of its names."""
    content = checkpoint.content
    is_whole = isinstance(content, Mapping) and {"student", "dino_loss"} <= content.keys()
    return is_whole or any(_is_network(stored) for stored in state_dicts(content))


identifies = recognises


def convert(checkpoint: Checkpoint, asked: Asked) -> Converted:
    """The teacher's backbone and heads, centers and card, and of a whole file the student and its moments.

    Raises `WeightsError` listing every entry that is missing, unexpected or mis-shaped.
    """
    content, origin = checkpoint.content, checkpoint.origin
    is_whole = "teacher" in content or "student" in content
    if is_whole:
        refuse_unknown(content, ENTRIES, what="EsViT's checkpoints", origin=origin)
        if not isinstance(content.get("teacher"), Mapping):
            raise WeightsError(f"{origin} has no teacher, which is the network that EsViT is evaluated by")
    stored = content["teacher"] if is_whole else next(one for one in state_dicts(content) if _is_network(one))
    teacher, dropped = _network(stored, "teacher", origin=origin)
    spec = network_of(_backbone(teacher), asked, origin=origin)
    heads = {name: tensor for name, tensor in teacher.items() if name.startswith(_HEADS)}
    _check_heads(shapes_of(heads), spec, origin=origin)
    training: dict[str, Tensor] = {}
    if is_whole:
        heads |= _centers(content.get("dino_loss"), heads, origin=origin)
        dropped |= {key: reason for key, reason in DROPPED.items() if key in content}
        training, without = _training(content, shapes_of(teacher), origin=origin)
        dropped |= without
    card = described(
        checkpoint,
        asked,
        system="esvit",
        backbone=spec,
        features=_features(spec),
        dropped=dropped,
        data=plain_values(content, ("epoch",)) if is_whole else {},
    )
    if asked.system is None and not card.published and _could_be_dinos(spec, heads):
        told = (
            "DINO's files have these names too: esvit is assumed (--as esvit says so), and no licence claimed"
        )
        card = card.model_copy(update={"licence": None, "notes": {**card.notes, "system": told}})
    return Converted(_backbone(teacher), heads, card, training)


def _could_be_dinos(spec: BackboneSpec, heads: Mapping[str, Tensor]) -> bool:
    """Whether this is a network that DINO's code has, without the head for regions that it has not."""
    return spec.name in ("vit", "resnet") and not any(name.startswith("head_dense.") for name in heads)


def _is_network(stored: Mapping[str, Any]) -> bool:
    return any(name.startswith(_SIGNS) for name in names_of(stored))


def _network(
    stored: Mapping[str, Any], what: str, *, origin: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Student or teacher without prefixes and tables, and what was left out."""
    state = named_tensors(stored, what, origin=origin)
    state, tables = drop(state, BUFFERS)
    state, shared = without_shared(state, origin=origin)
    return {name.removeprefix(WRAPPED): tensor for name, tensor in state.items()}, tables | shared


def _backbone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith(_HEADS)}


def _check_heads(shapes: Mapping[str, Shape], spec: BackboneSpec, *, origin: str) -> None:
    width = spec.out_width
    expected = {
        name: shape for head in _HEADS for name, shape in weight_norm_shapes(shapes, head, width).items()
    }
    require_fit(expected, shapes, "its heads", origin=origin)


def _centers(stored: Any, heads: Mapping[str, Tensor], *, origin: str) -> dict[str, Tensor]:
    """The centers that the loss keeps, one row each; {} if the file has no loss."""
    if stored is None:
        return {}
    if not isinstance(stored, Mapping):
        raise WeightsError(f"{origin}: dino_loss is a {type(stored).__name__}, must be a state dict")
    refuse_unknown(stored, _CENTERS, what="EsViT's losses", origin=origin)
    found = {str(name): checked(value, str(name), origin=origin) for name, value in stored.items()}
    columns = {"center": "head.last_layer.weight_v", "center_grid": "head_dense.last_layer.weight_v"}
    expected = {name: (1, len(heads[head])) for name, head in columns.items() if head in heads}
    require_fit(expected, shapes_of(found), "the centers of its heads", origin=origin)
    return found


def _training(
    content: Mapping[str, Any], teacher: Mapping[str, Shape], *, origin: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The student and its moments under the method's names, and what is left out of them."""
    if content.get("student") is None:
        reason = "without the student it was of, it fits nothing"
        return {}, {"optimizer": reason} if "optimizer" in content else {}
    student, _ = _network(content["student"], "student", origin=origin)
    require_fit(teacher, shapes_of(student), "the student, as the teacher is", origin=origin)
    training = {_ours(name): tensor for name, tensor in student.items()}
    if "optimizer" not in content:
        return training, {}
    moments, reason = moments_with_or_without_lengths(content["optimizer"], vectors_apart, student, _ours)
    return training | moments, {"optimizer": reason} if reason else {}


def _ours(name: str) -> str:
    """A published name in the method's state."""
    return f"student.{to_ours(name, PARTS)}"


def _features(spec: BackboneSpec) -> FeatureSpec:
    """What EsViT's linear evaluation reads of each network; of a ResNet, which it cannot read, the output."""
    source, blocks, norm = {
        "vit": ("cls", 4, "all"),
        "vil": ("cls_or_mean", 4, "last_stage"),
        "resnet": ("pooled", 1, "none"),
    }.get(spec.name, ("mean", 4, "last_stage"))
    depth = spec.depth
    return FeatureSpec.model_validate(
        {
            "source": source,
            "blocks": min(blocks, depth),
            "norm": norm,
            "resize_px": 256,
            "crop_px": 224,
            "interpolation": "bicubic",
        }
    )

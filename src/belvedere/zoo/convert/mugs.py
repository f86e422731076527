"""Mugs' checkpoints (sail-sg/mugs): a whole training file, or a teacher's backbone as its scripts extract it.

A whole file has student and teacher (`backbone.*`, three heads), two memories, two queues and a center, each
under a name of its own. A backbone is a flat dictionary, or one under `state_dict`, with or without
`backbone.` before its names, and with or without the relation block, which belvedere keeps beside it: no
evaluation reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from belvedere.core.errors import WeightsError
from belvedere.core.match import Shape
from belvedere.nn.spec import FeatureSpec, ViTSpec
from belvedere.zoo.convert.checkpoint import (
    DROPPED,
    MODULE,
    Asked,
    Checkpoint,
    Converted,
    checked,
    named_tensors,
    names_of,
    plain_values,
    refuse_unknown,
    require_fit,
    shapes_of,
    size,
    state_dicts,
    under,
)
from belvedere.zoo.convert.described import described
from belvedere.zoo.convert.heads import contrastive_shapes, matrices_of, weight_norm_shapes
from belvedere.zoo.convert.moments import moments_with_or_without_lengths
from belvedere.zoo.convert.names import BACKBONE, Parts, to_ours, unchanged
from belvedere.zoo.convert.networks import network_of

SYSTEMS = ("mugs",)
POSITION_MARGIN = 0.1
"""Mugs' code adds a tenth of a patch to a side when it resizes its table of positions."""
STORES = {
    "student_mem": "student_memory",
    "teacher_mem": "teacher_memory",
    "instance-sup.": "instance_queue",
    "local-group-sup.": "local_group_queue",
}
"""What a whole file calls its memories and queues, and their names in the method's state."""

CENTER = "group-sup."
"""What it calls the state of the loss that has the center."""
ENTRIES = ("student", "teacher", *STORES, CENTER, "optimizer", *DROPPED)
"""What a whole file has."""

RELATION = "relation_blocks."
_CONTRASTIVE = ("instance_head.", "local_group_head.")
_GROUP_HEAD = "group_head."
_BESIDE = (RELATION, *_CONTRASTIVE, _GROUP_HEAD)
PARTS: Parts = (("group_head.projector.", "group_head.mlp."), *unchanged(*_BESIDE), ("", BACKBONE))
"""Of names without the `backbone.` that blocks and relation block have in a whole file."""

_PREFIXES = (MODULE, "backbone.", "encoder.")
UNREAD = "a third copy of the memory, which nothing reads"


def identifies(checkpoint: Checkpoint) -> bool:
    """Whether something is there that only Mugs has: a memory, a queue, a head or the relation block."""
    return _holds(checkpoint, _has_own)


def _has_own(names: set[str]) -> bool:
    return _is_network(names) and any(name.startswith(_BESIDE) for name in names)


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether something is there that only Mugs has, or a ViT without a head, which could be Mugs'."""
    return _holds(checkpoint, _is_network)


def _holds(checkpoint: Checkpoint, is_ours: Callable[[set[str]], bool]) -> bool:
    """Whether one of Mugs' stores is there, or a state dict whose names are ours."""
    content = checkpoint.content
    if not isinstance(content, Mapping):
        return False
    if any(name in content for name in (*STORES, CENTER)):
        return True
    return any(is_ours(names_of(stored, _PREFIXES)) for stored in state_dicts(content))


def convert(checkpoint: Checkpoint, asked: Asked) -> Converted:
    """The teacher's backbone and heads, center and card, and of a whole file the student, its moments, and
    what both remember.

    Raises `WeightsError` listing every entry that is missing, unexpected or mis-shaped.
    """
    content, origin = checkpoint.content, checkpoint.origin
    is_whole = any(name in content for name in ("student", "teacher", *STORES, CENTER))
    if is_whole:
        refuse_unknown(content, ENTRIES, what="Mugs' checkpoints", origin=origin)
        if not isinstance(content.get("teacher"), Mapping):
            raise WeightsError(f"{origin} has no teacher, which is the network that Mugs is evaluated by")
        stored = content["teacher"]
    else:
        stored = next(one for one in state_dicts(content) if _is_network(names_of(one, _PREFIXES)))
    teacher = _network(stored, "teacher" if is_whole else "the backbone", origin=origin)
    backbone = {name: tensor for name, tensor in teacher.items() if not name.startswith(_BESIDE)}
    spec = network_of(backbone, asked, origin=origin)
    if not isinstance(spec, ViTSpec):
        raise WeightsError(f"{origin} is a {spec.name}; Mugs' networks are ViTs")
    spec = spec.model_copy(update={"position_margin": POSITION_MARGIN})
    heads = {name: tensor for name, tensor in teacher.items() if name not in backbone}
    _check_beside(heads, backbone, spec.width, origin=origin)
    dropped: dict[str, str] = {}
    training: dict[str, Tensor] = {}
    if is_whole:
        heads |= _center(content.get(CENTER), heads, origin=origin)
        dropped |= {key: reason for key, reason in DROPPED.items() if key in content}
        training, without = _training(content, teacher, spec.width, origin=origin)
        dropped |= without
    card = described(
        checkpoint,
        asked,
        system="mugs",
        backbone=spec,
        features=_features(spec),
        dropped=dropped,
        data=plain_values(content, ("epoch",)) if is_whole else {},
    )
    return Converted(backbone, heads, card, training)


def _is_network(names: set[str]) -> bool:
    if "cls_token" not in names or not any(name.startswith("blocks.0.") for name in names):
        return False
    own = any(name.startswith(_BESIDE) for name in names)
    return own or not any(name.startswith(("head", "fc")) for name in names)


def _network(stored: Mapping[str, Any], what: str, *, origin: str) -> dict[str, Tensor]:
    """Student, teacher or backbone under our names."""
    state = named_tensors(stored, what, origin=origin, prefixes=_PREFIXES)
    return {to_ours(name, PARTS).removeprefix(BACKBONE): tensor for name, tensor in state.items()}


def _check_beside(
    beside: Mapping[str, Tensor], backbone: Mapping[str, Tensor], width: int, *, origin: str
) -> None:
    """Relation block and heads are what their sizes announce."""
    shapes = shapes_of(beside)
    expected: dict[str, Shape] = {}
    if any(name.startswith(RELATION) for name in shapes):
        expected |= shapes_of(under(backbone, "blocks.0."), f"{RELATION}0.")
    for head in _CONTRASTIVE:
        expected |= contrastive_shapes(shapes, head, width)
    expected |= weight_norm_shapes(shapes, _GROUP_HEAD, width)
    require_fit(expected, shapes, "relation block and heads", origin=origin)


def _center(stored: Any, heads: Mapping[str, Tensor], *, origin: str) -> dict[str, Tensor]:
    if stored is None:
        return {}
    if not isinstance(stored, Mapping):
        raise WeightsError(f"{origin}: {CENTER} is a {type(stored).__name__}, must be a state dict")
    found = {str(name): checked(value, f"{CENTER}{name}", origin=origin) for name, value in stored.items()}
    last = heads.get(f"{_GROUP_HEAD}last_layer.weight_v")
    expected: dict[str, Shape] = {} if last is None else {"center": (1, len(last))}
    require_fit(expected, shapes_of(found), "the center of its groups", origin=origin)
    return found


def _training(
    content: Mapping[str, Any], teacher: Mapping[str, Tensor], width: int, *, origin: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What both networks remember, the student, and its moments, under the method's names; and what is left
    out of them."""
    training, dropped = _remembered(content, teacher, width, origin=origin)
    if content.get("student") is None:
        reason = "without the student it was of, it fits nothing"
        return training, dropped | ({"optimizer": reason} if "optimizer" in content else {})
    student = _network(content["student"], "student", origin=origin)
    predictors = {name: tensor for name, tensor in student.items() if ".predictor." in name}
    rest = {name: tensor for name, tensor in student.items() if name not in predictors}
    require_fit(shapes_of(teacher), shapes_of(rest), "the student, as the teacher is", origin=origin)
    backbone = {name: tensor for name, tensor in student.items() if not name.startswith(_BESIDE)}
    beside = {name: tensor for name, tensor in student.items() if name not in backbone}
    _check_beside(beside, backbone, width, origin=origin)
    training |= {_ours(name): tensor for name, tensor in student.items()}
    if "optimizer" not in content:
        return training, dropped
    moments, reason = moments_with_or_without_lengths(content["optimizer"], _groups, student, _ours)
    return training | moments, dropped | ({"optimizer": reason} if reason else {})


def _remembered(
    content: Mapping[str, Any], teacher: Mapping[str, Tensor], width: int, *, origin: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Memories [K, D] and queues, in files [O, K] and in the method [K, O], with their pointers."""
    found: dict[str, Tensor] = {}
    dropped: dict[str, str] = {}
    for key, ours in STORES.items():
        if content.get(key) is None:
            continue
        store = named_tensors(content[key], key, origin=origin, prefixes=("block.",))
        is_memory = key.endswith("_mem")
        if is_memory and store.pop("queue_v", None) is not None:
            dropped[f"{key}.queue_v"] = UNREAD
        elif not is_memory and "queue" in store and store["queue"].ndim == 2:
            store["queue"] = store["queue"].T.contiguous()
        names = ("queue_q", "queue_k") if is_memory else ("queue",)
        slots = size(shapes_of(store), names[0])
        columns = width if is_memory else _columns(teacher, ours)
        expected: dict[str, Shape] = dict.fromkeys(names, (slots, columns)) | {"queue_ptr": (1,)}
        require_fit(expected, shapes_of(store), key, origin=origin)
        found |= {f"{ours}.{name}": tensor for name, tensor in store.items()}
    return found, dropped


def _columns(teacher: Mapping[str, Tensor], queue: str) -> int:
    """The columns of what a queue's head gives."""
    prefix = queue.replace("_queue", "_head.projector.")
    shapes = shapes_of(teacher)
    return shapes.get(matrices_of(shapes, prefix)[-1], (0,))[0]


def _groups(parameters: Mapping[str, Tensor]) -> list[list[str]]:
    """Mugs' groups: matrices, those that embed patches, vectors and biases, those that embed patches."""

    def these(*, vectors: bool, patches: bool) -> list[str]:
        return [
            name
            for name, p in parameters.items()
            if (p.ndim == 1 or name.endswith(".bias")) == vectors and ("patch_embed" in name) == patches
        ]

    pairs = ((False, False), (False, True), (True, False), (True, True))
    return [these(vectors=vectors, patches=patches) for vectors, patches in pairs]


def _ours(name: str) -> str:
    """A name of the student in the method's state."""
    return f"student.{to_ours(name, PARTS)}"


def _features(spec: ViTSpec) -> FeatureSpec:
    """What Mugs' linear evaluation reads: of small networks the last 4 class tokens, of others the last one
    and the mean patch; all after the final norm."""
    is_small = spec.width <= 384
    return FeatureSpec(
        source="cls" if is_small else "cls+mean",
        blocks=min(4, spec.depth) if is_small else 1,
        norm="all",
        resize_px=256,
        crop_px=224,
        interpolation="bicubic",
    )

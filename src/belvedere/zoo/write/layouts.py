"""The authors' files: what an import makes of one, turned back into it.

Names come from the tables by which the importers read them. Nothing is made up: an entry of which nothing was
kept is not there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from belvedere.nn.spec import BackboneSpec, ResNetSpec, SwinSpec, ViLSpec
from belvedere.nn.windows import relative_index
from belvedere.zoo.convert import esvit, msn, mugs, swav
from belvedere.zoo.convert.checkpoint import DROPPED, MODULE, Converted, under
from belvedere.zoo.convert.names import BACKBONE, Parts, to_published

_STUDENT = "student."
_TABLE, _INDEX = "relative_position_bias_table", "relative_position_index"
_SHARED = re.compile(r"(.*\.attn\.)(query|kv|proj)(\.(?:weight|bias))")
_STATISTICS = ".running_mean"


def msn_file(kept: Converted) -> dict[str, Any]:
    """A file of MSN's: the target encoder, which is evaluated, the encoder if it was kept, and prototypes."""
    teacher, student, beside = _parts(kept, msn.PARTS)
    content: dict[str, Any] = {}
    if student:
        content["encoder"] = _wrapped(_named(student, msn.PARTS))
    content["target_encoder"] = _wrapped(_named(teacher, msn.PARTS))
    return content | beside | _counts(kept, msn.DROPPED)


def swav_file(kept: Converted) -> dict[str, Any]:
    """A file of SwAV's, DeepCluster-v2's or SeLa-v2's: one bare state dict."""
    network, _, beside = _parts(kept, swav.PARTS)
    return _wrapped(_named(network, swav.PARTS)) | beside


def esvit_file(kept: Converted) -> dict[str, Any]:
    """A file of EsViT's: teacher, centers, and the student if it was kept."""
    teacher, student, centers = _parts(kept, esvit.PARTS)

    def network(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        inside = esvit.WRAPPED if isinstance(kept.card.backbone, ResNetSpec) else ""
        return _with_tables(_named(tensors, esvit.PARTS, inside=inside), kept.card.backbone)

    content: dict[str, Any] = {"student": _wrapped(network(student))} if student else {}
    content["teacher"] = _wrapped_if_normed(network(teacher))
    return content | ({"dino_loss": centers} if centers else {}) | _counts(kept, DROPPED)


def mugs_file(kept: Converted) -> dict[str, Any]:
    """A file of Mugs': teacher, center, and if they were kept the student, memories and queues."""
    teacher, student, center = _parts(kept, mugs.PARTS)

    def network(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return _named(tensors, mugs.PARTS, inside=BACKBONE)

    content: dict[str, Any] = {"student": _wrapped(network(student))} if student else {}
    content["teacher"] = _wrapped_if_normed(network(teacher))
    for published, ours in mugs.STORES.items():
        if store := under(kept.training, f"{ours}."):
            content[published] = _store(store, is_memory=published.endswith("_mem"))
    return content | ({mugs.CENTER: center} if center else {}) | _counts(kept, DROPPED)


FILES: Mapping[str, Callable[[Converted], dict[str, Any]]] = {
    "msn": msn_file,
    "swav": swav_file,
    "deepcluster": swav_file,
    "sela": swav_file,
    "esvit": esvit_file,
    "mugs": mugs_file,
}
"""By system, what makes the content of its file."""


def _parts(kept: Converted, parts: Parts) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Teacher (or the only network) and student by our names, and what stands beside them."""
    own = tuple(ours for _, ours in parts)
    teacher = {BACKBONE + name: tensor for name, tensor in kept.backbone.items()}
    heads = {name: tensor for name, tensor in kept.heads.items() if name.startswith(own)}
    beside = {name: tensor for name, tensor in kept.heads.items() if name not in heads}
    return teacher | heads, under(kept.training, _STUDENT), beside


def _named(tensors: Mapping[str, Tensor], parts: Parts, *, inside: str = "") -> dict[str, Tensor]:
    """A network under its published names. inside: what stands before those of its backbone."""
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        published = to_published(name, parts)
        is_inside = name.startswith((BACKBONE, mugs.RELATION))
        state[inside + published if is_inside else published] = tensor
    return state


def _wrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As training on several processes saves a network, by which all published files were made."""
    return {MODULE + name: tensor for name, tensor in state.items()}


def _wrapped_if_normed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A teacher, which the authors' code wraps only for the sake of BatchNorm."""
    return _wrapped(state) if any(name.endswith(_STATISTICS) for name in state) else state


def _with_tables(state: Mapping[str, Tensor], spec: BackboneSpec) -> dict[str, Tensor]:
    """With what EsViT's networks store and ours compute: the places in a Swin's tables of positions; the
    second names of a ViL's projections."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        found[name] = tensor
        if isinstance(spec, SwinSpec) and name.endswith(f".{_TABLE}"):
            window = (math.isqrt(len(tensor)) + 1) // 2
            index = relative_index(window, torch.device("cpu"))
            found[name.removesuffix(_TABLE) + _INDEX] = index.reshape(window**2, window**2)
        elif isinstance(spec, ViLSpec) and (same := _SHARED.fullmatch(name)) and _is_sparse(state, same[1]):
            found[f"{same[1]}{same[2]}_global{same[3]}"] = tensor
    return found


def _is_sparse(state: Mapping[str, Tensor], attention: str) -> bool:
    """Whether this attention of a ViL has projections of its own for class tokens."""
    return f"{attention}query.weight" in state


def _store(store: Mapping[str, Tensor], *, is_memory: bool) -> dict[str, Tensor]:
    """A memory, or a queue [K, O], which files have as [O, K]."""
    if is_memory:
        return {f"block.{name}": tensor for name, tensor in store.items()}
    return {name: tensor.T.contiguous() if name == "queue" else tensor for name, tensor in store.items()}


def _counts(kept: Converted, names: Mapping[str, str]) -> dict[str, Any]:
    """The counts and settings that an import kept in the card."""
    return {name: kept.card.data[name] for name in names if name in kept.card.data}

"""The file that a system's authors would have written: what their code, and tools made for it, can load.

It is read back by belvedere's own importer, as strictly as a published one, and every tensor must come back
as it was, under its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from belvedere.core.errors import WeightsError
from belvedere.core.files import system_error
from belvedere.engine.moments import PREFIX
from belvedere.nn.build import build
from belvedere.nn.spec import ResNetSpec, ViLSpec, ViTSpec
from belvedere.zoo.cards import Card
from belvedere.zoo.convert import esvit, msn, mugs, swav
from belvedere.zoo.convert.checkpoint import Asked, Converted
from belvedere.zoo.importing import read_published
from belvedere.zoo.load import fill_
from belvedere.zoo.network_words import kind_of
from belvedere.zoo.write.agreement import same_network
from belvedere.zoo.write.layouts import FILES
from belvedere.zoo.write.target import Outgoing, Side, Target

_NETWORKS = {
    "msn": ("vit",),
    "swav": ("resnet",),
    "deepcluster": ("resnet",),
    "sela": ("resnet",),
    "esvit": ("vit", "resnet", "swin", "cvt", "vil"),
    "mugs": ("vit",),
}
"""What the authors' code can build, by system."""
_CONV_STEM = ("msn",)
"""Systems whose code has ViTs with a convolutional stem."""
_KNOWN_BY_HEADS = ("swav", "deepcluster", "sela", "esvit")
"""Systems whose files are any other network's without their heads."""
_ENTRIES = {"msn": msn.ENTRIES, "esvit": esvit.ENTRIES, "mugs": mugs.ENTRIES}
"""Whole files; those of SwAV's family are published bare."""
_EVALUATED = {"msn": "target_encoder", "esvit": "teacher", "mugs": "teacher"}
_SHOWN = 5


def file_name(system: str) -> str:
    """What the file is called: as published ones begin, by which an import tells SwAV's family apart."""
    beginnings = {one: beginning for beginning, one in swav.FILES.items()}
    return f"{beginnings.get(system, system)}.pth"


def _refusal(card: Card) -> str:
    system, spec = card.system, card.backbone
    if system not in _NETWORKS:
        return f"these weights are of {system}; the layouts are those of {', '.join(_NETWORKS)}"
    is_strange_stem = isinstance(spec, ViTSpec) and spec.stem != "patch" and system not in _CONV_STEM
    if spec.name not in _NETWORKS[system] or is_strange_stem:
        return f"the authors of {system} have no {kind_of(spec)} of this kind, so that none could load it"
    if isinstance(spec, ViTSpec) and (strange := _unlike_theirs(spec)):
        return f"the ViTs of {system}'s authors have {strange}, so that their code would read another network"
    if system in _KNOWN_BY_HEADS and card.heads_sha256 is None:
        return f"the files of {system} are known by their heads, and these weights have none"
    return ""


def _unlike_theirs(spec: ViTSpec) -> str:
    """What every published ViT has and this one has not: nothing in the files says so."""
    usual_eps = ViTSpec.model_fields["norm_eps"].default
    found = [] if spec.qkv_bias else ["a bias of queries, keys and values (here: none)"]
    found += (
        []
        if spec.norm_eps == usual_eps
        else [f"norms with an epsilon of {usual_eps:g} (here: {spec.norm_eps:g})"]
    )
    return " and ".join(found)


def _kept(outgoing: Outgoing) -> Converted:
    """The weights as an import would give them."""
    state = outgoing.backbone.state_dict()
    return Converted(state, outgoing.heads, outgoing.card, outgoing.training)


def _write(folder: Path, outgoing: Outgoing) -> None:
    content = _plain(FILES[outgoing.card.system](_kept(outgoing)), {})
    path = folder / file_name(outgoing.card.system)
    try:
        with path.open("wb") as file:
            torch.save(content, file)
    except RuntimeError as error:
        raise system_error(error) or error from error


def _plain(value: Any, seen: dict[int, Tensor]) -> Any:
    """Tensors on the CPU, each with its own numbers alone; one that has two names is stored once."""
    if isinstance(value, Mapping):
        return {name: _plain(one, seen) for name, one in value.items()}
    if not isinstance(value, Tensor):
        return value
    if id(value) not in seen:
        tensor = value.detach().cpu().contiguous()
        is_part = tensor.untyped_storage().nbytes() > tensor.nbytes
        seen[id(value)] = tensor.clone() if is_part else tensor
    return seen[id(value)]


def _read_back(folder: Path, outgoing: Outgoing) -> list[Side]:
    card = outgoing.card
    path = folder / file_name(card.system)
    found, kept = read_published(path, Asked()), _kept(outgoing)
    unlike = [
        *_unlike(kept.backbone, found.backbone),
        *_unlike(kept.heads, found.heads),
        *_unlike(_without_moments(kept.training), _without_moments(found.training)),
    ]
    if unlike:
        more = f" and {len(unlike) - _SHOWN} more" if len(unlike) > _SHOWN else ""
        raise WeightsError(
            f"read back from {path.name}, these tensors are not what they were, so nothing was written: "
            f"{', '.join(unlike[:_SHOWN])}{more}"
        )
    backbone = build(found.card.backbone)
    fill_(backbone, found.backbone, origin=path.name)
    return [same_network(outgoing.backbone, backbone, card.features.crop_px)]


def _unlike(kept: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Iterator[str]:
    """The names that only one side has, or whose tensors differ."""
    for name in kept.keys() | found.keys():
        if name not in kept or name not in found:
            yield f"{name} ({'unexpected' if name in found else 'missing'})"
            continue
        one, other = kept[name].detach().cpu(), found[name]
        if one.dtype != other.dtype or not torch.equal(one, other):
            yield name


def _without_moments(training: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in training.items() if not name.startswith(PREFIX)}


def _notes(outgoing: Outgoing) -> list[str]:
    system, training = outgoing.card.system, outgoing.training
    content = FILES[system](_kept(outgoing))
    notes = ["every tensor was read back by the import, equal bit by bit"]
    if lacking := list(_lacking(system, content)):
        notes.append(f"published files also have, and these weights do not: {', '.join(lacking)}")
    if any(name.startswith(PREFIX) for name in training):
        notes.append(
            "the optimizer's moments stay behind: an import does not keep the settings of its groups, which "
            "the authors' code loads with them"
        )
    spec = outgoing.card.backbone
    if isinstance(spec, ResNetSpec) and spec.stem == "small":
        notes.append("names are the authors', but their networks begin with a 7x7 convolution and a max-pool")
    if isinstance(spec, ViLSpec):
        notes.append("what follows from the sizes alone (relative_position_index) is not in the file")
    return notes


def _lacking(system: str, content: Mapping[str, Any]) -> Iterator[str]:
    """The entries of this layout that are not there."""
    if system not in _ENTRIES:
        for part in ("projection_head", "prototypes"):
            if not any(f"{part}." in name for name in content):
                yield part
        return
    yield from (name for name in _ENTRIES[system] if name not in content)
    if system == "msn" and not any(".fc." in name for name in content["target_encoder"]):
        yield "the head (fc)"
    if system == "mugs":
        yield from (
            f"{name}.block.queue_v ({mugs.UNREAD})"
            for name in ("student_mem", "teacher_mem")
            if name in content
        )


def _loading(outgoing: Outgoing) -> str:
    system = outgoing.card.system
    entry = f'["{_EVALUATED[system]}"]' if system in _EVALUATED else ""
    return f"""\
import torch

checkpoint = torch.load("DIR/{file_name(system)}", weights_only=True)
state = {{name.removeprefix("module."): tensor for name, tensor in checkpoint{entry}.items()}}
"""


TARGET = Target(
    name="published",
    library="belvedere",
    extra=None,
    packages=(),
    refusal=_refusal,
    write=_write,
    read_back=_read_back,
    notes=_notes,
    loading=_loading,
    with_heads=True,
    with_training=True,
)

"""What a published file holds, what a person says of it, and what becomes of it: shared by all converters.

A converter is a module with `SYSTEMS`, what it converts to; `recognises(checkpoint)`, whether the names in a
file are of its layout; and `convert(checkpoint, asked)`, which uses every entry, drops it by a rule with a
name, or raises `WeightsError` listing what does not fit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from belvedere.core.errors import WeightsError
from belvedere.core.match import Shape, mismatches, with_nearest
from belvedere.nn.spec import BackboneSpec
from belvedere.zoo.cards import Card
from belvedere.zoo.statement import Statement

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MODULE = "module."
"""What training on several processes puts before every name."""

DROPPED = {
    "epoch": "a count, kept in this card under data",
    "args": "the command line of the run it comes from",
    "fp16_scaler": "the scale of half-precision gradients, which belvedere does not use",
}
"""Entries of the training files of DINO and its descendants EsViT and Mugs, and why none is kept."""

_WEIGHT_NORM = {
    "last_layer.parametrizations.weight.original0": "last_layer.weight_g",
    "last_layer.parametrizations.weight.original1": "last_layer.weight_v",
}
"""torch's newer names of a weight-normed layer's lengths and directions, and those of published files."""

_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


@dataclass(frozen=True)
class Checkpoint:
    """A file as read. content: what it holds; origin: its name; beside: the JSON files that lie in its
    folder (`config.json`, ...), by name; statement: what an export of belvedere's says in the file itself;
    notes, counts, dropped: what a card will say of how it was read, of how long it was trained, and of what
    was left out of it."""

    content: Any
    origin: str
    beside: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    statement: Statement | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, Any] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """What `--as` says, None where it says nothing. name: as it was typed; recipe: a shipped recipe's name,
    which stands for its system and backbone; exact: whether all of the backbone's sizes are meant, those too
    that a file may say otherwise. heads: of `--heads`; prefix: of `--prefix`, what the names of the network
    begin with."""

    name: str | None = None
    system: str | None = None
    backbone: BackboneSpec | None = None
    recipe: str | None = None
    exact: bool = False
    heads: int | None = None
    prefix: str | None = None


@dataclass(frozen=True)
class Stated:
    """What is known of a network that its tensors' shapes leave open; None where nothing is. heads: of a
    ViT; norm_eps: of its LayerNorms; image_px: the size a Swin was built for; by: who says so."""

    heads: int | None = None
    norm_eps: float | None = None
    image_px: int | None = None
    by: str = "config.json"


NOTHING_STATED = Stated()


@dataclass(frozen=True)
class Converted:
    """A published file under our names. backbone: fits the card's; heads: `<head>` or `<head>.<name>`;
    training: what continuing needs beside them, by its names in the method's state."""

    backbone: Mapping[str, Tensor]
    heads: Mapping[str, Tensor]
    card: Card
    training: Mapping[str, Tensor] = field(default_factory=dict)


def named_tensors(
    stored: Mapping[str, Any], what: str, *, origin: str, prefixes: Iterable[str] = (MODULE,)
) -> dict[str, Tensor]:
    """A state dict without `prefixes`, each taken off once and in this order, in at least float32.

    what: the entry it stands in. Raises `WeightsError` if a name is there twice, with and without a prefix,
    is no tensor, or has values that are not finite.
    """
    state: dict[str, Tensor] = {}
    for key, value in stored.items():
        name = str(key)
        for prefix in prefixes:
            name = name.removeprefix(prefix)
        for old, new in _WEIGHT_NORM.items():
            name = name.replace(old, new)
        if name in state:
            raise WeightsError(f"{origin}: {what} has {name} twice, with and without {' or '.join(prefixes)}")
        state[name] = checked(value, name, origin=origin)
    return state


def checked(value: Any, name: str, *, origin: str) -> Tensor:
    """`value` as a tensor of finite numbers in at least float32; copied only if it is in half precision."""
    if not isinstance(value, Tensor):
        raise WeightsError(f"{origin}: {name} is a {type(value).__name__}, must be a tensor")
    if value.dtype.is_complex or (value.is_floating_point() and value.dtype not in _FLOATS):
        raise WeightsError(
            f"{origin}: {name} is of {str(value.dtype).removeprefix('torch.')}, must be of whole numbers, "
            "float16, bfloat16, float32 or float64"
        )
    if value.is_floating_point() and not bool(value.isfinite().all()):
        raise WeightsError(f"{origin}: {name} has values that are not finite numbers")
    tensor = value.detach()
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def shapes_of(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Shape]:
    """The shapes of tensors by name, `prefix` before each."""
    return {prefix + name: tuple(tensor.shape) for name, tensor in state.items()}


def under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def shape(shapes: Mapping[str, Shape], name: str, ndim: int, *, origin: str) -> Shape:
    """The shape of an entry that must be there. Raises `WeightsError` unless it has `ndim` dimensions."""
    if name not in shapes:
        raise WeightsError(f"{origin} is missing {with_nearest(name, shapes)}")
    if len(shapes[name]) != ndim or 0 in shapes[name]:
        raise WeightsError(
            f"{origin}: {name} is {list(shapes[name])}, must have {ndim} dimensions, none empty"
        )
    return shapes[name]


def size(shapes: Mapping[str, Shape], name: str, dim: int = 0) -> int:
    """One dimension of an entry; 1 where it is not there, which a later comparison then finds missing."""
    found = shapes.get(name, ())
    return max(1, found[dim]) if -len(found) <= dim < len(found) else 1


def require_fit(
    expected: Mapping[str, Shape], found: Mapping[str, Shape], what: object, *, origin: str
) -> None:
    """Raise `WeightsError` listing every name that is missing, unexpected or mis-shaped."""
    if wrong := mismatches(expected, found):
        raise WeightsError(f"{origin} is not the network it announces ({what})\n  " + "\n  ".join(wrong))


def refuse_unknown(content: Mapping[str, Any], known: Iterable[str], *, what: str, origin: str) -> None:
    """Raise `WeightsError` if there are entries of other names than `known`. what: the layout's name."""
    names = set(known)
    unknown = [with_nearest(str(key), names) for key in content if key not in names]
    if unknown:
        raise WeightsError(f"{origin} has entries that {what} do not have: {', '.join(unknown)}")


def drop(
    state: Mapping[str, Tensor], rules: Mapping[str, str], *, first: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What is left of a state dict, and what rules took out of it: {name: reason}.

    rules: the last part of a name (the first with `first`) -> why such an entry is not kept.
    """
    dropped = {name: reason for name in state if (reason := rules.get(name.split(".")[0 if first else -1]))}
    return {name: tensor for name, tensor in state.items() if name not in dropped}, dropped


def summarized(dropped: Mapping[str, str]) -> dict[str, str]:
    """Dropped entries for a card: those that differ in numbers alone as one, with `*` for these."""
    return {re.sub(r"(?<=\.)\d+(?=\.)", "*", name): reason for name, reason in dropped.items()}


def plain_values(content: Mapping[str, Any], names: Iterable[str]) -> dict[str, float | int | str]:
    """Numbers and words of a checkpoint, as a card keeps them under `data`; others are left out."""
    found = ((name, content[name]) for name in names if name in content)
    plain = ((name, value.item() if hasattr(value, "item") else value) for name, value in found)
    return {name: value for name, value in plain if isinstance(value, int | float | str)}


def state_dicts(content: Any) -> Iterator[Mapping[str, Any]]:
    """A file's content and what it wraps under `state_dict`, `model` or `teacher`, outermost first."""
    if not isinstance(content, Mapping):
        return
    yield content
    for name in ("state_dict", "model", "teacher"):
        if isinstance(content.get(name), Mapping):
            yield content[name]


def names_of(stored: Mapping[str, Any], prefixes: Iterable[str] = (MODULE,)) -> set[str]:
    """The names in a state dict without prefixes, for telling layouts apart."""
    names = {str(name) for name in stored}
    for prefix in prefixes:
        names = {name.removeprefix(prefix) for name in names}
    return names

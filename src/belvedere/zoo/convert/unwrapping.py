"""What training wraps around a network: a dictionary, and beginnings of names, which tell no system.

A state dict may stand under `state_dict` or `model` beside an optimizer, and its names may begin with
`module.`, `backbone.`, `encoder.` and the like, in any order. The network's own names are found in it, the
rest is counted by name. Nothing here tells which system a file is of.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from belvedere.core.errors import WeightsError
from belvedere.zoo.convert.checkpoint import Checkpoint, plain_values
from belvedere.zoo.convert.networks import SIGNS

CONTAINERS = ("state_dict", "model", "model_state_dict", "teacher", "net", "network", "module", "weights")
"""Entries that a state dict stands under; a running mean of the weights is none of them."""
PARTS = ("module", "_orig_mod", "backbone", "encoder", "model", "base_encoder", "network", "net", "trunk")
"""What names may begin with, in any number and order."""
NEUTRAL = ("module", "_orig_mod")
"""Those that torch itself puts there, of whatever it wraps."""

_PREFIX = re.compile(rf"(?:(?:{'|'.join(PARTS)})\.)*")
_NEUTRAL = re.compile(rf"(?:(?:{'|'.join(NEUTRAL)})\.)*")
_SIGNS = (
    *SIGNS.values(),
    "embeddings.cls_token",
    "vit.embeddings.cls_token",
    "conv_proj.weight",
    "features.0.0.weight",
)
"""One name of each kind of network, by which it is found."""
_REASONS = {
    "optimizer": "belongs to another training loop",
    "optimizer_states": "belongs to another training loop",
    "lr_scheduler": "belongs to another training loop",
    "lr_schedulers": "belongs to another training loop",
    "scheduler": "belongs to another training loop",
    "loops": "belongs to another training loop",
    "callbacks": "belongs to another training loop",
    "scaler": "belongs to another training loop",
    "amp_scaler": "belongs to another training loop",
    "args": "the command line of the run it comes from",
    "hyper_parameters": "the settings of the run it comes from",
    "state_dict_ema": "a running mean of the weights; the weights themselves are kept",
    "model_ema": "a running mean of the weights; the weights themselves are kept",
    "epoch": "a count, kept in this card under data",
    "global_step": "a count, kept in this card under data",
    "arch": "a name, kept in this card under data",
    "version": "a count, kept in this card under data",
    "metric": "a count, kept in this card under data",
}
_INSIDE = ("layers.0.", "vit.")
"""How a prefix ends where a sign was found inside a network that has a longer one."""
_SHOWN = 6


class Found(NamedTuple):
    """A network in a file: the entry it stands under ("" for the top), and what its names begin with."""

    container: str
    prefix: str


def unwrapped(checkpoint: Checkpoint, prefix: str | None = None) -> tuple[Checkpoint, Found] | None:
    """The one network of a file under its own names, and where it was; None if there is none.

    prefix: of `--prefix`. Raises `WeightsError` if there are several networks, or none with that prefix.
    """
    content = checkpoint.content
    if not isinstance(content, Mapping):
        return None
    found = [
        Found(container, one)
        for container, stored in _state_dicts(content)
        for one in sorted(_prefixes(stored))
        if (_PREFIX.fullmatch(one) if prefix is None else one == _dotted(prefix))
    ]
    if prefix is not None and not found:
        raise WeightsError(
            f"{checkpoint.origin} has no network whose names begin with {prefix}{networks_in(content)}"
        )
    if len(found) > 1:
        places = " and ".join(_place(one) for one in found)
        raise WeightsError(
            f"{checkpoint.origin} holds {len(found)} networks, {places}; choose one by what its names "
            f"begin with "
            "(--prefix), or save it alone"
        )
    return _taken(checkpoint, found[0]) if found else None


def networks_in(content: object) -> str:
    """Where a file has networks whose names begin with something else: the end of a message."""
    if not isinstance(content, Mapping):
        return ""
    places = [
        (container, one)
        for container, stored in _state_dicts(content, everywhere=True)
        for one in sorted(_prefixes(stored))
    ]
    if not places:
        return ""
    shown = ", ".join(_place(Found(*one)) for one in places[:_SHOWN])
    return f". It holds a network {shown}: --prefix reads one of them"


def is_neutral(found: Found) -> bool:
    """Whether only torch's own wrappers were taken off."""
    return _NEUTRAL.fullmatch(found.prefix) is not None


def _place(found: Found) -> str:
    under = f"under {found.container!r}" if found.container else "at the top"
    return f"{under} with names that begin with {found.prefix!r}" if found.prefix else under


def _dotted(prefix: str) -> str:
    return prefix if not prefix or prefix.endswith(".") else f"{prefix}."


def _state_dicts(
    content: Mapping[str, Any], *, everywhere: bool = False
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "", content
    for name in content if everywhere else CONTAINERS:
        stored = content.get(name)
        if isinstance(stored, Mapping):
            yield str(name), stored


def _prefixes(stored: Mapping[str, Any]) -> set[str]:
    """What stands before the signs of networks in a state dict."""
    names = {str(name) for name, value in stored.items() if isinstance(value, Tensor)}
    found: set[str] = set()
    for sign in _SIGNS:
        ends = (name for name in names if name == sign or name.endswith(f".{sign}"))
        found |= {name.removesuffix(sign) for name in ends}
    return {one for one in found if not one.endswith(_INSIDE)}


def _taken(checkpoint: Checkpoint, found: Found) -> tuple[Checkpoint, Found]:
    """The network's tensors without their prefix, and everything else counted."""
    content = checkpoint.content
    stored = content[found.container] if found.container else content
    names = {name: str(name) for name in stored}
    own = {
        text.removeprefix(found.prefix): stored[name]
        for name, text in names.items()
        if text.startswith(found.prefix)
    }
    beside = Counter(
        _head(text, found.prefix) for text in names.values() if not text.startswith(found.prefix)
    )
    dropped = {f"{head}*": f"{_tensors(count)} beside the network" for head, count in beside.items()}
    notes: dict[str, str] = {}
    counts: dict[str, Any] = {}
    if found.container:
        others = {str(name): value for name, value in content.items() if name != found.container}
        dropped |= {name: _reason(name, value) for name, value in others.items()}
        counts = dict(plain_values(others, ("epoch", "global_step", "arch", "version", "metric")))
    if not is_neutral(found):
        notes["names"] = f"begin with {found.prefix!r} in the file, which was taken off"
    dropped, notes = {**checkpoint.dropped, **dropped}, {**checkpoint.notes, **notes}
    return replace(checkpoint, content=own, dropped=dropped, notes=notes, counts=counts), found


def _head(name: str, prefix: str) -> str:
    """The beginning of a name up to the first part in which it differs from `prefix`, and that part."""
    parts, own = name.split("."), prefix.split(".")
    shared = next((at for at, (a, b) in enumerate(zip(parts, own, strict=False)) if a != b), len(own))
    kept = parts[: shared + 1]
    return ".".join(kept) + ("." if len(kept) < len(parts) else "")


def _reason(name: str, value: object) -> str:
    count = _count(value)
    words = _REASONS.get(name, "not read: no part of the network")
    return words if not count else f"{words} ({_tensors(count)})"


def _tensors(count: int) -> str:
    return f"{count} tensor" if count == 1 else f"{count} tensors"


def _count(value: object) -> int:
    """How many tensors there are in what plain containers hold."""
    left, seen, total = [value], {id(value)}, 0
    while left:
        one = left.pop()
        if isinstance(one, Tensor):
            total += 1
            continue
        held = one.values() if isinstance(one, Mapping) else one if isinstance(one, list | tuple) else ()
        fresh = [inner for inner in held if id(inner) not in seen]
        seen.update(map(id, fresh))
        left.extend(fresh)
    return total

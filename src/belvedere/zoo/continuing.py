"""What a run begins with that continues from weights: an imported folder's tensors in the names of a method's
state.

The backbone fits any method. Heads, prototypes, centers, memories and moments are taken only from a file of
the same method. A student that a file lacks begins as its teacher, which it would follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from belvedere.engine.moments import PREFIX
from belvedere.zoo.cards import CARD_NAME, HEADS_NAME, TRAINING_NAME, WEIGHTS_NAME, Card
from belvedere.zoo.load import load_heads, load_tensors, load_training

_BACKBONE = "backbone."


class Start(NamedTuple):
    """tensors: by their names in the method's state; moments: as `optim/<parameter>/<moment>`; left: {file
    of heads that are not taken, since they are of another method or were not asked for: its tensors}."""

    card: Card
    tensors: dict[str, Tensor]
    moments: dict[str, Tensor]
    left: dict[str, int]


def holds_weights(folder: Path) -> bool:
    """Whether this is an imported or exported folder, which has a card, and not a run's."""
    return (folder / CARD_NAME).is_file() and (folder / WEIGHTS_NAME).is_file()


def start_from(folder: Path, method: str, names: Iterable[str], *, backbone_only: bool = False) -> Start:
    """What `folder` has for the method of this name, whose state has these entries.

    Nothing is held against shapes here. Raises `WeightsError` as `zoo.load` does.
    """
    own = set(names)
    networks = [name for name in ("student", "teacher") if any(one.startswith(f"{name}.") for one in own)]
    card, backbone = load_tensors(folder)
    tensors = {
        f"{network}.{_BACKBONE}{name}": tensor for network in networks for name, tensor in backbone.items()
    }
    same = card.system == method and not backbone_only
    if not same:
        beside = {HEADS_NAME: load_heads(folder), TRAINING_NAME: load_training(folder)}
        return Start(card, tensors, {}, {name: len(held) for name, held in beside.items() if held})
    for name, tensor in load_heads(folder).items():
        tensors |= _head(name, tensor, own, networks)
    training = load_training(folder)
    tensors |= {name: tensor for name, tensor in training.items() if not name.startswith(PREFIX)}
    moments = {name: tensor for name, tensor in training.items() if name.startswith(PREFIX)}
    return Start(card, tensors, moments, {})


def _head(name: str, tensor: Tensor, own: set[str], networks: list[str]) -> Mapping[str, Tensor]:
    """One entry of the heads in every place that it has: in both networks, or beside them."""
    part = name.partition(".")[0]
    places = [f"{network}.{name}" for network in networks if _has(own, f"{network}.{part}")]
    return dict.fromkeys(places, tensor) if places else {name: tensor}


def _has(own: set[str], part: str) -> bool:
    return any(one == part or one.startswith(f"{part}.") for one in own)

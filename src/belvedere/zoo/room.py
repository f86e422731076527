"""Whether a card's network can be at all: its size is worked out before anything of it is built.

A card is a text that anyone may write. What it says is held against the memory of the machine and against the
tensors it comes with, and refused with the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from belvedere.core import machine
from belvedere.core.errors import WeightsError
from belvedere.core.files import readable_size
from belvedere.core.match import mismatches
from belvedere.nn.build import build
from belvedere.nn.spec.count import MODULE_BYTES
from belvedere.zoo.cards import Card

_VALUE_BYTES = 4
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def require_room(card: Card, *, origin: str) -> None:
    """Raise `WeightsError` for a network, or an image for it, that this machine's memory cannot hold."""
    spec, features = card.backbone, card.features
    values = spec.num_parameters + spec.num_constants(features.crop_px)
    needs = {
        f"a network of {_number(spec.num_parameters)} parameters and {_number(spec.num_layers)} layers": (
            values * _VALUE_BYTES + spec.num_layers * MODULE_BYTES
        ),
        f"images of {features.resize_px} px": 3 * _VALUE_BYTES * features.resize_px**2,
    }
    memory = machine.memory_bytes()
    if memory is None:
        return
    for what, num_bytes in needs.items():
        if num_bytes > memory:
            raise WeightsError(
                f"{origin} describes {what}: {_size(num_bytes)}; this machine has "
                f"{readable_size(memory)}. Correct the card, or use a machine that has room"
            )


def require_agreement(card: Card, tensors: Mapping[str, Tensor], *, origin: str) -> None:
    """Raise `WeightsError` where a card's network has other tensors than those that come with it, before any
    of them is allocated."""
    spec = card.backbone
    found = sum(t.numel() for name, t in tensors.items() if name.rpartition(".")[2] not in _BUFFERS)
    if spec.num_blocks > len(tensors):
        raise WeightsError(
            f"{origin} has {len(tensors)} tensors, its card describes {_number(spec.num_blocks)} blocks"
        )
    if spec.num_parameters == found:
        return
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in build(spec).state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = mismatches(expected, shapes) or [f"{found} numbers, must be {spec.num_parameters}"]
    raise WeightsError(f"{origin} does not fit the network that its card describes\n  " + "\n  ".join(wrong))


def require_readable(path: Path) -> None:
    """Raise `WeightsError` for a file that is larger than the memory it would be read into."""
    memory, num_bytes = machine.memory_bytes(), path.stat().st_size
    if memory is not None and num_bytes > memory:
        raise WeightsError(
            f"{path} has {readable_size(num_bytes)}; this machine has a memory of {readable_size(memory)}"
        )


def _number(count: int) -> str:
    """A count that may be more than a float holds."""
    return f"{count:,}" if count < 10**15 else f"{count:.3g}" if count < 10**300 else "more than 1e300"


def _size(num_bytes: int) -> str:
    """A size that may be more than a float holds."""
    return readable_size(num_bytes) if num_bytes < 1 << 60 else f"more than {readable_size(1 << 60)}"

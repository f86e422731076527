"""Backbones on their way to other libraries: one module per format, each read back by the library itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from belvedere.core.errors import UsageError
from belvedere.zoo.cards import Card
from belvedere.zoo.network_words import kind_of
from belvedere.zoo.statement import Statement, append_to_zip
from belvedere.zoo.write import huggingface, onnx, published, safetensors, timm, torchvision
from belvedere.zoo.write.agreement import Agreement, compare, demand
from belvedere.zoo.write.target import Classifier, Outgoing, Target, require

TARGETS: Mapping[str, Target] = {
    module.TARGET.name: module.TARGET
    for module in (huggingface, timm, torchvision, onnx, published, safetensors)
}


def fitting_target(name: str, card: Card) -> Target:
    """The target called `name`. Raises UsageError if weights with this card cannot go there, with
    what is possible, and MissingPackageError where the target's library is not installed."""
    target = TARGETS[name]
    if reason := target.refusal(card):
        possible = ", ".join(other.name for other in TARGETS.values() if not other.refusal(card))
        raise UsageError(
            f"--to {name}: {reason}; this backbone is a {kind_of(card.backbone)}, which can go to {possible}"
        )
    require(target)
    return target


def write(
    folder: Path, target: Target, outgoing: Outgoing, *, real: Mapping[str, Tensor] | None = None
) -> list[Agreement]:
    """Fill the empty `folder`, read it back with the target's library and say how close that comes.

    real: images {name: [B, 3, H, W]}, prepared as the card says, beside random ones. Raises WeightsError
    where a difference exceeds its tolerance.
    """
    target.write(folder, outgoing)
    for archive in folder.glob("*.pth"):  # safetensors files carry it in their metadata
        append_to_zip(archive, Statement(target.name, outgoing.card))
    found: list[Agreement] = []
    for side in target.read_back(folder, outgoing):
        found += compare(side, real or {})
    demand(found, library=target.library)
    return found


__all__ = ["TARGETS", "Agreement", "Classifier", "Outgoing", "Target", "fitting_target", "write"]


def __dir__() -> list[str]:
    return sorted(__all__)

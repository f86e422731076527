"""belvedere's own format: `backbone.safetensors`, `card.yaml` and, if there are any, the heads."""

from __future__ import annotations

from pathlib import Path

from belvedere.zoo.cards import Card, export
from belvedere.zoo.load import load
from belvedere.zoo.write.agreement import same_network
from belvedere.zoo.write.target import Outgoing, Side, Target, built_px


def _write(folder: Path, outgoing: Outgoing) -> None:
    export(folder, outgoing.backbone, outgoing.card, heads=outgoing.heads)


def _read_back(folder: Path, outgoing: Outgoing) -> list[Side]:
    return [same_network(outgoing.backbone, load(folder).backbone, built_px(outgoing.card))]


def _loading(outgoing: Outgoing) -> str:
    return """\
from belvedere.zoo import load

backbone, card = load("DIR")
features = backbone(images)  # .pooled [B, D], .regions [B, N, D]; images normalized by card.mean and card.std
"""


def _refusal(card: Card) -> str:
    return ""


def _notes(outgoing: Outgoing) -> list[str]:
    if outgoing.card.training_sha256 is None:
        return []
    return ["what only a continued training reads (training.safetensors) is not part of an export"]


TARGET = Target(
    name="safetensors",
    library="belvedere",
    extra=None,
    packages=(),
    refusal=_refusal,
    write=_write,
    read_back=_read_back,
    notes=_notes,
    loading=_loading,
    with_heads=True,
)

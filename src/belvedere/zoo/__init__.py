"""Weights: export, load, and import of published checkpoints."""

from belvedere.zoo.cards import Card, export
from belvedere.zoo.importing import import_checkpoint
from belvedere.zoo.load import LoadedBackbone, load, load_heads

__all__ = ["Card", "LoadedBackbone", "export", "import_checkpoint", "load", "load_heads"]


def __dir__() -> list[str]:
    return sorted(__all__)

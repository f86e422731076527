"""From a recipe's words to a network."""

from __future__ import annotations

from belvedere.nn.spec import ViTSpec
from belvedere.nn.vit import ViT


def build(spec: ViTSpec) -> ViT:
    """The backbone a spec describes, with its parameters not yet drawn."""
    return ViT(spec)

"""A ViT's tensors for a library that takes images of one size."""

from __future__ import annotations

from torch import Tensor

from belvedere.nn.position import resize_position
from belvedere.nn.spec import ViTSpec
from belvedere.nn.vit import ViT
from belvedere.zoo.cards import Card


def positions_for(backbone: ViT, px: int) -> dict[str, Tensor]:
    """The backbone's tensors, its position table as the backbone resizes it for images of `px` pixels."""
    state = dict(backbone.state_dict())
    grid = backbone.patch_embed.grid(px, px)
    return state | {"pos_embed": resize_position(state["pos_embed"], grid, backbone.spec.position_margin)}


def at_size(card: Card, px: int) -> Card:
    """The card of what `positions_for` writes: a ViT's table is then that of images of `px` pixels."""
    if not isinstance(card.backbone, ViTSpec):
        return card
    return card.model_copy(update={"backbone": card.backbone.model_copy(update={"image_px": px})})

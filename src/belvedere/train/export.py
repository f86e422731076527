"""The current backbone, always ready for use beside the checkpoints."""

from __future__ import annotations

from belvedere.engine.agreement import agree
from belvedere.train.session import Session
from belvedere.zoo.cards import Card, export

BACKBONE_FOLDER = "backbone"


def export_backbone(session: Session) -> None:
    """Write the backbone that the method keeps, with its heads and card, to `<run>/backbone/`."""
    kept = session.method.export()
    folder = session.directory / BACKBONE_FOLDER
    agree(lambda: export(folder, kept.backbone, card(session), heads=kept.heads), only_main=True)


def card(session: Session) -> Card:
    """What somebody who has only the weights needs to know of them."""
    recipe = session.recipe
    return Card(
        system=recipe.method.name,
        backbone=recipe.backbone,
        features=recipe.features,
        mean=recipe.data.mean,
        std=recipe.data.std,
        value_range=recipe.data.range,
        source=f"recipe {recipe.name}",
        licence=None,
        step=session.step,
        data={"images": len(session.source), "source": session.source.name},
    )

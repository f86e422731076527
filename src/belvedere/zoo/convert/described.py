"""The card of a converted file: what it is, where it comes from, what is published of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from belvedere.nn.spec import BackboneSpec, FeatureSpec
from belvedere.zoo.cards import Card
from belvedere.zoo.catalogue import ELSEWHERE, LICENCES, Entry, entry_of_file, entry_of_recipe
from belvedere.zoo.convert.checkpoint import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Asked,
    Checkpoint,
    summarized,
)

SWAV_STD = (0.228, 0.224, 0.225)
"""What SwAV's code divides by, in training and in evaluation."""
_STDS = {"swav": SWAV_STD, "deepcluster": SWAV_STD, "sela": SWAV_STD}


def described(
    checkpoint: Checkpoint,
    asked: Asked,
    *,
    system: str,
    backbone: BackboneSpec,
    features: FeatureSpec,
    dropped: Mapping[str, str],
    data: Mapping[str, Any] | None = None,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] | None = None,
) -> Card:
    """The card of a file of `system`. What is published of it is known by the recipe that was asked for, or
    by the file's name; the feature is then that of the recipe."""
    entry = _entry(checkpoint, asked, system)
    licence = LICENCES.get(system)
    published: dict[str, float | str] = {}
    if entry is not None:
        published = {"recipe": entry.name, **entry.accuracy, "source": entry.source}
    return Card(
        system=system,
        backbone=backbone,
        features=entry.features if entry else features,
        mean=mean,
        std=std or _STDS.get(system, IMAGENET_STD),
        source=f"{system} checkpoint {checkpoint.origin}",
        licence=None if licence is None else licence + ELSEWHERE,
        published=published,
        dropped=summarized(dropped),
        data=dict(data or {}),
    )


def _entry(checkpoint: Checkpoint, asked: Asked, system: str) -> Entry | None:
    """The published model a file is said or named to be."""
    if asked.recipe is not None:
        found = entry_of_recipe(asked.recipe)
        return found if found is not None and found.system == system else None
    return entry_of_file(checkpoint.origin, (system,))

"""The card of a converted file: what it is, where it comes from, what is published of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from belvedere.nn.spec import BackboneSpec, FeatureSpec
from belvedere.zoo.cards import Card
from belvedere.zoo.catalogue import ELSEWHERE, LICENCES, Entry, entry_of_file, entry_of_recipe
from belvedere.zoo.convert.checkpoint import (
    IMAGENET_STD,
    NOTHING_STATED,
    Asked,
    Checkpoint,
    Stated,
    summarized,
)
from belvedere.zoo.convert.images import Prepared, assumed_images, own_px
from belvedere.zoo.convert.networks import assumed

_USUAL_PX = 224
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
    notes: Mapping[str, str] | None = None,
    prepared: Prepared | None = None,
    stated: Stated = NOTHING_STATED,
) -> Card:
    """The card of a file of `system`. What is published of it is known by the recipe that was asked for, or
    by the file's name and sizes; the feature is then that of the recipe.

    features: its sizes count where it is published. prepared: how images are prepared, where the file says
    so; stated: what it says of the network. What neither says is assumed, and the card tells it.
    """
    entry = _entry(checkpoint, asked, system, backbone)
    licence = LICENCES.get(system)
    told = {**checkpoint.notes, **(notes or {})}
    if entry is None:
        told |= assumed(backbone, asked, stated)
    if prepared is None:
        prepared = _usual(features, backbone, system)
    if entry is None:
        told |= prepared.told
    published: dict[str, float | str] = {}
    if entry is not None:
        published = {"recipe": entry.name, **entry.accuracy, "source": entry.source}
    return Card(
        system=system,
        backbone=backbone,
        features=entry.features if entry else prepared.of(features),
        mean=prepared.mean,
        std=prepared.std,
        source=f"{system} checkpoint {checkpoint.origin}",
        licence=None if licence is None else licence + ELSEWHERE,
        published=published,
        dropped=summarized(dict(checkpoint.dropped) | dict(dropped)),
        notes=told,
        data={**checkpoint.counts, **(data or {})},
    )


def _usual(features: FeatureSpec, backbone: BackboneSpec, system: str) -> Prepared:
    """How a system's code prepares images, at the size the network was built for."""
    std = _STDS.get(system, IMAGENET_STD)
    prepared = assumed_images(backbone, interpolation=features.interpolation, std=std, whose=system)
    if own_px(backbone) != _USUAL_PX:
        return prepared
    return replace(prepared, resize_px=features.resize_px, crop_px=features.crop_px)


def _entry(checkpoint: Checkpoint, asked: Asked, system: str, backbone: BackboneSpec) -> Entry | None:
    """The published model a file is said or named to be, if it has the sizes of that one."""
    if asked.recipe is not None:
        found = entry_of_recipe(asked.recipe)
        return found if found is not None and found.system == system else None
    named = entry_of_file(checkpoint.origin, (system,))
    return named if named is not None and _sizes(named.backbone) == _sizes(backbone) else None


def _sizes(spec: BackboneSpec) -> dict[str, Any]:
    """What tells networks apart, without what training or a card adds."""
    added = {"drop_path", "image_px", "position_margin", "mode"}
    return {name: value for name, value in spec.model_dump().items() if name not in added}

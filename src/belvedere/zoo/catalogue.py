"""The published models of the six systems, as the shipped recipes state them: no number stands here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from belvedere.nn.spec import BackboneSpec, FeatureSpec
from belvedere.recipe.shipped import recipe_names, recipe_text
from belvedere.recipe.text import read

_FILE = re.compile(r"[A-Za-z0-9_.-]+\.(?:pth|pt|tar|bin|safetensors)")

LICENCES = {
    "msn": "CC-BY-NC-4.0 for the files published by facebookresearch/msn",
    "swav": "CC-BY-NC-4.0 for the files published by facebookresearch/swav",
    "deepcluster": "CC-BY-NC-4.0 for the files published by facebookresearch/swav",
    "sela": "CC-BY-NC-4.0 for the files published by facebookresearch/swav",
    "esvit": "MIT for the files published by microsoft/esvit",
    "mugs": "Apache-2.0 for the files published by sail-sg/mugs",
}
ELSEWHERE = "; of a checkpoint from elsewhere, that of whoever trained it"

ADDRESSES = {
    "msn": "https://dl.fbaipublicfiles.com/msn/",
    "swav": "https://dl.fbaipublicfiles.com/deepcluster/",
    "deepcluster": "https://dl.fbaipublicfiles.com/deepcluster/",
    "sela": "https://dl.fbaipublicfiles.com/deepcluster/",
}
"""Where the files of a system lie that have an address of their own."""

PLACES = {
    "esvit": "on Azure, by the link and the token that the authors' README prints",
    "mugs": "by the links that the authors' README prints",
}
"""Where a person finds the files of the other systems."""


@dataclass(frozen=True)
class Entry:
    """A published model. name: its recipe's; accuracy: top-1 in percent, by protocol; source: where that
    stands; file: its published name, None where it has none of its own; note: what the recipe says instead.
    """

    name: str
    system: str
    backbone: BackboneSpec
    features: FeatureSpec
    epochs: int
    accuracy: Mapping[str, float]
    source: str
    file: str | None
    note: str | None

    @property
    def licence(self) -> str:
        return LICENCES[self.system]

    @property
    def address(self) -> str | None:
        """Where the file can be fetched from; None where that takes a person."""
        base = ADDRESSES.get(self.system)
        return base + self.file if base and self.file else None

    @property
    def is_published(self) -> bool:
        """Whether its authors gave the file away at all."""
        return bool(self.address or self.note or self.system in PLACES)

    @property
    def place(self) -> str:
        """In words, where the file is: for those without an address."""
        return self.note or PLACES.get(self.system) or "nowhere that its authors say"


@cache
def entries() -> tuple[Entry, ...]:
    """Every shipped recipe that has a `published` section, by name."""
    found = []
    for name in recipe_names():
        values = read(recipe_text(name)).values
        if values.get("published") and values["method"]["name"] in LICENCES:
            found.append(_entry(name, values))
    return tuple(found)


def entry_of_file(file: str, systems: tuple[str, ...]) -> Entry | None:
    """The published model of one of these systems whose file has this name; None for any other."""
    return next((one for one in entries() if one.file == file and one.system in systems), None)


def entry_of_recipe(name: str | None) -> Entry | None:
    """The published model of a recipe; None for a recipe of which nothing is published."""
    return next((one for one in entries() if one.name == name), None)


def _entry(name: str, values: Mapping[str, Any]) -> Entry:
    published = values["published"]
    words = published.get("weights")
    is_file = bool(words) and _FILE.fullmatch(words) is not None
    backbone: BackboneSpec = TypeAdapter(BackboneSpec).validate_json(json.dumps(values["backbone"]))
    return Entry(
        name=name,
        system=values["method"]["name"],
        backbone=backbone,
        features=FeatureSpec.model_validate_json(json.dumps(values["features"])),
        epochs=values["train"]["epochs"],
        accuracy=published.get("accuracy", {}),
        source=published["source"],
        file=words if is_file else None,
        note=None if is_file else words,
    )

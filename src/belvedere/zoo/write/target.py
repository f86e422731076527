"""What goes out, where it can go, and how close the other library comes to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from belvedere.core.errors import MissingPackageError
from belvedere.core.packages import extra_command, package_command
from belvedere.nn.build import Backbone
from belvedere.nn.spec import FeatureSpec
from belvedere.zoo.cards import Card

Network = Callable[[Tensor], Tensor]
"""Images [B, 3, H, W] -> numbers that two libraries can be compared by."""


@dataclass(frozen=True)
class Classifier:
    """Logistic regression on few labels: probabilities softmax(p @ weights), where p is the feature less its
    own mean and divided by its own l2 norm. weights [D, C]; lambd: the regularization; images: labelled ones
    it was fitted on."""

    weights: Tensor
    classes: tuple[str, ...]
    lambd: float
    images: int


@dataclass(frozen=True)
class Outgoing:
    """A backbone on its way out. feature: images [B, 3, H, W] -> the card's feature [B, D] and, with a
    classifier, probabilities [B, C]; heads: what was kept beside the backbone; training: what an import kept
    for a run that continues, by its names in the method's state."""

    backbone: Backbone
    card: Card
    feature: nn.Module
    heads: Mapping[str, Tensor]
    classifier: Classifier | None = None
    training: Mapping[str, Tensor] = field(default_factory=dict)


class Side(NamedTuple):
    """One thing to compare. what: in words; ours, theirs: the two networks; sizes: image sides (height,
    width) that both take, the first the card's; tolerance: see `agreement`; float64: whether both networks
    compute in it."""

    what: str
    ours: Network
    theirs: Network
    sizes: tuple[tuple[int, int], ...]
    tolerance: float
    float64: bool


def built_px(card: Card) -> int:
    """The side of the images the card means."""
    return card.features.crop_px


@dataclass(frozen=True)
class Target:
    """A format to export to.

    library: who reads the result back. extra: the optional dependency that brings it, None where nothing is
    needed; packages: what of it must be there. refusal: why weights with this card cannot go there, or "".
    write: fills an empty folder. read_back: opens the folder with the other library and says what to compare.
    notes: what a person should know of the result; loading: Python that opens it. classifier_feature: the
    feature that a classifier in this format reads, None where it has no place for one. px: the side of square
    images that the result takes. with_heads, with_training: whether these go out too.
    """

    name: str
    library: str
    extra: str | None
    packages: tuple[str, ...]
    refusal: Callable[[Card], str]
    write: Callable[[Path, Outgoing], None]
    read_back: Callable[[Path, Outgoing], list[Side]]
    notes: Callable[[Outgoing], list[str]]
    loading: Callable[[Outgoing], str]
    classifier_feature: Callable[[FeatureSpec], FeatureSpec] | None = None
    px: Callable[[Card], int] = built_px
    with_heads: bool = False
    with_training: bool = False


def require(target: Target) -> None:
    """Raise MissingPackageError, naming the extra to install, where the target's library is not there."""
    for package in target.packages:
        try:
            import_module(package)
        except ImportError as error:
            command = package_command(package) if target.extra is None else extra_command(target.extra)
            raise MissingPackageError(
                f"--to {target.name} needs the package {package}, which cannot be imported ({error}); "
                f"install it: {command}"
            ) from error


def square(px: int) -> tuple[int, int]:
    """Height and width of a square image."""
    return px, px

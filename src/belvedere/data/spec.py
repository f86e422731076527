"""What a recipe says about data and views."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, SerializerFunctionWrapHandler, Tag, model_serializer

from belvedere.core.settings import Contradictions, Settings

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Level = Annotated[int, Field(ge=0, le=255)]
Interpolation = Literal["bilinear", "bicubic"]
Split = Literal["train", "test"]


class Jitter(Settings):
    """Colour jitter: brightness, contrast and saturation factors from [max(0, 1 - x), 1 + x], hue from
    [-x, x] of the colour circle, in a random order, all four with probability `p`."""

    p: Probability
    """Probability that a view is jittered."""
    brightness: Annotated[float, Field(ge=0.0)]
    """Largest change of the brightness factor from 1."""
    contrast: Annotated[float, Field(ge=0.0)]
    """Largest change of the contrast factor from 1."""
    saturation: Annotated[float, Field(ge=0.0)]
    """Largest change of the saturation factor from 1."""
    hue: Annotated[float, Field(ge=0.0, le=0.5)]
    """Largest shift of the hue, as a share of the colour circle."""


class Blur(Settings):
    """Gaussian blur with probability `p` and a radius (standard deviation, pixels) uniform in `radius`."""

    p: Probability
    """Probability that a view is blurred."""
    radius: tuple[Positive, Positive]
    """Smallest and largest standard deviation of the Gaussian, in pixels."""

    def contradictions(self) -> Contradictions:
        if self.radius[0] > self.radius[1]:
            yield ("", "radius must be [smallest, largest]")


class Photometry(Settings):
    """What happens to a crop after its geometry, in this order: flip, jitter, gray, blur, solarize."""

    flip: Probability
    """Probability of a horizontal flip."""
    jitter: Jitter | None
    """Colour jitter (null: none)."""
    gray: Probability
    """Probability that a view is made gray."""
    blur: Blur | None
    """Gaussian blur (null: none)."""
    solarize: Probability
    """Probability that values of 128 and more are inverted."""


MOST_OPERATIONS = 3


class RandAugment(Settings):
    """RandAugment in its increasing form: `operations` of the fifteen, all different, each carried out with
    probability `p` and a magnitude drawn from a normal distribution around `magnitude` with the standard
    deviation `magnitude_std`, cut to 0..10. fill: the colour (red, green, blue) of what rotation, shear and
    translation bring in from outside the image. (Mugs: `rand-m9-mstd0.5-inc1`.)
    """

    operations: Annotated[int, Field(ge=1, le=MOST_OPERATIONS)]
    """How many of the fifteen operations are drawn, all different."""
    p: Share
    """Probability that a drawn operation is carried out."""
    magnitude: Annotated[float, Field(ge=0.0, le=10.0)]
    """Mean magnitude of an operation."""
    magnitude_std: Annotated[float, Field(ge=0.0)]
    """Standard deviation of the magnitude."""
    fill: tuple[Level, Level, Level]
    """Colour (red, green, blue) of what an operation brings in from outside the image."""


class Erasing(Settings):
    """Random erasing with probability `p`: one box of the view, its share of the area uniform in `area` and
    its aspect ratio (height / width) log-uniform in `aspect`, becomes noise.

    The noise is normal with mean 0 and deviation 1 per value *before* normalization, on the scale on which
    pixels are in [0, 1].
    """

    p: Share
    """Probability that a box is erased."""
    area: tuple[Share, Share]
    """Smallest and largest share of the view's area."""
    aspect: tuple[Positive, Positive]
    """Smallest and largest aspect ratio of the box, height / width."""

    def contradictions(self) -> Contradictions:
        for name, (low, high) in (("area", self.area), ("aspect", self.aspect)):
            if low > high:
                yield ("", f"{name} must be [smallest, largest]")


class Strong(Settings):
    """Strong views: with probability `p` a view is made so in place of its usual way, which is the weak one.

    The whole image is flipped (as `photometry.flip` says) and changed by RandAugment, then cropped and
    resized, then erased in part; the other operations of `photometry` are for weak views.
    coin: `view`, each view tosses its own; `image`, all views of an image with this coin, of whatever role,
    are strong together, and a batch says which images are (`flags["weak"]`).
    """

    p: Share
    """Probability that a view is made strongly."""
    coin: Literal["image", "view"]
    """`view`: each view tosses its own coin; `image`: all views of an image share one."""
    randaugment: RandAugment
    """What changes the whole image before it is cropped."""
    erasing: Erasing | None
    """What is erased of the view (null: nothing)."""


class ViewSpec(Settings):
    """One role: `count` square views of `px` pixels, each a random resized crop of `scale` times the image's
    area and an aspect ratio (width / height) log-uniform in `aspect`.

    strong: when a view is augmented strongly, and how (null: never). copy_of: the role whose views these are
    once more, number for number (null: they are drawn for themselves).
    """

    count: Annotated[int, Field(ge=1)]
    """How many views of this role an image gets."""
    px: Annotated[int, Field(ge=1, le=10**12)]
    """Side of the square view, in pixels."""
    scale: tuple[Positive, Positive]
    """Smallest and largest share of the image's area that a crop covers."""
    aspect: tuple[Positive, Positive]
    """Smallest and largest aspect ratio of a crop, width / height."""
    interpolation: Interpolation
    """How a crop is resized."""
    photometry: Photometry
    """What happens to a crop after its geometry."""
    strong: Strong | None = None
    """When a view is augmented strongly, and how (null: never)."""
    copy_of: str | None = None
    """The role whose views these are once more, number for number (null: drawn for themselves)."""

    @model_serializer(mode="wrap")
    def _without_unused(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = written(self)
        unused = [name for name in ("strong", "copy_of") if values.get(name, "") is None]
        return {name: value for name, value in values.items() if name not in unused}

    def contradictions(self) -> Contradictions:
        if not self.scale[0] <= self.scale[1] <= 1.0:
            yield ("", "scale must be [smallest, largest] shares of the image's area, at most 1")
        if self.aspect[0] > self.aspect[1]:
            yield ("", "aspect must be [smallest, largest]")


def mistakes_between(views: Mapping[str, ViewSpec]) -> Iterator[tuple[tuple[str, ...], str]]:
    """What does not fit among roles: (path of the key to change, what is wrong)."""
    first: tuple[str, float] | None = None  # role and p, of those with the images' coin
    for role, view in views.items():
        if view.copy_of is not None:
            yield from _mistakes_of_copy(role, view.copy_of, views)
        elif view.strong is not None:
            yield from _without_effect(role, view.photometry, view.strong.p)
            if view.strong.coin == "image":
                first = first or (role, view.strong.p)
                if view.strong.p != first[1]:
                    words = (
                        f"{view.strong.p:g} differs from views.{first[0]}.strong.p, {first[1]:g}; one coin "
                    )
                    yield ("views", role, "strong", "p"), words + "is tossed for both (coin: image)"


def _without_effect(role: str, photometry: Photometry, p: float) -> Iterator[tuple[tuple[str, ...], str]]:
    """What is set for weak views where all are strong."""
    for name in ("jitter", "gray", "blur", "solarize"):
        if p == 1.0 and getattr(photometry, name):
            words = f"has no effect: it is for weak views, and views.{role}.strong.p is 1; write "
            yield (
                ("views", role, "photometry", name),
                words + ("null" if name in ("jitter", "blur") else "0.0"),
            )


def _mistakes_of_copy(
    role: str, original: str, views: Mapping[str, ViewSpec]
) -> Iterator[tuple[tuple[str, ...], str]]:
    path = ("views", role, "copy_of")
    drawn = [name for name, view in views.items() if view.copy_of is None]
    if original not in drawn:
        words = f"{original!r} is no view that is drawn for itself; those are: {', '.join(drawn) or 'none'}"
        yield path, words
        return
    for name in ViewSpec.model_fields:
        if name != "copy_of" and getattr(views[role], name) != getattr(views[original], name):
            yield ("views", role, name), f"differs from views.{original}.{name}, of which {role} is a copy"


class _Chosen(Settings):
    """`label` and `image` are what holds the labels and the images of a source that has several columns, keys
    or endings; null where it has not."""

    @model_serializer(mode="wrap")
    def _without_unused(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = written(self)
        unused = [name for name in ("label", "image", "range") if values.get(name, "") is None]
        return {name: value for name, value in values.items() if name not in unused}


class Part(_Chosen):
    """One of several sets of images that are mixed: where it is, which part of it, and its share of what
    training sees, relative to the other weights; label, image: as in DataSpec."""

    path: Annotated[str, Field(min_length=1)]
    """Where the images are: whatever `data.path` may be but a list."""
    split: Split | None = None
    """Which part of divided images (null: all)."""
    weight: Positive = 1.0
    """Share of what training sees, relative to the other weights."""
    label: Annotated[str, Field(min_length=1)] | None = None
    """The column, key or ending of the labels, where there are several."""
    image: Annotated[str, Field(min_length=1)] | None = None
    """The column, key or ending of the images, where there are several."""


def _kind(path: Any) -> str:
    return PARTS if isinstance(path, (tuple, list)) else ONE_PATH


ONE_PATH, PARTS = "one", "parts"
PathOrParts = Annotated[
    Annotated[str, Field(min_length=1), Tag(ONE_PATH)]
    | Annotated[tuple[Part, ...], Field(min_length=1), Tag(PARTS)],
    Discriminator(_kind),
]
"""Told apart, so that a mistake in a part is reported by that part's key."""


class DataSpec(_Chosen):
    """Where the images are and how their pixels are normalized.

    path: whatever `open_source` opens (a folder, a list of files, an archive, an array, a data set by name),
    or a list of such parts with weights. range: [low, high], the values that become black and white in images
    of more than eight bits, others are cut (left out: as docs/data.md says; it is needed for arrays that are
    not uint8). split: one of the parts a source defines (`train`, `test`), or null
    for all; a list says it for each of its parts. label, image: the column (key, ending) of the labels and
    of the images, where a source has several; a list says them for each of its parts. mean, std: per channel,
    in [0, 1].
    max_bad_share: training stops when more than this share of the images asked for could not be read and were
    replaced.
    """

    path: PathOrParts | None
    """Where the images are: a folder, a list of files, an archive, an array, a data set by name, or a list
    of such parts with weights (null: whoever runs the recipe says it)."""
    split: Split | None
    """Which part of divided images, `train` or `test` (null: all)."""
    mean: tuple[Probability, Probability, Probability]
    """What is subtracted from each channel, in [0, 1]."""
    std: tuple[Positive, Positive, Positive]
    """What each channel is divided by after that."""
    max_bad_share: Probability
    """Training stops when more than this share of the images asked for could not be read."""
    range: tuple[float, float] | None = None
    """[low, high]: the values that become black and white in images of more than eight bits."""
    label: Annotated[str, Field(min_length=1)] | None = None
    """The column, key or ending of the labels, where there are several."""
    image: Annotated[str, Field(min_length=1)] | None = None
    """The column, key or ending of the images, where there are several."""

    def contradictions(self) -> Contradictions:
        if self.range is not None and self.range[0] >= self.range[1]:
            yield ("", "range must be [low, high], low below high")
        for key in ("split", "label", "image"):
            if isinstance(self.path, tuple) and getattr(self, key) is not None:
                yield ("", f"{key} must be null where path is a list; give each of its parts a {key}")


def told(path: str | tuple[Part, ...]) -> str:
    """What `data.path` names, for people: a path, or all parts with their weights."""
    if isinstance(path, str):
        return path
    return ", ".join(f"{part.path} (weight {part.weight:g})" for part in path)

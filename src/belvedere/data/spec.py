"""What a recipe says about data and views."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from belvedere.core.settings import Settings

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Interpolation = Literal["bilinear", "bicubic"]
Split = Literal["train", "test"]


class Jitter(Settings):
    """Colour jitter: brightness, contrast and saturation factors from [max(0, 1 - x), 1 + x], hue from
    [-x, x] of the colour circle, in a random order, all four with probability `p`."""

    p: Probability
    brightness: Annotated[float, Field(ge=0.0)]
    contrast: Annotated[float, Field(ge=0.0)]
    saturation: Annotated[float, Field(ge=0.0)]
    hue: Annotated[float, Field(ge=0.0, le=0.5)]


class Blur(Settings):
    """Gaussian blur with probability `p` and a radius (standard deviation, pixels) uniform in `radius`."""

    p: Probability
    radius: tuple[Positive, Positive]

    @model_validator(mode="after")
    def _ordered(self) -> Blur:
        if self.radius[0] > self.radius[1]:
            raise ValueError("radius must be [smallest, largest]")
        return self


class Photometry(Settings):
    """What happens to a crop after its geometry, in this order: flip, jitter, gray, blur, solarize."""

    flip: Probability
    jitter: Jitter | None
    gray: Probability
    blur: Blur | None
    solarize: Probability


class ViewSpec(Settings):
    """One role: `count` square views of `px` pixels, each a random resized crop of `scale` times the image's
    area and an aspect ratio (width / height) log-uniform in `aspect`."""

    count: Annotated[int, Field(ge=1)]
    px: Annotated[int, Field(ge=1)]
    scale: tuple[Positive, Positive]
    aspect: tuple[Positive, Positive]
    interpolation: Interpolation
    photometry: Photometry

    @model_validator(mode="after")
    def _ordered(self) -> ViewSpec:
        if not self.scale[0] <= self.scale[1] <= 1.0:
            raise ValueError("scale must be [smallest, largest] shares of the image's area, at most 1")
        if self.aspect[0] > self.aspect[1]:
            raise ValueError("aspect must be [smallest, largest]")
        return self


class Part(Settings):
    """One of several sets of images that are mixed: where it is, which part of it, and its share of what
    training sees, relative to the other weights."""

    path: Annotated[str, Field(min_length=1)]
    split: Split | None = None
    weight: Positive = 1.0


class DataSpec(Settings):
    """Where the images are and how their pixels are normalized.

    path: whatever `open_source` opens (a folder, a list of files, an archive, an array, a data set by name),
    or a list of such parts with weights. split: one of the parts a source defines (`train`, `test`), or null
    for all; a list says it for each of its parts. mean, std: per channel, in [0, 1].
    max_bad_share: training stops when more than this share of the images asked for could not be read and were
    replaced.
    """

    path: Annotated[str, Field(min_length=1)] | Annotated[tuple[Part, ...], Field(min_length=1)] | None
    split: Split | None
    mean: tuple[Probability, Probability, Probability]
    std: tuple[Positive, Positive, Positive]
    max_bad_share: Probability

    @model_validator(mode="after")
    def _split_of_parts(self) -> DataSpec:
        if isinstance(self.path, tuple) and self.split is not None:
            raise ValueError("split must be null where path is a list; give each of its parts a split")
        return self


def told(path: str | tuple[Part, ...]) -> str:
    """What `data.path` names, for people: a path, or all parts with their weights."""
    if isinstance(path, str):
        return path
    return ", ".join(f"{part.path} (weight {part.weight:g})" for part in path)

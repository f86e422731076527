"""The published views twice: those of the shipped recipes, and the torchvision pipelines of the papers.

The pipelines are written out from the papers and their code's descriptions, each number once more, so that a
mistake on either side shows. `played` runs a pipeline with given parameters, `recorded` notes what a pipeline
draws by itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from belvedere.data.spec import DataSpec, Interpolation, ViewSpec
from belvedere.data.views.draw import NUM_COLUMNS, Column, Floats
from belvedere.recipe.load import load_recipe

T = pytest.importorskip("torchvision.transforms")
F = T.functional

RADIUS = (0.1, 2.0)
_MODES = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

Pipelines = dict[str, Any]


@dataclass(frozen=True)
class Published:
    """views {role: specification}; pipelines {role: torchvision's Compose up to the tensor}; mean and std."""

    views: dict[str, ViewSpec]
    pipelines: Pipelines
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def data(self) -> DataSpec:
        return DataSpec(path=None, split=None, mean=self.mean, std=self.std, max_bad_share=0.0)


# --- the papers' pipelines


class PilBlur:
    """Pillow's Gaussian blur by a radius uniform in `radius`, as all the papers have it."""

    def __init__(self, radius: tuple[float, float] = RADIUS) -> None:
        self.radius = radius

    def __call__(self, image: Any) -> Any:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(*self.radius)))


def crop(px: int, scale: tuple[float, float], interpolation: Interpolation = "bilinear") -> Any:
    return T.RandomResizedCrop(
        px, scale=scale, interpolation=getattr(F.InterpolationMode, interpolation.upper())
    )


def looks(jitter: tuple[float, ...], *, blur: float = 0.5, solarize: float = 0.0) -> list[Any]:
    """What follows the crop in every paper: flip, jitter, gray, blur, solarize."""
    parts = [
        T.RandomHorizontalFlip(0.5),
        T.RandomApply([T.ColorJitter(*jitter)], p=0.8),
        T.RandomGrayscale(p=0.2),
        T.RandomApply([PilBlur()], p=blur),
    ]
    return [*parts, T.RandomSolarize(128, p=solarize)] if solarize else parts


MSN_JITTER = (0.4, 0.4, 0.4, 0.1)  # (.8, .8, .8, .2) times the released strength 0.5
SWAV_JITTER = (0.8, 0.8, 0.8, 0.2)
DINO_JITTER = (0.4, 0.4, 0.2, 0.1)


def _msn() -> Pipelines:
    large = T.Compose([crop(224, (0.3, 1.0)), *looks(MSN_JITTER)])
    return {
        "target": large,
        "anchor": large,
        "focal": T.Compose([crop(96, (0.05, 0.3)), *looks(MSN_JITTER)]),
    }


def _swav(px: int, low: float, small_low: float | None = None) -> Pipelines:
    pipelines = {"global": T.Compose([crop(px, (low, 1.0)), *looks(SWAV_JITTER)])}
    if small_low is not None:
        pipelines["local"] = T.Compose([crop(96, (small_low, 0.14)), *looks(SWAV_JITTER)])
    return pipelines


def _dino(roles: tuple[str, str], low: float, small: tuple[float, float]) -> Pipelines:
    large = crop(224, (low, 1.0), "bicubic")
    return {
        roles[0]: T.Compose([large, *looks(DINO_JITTER, blur=1.0)]),
        roles[1]: T.Compose([large, *looks(DINO_JITTER, blur=0.1, solarize=0.2)]),
        "local": T.Compose([crop(96, small, "bicubic"), *looks(DINO_JITTER)]),
    }


def _fashion() -> Pipelines:
    after = [T.RandomHorizontalFlip(0.5), T.RandomApply([T.ColorJitter(0.4, 0.4, 0.0, 0.0)], p=0.8)]
    large = T.Compose([crop(28, (0.4, 1.0)), *after])
    return {"target": large, "anchor": large, "focal": T.Compose([crop(14, (0.15, 0.6)), *after])}


def _digits() -> Pipelines:
    large = T.Compose([crop(8, (0.7, 1.0))])
    return {"target": large, "anchor": large, "focal": T.Compose([crop(6, (0.4, 0.9))])}


# --- the same in the shipped recipes


def _shipped(name: str, pipelines: Pipelines) -> Published:
    recipe = load_recipe(name, ["data.path=digits"])
    return Published(dict(recipe.views), pipelines, recipe.data.mean, recipe.data.std)


def _weak(shipped: Published) -> Published:
    """Only the views that have a pipeline, each as it is where it is not strong."""
    views = {role: shipped.views[role].model_copy(update={"strong": None}) for role in shipped.pipelines}
    return replace(shipped, views=views)


PUBLISHED = {
    "msn": _shipped("msn/vits16", _msn()),
    # DeepCluster-v2's longest run has the same views
    "swav 2x224+6x96": _shipped("swav/rn50-800ep", _swav(224, 0.14, 0.05)),
    "deepcluster 2x160+4x96": _shipped("deepcluster/rn50-400ep", _swav(160, 0.08, 0.05)),
    "swav 2x224": _shipped("swav/rn50-400ep-2x224", _swav(224, 0.08)),
    "swav w2 2x224+4x96": _shipped("swav/rn50w2-400ep", _swav(224, 0.14, 0.05)),
    "swav w4 2x224+4x96": _shipped("swav/rn50w4-400ep", _swav(224, 0.08, 0.08)),
    "esvit": _shipped("esvit/swin-tiny-w7", _dino(("global", "global_2"), 0.4, (0.05, 0.4))),
    "mugs weak": _weak(_shipped("mugs/vits16-800ep", _dino(("target", "target_2"), 0.25, (0.05, 0.25)))),
}
"""Of photographs. Mugs' strong views are not among them."""

SMALL = {"fashion": _shipped("msn/fashion", _fashion()), "digits": _shipped("tiny/msn", _digits())}
"""Of gray images of 28 and 8 px, at their native size; belvedere's own runs."""


# --- a pipeline with given parameters


def played(pipeline: Any, image: Image.Image, row: Floats, *, across_first: bool = False) -> Image.Image:
    """The view that a pipeline makes of an image when it draws the numbers of one row [P].

    across_first: resize as Pillow did before version 13, first across and then down. Newer ones choose the
    order by the sizes, which moves a pixel by a level here and there.
    """
    for step in pipeline.transforms:
        part = step.transforms[0] if isinstance(step, T.RandomApply) else step
        image = _PLAY[type(part)](part, image, row, across_first)
    return image


def _play_crop(part: Any, image: Image.Image, row: Floats, across_first: bool) -> Image.Image:
    top, left, height, width = (int(value) for value in row[: Column.WIDTH + 1])
    if not across_first:
        return F.resized_crop(image, top, left, height, width, list(part.size), part.interpolation)
    mode = _MODES[part.interpolation.value]
    cropped = image.crop((left, top, left + width, top + height))
    return cropped.resize((part.size[1], height), mode).resize(part.size[::-1], mode)


def _play_jitter(part: Any, image: Image.Image, row: Floats, _: bool) -> Image.Image:
    if not row[Column.JITTER]:
        return image
    adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    ranges = (part.brightness, part.contrast, part.saturation, part.hue)
    for number in row[Column.ORDER_0 : Column.ORDER_3 + 1].astype(int):
        if ranges[number] is not None:
            image = adjust[number](image, float(row[Column.BRIGHTNESS + number]))
    return image


def _on(column: Column, change: Callable[[Any, Image.Image, Floats], Image.Image]) -> Callable[..., Any]:
    """`change` where the column of the row says so."""
    return lambda part, image, row, _: change(part, image, row) if row[column] else image


_PLAY: dict[type, Callable[..., Any]] = {
    T.RandomResizedCrop: _play_crop,
    T.ColorJitter: _play_jitter,
    T.RandomHorizontalFlip: _on(Column.FLIP, lambda _, image, row: F.hflip(image)),
    T.RandomGrayscale: _on(Column.GRAY, lambda _, image, row: F.to_grayscale(image, 3)),
    T.RandomSolarize: _on(Column.SOLARIZE, lambda part, image, row: F.solarize(image, part.threshold)),
    PilBlur: _on(
        Column.BLUR,
        lambda _, image, row: image.filter(ImageFilter.GaussianBlur(float(row[Column.RADIUS]))),
    ),
}


# --- what a pipeline draws


class _Noted:
    """Stands for an image: notes which operations a pipeline applies to it, and with what."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.row = np.zeros(NUM_COLUMNS)
        self._adjusted = 0

    def box(self, top: int, left: int, height: int, width: int, *_: Any, **__: Any) -> _Noted:
        self.row[: Column.WIDTH + 1] = top, left, height, width
        return self

    def on(self, column: Column) -> _Noted:
        self.row[column] = 1.0
        return self

    def adjust(self, number: int, factor: float) -> _Noted:
        self.row[Column.JITTER] = 1.0
        self.row[Column.BRIGHTNESS + number] = factor
        self.row[Column.ORDER_0 + self._adjusted] = number
        self._adjusted += 1
        return self

    def filter(self, blur: ImageFilter.GaussianBlur) -> _Noted:
        self.row[Column.RADIUS] = blur.radius
        return self.on(Column.BLUR)


def recorded(pipeline: Any, size: tuple[int, int], num: int, *, seed: int) -> Floats:
    """Rows [num, P] of what a pipeline draws by itself for an image of this size; unset where not applied.

    torchvision's classes draw and decide; only the functions they would apply to pixels are replaced.
    """
    noting = SimpleNamespace(
        get_dimensions=lambda image: [3, image.height, image.width],
        resized_crop=lambda image, *box, **options: image.box(*box, **options),
        hflip=lambda image: image.on(Column.FLIP),
        rgb_to_grayscale=lambda image, **_: image.on(Column.GRAY),
        solarize=lambda image, threshold: image.on(Column.SOLARIZE),
        adjust_brightness=lambda image, factor: image.adjust(0, factor),
        adjust_contrast=lambda image, factor: image.adjust(1, factor),
        adjust_saturation=lambda image, factor: image.adjust(2, factor),
        adjust_hue=lambda image, factor: image.adjust(3, factor),
    )
    state = random.getstate()
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.setattr("torchvision.transforms.transforms.F", noting)
        torch.manual_seed(seed)
        random.seed(seed)
        rows = np.stack([pipeline(_Noted(*size)).row for _ in range(num)])
    random.setstate(state)
    return rows

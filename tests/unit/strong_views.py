"""Settings of strong views that several tests share, and what Pillow makes of them."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from belvedere.data.spec import Blur, Erasing, Jitter, Photometry, RandAugment, Strong, ViewSpec
from belvedere.data.views.draw import draw, view_key
from belvedere.data.views.randaugment import Operation
from belvedere.data.views.row import ARGUMENTS, BICUBIC, OPERATIONS, Column

FILL = (124, 116, 104)
CHANGES = RandAugment(operations=2, p=0.5, magnitude=9.0, magnitude_std=0.5, fill=FILL)
ERASING = Erasing(p=0.25, area=(0.02, 1 / 3), aspect=(0.3, 1 / 0.3))
NUM = 20_000


def strong(**changes: object) -> Strong:
    return Strong.model_validate(
        {"p": 0.5, "coin": "view", "randaugment": CHANGES, "erasing": ERASING} | changes
    )


def view(*, count: int = 1, px: int = 24, how: Strong | None = None, **changes: object) -> ViewSpec:
    looks = Photometry(
        flip=0.5,
        jitter=Jitter(p=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1),
        gray=0.2,
        blur=Blur(p=0.5, radius=(0.1, 2.0)),
        solarize=0.2,
    )
    spec = ViewSpec(
        count=count,
        px=px,
        scale=(0.05, 1.0),
        aspect=(3 / 4, 4 / 3),
        interpolation="bicubic",
        photometry=looks,
        strong=how,
    )
    return spec.model_copy(update=changes)


def mugs() -> dict[str, ViewSpec]:
    """The roles of Mugs, small."""
    pair = strong(coin="image")
    return {
        "teacher": view(count=2),
        "global_1": view(how=pair),
        "global_2": view(how=pair),
        "local": view(count=3, px=12, how=strong()),
    }


def rows_of(how: Strong, *, num: int = NUM, size: tuple[int, int] = (300, 400), seed: int = 0) -> np.ndarray:
    """The rows of the views that are strong."""
    drawn = draw(view(how=how), view_key(seed, 0, "local"), np.arange(num), np.tile(size, (num, 1)))[:, 0]
    return drawn[drawn[:, Column.STRONG] > 0]


def published(image: Image.Image, operation: int, argument: float, *, bicubic: bool) -> Image.Image:
    """One operation as the specification has it, by Pillow."""
    width, height = image.size
    resample = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    if operation == Operation.ROTATE:
        return image.rotate(argument, resample=resample, fillcolor=FILL)
    maps = {
        Operation.SHEAR_X: (1, argument, 0, 0, 1, 0),
        Operation.SHEAR_Y: (1, 0, 0, argument, 1, 0),
        Operation.TRANSLATE_X: (1, 0, argument * width, 0, 1, 0),
        Operation.TRANSLATE_Y: (1, 0, 0, 0, 1, argument * height),
    }
    if operation in maps:
        affine = Image.Transform.AFFINE
        return image.transform(image.size, affine, maps[operation], resample=resample, fillcolor=FILL)
    whole = int(argument)
    levels = range(256)
    plain = {
        Operation.AUTO_CONTRAST: lambda: ImageOps.autocontrast(image),
        Operation.EQUALIZE: lambda: ImageOps.equalize(image),
        Operation.INVERT: lambda: ImageOps.invert(image),
        Operation.POSTERIZE: lambda: image.point([v >> 8 - whole << 8 - whole for v in levels] * 3),
        Operation.SOLARIZE: lambda: ImageOps.solarize(image, whole),
        Operation.SOLARIZE_ADD: lambda: image.point(
            [min(255, v + whole) if v < 128 else v for v in levels] * 3
        ),
        Operation.COLOR: lambda: ImageEnhance.Color(image).enhance(argument),
        Operation.CONTRAST: lambda: ImageEnhance.Contrast(image).enhance(argument),
        Operation.BRIGHTNESS: lambda: ImageEnhance.Brightness(image).enhance(argument),
        Operation.SHARPNESS: lambda: ImageEnhance.Sharpness(image).enhance(argument),
    }
    return plain[Operation(operation)]()


def by_pillow(pixels: np.ndarray, row: np.ndarray, px: int) -> np.ndarray:
    """The strong crop [3, px, px] of pixels [H, W, 3], all of it on the whole image."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if row[Column.MIRROR]:
        image = ImageOps.mirror(image)
    for number, argument, bicubic in zip(row[OPERATIONS], row[ARGUMENTS], row[BICUBIC], strict=True):
        if number:
            image = published(image, int(number), float(argument), bicubic=bool(bicubic))
    top, left, height, width = (int(value) for value in row[: Column.WIDTH + 1])
    part = image.crop((left, top, left + width, top + height))
    wide = part.resize((px, height), Image.Resampling.BICUBIC)
    return np.asarray(wide.resize((px, px), Image.Resampling.BICUBIC)).transpose(2, 0, 1)

"""RandAugment as users write it, with Pillow: the other side of the Mugs row of `views.py`."""

from __future__ import annotations

import random
from collections.abc import Callable

from PIL import Image, ImageEnhance, ImageOps

Fill = tuple[int, int, int]
Change = Callable[[Image.Image, float], Image.Image]
RESAMPLING = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)


def solarize_add(image: Image.Image, add: float) -> Image.Image:
    return image.point([min(255, level + int(add)) if level < 128 else level for level in range(256)] * 3)


def posterize(image: Image.Image, bits: float) -> Image.Image:
    return ImageOps.posterize(image, int(bits)) if bits else Image.new("RGB", image.size)


def level(most: float) -> Callable[[float], float]:
    """The argument of an operation with a sign, by its magnitude."""
    return lambda v: random.choice((-1.0, 1.0)) * (v / 10.0 * most)


def factor(v: float) -> float:
    return 1.0 + level(0.9)(v)


PLAIN: dict[str, tuple[Change, Callable[[float], float]]] = {
    "AUTO_CONTRAST": (lambda image, _: ImageOps.autocontrast(image), float),
    "EQUALIZE": (lambda image, _: ImageOps.equalize(image), float),
    "INVERT": (lambda image, _: ImageOps.invert(image), float),
    "POSTERIZE": (posterize, lambda v: 4 - int(v / 10.0 * 4)),
    "SOLARIZE": (lambda image, at: ImageOps.solarize(image, int(at)), lambda v: 256 - int(v / 10.0 * 256)),
    "SOLARIZE_ADD": (solarize_add, lambda v: int(v / 10.0 * 110)),
    "COLOR": (lambda image, by: ImageEnhance.Color(image).enhance(by), factor),
    "CONTRAST": (lambda image, by: ImageEnhance.Contrast(image).enhance(by), factor),
    "BRIGHTNESS": (lambda image, by: ImageEnhance.Brightness(image).enhance(by), factor),
    "SHARPNESS": (lambda image, by: ImageEnhance.Sharpness(image).enhance(by), factor),
}
"""What each operation does, and with which argument."""

MOVING: dict[str, Callable[[float], float]] = {
    "ROTATE": level(30.0),
    "SHEAR_X": level(0.3),
    "SHEAR_Y": level(0.3),
    "TRANSLATE_X": level(0.45),
    "TRANSLATE_Y": level(0.45),
}


def changed(image: Image.Image, name: str, argument: float, *, bicubic: bool, fill: Fill) -> Image.Image:
    """The image after one operation."""
    if name in PLAIN:
        return PLAIN[name][0](image, argument)
    resample = RESAMPLING[bicubic]
    if name == "ROTATE":
        return image.rotate(argument, resample=resample, fillcolor=fill)
    width, height = image.size
    data = {
        "SHEAR_X": (1, argument, 0, 0, 1, 0),
        "SHEAR_Y": (1, 0, 0, argument, 1, 0),
        "TRANSLATE_X": (1, 0, argument * width, 0, 1, 0),
        "TRANSLATE_Y": (1, 0, 0, 0, 1, argument * height),
    }[name]
    return image.transform(image.size, Image.Transform.AFFINE, data, resample=resample, fillcolor=fill)


class PilRandAugment:
    """Some of the fifteen operations, each carried out with a probability."""

    def __init__(self, operations: int, p: float, magnitude: float, magnitude_std: float, fill: Fill) -> None:
        self.operations, self.p, self.fill = operations, p, fill
        self.magnitude, self.magnitude_std = magnitude, magnitude_std
        self.names = [*PLAIN, *MOVING]

    def __call__(self, image: Image.Image) -> Image.Image:
        for name in random.sample(self.names, self.operations):
            if random.random() >= self.p:
                continue
            magnitude = min(10.0, max(0.0, random.gauss(self.magnitude, self.magnitude_std)))
            argument = (PLAIN[name][1] if name in PLAIN else MOVING[name])(magnitude)
            image = changed(image, name, argument, bicubic=random.random() < 0.5, fill=self.fill)
        return image

"""RandAugment's operations on a whole image by Pillow: what the compiled renderer must equal to the byte."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from belvedere.data.views.randaugment import Operation
from belvedere.data.views.row import ARGUMENTS, BICUBIC, OPERATIONS, Column

Floats = NDArray[np.float64]
Fill = tuple[int, int, int]
Matrix = tuple[float, float, float, float, float, float]

_ADDED_BELOW = 128
_ENHANCE = {
    Operation.COLOR: ImageEnhance.Color,
    Operation.CONTRAST: ImageEnhance.Contrast,
    Operation.BRIGHTNESS: ImageEnhance.Brightness,
    Operation.SHARPNESS: ImageEnhance.Sharpness,
}


class Step(NamedTuple):
    """One operation on an image. matrix: of those that move pixels, from a place in the new image (x, y, 1)
    to the one in the old image it is taken from; None of the others."""

    operation: Operation
    argument: float
    matrix: Matrix | None
    bicubic: bool


def steps_of(row: Floats, height: int, width: int) -> list[Step]:
    """The operations of a strong view's row [P] on an image of this size; those that do nothing are left
    out."""
    found = []
    for number, argument, bicubic in zip(
        row[OPERATIONS].tolist(), row[ARGUMENTS].tolist(), row[BICUBIC].tolist(), strict=True
    ):
        operation = Operation(int(number))
        if operation == Operation.NOTHING or (operation == Operation.ROTATE and argument % 360.0 == 0.0):
            continue
        found.append(Step(operation, argument, matrix(operation, argument, height, width), bicubic > 0))
    return found


def matrix(operation: Operation, argument: float, height: int, width: int) -> Matrix | None:
    """The map of an operation that moves pixels, as Pillow has it; None of any other operation."""
    if operation == Operation.ROTATE:
        return _rotation(argument, height, width)
    if operation == Operation.SHEAR_X:
        return 1.0, argument, 0.0, 0.0, 1.0, 0.0
    if operation == Operation.SHEAR_Y:
        return 1.0, 0.0, 0.0, argument, 1.0, 0.0
    if operation == Operation.TRANSLATE_X:
        return 1.0, 0.0, argument * width, 0.0, 1.0, 0.0
    if operation == Operation.TRANSLATE_Y:
        return 1.0, 0.0, 0.0, 0.0, 1.0, argument * height
    return None


def _rotation(degrees: float, height: int, width: int) -> Matrix:
    """Around the middle; sines and cosines are rounded as Pillow rounds them."""
    angle = -math.radians(degrees % 360.0)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    return cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y


def augmented(image: Image.Image, row: Floats, *, fill: Fill) -> Image.Image:
    """The RGB image mirrored and changed as a strong view's row [P] says."""
    if row[Column.MIRROR] > 0:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for step in steps_of(row, image.height, image.width):
        image = applied(image, step, fill=fill)
    return image


def applied(image: Image.Image, step: Step, *, fill: Fill) -> Image.Image:
    """The RGB image changed by one operation; fill: the colour of what lies outside the image."""
    operation, argument, matrix, bicubic = step
    if matrix is not None:
        resample = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
        affine = Image.Transform.AFFINE
        return image.transform(image.size, affine, matrix, resample=resample, fillcolor=fill)
    if operation in _ENHANCE:
        return _ENHANCE[operation](image).enhance(argument)
    if operation == Operation.AUTO_CONTRAST:
        return ImageOps.autocontrast(image)
    if operation == Operation.EQUALIZE:
        return ImageOps.equalize(image)
    if operation == Operation.INVERT:
        return ImageOps.invert(image)
    if operation == Operation.POSTERIZE:
        dropped = 2 ** (8 - int(argument)) - 1  # newer Pillows refuse to keep no bit
        return image.point([v & ~dropped for v in range(256)] * 3)
    if operation == Operation.SOLARIZE:
        return ImageOps.solarize(image, int(argument))
    assert operation == Operation.SOLARIZE_ADD
    table = [min(255, v + int(argument)) if v < _ADDED_BELOW else v for v in range(256)]
    return image.point(table * 3)

"""RandAugment's fifteen operations: how strong each one is, and what of them a view gets.

The increasing form: a larger magnitude is always a stronger change. (Cubuk et al. 2020, arXiv 1909.13719;
the set and its levels are those Mugs was trained with.)
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from belvedere.data.spec import MOST_OPERATIONS, RandAugment

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Operation(IntEnum):
    """What can happen to a whole image, with its argument.

    AUTO_CONTRAST, EQUALIZE, INVERT: none. ROTATE: degrees, counter-clockwise. POSTERIZE: bits that are kept.
    SOLARIZE: the level from which on pixels are inverted. SOLARIZE_ADD: what is added to pixels below 128.
    COLOR, CONTRAST, BRIGHTNESS, SHARPNESS: a factor, 1 for no change. SHEAR_X, SHEAR_Y: pixels per pixel.
    TRANSLATE_X, TRANSLATE_Y: shares of the image's width or height. NOTHING stands for an empty place.
    """

    NOTHING = 0
    AUTO_CONTRAST = 1
    EQUALIZE = 2
    INVERT = 3
    ROTATE = 4
    POSTERIZE = 5
    SOLARIZE = 6
    SOLARIZE_ADD = 7
    COLOR = 8
    CONTRAST = 9
    BRIGHTNESS = 10
    SHARPNESS = 11
    SHEAR_X = 12
    SHEAR_Y = 13
    TRANSLATE_X = 14
    TRANSLATE_Y = 15


NUM_OPERATIONS = len(Operation) - 1
_FIRST_FACTOR, _LAST_FACTOR = Operation.COLOR, Operation.SHARPNESS

# Columns of uniform numbers: one for each operation's place in the order, and five for each that is chosen
_ORDER = slice(0, NUM_OPERATIONS)
_APPLIED, _RADIUS, _TURN, _SIGN, _BICUBIC = (
    slice(start, start + MOST_OPERATIONS)
    for start in range(NUM_OPERATIONS, NUM_OPERATIONS + 5 * MOST_OPERATIONS, MOST_OPERATIONS)
)
NUM_UNIFORMS = NUM_OPERATIONS + 5 * MOST_OPERATIONS


def arguments(operations: Ints, magnitudes: Floats, negative: Bools) -> Floats:
    """The argument of each operation at a magnitude in 0..10; `negative` turns those round that have a sign.

    All of one shape. A share of ten comes before the factor: the other order differs in the last bit, and
    that moves single pixels by a level.
    """
    share = magnitudes / 10.0
    sign = np.where(negative, -1.0, 1.0)
    found = np.zeros(share.shape)
    for operation, value in (
        (Operation.ROTATE, sign * (share * 30.0)),
        (Operation.POSTERIZE, 4.0 - np.trunc(share * 4.0)),
        (Operation.SOLARIZE, 256.0 - np.trunc(share * 256.0)),
        (Operation.SOLARIZE_ADD, np.trunc(share * 110.0)),
        (Operation.SHEAR_X, sign * (share * 0.3)),
        (Operation.SHEAR_Y, sign * (share * 0.3)),
        (Operation.TRANSLATE_X, sign * (share * 0.45)),
        (Operation.TRANSLATE_Y, sign * (share * 0.45)),
    ):
        found = np.where(operations == operation, value, found)
    factors = (operations >= _FIRST_FACTOR) & (operations <= _LAST_FACTOR)
    return np.where(factors, 1.0 + sign * (share * 0.9), found)


def draw_operations(spec: RandAugment, u: Floats) -> tuple[Ints, Floats, Bools]:
    """Operations, arguments and whether they resample bicubically, each [R, MOST_OPERATIONS], from uniforms
    u [R, NUM_UNIFORMS].

    Operations are drawn without replacement and stand in the order they are carried out; NOTHING where there
    is none or chance left it out.
    """
    order = np.argsort(u[:, _ORDER], axis=1, kind="stable")[:, :MOST_OPERATIONS] + 1
    applied = (u[:, _APPLIED] < spec.p) & (np.arange(MOST_OPERATIONS) < spec.operations)
    operations = np.where(applied, order, int(Operation.NOTHING))
    normal = np.sqrt(-2.0 * np.log1p(-u[:, _RADIUS])) * np.cos(2.0 * np.pi * u[:, _TURN])
    magnitudes = np.clip(spec.magnitude + spec.magnitude_std * normal, 0.0, 10.0)
    found = arguments(operations, magnitudes, u[:, _SIGN] > 0.5)
    return operations, found, u[:, _BICUBIC] >= 0.5

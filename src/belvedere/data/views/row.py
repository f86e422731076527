"""What a row of view parameters holds."""

from __future__ import annotations

from enum import IntEnum

from belvedere.data.spec import MOST_OPERATIONS


class Column(IntEnum):
    """Columns of a row of view parameters.

    The crop box in whole pixels; whether to flip; whether to jitter, by which factors (hue: share of the
    colour circle) and in which order (ORDER_0 is the operation applied first: 0 brightness, 1 contrast, 2
    saturation, 3 hue); whether to turn gray, to blur and by which radius in pixels, to solarize; a whole
    number for what needs noise.

    Of strong views alone, and zero elsewhere: STRONG itself; whether the whole image is mirrored before its
    operations; these (numbers of `randaugment.Operation`), their arguments and whether they resample
    bicubically, in the order they are applied; the box of the view that is erased, of height 0 for none.
    """

    TOP = 0
    LEFT = 1
    HEIGHT = 2
    WIDTH = 3
    FLIP = 4
    JITTER = 5
    BRIGHTNESS = 6
    CONTRAST = 7
    SATURATION = 8
    HUE = 9
    ORDER_0 = 10
    ORDER_1 = 11
    ORDER_2 = 12
    ORDER_3 = 13
    GRAY = 14
    BLUR = 15
    RADIUS = 16
    SOLARIZE = 17
    NOISE = 18
    STRONG = 19
    MIRROR = 20
    OPERATION_0 = 21
    OPERATION_1 = 22
    OPERATION_2 = 23
    ARGUMENT_0 = 24
    ARGUMENT_1 = 25
    ARGUMENT_2 = 26
    BICUBIC_0 = 27
    BICUBIC_1 = 28
    BICUBIC_2 = 29
    ERASE_TOP = 30
    ERASE_LEFT = 31
    ERASE_HEIGHT = 32
    ERASE_WIDTH = 33


NUM_COLUMNS = len(Column)

OPERATIONS = slice(Column.OPERATION_0, Column.OPERATION_0 + MOST_OPERATIONS)
ARGUMENTS = slice(Column.ARGUMENT_0, Column.ARGUMENT_0 + MOST_OPERATIONS)
BICUBIC = slice(Column.BICUBIC_0, Column.BICUBIC_0 + MOST_OPERATIONS)
ERASED = slice(Column.ERASE_TOP, Column.ERASE_WIDTH + 1)

# mypy: ignore-errors
# What stands under `triton.jit` is Triton's language, which has no types for Python's checker.
"""The Triton kernels of the fused renderer. Only `fused.py` imports them: Triton is not everywhere.

Each program renders a tile of one view. Every number is a whole one, or one float32 operation that all
devices round alike, or a quotient whose whole part survives any rounding; the launches forbid fused
multiply-adds. So the bytes are those of `photometry.py`.

Legend: `batch` is the array of `fused_parameters.py`; row: a view of the batch; slot: its place among the
blurred ones; plane: pixels of one channel. r, g, b are int32 tiles [TILE, TILE].
"""

from __future__ import annotations

import triton
import triton.language as tl

from belvedere.data.views.fused_parameters import CONTRAST, HUE, NOTHING, PLACES, SATURATION, Field, Head

TILE = 32
"""Pixels of a tile's side: the sizes of views are mostly multiples of it."""

_TILE = tl.constexpr(TILE)
_PLACES = tl.constexpr(PLACES)
_NOTHING = tl.constexpr(NOTHING)
_CONTRAST = tl.constexpr(CONTRAST)
_HUE = tl.constexpr(HUE)
_SATURATION = tl.constexpr(SATURATION)
_SOLARIZE_FROM = tl.constexpr(128)

_FACTOR = tl.constexpr(int(Head.FACTOR))
_OFFSET = tl.constexpr(int(Head.OFFSET))
_ROWS = tl.constexpr(int(Head.END))
_FIELDS = tl.constexpr(int(Field.COUNT))
_AMOUNT = tl.constexpr(int(Field.AMOUNT))
_CONTRAST_AT = tl.constexpr(int(Field.CONTRAST_AT))
_FLIP = tl.constexpr(int(Field.FLIP))
_GRAY = tl.constexpr(int(Field.GRAY))
_SOLARIZE = tl.constexpr(int(Field.SOLARIZE))
_BLUR = tl.constexpr(int(Field.BLUR))
_INNER = tl.constexpr(int(Field.INNER))
_OUTER = tl.constexpr(int(Field.OUTER))
_REACH = tl.constexpr(int(Field.REACH))
_CONTRASTED = tl.constexpr(int(Field.CONTRASTED))
_BLURRED = tl.constexpr(int(Field.BLURRED))


@triton.jit
def _fields(batch, row):
    return batch + _ROWS + row.to(tl.int64) * _FIELDS


@triton.jit
def _tile(tile, height, width):
    """Rows [TILE, 1] and columns [1, TILE] of a tile by its number in the image, and which are inside."""
    across = (width + _TILE - 1) // _TILE
    steps = tl.arange(0, _TILE)
    y = (tile // across * _TILE + steps)[:, None]
    x = (tile % across * _TILE + steps)[None, :]
    return y, x, (y < height) & (x < width)


@triton.jit
def _pixels(view, at, inside, plane, CHANNELS: tl.constexpr):
    r = tl.load(view + at, mask=inside, other=0).to(tl.int32)
    g = r
    b = r
    if CHANNELS == 3:
        g = tl.load(view + plane + at, mask=inside, other=0).to(tl.int32)
        b = tl.load(view + 2 * plane + at, mask=inside, other=0).to(tl.int32)
    return r, g, b


@triton.jit
def _luma(r, g, b):
    return (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16


@triton.jit
def _blend(base, channel, factor):
    start = base.to(tl.float32)
    mixed = (channel.to(tl.float32) - start) * factor + start
    return tl.minimum(tl.maximum(mixed, 0.0), 255.0).to(tl.int32)


@triton.jit
def _quotient(number, divisor):
    """number // divisor, of positive whole numbers whose quotient is at most 255.

    The half keeps number / divisor away from whole numbers by 0.5 / divisor, at least 1/3060: far more than
    any division is wrong by.
    """
    return ((number.to(tl.float32) + 0.5) / divisor.to(tl.float32)).to(tl.int32)


@triton.jit
def _facet(value, saturation, weight):
    """A channel: value less its share saturation * weight / 255**2, rounded to the nearest whole number.

    There are no ties: 65025 is odd.
    """
    weight = tl.minimum(tl.maximum(weight, 0), 255)
    return (2 * value * (65025 - saturation * weight) + 65025) // 130050


@triton.jit
def _turned(r, g, b, shift, batch):
    """The hue turned by `shift` steps, through 8-bit hue, saturation and value."""
    high = tl.maximum(tl.maximum(r, g), b)
    spread = high - tl.minimum(tl.minimum(r, g), b)
    from_red = g - b + tl.where(g < b, 6 * spread, 0)
    numerator = tl.where(r == high, from_red, tl.where(g == high, 2 * spread + b - r, 4 * spread + r - g))
    circle = tl.maximum(6 * spread, 1)
    hue = _quotient(255 * numerator, circle)
    exact = hue * circle == 255 * numerator
    hue -= tl.load(batch + hue, mask=exact, other=0)  # the head's first part
    saturation = _quotient(255 * spread, tl.maximum(high, 1))
    turn = 6 * ((hue + shift) & 255)  # 255 steps to each of six sectors
    return (
        _facet(high, saturation, tl.minimum(turn - 255, 1275 - turn)),
        _facet(high, saturation, tl.maximum(255 - turn, turn - 765)),
        _facet(high, saturation, tl.maximum(765 - turn, turn - 1275)),
    )


@triton.jit
def _jittered(r, g, b, fields, places, mean, batch):
    """The first `places` adjustments of the row's order."""
    place = 0
    while place < places:  # a range of it fails in older interpreters with a newer numpy
        operation = tl.load(fields + place)
        amount = tl.load(fields + _AMOUNT + place)
        if operation == _HUE:
            r, g, b = _turned(r, g, b, amount, batch)
        elif operation != _NOTHING:
            base = tl.zeros_like(r)
            if operation == _SATURATION:
                base = _luma(r, g, b)
            elif operation == _CONTRAST:
                base += mean
            factor = amount.to(tl.float32, bitcast=True)
            r = _blend(base, r, factor)
            g = _blend(base, g, factor)
            b = _blend(base, b, factor)
        place += 1
    return r, g, b


@triton.jit
def _rounded(number, dtype: tl.constexpr):
    """A float32 at the nearest number of `dtype`, ties to even; by its bits, as conversions may cut them."""
    if dtype == tl.bfloat16:
        bits = number.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
        number = bits.to(tl.float32, bitcast=True)
    return number


@triton.jit
def _write_normalized(views, channel, at, inside, plane, number: tl.constexpr, batch):
    """Scaled and shifted as `photometry.normalize` does, each operation rounded to the views' type."""
    factor = tl.load(batch + _FACTOR + number).to(tl.float32, bitcast=True)
    offset = tl.load(batch + _OFFSET + number).to(tl.float32, bitcast=True)
    dtype: tl.constexpr = views.dtype.element_ty
    level = _rounded(_rounded(channel.to(tl.float32) * factor, dtype) + offset, dtype)
    tl.store(views + number * plane + at, level.to(dtype), mask=inside)


@triton.jit
def _solarized(channel, fields):
    if tl.load(fields + _SOLARIZE) != 0:
        channel = tl.where(channel < _SOLARIZE_FROM, channel, 255 - channel)
    return channel


@triton.jit
def sum_luma(crops, batch, totals, height, width, tiles, CHANNELS: tl.constexpr):
    """Add to totals [N] int64 the gray levels of a tile as its view looks when contrast comes."""
    program = tl.program_id(0)
    row = tl.load(batch + _ROWS + (program // tiles).to(tl.int64) * _FIELDS + _CONTRASTED)
    fields = _fields(batch, row)
    y, x, inside = _tile(program % tiles, height, width)
    plane = (height * width).to(tl.int64)
    r, g, b = _pixels(
        crops + row.to(tl.int64) * CHANNELS * plane, y * width + x, inside, plane, CHANNELS=CHANNELS
    )
    r, g, b = _jittered(r, g, b, fields, tl.load(fields + _CONTRAST_AT), 0, batch)
    gray = tl.where(inside, _luma(r, g, b), 0)
    tl.atomic_add(totals + row, tl.sum(tl.sum(gray, axis=1), axis=0).to(tl.int64), sem="relaxed")


@triton.jit
def color(crops, batch, totals, blurred, views, height, width, tiles, CHANNELS: tl.constexpr):
    """Flip, jitter and gray of a tile; to `views` [N, 3, H, W] solarized and normalized, or to `blurred`
    [slots, C, H, W] uint8 where a blur follows."""
    program = tl.program_id(0)
    row = program // tiles
    fields = _fields(batch, row)
    y, x, inside = _tile(program % tiles, height, width)
    plane = (height * width).to(tl.int64)
    source = x
    if tl.load(fields + _FLIP) != 0:
        source = width - 1 - x
    view = crops + row.to(tl.int64) * CHANNELS * plane
    r, g, b = _pixels(view, y * width + source, inside, plane, CHANNELS=CHANNELS)
    mean = 0
    if tl.load(fields + _CONTRAST_AT) < _PLACES:
        mean = ((2 * tl.load(totals + row) + plane) // (2 * plane)).to(tl.int32)  # halves up
    r, g, b = _jittered(r, g, b, fields, _PLACES, mean, batch)
    if tl.load(fields + _GRAY) != 0:
        r = _luma(r, g, b)
        g = r
        b = r
    at = y * width + x
    slot = tl.load(fields + _BLUR)
    if slot == _NOTHING:
        out = views + row.to(tl.int64) * 3 * plane
        _write_normalized(out, _solarized(r, fields), at, inside, plane, 0, batch)
        _write_normalized(out, _solarized(g, fields), at, inside, plane, 1, batch)
        _write_normalized(out, _solarized(b, fields), at, inside, plane, 2, batch)
    else:
        sharp = blurred + slot.to(tl.int64) * CHANNELS * plane
        tl.store(sharp + at, r.to(tl.uint8), mask=inside)
        if CHANNELS == 3:
            tl.store(sharp + plane + at, g.to(tl.uint8), mask=inside)
            tl.store(sharp + 2 * plane + at, b.to(tl.uint8), mask=inside)


@triton.jit
def _box(image, y, x, inside, height, width, fields, DOWN: tl.constexpr):
    """One pass of `blur._box`, edges replicated. The weights sum to 2**24, so the sums stay below 2**32."""
    if DOWN:
        place, last, stride, line = y, height - 1, width, x
    else:
        place, last, stride, line = x, width - 1, 1, y * width
    edge = tl.load(fields + _REACH) + 1
    inner = tl.load(fields + _INNER)
    outer = tl.load(fields + _OUTER)
    total = tl.full([_TILE, _TILE], 1 << 23, tl.uint32)
    step = -edge
    while step <= edge:
        at = line + tl.minimum(tl.maximum(place + step, 0), last) * stride
        weight = tl.where((step == edge) | (step == -edge), outer, inner).to(tl.uint32)
        total += tl.load(image + at, mask=inside, other=0).to(tl.uint32) * weight
        step += 1
    return (total >> 24).to(tl.int32)


@triton.jit
def blur(source, batch, target, height, width, tiles, CHANNELS: tl.constexpr, DOWN: tl.constexpr):
    """One box pass over a tile of one channel, from and to [slots, C, H, W] uint8."""
    program = tl.program_id(0)
    image = program // tiles  # slot and channel
    row = tl.load(batch + _ROWS + (image // CHANNELS).to(tl.int64) * _FIELDS + _BLURRED)
    y, x, inside = _tile(program % tiles, height, width)
    start = image.to(tl.int64) * (height * width)
    level = _box(source + start, y, x, inside, height, width, _fields(batch, row), DOWN=DOWN)
    tl.store(target + start + y * width + x, level.to(tl.uint8), mask=inside)


@triton.jit
def last_blur(source, batch, views, height, width, tiles, CHANNELS: tl.constexpr):
    """The last pass down, from [slots, C, H, W] uint8; solarized and normalized into `views` [N, 3, H, W]."""
    program = tl.program_id(0)
    slot = program // tiles
    row = tl.load(batch + _ROWS + slot.to(tl.int64) * _FIELDS + _BLURRED)
    fields = _fields(batch, row)
    y, x, inside = _tile(program % tiles, height, width)
    plane = (height * width).to(tl.int64)
    image = source + slot.to(tl.int64) * CHANNELS * plane
    out = views + row.to(tl.int64) * 3 * plane
    level = _solarized(_box(image, y, x, inside, height, width, fields, DOWN=True), fields)
    for number in tl.static_range(3):
        if CHANNELS == 3 and number > 0:
            box = _box(image + number * plane, y, x, inside, height, width, fields, DOWN=True)
            level = _solarized(box, fields)
        _write_normalized(out, level, y * width + x, inside, plane, number, batch)

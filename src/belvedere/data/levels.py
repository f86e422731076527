"""Values of more than eight bits to gray levels, by one rule for all formats."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Range = tuple[float, float]
"""The values that become black and white (`data.range`)."""

_SHORT = 65535
_SAMPLED = 1 << 13  # values that the middle of the distribution is taken from: training pays for it too
_FAR = 0.5  # of the whole span: a value so far from the next one belongs to no picture
_TAIL = 0.001  # share of the values on either side of it


class Values(NamedTuple):
    """What an image of more than eight bits holds, before it is scaled.

    low, high: extremes of what is there; middle: what all but a thousandth on either side lies between, and
    all but a value that is far from the others; kind: `uint16`, `float32` and so on; least, most: what a file
    of this kind could hold (None for floats and where the file does not say); missing: pixels without a value
    (not finite, or the file's own nodata value); pixels: all.
    """

    low: float
    high: float
    middle: Range
    kind: str
    least: float | None
    most: float | None
    missing: int
    pixels: int


class NoValuesError(ValueError):
    """Every pixel is without a value."""


def scaled(
    values: NDArray[Any],
    *,
    bits: int | None = None,
    wanted: Range | None = None,
    nodata: float | None = None,
) -> tuple[NDArray[np.uint8], Values, NDArray[np.bool_] | None]:
    """Gray levels of values [H, W] or [H, W, C] of any real type, the values met, and which pixels [H, W]
    have none (None: all have one). Those become 0.

    wanted: the values that become 0 and 255, others are cut. Without it: unsigned values of at most 16 bits
    (`bits`, where fewer than the type has) from 0 to the most that they can be; other integers within
    0..65535 count as 16-bit; floats in [0, 1] are taken as they are; all others from their own lowest to
    their own highest value. nodata: the value that stands for none. Raises NoValuesError.
    """
    absent = _absent(values, nodata)
    there = values if absent is None else values[~absent]
    if there.size == 0:
        raise NoValuesError("no pixel has a value: all are NaN, infinite or the file's nodata value")
    low, high = there.min().item(), there.max().item()
    least, most = _limits(values.dtype, bits)
    found = Values(
        float(low),
        float(high),
        _middle(there),
        values.dtype.name if bits is None else f"{bits}-bit",
        least,
        most,
        0 if absent is None else int(absent.sum()),
        values.shape[0] * values.shape[1],
    )
    black, white = wanted or _usual_range(values.dtype, low, high, most)
    levels = _levels(values, black, white, cut=wanted is not None or absent is not None)
    if absent is not None:
        levels[absent] = 0
    return levels, found, absent


def _usual_range(dtype: np.dtype[Any], low: float, high: float, most: float | None) -> Range:
    if dtype.kind == "f":
        return (0.0, 1.0) if low >= 0.0 and high <= 1.0 else (low, high)
    if dtype.kind == "u" and most is not None and most <= _SHORT:
        return 0.0, most
    return (0.0, float(_SHORT)) if low >= 0 and high <= _SHORT and dtype.itemsize > 1 else (low, high)


def _levels(values: NDArray[Any], black: float, white: float, *, cut: bool) -> NDArray[np.uint8]:
    span = white - black if white > black else 1.0
    with np.errstate(invalid="ignore", over="ignore"):
        reals = values.astype(np.float64)
        if black:
            reals -= black
        if values.dtype.kind == "f":
            reals /= span
            reals *= 255.0
        else:
            reals *= 255.0 / span
    if cut:
        reals = np.clip(np.nan_to_num(reals, nan=0.0), 0.0, 255.0)
    levels: NDArray[np.uint8] = np.rint(reals).astype(np.uint8)
    return levels


def _absent(values: NDArray[Any], nodata: float | None) -> NDArray[np.bool_] | None:
    """Pixels [H, W] of which any channel is without a value; None where all have one."""
    if values.dtype.kind != "f" and nodata is None:
        return None
    absent: NDArray[np.bool_] = np.zeros(values.shape, dtype=np.bool_)
    if values.dtype.kind == "f":
        absent |= ~np.isfinite(values)
    if nodata is not None and np.isfinite(nodata):
        known = np.asarray(nodata).astype(values.dtype) if values.dtype.kind == "f" else nodata
        absent |= np.asarray(values == known)
    if values.ndim == 3:
        absent = np.asarray(absent.any(axis=-1))
    return absent if absent.any() else None


def _limits(dtype: np.dtype[Any], bits: int | None) -> tuple[float | None, float | None]:
    if dtype.kind == "f":
        return None, None
    if bits is not None and dtype.kind == "u":
        return 0.0, float(2**bits - 1)
    limits = np.iinfo(dtype)
    return float(limits.min), float(limits.max)


def _middle(there: NDArray[Any]) -> Range:
    """What all but a thousandth of the values on either side lie between, without a value that is far from
    all others and occurs again and again: one that stands for none."""
    flat = there.reshape(-1)
    sample = np.sort(flat[:: max(1, flat.size // _SAMPLED)]).astype(np.float64)
    distinct, counts = np.unique(sample, return_counts=True)
    if len(distinct) > 2:
        gaps = np.diff(distinct) > _FAR * (distinct[-1] - distinct[0])
        first, last = int(gaps[0] and counts[0] > 1), int(gaps[-1] and counts[-1] > 1)
        sample = sample[first * counts[0] : len(sample) - last * counts[-1]]
    end = len(sample) - 1
    return float(sample[int(_TAIL * end)]), float(sample[end - int(_TAIL * end)])

"""The numbers a view is made from, drawn for a whole batch at once.

One row of fixed columns per view, a function of (seed, epoch, role, position in the epoch, view) and the size
of the image. Rendering reads the row and draws nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from belvedere.core.rng import fold, uniforms
from belvedere.data.spec import Jitter, Strong, ViewSpec
from belvedere.data.views import erasing, randaugment
from belvedere.data.views.row import ARGUMENTS, BICUBIC, ERASED, OPERATIONS
from belvedere.data.views.row import NUM_COLUMNS as NUM_COLUMNS
from belvedere.data.views.row import Column as Column

_ATTEMPTS = 10  # of torchvision's RandomResizedCrop, before it falls back to the centre

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# Columns of uniform numbers: each use has its own, so that changing one setting moves no other draw.
_AREA = slice(0, _ATTEMPTS)
_ASPECT = slice(_ATTEMPTS, 2 * _ATTEMPTS)
_PLACE = slice(20, 22)
_FLIP, _JITTER = 22, 23
_FACTORS = slice(24, 28)
_ORDER = slice(28, 32)
_GRAY, _BLUR, _RADIUS, _SOLARIZE, _NOISE = 32, 33, 34, 35, 36
_NUM_UNIFORMS = 37

# The same for strong views, from a key of their own
_COIN = 0
_OPERATIONS = slice(1, 1 + randaugment.NUM_UNIFORMS)
_ERASING = slice(_OPERATIONS.stop, _OPERATIONS.stop + erasing.NUM_UNIFORMS)
_NUM_STRONG_UNIFORMS = _ERASING.stop


def view_key(seed: int, epoch: int, role: str) -> int:
    """The key of one role's draws in one epoch."""
    return fold(seed, "views", epoch, role)


def draw_views(
    views: Mapping[str, ViewSpec], *, seed: int, epoch: int, positions: Ints, sizes: Ints
) -> dict[str, Floats]:
    """Parameters {role: [B, V, NUM_COLUMNS]} of all views of B images; see `draw`."""
    tosses = uniforms(fold(seed, "coin", epoch), positions, 1)  # [B, 1], of the images' coin
    rows = {}
    for role, spec in views.items():
        shared = spec.strong is not None and spec.strong.coin == "image"
        coins = np.repeat(tosses, spec.count, axis=1) if shared else None
        rows[role] = draw(spec, view_key(seed, epoch, role), positions, sizes, coins=coins)
    return rows


def weak_images(views: Mapping[str, ViewSpec], rows: Mapping[str, Floats]) -> Bools | None:
    """Which images [B] have weak views in the roles with the images' coin, by rows {role: [B, V, P]}; None
    where no view can be strong."""
    strong = {role: spec.strong for role, spec in views.items() if spec.strong is not None}
    if not strong:
        return None
    weak = np.ones(len(next(iter(rows.values()))), dtype=bool)
    for role, spec in strong.items():
        if spec.coin == "image":
            weak &= ~(rows[role][:, :, Column.STRONG] > 0).any(axis=1)
    return weak


def draw(spec: ViewSpec, key: int, positions: Ints, sizes: Ints, *, coins: Floats | None = None) -> Floats:
    """Parameters [B, V, NUM_COLUMNS] of the views of B images.

    positions [B]: where in the epoch each image stands; sizes [B, 2]: its height and width in pixels; coins
    [B, V]: uniform numbers that decide which views are strong, where it is not each view's own that does.
    """
    views = spec.count
    rows = (positions[:, None] * views + np.arange(views)).reshape(-1)  # [B * V]
    u = uniforms(key, rows, _NUM_UNIFORMS)
    params = np.zeros((len(rows), NUM_COLUMNS))
    per_view = np.repeat(np.asarray(sizes, dtype=np.int64), views, axis=0)
    params[:, Column.TOP : Column.WIDTH + 1] = _crop_boxes(spec, u, per_view[:, 0], per_view[:, 1])
    looks = spec.photometry
    params[:, Column.FLIP] = u[:, _FLIP] < looks.flip
    if looks.jitter is not None:
        params[:, Column.JITTER] = u[:, _JITTER] < looks.jitter.p
        params[:, Column.BRIGHTNESS : Column.HUE + 1] = _factors(looks.jitter, u[:, _FACTORS])
        params[:, Column.ORDER_0 : Column.ORDER_3 + 1] = np.argsort(u[:, _ORDER], axis=1, kind="stable")
    params[:, Column.GRAY] = u[:, _GRAY] < looks.gray
    if looks.blur is not None:
        low, high = looks.blur.radius
        params[:, Column.BLUR] = u[:, _BLUR] < looks.blur.p
        params[:, Column.RADIUS] = low + u[:, _RADIUS] * (high - low)
    params[:, Column.SOLARIZE] = u[:, _SOLARIZE] < looks.solarize
    params[:, Column.NOISE] = np.floor(u[:, _NOISE] * 2.0**53)
    if spec.strong is not None:
        u = uniforms(fold(key, "strong"), rows, _NUM_STRONG_UNIFORMS)
        tosses = u[:, _COIN] if coins is None else coins.reshape(-1)
        which = are_strong(spec.strong, tosses)
        params[which] = _strengthened(params[which], u[which], spec.strong, px=spec.px)
    return params.reshape(len(positions), views, NUM_COLUMNS)


def are_strong(spec: Strong, tosses: Floats) -> Bools:
    """Which views are strong, by a uniform number each; of any shape."""
    return (tosses > 1.0 - spec.p) | (spec.p == 1.0)


def _strengthened(weak: Floats, u: Floats, spec: Strong, *, px: int) -> Floats:
    """Rows [R, P] of strong views, from those of weak views with the same crops and flips and from uniforms
    u [R, _NUM_STRONG_UNIFORMS]."""
    params = weak.copy()
    params[:, Column.STRONG] = 1.0
    params[:, Column.MIRROR] = weak[:, Column.FLIP]
    params[:, (Column.FLIP, Column.JITTER, Column.GRAY, Column.BLUR, Column.SOLARIZE)] = 0.0
    operations, arguments, bicubic = randaugment.draw_operations(spec.randaugment, u[:, _OPERATIONS])
    params[:, OPERATIONS], params[:, ARGUMENTS], params[:, BICUBIC] = operations, arguments, bicubic
    if spec.erasing is not None:
        params[:, ERASED] = erasing.draw_boxes(spec.erasing, px, u[:, _ERASING])
    return params


def _factors(jitter: Jitter, u: Floats) -> Floats:
    """Brightness, contrast, saturation and hue factors [R, 4] from uniforms [R, 4]."""
    reach = np.array([jitter.brightness, jitter.contrast, jitter.saturation])
    low = np.append(np.maximum(0.0, 1.0 - reach), -jitter.hue)
    high = np.append(1.0 + reach, jitter.hue)
    factors: Floats = low + u * (high - low)
    return factors


def _crop_boxes(spec: ViewSpec, u: Floats, height: Ints, width: Ints) -> Floats:
    """Top, left, height, width [R, 4], by the rule of torchvision's RandomResizedCrop.

    The first of ten boxes with uniform area and log-uniform aspect that fits; else the largest central box
    whose aspect is as near to the image's as the range allows.
    """
    log_low, log_high = np.log(spec.aspect[0]), np.log(spec.aspect[1])
    area = (height * width)[:, None] * (spec.scale[0] + u[:, _AREA] * (spec.scale[1] - spec.scale[0]))
    aspect = np.exp(log_low + u[:, _ASPECT] * (log_high - log_low))
    w = np.rint(np.sqrt(area * aspect)).astype(np.int64)  # [R, attempts]
    h = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])
    first = fits.argmax(axis=1)[:, None]
    fallback_h, fallback_w = _central(spec, height, width)
    found = fits.any(axis=1)
    h = np.where(found, np.take_along_axis(h, first, axis=1)[:, 0], fallback_h)
    w = np.where(found, np.take_along_axis(w, first, axis=1)[:, 0], fallback_w)
    place = u[:, _PLACE]
    top = np.where(found, np.floor(place[:, 0] * (height - h + 1)), (height - h) // 2)
    left = np.where(found, np.floor(place[:, 1] * (width - w + 1)), (width - w) // 2)
    return np.stack([top, left, h, w], axis=1).astype(np.float64)


def _central(spec: ViewSpec, height: Ints, width: Ints) -> tuple[Ints, Ints]:
    """Height and width of the fallback box: the whole image, cut to the aspect range."""
    low, high = spec.aspect
    aspect = width / height
    w = np.where(aspect > high, np.rint(height * high), width)
    h = np.where(aspect < low, np.rint(width / low), height)
    return np.clip(h, 1, height).astype(np.int64), np.clip(w, 1, width).astype(np.int64)

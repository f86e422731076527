"""Strong views: RandAugment of the whole image, then crop and resize."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from belvedere.data.spec import Interpolation
from belvedere.data.views import native
from belvedere.data.views.geometry import RESAMPLING, resized
from belvedere.data.views.native import Augmented
from belvedere.data.views.operations import Fill, augmented, steps_of
from belvedere.data.views.row import Column

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]


class StrongCrop(NamedTuple):
    """One strong view to be made: its row [P], the fill colour of its operations, out [3, px, px]."""

    row: Floats
    interpolation: Interpolation
    fill: Fill
    out: Pixels


def crop_strong(image: Pixels, wanted: Sequence[StrongCrop]) -> None:
    """Make strong views of one image [H, W, 1 or 3], which is as large as its rows say.

    Compiled, an operation is carried out where the crop looks; without the library, by Pillow on the whole
    image. The bytes are the same.
    """
    if native.available():
        height, width = image.shape[:2]
        native.crop_strong(image, [_plan(view, height, width) for view in wanted])
        return
    whole = Image.fromarray(np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3))))
    for view in wanted:
        changed = augmented(whole, view.row, fill=view.fill)
        px = view.out.shape[-1]
        box = view.row[: Column.WIDTH + 1].tolist()
        view.out[:] = np.asarray(resized(changed, box, px, RESAMPLING[view.interpolation])).transpose(2, 0, 1)


def _plan(view: StrongCrop, height: int, width: int) -> Augmented:
    steps = [
        (int(step.operation), step.matrix or (step.argument, 0.0, 0.0, 0.0, 0.0, 0.0), step.bicubic)
        for step in steps_of(view.row, height, width)
    ]
    return Augmented(
        box=view.row[: Column.WIDTH + 1],
        interpolation=view.interpolation,
        mirror=bool(view.row[Column.MIRROR] > 0),
        steps=steps,
        fill=view.fill,
        out=view.out,
    )

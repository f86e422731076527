"""From decoded images and view parameters to normalized views, in three stages.

On the decoded image (strong views: RandAugment), geometry (crop and resize, in the loader's process, as the
first stage) and photometry (where the model runs; of strong views, erasing). What passes between the last two
is uint8 crops and their parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from belvedere.data.spec import DataSpec, ViewSpec
from belvedere.data.views import fused, native
from belvedere.data.views.erasing import erase_
from belvedere.data.views.geometry import SMALL_PX, Pixels, boxes_in, crop_image, small_geometry
from belvedere.data.views.native import Crops
from belvedere.data.views.photometry import normalization, normalize, photometry
from belvedere.data.views.row import Column
from belvedere.data.views.strong import StrongCrop, crop_strong

Floats = NDArray[np.float64]

_SHRINKS = (1, 2, 4, 8)  # what JPEG's transform offers
_SPARE = 3.0


def crop(spec: ViewSpec, images: Pixels | Sequence[Pixels], rows: Floats) -> Tensor:
    """The crops of one role, uint8 [V, B, C, px, px], by its parameters rows [B, V, P].

    images: decoded images [H, W, 3] of any size; or one array [B, H, W, C] of equal ones, which when small is
    cropped as a batch and keeps C = 1, unless its views may be strong: then they have colours.
    """
    if isinstance(images, np.ndarray) and max(images.shape[1:3]) <= SMALL_PX:
        return torch.from_numpy(_small_crops(spec, images, rows))
    crops = empty_crops(spec, len(images))
    for number, image in enumerate(images):
        rgb = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image
        crop_views(rgb, {"": spec}, {"": rows[number]}, out={"": crops[:, number].numpy()})
    return crops


def _small_crops(spec: ViewSpec, images: Pixels, rows: Floats) -> Pixels:
    """The crops [V, B, C, px, px] of small images [B, H, W, C]: strong ones one by one, over the others."""
    crops = small_geometry(images, rows, spec.px, interpolation=spec.interpolation)
    if spec.strong is None:
        return crops
    crops = np.array(np.broadcast_to(crops, (*crops.shape[:2], 3, *crops.shape[3:])), order="C")
    for number in np.flatnonzero(_are_strong(rows).any(axis=1)):
        crop_strong(images[number], _strong_crops(spec, rows[number], crops[:, number]))
    return crops


def crop_views(
    image: Pixels,
    views: dict[str, ViewSpec],
    rows: dict[str, Floats],
    *,
    out: dict[str, Pixels],
    shrink: int = 1,
) -> None:
    """The crops of all roles of one decoded image [H, W, 3], written to out {role: [V, 3, px, px]}.

    rows {role: [V, P]}; shrink: the image was decoded to this part of the size that the rows speak of, which
    is for weak views alone (`largest_shrink`).
    """
    weak: list[Crops] = []
    strong: list[StrongCrop] = []
    for role, spec in views.items():
        boxes, which = boxes_in(image, rows[role], shrink=shrink), _are_strong(rows[role])
        if not which.any():
            weak.append(Crops(boxes, spec.interpolation, out[role]))
            continue
        strong += _strong_crops(spec, rows[role], out[role])
        for view in np.flatnonzero(~which).tolist():
            part = slice(view, view + 1)
            weak.append(Crops(boxes[part], spec.interpolation, out[role][part]))
    crop_image(image, weak)
    if strong:
        assert shrink == 1
        crop_strong(image, strong)


def _are_strong(rows: Floats) -> NDArray[np.bool_]:
    """Which views [...] are strong, by rows [..., P]."""
    strong: NDArray[np.bool_] = rows[..., Column.STRONG] > 0
    return strong


def _strong_crops(spec: ViewSpec, rows: Floats, out: Pixels) -> list[StrongCrop]:
    """The strong views of one image among rows [V, P], to be written to out [V, 3, px, px]."""
    assert spec.strong is not None
    fill = spec.strong.randaugment.fill
    return [
        StrongCrop(rows[view], spec.interpolation, fill, out[view])
        for view in np.flatnonzero(_are_strong(rows)).tolist()
    ]


def empty_crops(spec: ViewSpec, num_images: int) -> Tensor:
    """Room for the crops of one role, uint8 [V, B, 3, px, px]."""
    # by NumPy, which asks for large pages: touching small ones takes as long as cropping
    return torch.from_numpy(np.empty((spec.count, num_images, 3, spec.px, spec.px), dtype=np.uint8))


def largest_shrink(views: dict[str, ViewSpec], rows: dict[str, Floats]) -> int:
    """How many times smaller (1, 2, 4, 8) an image may be decoded for crops by rows {role: [V, P]}.

    Every crop keeps at least _SPARE times as many pixels a side as its view has: then antialiased resizing
    hides what the decoder left out, within the tolerance that views are held to (docs/results.md). An image
    with a strong view is decoded whole: operations before the crop see every pixel.
    """
    if any(_are_strong(each).any() for each in rows.values()):
        return 1
    sides = slice(Column.HEIGHT, Column.WIDTH + 1)
    room = min(float(rows[role][:, sides].min()) / spec.px for role, spec in views.items())
    return max(shrink for shrink in _SHRINKS if shrink == 1 or room >= _SPARE * shrink)


def finish(
    crops: Tensor, rows: Floats, *, data: DataSpec, dtype: torch.dtype, out: Tensor | None = None
) -> Tensor:
    """Views [V, B, 3, px, px] of `dtype`, from crops [V, B, C, px, px] and their rows [B, V, P].

    Compiled on the CPU, fused on a CUDA device, batched torch operations elsewhere: the same values. out:
    where the views go, if they have a place already.
    """
    views, batch = crops.shape[:2]
    by_view = rows.transpose(1, 0, 2).reshape(views * batch, -1)
    flat = crops.flatten(0, 1)
    place = None if out is None else out.flatten(0, 1)
    if flat.device.type == "cpu" and dtype == torch.float32 and native.available():
        factor, offset = normalization(data.mean, data.std)
        finished = native.finish(flat, by_view, factor=factor.to(dtype), offset=offset.to(dtype), out=place)
    elif fused.renders(flat.device, dtype):
        finished = fused.finish(flat, by_view, mean=data.mean, std=data.std, dtype=dtype)
    else:
        finished = normalize(photometry(flat, by_view), data.mean, data.std, dtype)
    erase_(finished, by_view, mean=data.mean, std=data.std)
    if place is not None and finished is not place:
        finished = place.copy_(finished)
    return finished.view(views, batch, *finished.shape[1:])

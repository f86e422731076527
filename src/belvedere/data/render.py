"""From decoded images and view parameters to normalized views, in three stages.

On the decoded image (nothing yet: the place of augmentations that come before the crop), geometry (crop and
resize, in the loader's process) and photometry (where the model runs). What passes between the last two is
uint8 crops and their parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from belvedere.data.geometry import SMALL_PX, Pixels, geometry, small_geometry
from belvedere.data.photometry import normalize, photometry
from belvedere.data.spec import DataSpec, ViewSpec

Floats = NDArray[np.float64]


def on_decoded(images: Pixels | Sequence[Pixels], rows: Floats) -> Pixels | Sequence[Pixels]:
    """The first stage, on whole images before any crop; no view recipe has one yet."""
    return images


def crop(spec: ViewSpec, images: Pixels | Sequence[Pixels], rows: Floats) -> Tensor:
    """The crops of one role, uint8 [V, B, C, px, px], by its parameters rows [B, V, P].

    images: decoded images [H, W, 3] of any size; or one array [B, H, W, C] of equal ones, which when small is
    cropped as a batch and keeps C = 1.
    """
    images = on_decoded(images, rows)
    if isinstance(images, np.ndarray) and max(images.shape[1:3]) <= SMALL_PX:
        return torch.from_numpy(small_geometry(images, rows, spec.px, interpolation=spec.interpolation))
    crops = np.empty((spec.count, len(images), 3, spec.px, spec.px), dtype=np.uint8)
    for number, (image, row) in enumerate(zip(images, rows, strict=True)):
        rgb = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image
        crops[:, number] = geometry(rgb, row, spec.px, interpolation=spec.interpolation)
    return torch.from_numpy(crops)


def finish(crops: Tensor, rows: Floats, *, data: DataSpec, dtype: torch.dtype) -> Tensor:
    """Views [V, B, 3, px, px] of `dtype`, from crops [V, B, C, px, px] and their rows [B, V, P]."""
    views, batch = crops.shape[:2]
    by_view = rows.transpose(1, 0, 2).reshape(views * batch, -1)
    changed = photometry(crops.flatten(0, 1), by_view)
    normalized = normalize(changed, data.mean, data.std, dtype)
    return normalized.view(views, batch, *normalized.shape[1:])

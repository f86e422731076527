"""The baseline that needs no network: the pixels themselves, in two preprocessings."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from belvedere.data.sources.source import Source, read
from belvedere.eval.features import evaluation_pixels
from belvedere.nn.spec import FeatureSpec


def pixel_rows(source: Source, spec: FeatureSpec, *, indices: NDArray[np.int64] | None = None) -> Tensor:
    """Pixels [N, D] float32 in [0, 1], after the same resizing and crop that the backbone's images get.

    D is crop_px^2 times 3, or times 1 where every image is gray. Raises UnreadableImage.
    """
    wanted = np.arange(len(source), dtype=np.int64) if indices is None else indices
    images = np.stack([evaluation_pixels(read(source, int(i)), spec) for i in wanted])  # [N, H, W, 3]
    if np.array_equal(images[..., 0], images[..., 1]) and np.array_equal(images[..., 1], images[..., 2]):
        images = images[..., :1]
    return torch.from_numpy(images.reshape(len(images), -1)).float() / 255.0


def standardised(rows: Tensor, statistics_of: Tensor) -> Tensor:
    """Each column less its mean, divided by its standard deviation, both of `statistics_of` [M, D] (the
    unlabelled training images); a column that is constant there is only centred."""
    deviation, mean = torch.std_mean(statistics_of.double(), dim=0, correction=0)
    deviation = torch.where(deviation > 1e-12, deviation, 1.0)
    return ((rows.double() - mean) / deviation).float()

"""Pillow's Gaussian blur: three passes of a box with fractional edges, across and then down."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_PASSES = 3
BITS = 24  # Pillow's fixed point; sums stay below 2**32, see `_box`


def box_radii(radii: NDArray[np.float64]) -> NDArray[np.float32]:
    """Half-widths of the boxes whose three passes have the variances radii**2 [N].

    A whole part l and an edge a, in single precision as in Pillow: one unit of the last place breaks ties.
    """
    one, two, three, six = (np.float32(value) for value in (1, 2, 3, 6))
    radius = radii.astype(np.float32)
    sigma2 = radius * radius / np.float32(_PASSES)
    length = np.sqrt(12.0 * sigma2.astype(np.float64) + 1.0).astype(np.float32)
    whole = np.floor((length.astype(np.float64) - 1.0) / 2.0).astype(np.float32)
    edge = (two * whole + one) * (whole * (whole + one) - three * sigma2)
    result: NDArray[np.float32] = whole + edge / (six * (sigma2 - (whole + one) * (whole + one)))
    return result


def box_weights(boxes: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Fixed-point weights [N] of a box's inner pixels and of its two outer ones, by its half-width [N]."""
    inner = (np.float32(1 << BITS) / (np.float32(2) * boxes + np.float32(1))).astype(np.int32)
    outer: NDArray[np.int32] = ((1 << BITS) - (2 * boxes.astype(np.int32) + 1) * inner) // 2
    return inner, outer


def gaussian_blur(crops: Tensor, radii: NDArray[np.float64]) -> Tensor:
    """Crops uint8 [N, C, H, W] blurred by radii [N] (standard deviations in pixels), edges replicated."""
    boxes = box_radii(radii)
    reach = boxes.astype(np.int64)
    if (reach == reach[0]).all():
        return _blurred(crops, boxes, int(reach[0]))
    result = torch.empty_like(crops)
    for whole in np.unique(reach):
        index = torch.from_numpy(np.flatnonzero(reach == whole)).to(crops.device)
        result.index_copy_(
            0, index, _blurred(crops.index_select(0, index), boxes[reach == whole], int(whole))
        )
    return result


def _blurred(crops: Tensor, boxes: NDArray[np.float32], whole: int) -> Tensor:
    """Blur by boxes [N] whose half-widths have the same whole part."""
    inner_, outer_ = (torch.from_numpy(w).to(crops.device).view(-1, 1, 1, 1) for w in box_weights(boxes))
    lines = crops.to(torch.int32)
    for _ in range(2):  # across; then down, on the transposed image
        for _ in range(_PASSES):
            lines = _box(lines, inner_, outer_, whole)
        lines = lines.transpose(2, 3).contiguous()
    return lines.to(torch.uint8)


def _box(lines: Tensor, inner: Tensor, outer: Tensor, whole: int) -> Tensor:
    """One pass along the last axis of int32 [N, C, H, W]: 2 * whole + 1 pixels and two weaker outer ones.

    The sums reach 255.5 * 2**24, beyond int32; they wrap, and the mask takes the sign away again.
    """
    width = lines.shape[-1]
    edge = whole + 1
    # int32 has no replicating pad on every device; indexing has
    at = torch.arange(-edge, width + edge, device=lines.device).clamp_(0, width - 1)
    padded = lines.index_select(-1, at)
    middle = padded[..., 1 : 1 + width].clone()
    for shift in range(2, 2 * edge):
        middle += padded[..., shift : shift + width]
    ends = padded[..., :width] + padded[..., 2 * edge : 2 * edge + width]
    return (middle.mul_(inner).add_(ends.mul_(outer)).add_(1 << (BITS - 1))) >> BITS & 0xFF

"""Mixup and CutMix of a batch with itself: each image with its neighbour, rows 0 and 1, 2 and 3, and so on.

The neighbour instead of the image at the other end of the batch, as is usual, keeps a pair on one process
however many there are; batches are shuffled, so that the distribution is the same. An odd last image stays as
it is.

Legend: V views, B images, H, W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from belvedere.core import rng


@dataclass(frozen=True)
class Blend:
    """How one view of a whole batch is mixed. share: of the image itself in the target; box: (top, bottom,
    left, right) of what is the neighbour's, or None where pixels are averaged instead."""

    share: float
    box: tuple[int, int, int, int] | None


def mixed_views(
    crops: Mapping[str, Tensor], seed: int, *, views: int, alpha: float, cutmix_alpha: float, cutmix_p: float
) -> tuple[dict[str, Tensor], Tensor]:
    """The crops [V, B, 3, H, W] of each role, the first `views` of all mixed, each its own way; and how much
    of each image (row) each crop (column) is: [V, B, B] of the crops of all roles in their order."""
    mixed: dict[str, Tensor] = {}
    matrices: list[Tensor] = []
    for role, given in crops.items():
        made = []
        for images in given:  # [B, 3, H, W]
            number, blend = len(matrices), None
            if number < views:
                how = {"alpha": alpha, "cutmix_alpha": cutmix_alpha, "cutmix_p": cutmix_p}
                blend = draw_blend(seed, number, images.shape[-1], **how)
            made.append(images if blend is None else blended(images, blend))
            matrices.append(shares(blend, images, len(images)))
        mixed[role] = torch.stack(made)
    return mixed, torch.stack(matrices)


def draw_blend(seed: int, view: int, px: int, *, alpha: float, cutmix_alpha: float, cutmix_p: float) -> Blend:
    """The blend of a view of px x px pixels: CutMix with probability `cutmix_p`, else mixup.

    The share is Beta(alpha, alpha) (Zhang et al. 2018). CutMix (Yun et al. 2019): a box of (1 - share) of the
    area around a uniform point, cut at the border; the share is then that of the pixels that stay.
    """
    random = rng.generator(seed, "mixup", view)
    cutmix = random.uniform() < cutmix_p
    both = cutmix_alpha if cutmix else alpha
    share = float(random.beta(both, both))
    if not cutmix:
        return Blend(share, None)
    side = int(px * math.sqrt(1 - share))
    top, left = (int(start) for start in random.integers(0, px, size=2) - side // 2)
    box = (max(top, 0), min(top + side, px), max(left, 0), min(left + side, px))
    return Blend(1 - (box[1] - box[0]) * (box[3] - box[2]) / px**2, box)


def neighbours(num_images: int, device: torch.device) -> Tensor:
    """The row that each of the rows [B] is mixed with."""
    rows = torch.arange(num_images, device=device)
    return torch.where((rows ^ 1) < num_images, rows ^ 1, rows)


def blended(images: Tensor, blend: Blend) -> Tensor:
    """Images [B, 3, H, W] mixed with their neighbours."""
    others = images[neighbours(len(images), images.device)]
    if blend.box is None:
        return blend.share * images + (1 - blend.share) * others
    top, bottom, left, right = blend.box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
    return mixed


def shares(blend: Blend | None, like: Tensor, num_images: int) -> Tensor:
    """How much of each image (row) each mixed image (column) is: [B, B] of the type of `like`; None: not
    mixed. Columns sum to 1."""
    whole = torch.eye(num_images, dtype=like.dtype, device=like.device)
    if blend is None:
        return whole
    return blend.share * whole + (1 - blend.share) * whole[neighbours(num_images, like.device)]

"""Colour operations on uint8 crops [N, C, H, W], in Pillow's arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor


def luma(crops: Tensor) -> Tensor:
    """ITU-R 601 gray [N, 1, H, W] int32, rounded as Pillow's mode L; C = 1 is gray already."""
    if crops.shape[1] == 1:
        return crops.to(torch.int32)
    red, green, blue = crops.to(torch.int32).unbind(dim=1)
    weighted: Tensor = red * 19595 + green * 38470 + blue * 7471 + 0x8000
    return (weighted >> 16).unsqueeze(1)


def blend(base: Tensor, crops: Tensor, factors: Tensor) -> Tensor:
    """base + factor * (crops - base), cut to 0..255 and truncated; factors [N] above 1 extrapolate."""
    start = base.to(torch.float32)
    step = (crops.to(torch.float32) - start).mul_(factors.to(torch.float32).view(-1, 1, 1, 1))
    return step.add_(start).clamp_(0.0, 255.0).to(torch.uint8)


def adjust_saturation(crops: Tensor, factors: Tensor) -> Tensor:
    """Blend [N, 3, H, W] with its gray; factors [N]."""
    return blend(luma(crops).expand_as(crops), crops, factors)


def adjust_hue(crops: Tensor, factors: Tensor) -> Tensor:
    """Turn the hue of [N, 3, H, W] by factors [N] of the colour circle, through Pillow's 8-bit HSV."""
    shift = (factors * 255.0).trunc().to(torch.int32).view(-1, 1, 1)
    hue, saturation, value = rgb_to_hsv(crops)
    return hsv_to_rgb((hue + shift) & 255, saturation, value)


def rgb_to_hsv(crops: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue, saturation and value of [N, 3, H, W], each int32 [N, H, W] in 0..255."""
    red, green, blue = crops.to(torch.float32).unbind(dim=1)
    high, low = crops.amax(dim=1).to(torch.float32), crops.amin(dim=1).to(torch.float32)
    spread = high - low
    divisor = spread.clamp(min=1.0)
    # single and double precision where Pillow has them; otherwise one hue in two hundred is off by one
    r, g, b = (((high - channel) / divisor).double() for channel in (red, green, blue))
    sector = torch.where(red == high, b - g, torch.where(green == high, 2.0 + r - b, 4.0 + g - r)).float()
    hue = torch.fmod(sector.double() / 6.0 + 1.0, 1.0).float()
    saturation = spread / high.clamp(min=1.0)
    colored = spread > 0
    zero = torch.zeros((), dtype=torch.int32, device=crops.device)
    as_byte = [torch.where(colored, (part * 255.0).to(torch.int32), zero) for part in (hue, saturation)]
    return as_byte[0], as_byte[1], high.to(torch.int32)


def hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Pixels uint8 [N, 3, H, W] of hue, saturation and value int32 [N, H, W]."""
    turn = hue.to(torch.float32) * 6.0 / 255.0
    sector = turn.floor()
    part = turn - sector
    share, level = saturation.to(torch.float32) / 255.0, value.to(torch.float32)
    p = _rounded(level * (1.0 - share))
    q = _rounded(level * (1.0 - share * part))
    t = _rounded(level * (1.0 - share * (1.0 - part)))
    v = value.to(torch.uint8)
    sector = sector.to(torch.int64).remainder_(6)[None]
    red = torch.stack([v, q, p, p, t, v]).gather(0, sector)[0]
    green = torch.stack([t, v, v, q, p, p]).gather(0, sector)[0]
    blue = torch.stack([p, p, t, v, v, q]).gather(0, sector)[0]
    return torch.stack([red, green, blue], dim=1)


def _rounded(level: Tensor) -> Tensor:
    return (level + 0.5).floor_().clamp_(0.0, 255.0).to(torch.uint8)

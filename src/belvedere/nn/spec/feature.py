"""What a recipe says about the feature of a trained backbone."""

from __future__ import annotations

from typing import Literal

from belvedere.core.settings import Contradictions, Settings
from belvedere.nn.spec.count import Count


class FeatureSpec(Settings):
    """Which tensor is *the* feature of a trained backbone, and how an image is prepared for it.

    source: class token, mean of the region tokens, both concatenated, or of each block its class token where
    it has one and else the mean; or the backbone's pooled output;
    blocks: of the last n blocks, concatenated oldest first; norm: the final norm on none or all of them.
    resize_px: the shorter side before the central crop of crop_px.
    """

    source: Literal["cls", "mean", "cls+mean", "cls_or_mean", "pooled"]
    """Which tensor is the feature: the class token, the mean of the region tokens, both, of each block
    whichever it has, or the pooled output."""
    blocks: Count
    """Of how many of the last blocks, concatenated, oldest first."""
    norm: Literal["none", "last_stage", "all"]
    """Which of these outputs the final norm is put on."""
    resize_px: Count
    """Shorter side of an image before it is cropped, in pixels."""
    crop_px: Count
    """Side of the central crop, in pixels."""
    interpolation: Literal["bilinear", "bicubic"]
    """How an image is resized."""

    def contradictions(self) -> Contradictions:
        if self.crop_px > self.resize_px:
            yield ("", f"crop_px {self.crop_px} is larger than resize_px {self.resize_px}")
        if self.source == "pooled" and (self.blocks != 1 or self.norm != "none"):
            yield ("", "source pooled is one output; blocks must be 1 and norm none")

"""What a recipe says about the backbone."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from belvedere.core.settings import Settings

Count = Annotated[int, Field(ge=1)]


class ViTSpec(Settings):
    """A vision transformer. image_px fixes the position table; other sizes resize it. stem `conv` is four
    strided 3x3 convolutions (patch_px must be 16). drop_path: the last block's rate; linear from 0 over
    depth."""

    name: Literal["vit"]
    width: Count
    depth: Count
    heads: Count
    patch_px: Count
    mlp_ratio: Annotated[float, Field(gt=0.0)]
    stem: Literal["patch", "conv"]
    image_px: Count
    drop_path: Annotated[float, Field(ge=0.0, lt=1.0)]

    @model_validator(mode="after")
    def _fits(self) -> ViTSpec:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        if self.image_px % self.patch_px:
            raise ValueError(f"image_px {self.image_px} is no multiple of patch_px {self.patch_px}")
        if self.stem == "conv" and self.patch_px != 16:
            raise ValueError("stem conv has patches of 16 px; set patch_px to 16")
        return self


class HeadSpec(Settings):
    """The projection head: three linear layers, `hidden` wide, to `out` columns."""

    hidden: Count
    out: Count
    batch_norm: bool


class FeatureSpec(Settings):
    """Which tensor is *the* feature of a trained backbone, and how an image is prepared for it.

    source: class token, mean of the region tokens, both concatenated, or the backbone's pooled output;
    blocks: of the last n blocks, concatenated oldest first; norm: the final norm on none or all of them.
    resize_px: the shorter side before the central crop of crop_px.
    """

    source: Literal["cls", "mean", "cls+mean", "pooled"]
    blocks: Count
    norm: Literal["none", "last_stage", "all"]
    resize_px: Count
    crop_px: Count
    interpolation: Literal["bilinear", "bicubic"]

    @model_validator(mode="after")
    def _fits(self) -> FeatureSpec:
        if self.crop_px > self.resize_px:
            raise ValueError(f"crop_px {self.crop_px} is larger than resize_px {self.resize_px}")
        if self.source == "pooled" and (self.blocks != 1 or self.norm != "none"):
            raise ValueError("source pooled is one output; blocks must be 1 and norm none")
        return self

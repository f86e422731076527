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

    @property
    def multiple_px(self) -> int:
        """Image sides must be multiples of this."""
        return self.patch_px

    def num_patches(self, px: int) -> int:
        """Patches of a square image of `px` pixels, a multiple of `multiple_px`."""
        return (px // self.patch_px) ** 2


class ResNetSpec(Settings):
    """A ResNet. block: two 3x3 convolutions (`basic`) or 1x1, 3x3, 1x1 (`bottleneck`); blocks: how many in
    each of the four stages. widen multiplies every stage's planes and the stem (SwAV's w2, w4, w5);
    width_per_group: the planes of the first stage before that, 64 in all published ones, and a bottleneck's
    inner width is planes * width_per_group / 64. stem `imagenet` is a strided 7x7 convolution and a max-pool;
    `small`, for images of about 32 px, is a 3x3 convolution that keeps their size.
    """

    name: Literal["resnet"]
    block: Literal["basic", "bottleneck"]
    blocks: tuple[Count, Count, Count, Count]
    widen: Count
    width_per_group: Count
    stem: Literal["imagenet", "small"]

    @model_validator(mode="after")
    def _fits(self) -> ResNetSpec:
        if self.block == "bottleneck" and self.inner_width(0) < 1:
            raise ValueError(
                f"width_per_group {self.width_per_group} leaves a bottleneck of the first stage no channel "
                f"(widen * width_per_group * width_per_group / 64); set it to at least 8"
            )
        return self

    def planes(self, stage: int) -> int:
        """The planes of a stage (from 0); the first stage's are the stem's channels too."""
        return (self.width_per_group * self.widen) << stage

    def inner_width(self, stage: int) -> int:
        """The channels inside a bottleneck of a stage."""
        return self.planes(stage) * self.width_per_group // 64

    def channels(self, stage: int) -> int:
        """The channels that a stage gives."""
        return self.planes(stage) * (4 if self.block == "bottleneck" else 1)

    @property
    def depth(self) -> int:
        """How many outputs `features.blocks` can ask for: the stages."""
        return len(self.blocks)

    @property
    def multiple_px(self) -> int:
        """Image sides must be multiples of this: any will do."""
        return 1

    def num_patches(self, px: int) -> int:
        """Cells of the last map for a square image; every stride halves a side, rounding up."""
        halvings = 5 if self.stem == "imagenet" else 3
        side = -(-px >> halvings)
        return side * side

    def kept_values(self, px: int) -> int:
        """Values that the backward pass needs of one image: every convolution's output before BatchNorm and
        after it, and the max-pool's 8-byte indices as two. In place of a skipped path there is nothing."""
        side, stem = px, self.planes(0)
        if self.stem == "imagenet":
            side = -(-px // 2)
        kept = 2 * stem * side**2
        if self.stem == "imagenet":
            side = -(-side // 2)
            kept += 3 * stem * side**2
        channels = stem
        for stage, blocks in enumerate(self.blocks):
            before, out, inner = side, self.channels(stage), self.inner_width(stage)
            side = side if stage == 0 else -(-side // 2)
            if self.block == "basic":
                kept += blocks * 4 * out * side**2
            else:
                kept += blocks * 2 * (2 * inner + out) * side**2 + 2 * inner * (before**2 - side**2)
            kept += out * side**2 * (stage > 0 or channels != out)  # the downsampling's output
            channels = out
        return kept


BackboneSpec = Annotated[ViTSpec | ResNetSpec, Field(discriminator="name")]
"""Any backbone of a recipe or a card, told apart by its name."""


class HeadSpec(Settings):
    """The projection head: three linear layers, `hidden` wide, to `out` columns."""

    hidden: Count
    out: Count
    batch_norm: bool


class MLPHeadSpec(Settings):
    """SwAV's projection head: linear to `hidden` columns, BatchNorm (optional), ReLU, linear to `out`; with
    hidden 0 one linear layer."""

    hidden: Annotated[int, Field(ge=0)]
    out: Count
    batch_norm: bool

    @model_validator(mode="after")
    def _fits(self) -> MLPHeadSpec:
        if self.hidden == 0 and self.batch_norm:
            raise ValueError("batch_norm has no effect with hidden 0, one linear layer; set it to false")
        return self


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

"""What a recipe says about a ResNet."""

from __future__ import annotations

from typing import Literal

from belvedere.core.settings import Contradictions, Settings
from belvedere.nn.spec.count import Count, norm
from belvedere.nn.spec.refusals import no_class_token


class ResNetSpec(Settings):
    """A ResNet. block: two 3x3 convolutions (`basic`) or 1x1, 3x3, 1x1 (`bottleneck`); blocks: how many in
    each of the four stages. widen multiplies every stage's planes and the stem (SwAV's w2, w4, w5);
    width_per_group: the planes of the first stage before that, 64 in all published ones, and a bottleneck's
    inner width is planes * width_per_group / 64. stem `imagenet` is a strided 7x7 convolution and a max-pool;
    `small`, for images of about 32 px, is a 3x3 convolution that keeps their size.
    """

    name: Literal["resnet"]
    """The kind of network."""
    block: Literal["basic", "bottleneck"]
    """`basic`: two 3x3 convolutions; `bottleneck`: 1x1, 3x3, 1x1."""
    blocks: tuple[Count, Count, Count, Count]
    """Blocks of each of the four stages."""
    widen: Count
    """What every stage's planes and the stem are multiplied by."""
    width_per_group: Count
    """Planes of the first stage before `widen`; 64 in all published ones."""
    stem: Literal["imagenet", "small"]
    """`imagenet`: a strided 7x7 convolution and a max-pool; `small`: a 3x3 convolution, for images of about
    32 px."""

    def contradictions(self) -> Contradictions:
        if self.block == "bottleneck" and self.inner_width(0) < 1:
            yield (
                "",
                f"width_per_group {self.width_per_group} leaves a bottleneck of the first stage no channel "
                f"(widen * width_per_group * width_per_group / 64); set it to at least 8",
            )

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
    def has_batch_norm(self) -> bool:
        """Whether the network has statistics of the images it is shown together with."""
        return True

    @property
    def out_width(self) -> int:
        """Columns of the feature that the network gives."""
        return self.channels(len(self.blocks) - 1)

    @property
    def depth(self) -> int:
        """How many outputs `features.blocks` can ask for: the stages."""
        return len(self.blocks)

    @property
    def multiple_px(self) -> int:
        """Image sides must be multiples of this: any will do."""
        return 1

    def refusal(self, px: int) -> str:
        """Why the network cannot take a square image of `px` pixels: it takes all, ""."""
        return ""

    def source_refusal(self, source: str) -> str:
        """Why the network has no feature of this `source`, and which it has; or ""."""
        return no_class_token("a ResNet", source)

    def norm_refusal(self, norm: str, blocks: int) -> str:
        """Why the final norm cannot be put on the last `blocks` outputs as `norm` says; or ""."""
        return "" if norm == "none" else "has no effect; a ResNet has no final norm; give none"

    def num_patches(self, px: int) -> int:
        """Cells of the last map for a square image; every stride halves a side, rounding up."""
        halvings = 5 if self.stem == "imagenet" else 3
        side = -(-px >> halvings)
        return side * side

    @property
    def num_blocks(self) -> int:
        """Blocks of all stages."""
        return sum(self.blocks)

    @property
    def num_layers(self) -> int:
        """Layers, roughly."""
        return (8 if self.block == "bottleneck" else 6) * sum(self.blocks) + 3

    @property
    def num_parameters(self) -> int:
        """Parameters of the network."""
        channels = self.planes(0)
        total = 3 * channels * (9 if self.stem == "small" else 49) + norm(channels)
        for stage, blocks in enumerate(self.blocks):
            out = self.channels(stage)
            first, rest = self._block(stage, channels), self._block(stage, out)
            total += first + (blocks - 1) * rest
            if stage or channels != out:
                total += channels * out + norm(out)
            channels = out
        return total

    def _block(self, stage: int, channels: int) -> int:
        """Parameters of a stage's block without its downsampling."""
        out, inner = self.channels(stage), self.inner_width(stage)
        if self.block == "basic":
            return 9 * (channels * out + out * out) + 2 * norm(out)
        return channels * inner + 9 * inner**2 + inner * out + 2 * norm(inner) + norm(out)

    def num_constants(self, px: int) -> int:
        """Numbers of 4 bytes that do not follow from parameters, for images of `px`: none."""
        return 0

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


# name: block, blocks of the stages, widen (specs: SwAV's `resnet50*`; the small ones are torchvision's)
_TABLE: dict[str, tuple[str, tuple[int, int, int, int], int]] = {
    "resnet18": ("basic", (2, 2, 2, 2), 1),
    "resnet34": ("basic", (3, 4, 6, 3), 1),
    "resnet50": ("bottleneck", (3, 4, 6, 3), 1),
    "resnet50w2": ("bottleneck", (3, 4, 6, 3), 2),
    "resnet50w4": ("bottleneck", (3, 4, 6, 3), 4),
    "resnet50w5": ("bottleneck", (3, 4, 6, 3), 5),
}

RESNET_NAMES: tuple[str, ...] = tuple(_TABLE)
"""The architectures of SwAV's code, and two for small work."""


def resnet_spec(name: str) -> ResNetSpec:
    """The architecture called `name` (`RESNET_NAMES`), with the stem for ImageNet's sizes."""
    block, blocks, widen = _TABLE[name]
    return ResNetSpec.model_validate(
        {
            "name": "resnet",
            "block": block,
            "blocks": blocks,
            "widen": widen,
            "width_per_group": 64,
            "stem": "imagenet",
        }
    )

"""What a recipe says about a CvT."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from belvedere.core.settings import Contradictions, Settings
from belvedere.nn.spec.count import Count, linear, mlp, norm, times
from belvedere.nn.spec.refusals import no_class_token, norm_of_last_stage
from belvedere.nn.spec.stages import PerStage, stage_contradictions


class CvTSpec(Settings):
    """A CvT v4, EsViT's. Lists have one entry per stage: channels, heads and blocks, and the kernel, stride
    and padding of the convolution that embeds the stage before (the image, for the first). window: side of
    the windows that attention looks at, in cells; on a smaller map the whole of it. drop_path: the last
    block's rate; linear from 0 over all blocks."""

    name: Literal["cvt"]
    """The kind of network."""
    widths: PerStage
    """Channels of each stage."""
    heads: PerStage
    """Attention heads of each stage."""
    blocks: PerStage
    """Blocks of each stage."""
    kernels: PerStage
    """Kernel of the convolution that embeds each stage."""
    strides: PerStage
    """Stride of that convolution."""
    paddings: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    """Padding of that convolution."""
    window: Count
    """Side of the windows that attention looks at, in cells."""
    mlp_ratio: Annotated[float, Field(gt=0.0)]
    """Width of a block's hidden layer, in multiples of the stage's."""
    drop_path: Annotated[float, Field(ge=0.0, lt=1.0)]
    """Probability that the last block is left out for an image; rises linearly from 0 over the blocks."""

    def contradictions(self) -> Contradictions:
        yield from stage_contradictions(self, "kernels", "strides", "paddings")
        for kernel, padding in zip(self.kernels, self.paddings, strict=False):
            if 2 * padding >= kernel:
                yield (
                    "",
                    f"a padding of {padding} gives cells for which a kernel of {kernel} sees nothing; give "
                    f"at most {(kernel - 1) // 2}",
                )

    @property
    def has_batch_norm(self) -> bool:
        """Whether the network has statistics of the images it is shown together with."""
        return True

    @property
    def out_width(self) -> int:
        """Columns of the feature that the network gives."""
        return self.widths[-1]

    @property
    def depth(self) -> int:
        """How many outputs `features.blocks` can ask for: all blocks."""
        return sum(self.blocks)

    @property
    def multiple_px(self) -> int:
        """Image sides must be multiples of this: any will do."""
        return 1

    @property
    def least_px(self) -> int:
        """The smallest side of an image that leaves the last stage a cell."""
        px = 1
        for kernel, stride, padding in reversed(
            list(zip(self.kernels, self.strides, self.paddings, strict=True))
        ):
            px = max(1, (px - 1) * stride + kernel - 2 * padding)
        return px

    def refusal(self, px: int) -> str:
        """Why the network cannot take a square image of `px` pixels, and the nearest that it can; or ""."""
        if px >= self.least_px:
            return ""
        return f"leaves the last stage no cell; the smallest that this CvT can take is {self.least_px}"

    def source_refusal(self, source: str) -> str:
        """Why the network has no feature of this `source`, and which it has; or ""."""
        return no_class_token("a CvT", source)

    def norm_refusal(self, norm: str, blocks: int) -> str:
        """Why the final norm cannot be put on the last `blocks` outputs as `norm` says; or ""."""
        return norm_of_last_stage(norm, blocks, self.blocks)

    def sides(self, px: int) -> tuple[int, ...]:
        """The side of each stage's map for a square image of `px` pixels; 0 where nothing is left."""
        found: list[int] = []
        for kernel, stride, padding in zip(self.kernels, self.strides, self.paddings, strict=True):
            px = max(0, (px + 2 * padding - kernel) // stride + 1) if px else 0
            found.append(px)
        return tuple(found)

    def padded(self, side: int) -> int:
        """The side of a map after it is padded to whole windows."""
        window = min(self.window, side)
        return -(-side // window) * window

    def num_patches(self, px: int) -> int:
        """Cells of the last map for a square image."""
        return self.sides(px)[-1] ** 2

    @property
    def num_blocks(self) -> int:
        """Blocks of all stages."""
        return sum(self.blocks)

    @property
    def num_layers(self) -> int:
        """Layers, roughly."""
        return 14 * self.depth + 4 * len(self.blocks)

    @property
    def num_parameters(self) -> int:
        """Parameters of the network."""
        total, channels = 0, 3
        for width, kernel, blocks in zip(self.widths, self.kernels, self.blocks, strict=True):
            embedding = linear(kernel**2 * channels, width) + norm(width)
            attention = 9 * width + norm(width) + linear(width, 3 * width) + linear(width, width)
            block = 2 * norm(width) + attention + mlp(width, times(width, self.mlp_ratio))
            total += embedding + blocks * block
            channels = width
        return total + norm(channels)

    def num_constants(self, px: int) -> int:
        """Numbers of 4 bytes that do not follow from parameters, for images of `px`: none."""
        return 0

    def kept_values(self, px: int) -> int:
        """Values that the backward pass needs of one image: of each block the two residual sums and their
        norms, the padded map before and after the depthwise convolution and BatchNorm, queries, keys, values,
        what attention gives (padded and not), and the MLP's hidden layer before and after its activation."""
        kept = 3 * px**2
        for stage, side in enumerate(self.sides(px)):
            cells, padded, width = side**2, self.padded(side) ** 2, self.widths[stage]
            block = (5 + 2 * self.mlp_ratio) * cells + 7 * padded
            kept += int(width * (2 * cells + self.blocks[stage] * block))
        return kept


# name: widths, heads, blocks, drop_path (EsViT, `experiments/imagenet/cvt_v4/s1.yaml`)
_TABLE: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], float]] = {
    "cvt_tiny": ((64, 192, 384, 768), (1, 3, 6, 12), (2, 2, 6, 2), 0.1),
}

CVT_NAMES: tuple[str, ...] = tuple(_TABLE)
"""The architectures of EsViT's code that have a description."""


def cvt_spec(name: str, *, drop_path: float | None = None) -> CvTSpec:
    """The architecture called `name` (`CVT_NAMES`); drop_path: another rate than the student's published one
    (the teacher's is 0)."""
    widths, heads, blocks, published = _TABLE[name]
    return CvTSpec.model_validate(
        {
            "name": "cvt",
            "widths": widths,
            "heads": heads,
            "blocks": blocks,
            "kernels": (7, 3, 3, 3),
            "strides": (4, 2, 2, 2),
            "paddings": (2, 1, 1, 1),
            "window": 7,
            "mlp_ratio": 4.0,
            "drop_path": published if drop_path is None else drop_path,
        }
    )

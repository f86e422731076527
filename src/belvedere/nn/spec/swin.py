"""What a recipe says about a Swin transformer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from belvedere.core.settings import Contradictions, Settings
from belvedere.nn.spec.count import Count, linear, mlp, norm, times
from belvedere.nn.spec.refusals import no_class_token, no_whole_patches, norm_of_last_stage
from belvedere.nn.spec.stages import PerStage

SWIN_EPS = 1e-6


class SwinSpec(Settings):
    """A Swin transformer. embed_width: the first stage's; every further stage halves the map's sides and
    doubles the width. blocks, heads: how many in each stage. window: the side of the windows that attention
    looks at, in cells. image_px fixes windows and shifts for good: a stage whose map at that size is not
    larger than the window takes the whole map as its window and never shifts, whatever the size of the images
    that come later. drop_path: the last block's rate; linear from 0 over all blocks. norm_eps: what every
    LayerNorm adds to a variance (published: 1e-6; timm's and torchvision's Swins: 1e-5)."""

    name: Literal["swin"]
    """The kind of network."""
    embed_width: Count
    """Columns of a token of the first stage; doubled with every stage."""
    blocks: PerStage
    """Blocks of each stage."""
    heads: PerStage
    """Attention heads of each stage."""
    patch_px: Count
    """Side of a patch, in pixels."""
    window: Count
    """Side of the windows that attention looks at, in cells."""
    mlp_ratio: Annotated[float, Field(gt=0.0)]
    """Width of a block's hidden layer, in multiples of the stage's."""
    image_px: Count
    """Side of the images that windows and shifts are laid out for."""
    drop_path: Annotated[float, Field(ge=0.0, lt=1.0)]
    """Probability that the last block is left out for an image; rises linearly from 0 over the blocks."""
    norm_eps: Annotated[float, Field(gt=0.0, lt=1.0)] = SWIN_EPS
    """What every LayerNorm adds to a variance."""

    @model_serializer(mode="wrap")
    def _without_unused(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = written(self)
        return {key: value for key, value in values.items() if key != "norm_eps" or value != SWIN_EPS}

    def contradictions(self) -> Contradictions:
        if len(self.heads) != len(self.blocks):
            yield ("", f"heads names {len(self.heads)} stages, blocks {len(self.blocks)}")
        for stage, heads in enumerate(self.heads):
            if self.width(stage) % heads:
                yield (
                    "",
                    f"stage {stage} is {self.width(stage)} wide (embed_width {self.embed_width}, doubled "
                    f"with every stage), which is no multiple of its {heads} heads",
                )
        if self.image_px % self.patch_px:
            yield ("", f"image_px {self.image_px} is no multiple of patch_px {self.patch_px}")
        last = len(self.blocks) - 1
        if self.built_side(last) < 1:
            yield (
                "",
                f"image_px {self.image_px} leaves no map after {last} halvings; set it to at least "
                f"{self.patch_px << last}",
            )

    def width(self, stage: int) -> int:
        """Columns of a token of a stage (from 0)."""
        return self.embed_width << stage

    @property
    def has_batch_norm(self) -> bool:
        """Whether the network has statistics of the images it is shown together with."""
        return False

    @property
    def out_width(self) -> int:
        """Columns of the feature that the network gives."""
        return self.width(len(self.blocks) - 1)

    def built_side(self, stage: int) -> int:
        """The side of a stage's map for images of `image_px`."""
        return (self.image_px // self.patch_px) >> stage

    def window_of(self, stage: int) -> int:
        """The side of a stage's windows."""
        return min(self.window, self.built_side(stage))

    def shift_of(self, stage: int, block: int) -> int:
        """By how many tokens the windows of a stage's block (from 0) are shifted: every second one's are, by
        half a window, in stages whose built map has several windows."""
        return self.window // 2 if block % 2 and self.built_side(stage) > self.window else 0

    @property
    def depth(self) -> int:
        """How many blocks there are in all stages."""
        return sum(self.blocks)

    @property
    def multiple_px(self) -> int:
        """Image sides must be multiples of this."""
        return self.patch_px

    def refusal(self, px: int) -> str:
        """Why the network cannot take a square image of `px` pixels, and the nearest that it can; or ""."""
        return no_whole_patches(px, self.patch_px)

    def source_refusal(self, source: str) -> str:
        """Why the network has no feature of this `source`, and which it has; or ""."""
        return no_class_token("a Swin", source)

    def norm_refusal(self, norm: str, blocks: int) -> str:
        """Why the final norm cannot be put on the last `blocks` outputs as `norm` says; or ""."""
        return norm_of_last_stage(norm, blocks, self.blocks)

    def num_patches(self, px: int) -> int:
        """Tokens of the last stage for a square image of `px` pixels, a multiple of `multiple_px`."""
        return self._side(px, len(self.blocks) - 1) ** 2

    @property
    def num_blocks(self) -> int:
        """Blocks of all stages."""
        return sum(self.blocks)

    @property
    def num_layers(self) -> int:
        """Layers, roughly."""
        return 10 * self.depth + 5 * len(self.blocks)

    @property
    def num_parameters(self) -> int:
        """Parameters of the network."""
        total = linear(3 * self.patch_px**2, self.embed_width) + norm(self.embed_width)
        for stage, blocks in enumerate(self.blocks):
            width = self.width(stage)
            table = (2 * self.window_of(stage) - 1) ** 2 * self.heads[stage]
            attention = linear(width, 3 * width) + linear(width, width) + table
            total += blocks * (2 * norm(width) + attention + mlp(width, times(width, self.mlp_ratio)))
            if stage:
                before = self.width(stage - 1)
                total += norm(4 * before) + linear(4 * before, 2 * before, bias=False)
        return total + norm(self.out_width)

    def num_constants(self, px: int) -> int:
        """Numbers of 4 bytes that do not follow from parameters, for images of `px`: for each window which
        entry of the table is between two cells (8 bytes), and which cells of shifted windows are apart."""
        total = 0
        for stage in range(len(self.blocks)):
            window, side = self.window_of(stage), self._side(px, stage)
            windows = (-(-side // window)) ** 2 if self.shift_of(stage, 1) else 0
            total += (2 + windows) * window**4
        return total

    def kept_values(self, px: int) -> int:
        """Values that the backward pass needs of one image.

        Per token of a block: its input, the two normed inputs, the attention's output, the input of the
        second half and the MLP's hidden layer twice. Per token of the padded map: queries, keys, values, the
        attention's outcome and its weights, one per head and token of the window.
        """
        kept = 0
        for stage, depth in enumerate(self.blocks):
            side, window, width = self._side(px, stage), self.window_of(stage), self.width(stage)
            padded = -(-side // window) * window
            tokens = width * (4 + 2 * self.mlp_ratio) * side**2
            windows = (4 * width + self.heads[stage] * window**2) * padded**2
            merged = 2 * self.width(stage - 1) * 4 * side**2 if stage else 3 * self.patch_px**2 * side**2
            kept += int(depth * (tokens + windows) + merged)
        return kept

    def _side(self, px: int, stage: int) -> int:
        """The side of a stage's map; an odd one is padded before it is halved."""
        return -(-(px // self.patch_px) >> stage)


# name: embed_width, blocks, heads, drop_path of the student (specs: EsViT's table, section 1.2)
_TABLE: dict[str, tuple[int, tuple[int, ...], tuple[int, ...], float]] = {
    "swin_tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24), 0.1),
    "swin_small": (96, (2, 2, 18, 2), (3, 6, 12, 24), 0.2),
    "swin_base": (128, (2, 2, 18, 2), (4, 8, 16, 32), 0.2),
    "swin_large": (192, (2, 2, 18, 2), (6, 12, 24, 48), 0.2),
}

SWIN_NAMES: tuple[str, ...] = tuple(_TABLE)
"""The architectures EsViT's code names."""


def swin_spec(name: str, *, window: int = 7, drop_path: float | None = None) -> SwinSpec:
    """The published architecture called `name` (`SWIN_NAMES`), built for 224 px; drop_path None: as its
    student was trained."""
    embed_width, blocks, heads, published_rate = _TABLE[name]
    return SwinSpec(
        name="swin",
        embed_width=embed_width,
        blocks=blocks,
        heads=heads,
        patch_px=4,
        window=window,
        mlp_ratio=4.0,
        image_px=224,
        drop_path=published_rate if drop_path is None else drop_path,
    )

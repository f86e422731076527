"""What a recipe says about a ViL."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from belvedere.core.settings import Contradictions, Settings
from belvedere.nn.spec.count import Count, linear, mlp, norm, times
from belvedere.nn.spec.refusals import no_whole_patches, norm_of_last_stage
from belvedere.nn.spec.stages import PerStage, stage_contradictions


class ViLSpec(Settings):
    """A multi-scale Vision Longformer. Lists have one entry per stage: channels, heads and blocks; patches:
    the side, in pixels or cells of the stage before, of what becomes one cell; sparse: attention in chunks of
    window x window cells and those around them, or over all cells; class_token: whether the stage has one.
    image_px fixes the tables of relative positions where attention is over all cells; another size resizes
    them.

    mode: which chunks a query of a sparse stage sees. 0: its own and the eight around it. 1: in training its
    own and one of the eight, which each block draws for each pass over crops of one size; otherwise as 0.
    -1: its own alone. drop_path: the last block's rate; linear from 0 over all blocks.

    EsViT's configuration also has VIL_MODE_SWITCH, the share of training after which mode 1 becomes mode 0;
    nothing reads it there, the published models were trained without it, and there is no such key here.
    """

    name: Literal["vil"]
    """The kind of network."""
    widths: PerStage
    """Channels of each stage."""
    heads: PerStage
    """Attention heads of each stage."""
    blocks: PerStage
    """Blocks of each stage."""
    patches: PerStage
    """Side of a stage's patches: pixels for the first, cells of the stage before for the others."""
    sparse: Annotated[tuple[bool, ...], Field(min_length=1)]
    """For each stage, whether attention is in chunks of windows or over all cells."""
    class_token: Annotated[tuple[bool, ...], Field(min_length=1)]
    """For each stage, whether it has a class token."""
    window: Count
    """Side of a chunk, in cells."""
    mode: Literal[-1, 0, 1]
    """Which chunks a query of a sparse stage sees: 0, its own and the eight around; 1, in training its own
    and one of the eight; -1, its own."""
    mlp_ratio: Annotated[float, Field(gt=0.0)]
    """Width of a block's hidden layer, in multiples of the stage's."""
    image_px: Count
    """Side of the images that the tables of relative positions are for."""
    drop_path: Annotated[float, Field(ge=0.0, lt=1.0)]
    """Probability that the last block is left out for an image; rises linearly from 0 over the blocks."""

    def contradictions(self) -> Contradictions:
        yield from stage_contradictions(self, "patches", "sparse", "class_token")
        if self.class_token[-1]:
            yield (
                "",
                "class_token of the last stage must be false: its cells alone make the feature, and what a "
                "class token gathers there would be dropped",
            )
        if self.mode != 0 and not any(self.sparse):
            yield ("", f"mode {self.mode} has no effect without a sparse stage; set it to 0")
        if words := self.refusal(self.image_px):
            yield ("", f"image_px {self.image_px} {words}")

    @property
    def has_batch_norm(self) -> bool:
        """Whether the network has statistics of the images it is shown together with."""
        return False

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
        """Image sides must be multiples of this: whole patches of the first stage. Where a later stage's
        patches do not fit, its last rows and columns are left out (112 px has 14, 7 and 3 cells a side)."""
        return self.patches[0]

    @property
    def least_px(self) -> int:
        """The smallest side of an image that leaves the last stage a cell."""
        return math.prod(self.patches)

    def refusal(self, px: int) -> str:
        """Why the network cannot take a square image of `px` pixels, and the nearest that it can; or ""."""
        if px < self.least_px:
            return f"leaves the last stage no cell; the smallest that this ViL can take is {self.least_px}"
        return no_whole_patches(px, self.multiple_px)

    def source_refusal(self, source: str) -> str:
        """Why the network has no feature of this `source`, and which it has; or ""."""
        words = "the last stage of a ViL has no class token; give cls_or_mean, mean or pooled"
        return words if source in ("cls", "cls+mean") else ""

    def norm_refusal(self, norm: str, blocks: int) -> str:
        """Why the final norm cannot be put on the last `blocks` outputs as `norm` says; or ""."""
        return norm_of_last_stage(norm, blocks, self.blocks)

    def sides(self, px: int) -> tuple[int, ...]:
        """The side of each stage's map for a square image of `px` pixels."""
        found: list[int] = []
        for patch in self.patches:
            px //= patch
            found.append(px)
        return tuple(found)

    def table_side(self, stage: int) -> int:
        """The side of a stage's table of relative positions: coordinates differ by less than 2 * window where
        it is sparse, by less than the map's side for image_px where it is not."""
        reach = 2 * self.window if self.sparse[stage] else self.sides(self.image_px)[stage]
        return 2 * reach - 1

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
        return 13 * self.depth + 4 * len(self.blocks)

    @property
    def num_parameters(self) -> int:
        """Parameters of the network."""
        total, channels = 0, 3
        for stage, (width, patch) in enumerate(zip(self.widths, self.patches, strict=True)):
            own, heads = self.class_token[stage], self.heads[stage]
            total += linear(patch**2 * channels, width) + norm(width) + own * width
            attention = linear(width, 3 * width) + linear(width, width) + own * 3 * heads
            table = self.table_side(stage) ** 2 * heads
            block = 2 * norm(width) + attention + table + mlp(width, times(width, self.mlp_ratio))
            total += self.blocks[stage] * block
            channels = width
        return total + norm(channels)

    def num_constants(self, px: int) -> int:
        """Numbers of 4 bytes that do not follow from parameters, for images of `px`: which entry of a table
        is between two cells (8 bytes), and where all cells see each other the biases [h, N, N] themselves."""
        total = 0
        for stage, side in enumerate(self.sides(px)):
            if self.sparse[stage]:
                total += 2 * 9 * self.window**4
            else:
                built = self.sides(self.image_px)[stage] ** 2
                total += 2 * built**2 + self.blocks[stage] * self.heads[stage] * (built**2 + side**4)
        return total

    def kept_values(self, px: int) -> int:
        """Values that the backward pass needs of one image.

        Of each block the two residual sums and their norms, queries and what attention gives (in whole chunks
        where it is sparse), keys and values (once for every chunk that sees them), the attention's weights,
        and the MLP's hidden layer before and after its activation.
        """
        kept = 0.0
        for stage, side in enumerate(self.sides(px)):
            width, heads = self.widths[stage], self.heads[stage]
            tokens = side**2 + self.class_token[stage]
            block = width * (5 + 2 * self.mlp_ratio) * tokens
            if self.sparse[stage]:
                chunks = {-1: 1, 0: 9, 1: 2}[self.mode]
                padded = (-(-side // self.window) * self.window) ** 2
                block += width * (2 * padded + 2 * tokens + 2 * padded * chunks)
                block += heads * padded * chunks * self.window**2
            else:
                block += width * 4 * tokens + heads * tokens**2
            kept += width * 2 * tokens + self.blocks[stage] * block
        return int(kept) + 3 * px**2


# name: widths, heads, blocks (EsViT, `experiments/imagenet/vil/vil_small/base.yaml` and the README's ARCH)
_TABLE: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "vil_2262": ((96, 192, 384, 768), (3, 6, 12, 24), (2, 2, 6, 2)),
}

VIL_NAMES: tuple[str, ...] = tuple(_TABLE)
"""The architectures of EsViT's README."""


def vil_spec(name: str, *, mode: int = 1, drop_path: float = 0.0) -> ViLSpec:
    """The architecture called `name` (`VIL_NAMES`), its tables for 224 px. mode: see `ViLSpec`."""
    widths, heads, blocks = _TABLE[name]
    return ViLSpec.model_validate(
        {
            "name": "vil",
            "widths": widths,
            "heads": heads,
            "blocks": blocks,
            "patches": (4, 2, 2, 2),
            "sparse": (True, True, False, False),
            "class_token": (True, True, True, False),
            "window": 7,
            "mode": mode,
            "mlp_ratio": 4.0,
            "image_px": 224,
            "drop_path": drop_path,
        }
    )

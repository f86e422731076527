"""What a recipe says about a vision transformer."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from belvedere.core.settings import Contradictions, Settings
from belvedere.nn.spec.count import Count, linear, mlp, norm, times

CONV_WIDTHS = (48, 96, 192, 384)
"""Channels of the conv stem of the published vitc_4gf and deit_small_convstem."""


_OPTIONAL = ("position_margin", "qkv_bias", "norm_eps")
"""Keys that are left out of what is written where they have their usual value."""


class ViTSpec(Settings):
    """A vision transformer. image_px fixes the position table; other sizes resize it. stem `conv` is four
    strided 3x3 convolutions (patch_px must be 16). drop_path: the last block's rate; linear from 0 over
    depth. position_margin: patches that the code of the weights adds to a side when it computes the factor of
    a resize (Mugs: 0.1); the table is then sampled a little closer together. qkv_bias: whether queries, keys
    and values have one. norm_eps: what every LayerNorm adds to a variance."""

    name: Literal["vit"]
    """The kind of network."""
    width: Count
    """Columns of a token."""
    depth: Count
    """How many blocks."""
    heads: Count
    """Attention heads of a block; they share out `width`."""
    patch_px: Count
    """Side of a patch, in pixels."""
    mlp_ratio: Annotated[float, Field(gt=0.0)]
    """Width of a block's hidden layer, in multiples of `width`."""
    stem: Literal["patch", "conv"]
    """How patches are embedded: `patch`, one linear layer; `conv`, four strided convolutions, for patches
    of 16 px."""
    image_px: Count
    """Side of the images that the position table is for; other sizes resize it."""
    drop_path: Annotated[float, Field(ge=0.0, lt=1.0)]
    """Probability that the last block is left out for an image; rises linearly from 0 over the blocks."""
    position_margin: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Patches that are added to a side when the factor of a resize of the position table is computed (Mugs:
    0.1)."""
    qkv_bias: bool = True
    """Whether queries, keys and values have a bias."""
    norm_eps: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-6
    """What every LayerNorm adds to a variance."""

    @model_serializer(mode="wrap")
    def _without_unused(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = written(self)
        usual = {name: type(self).model_fields[name].default for name in _OPTIONAL}
        return {name: value for name, value in values.items() if name not in usual or value != usual[name]}

    def contradictions(self) -> Contradictions:
        if self.width % self.heads:
            yield ("", f"width {self.width} is no multiple of heads {self.heads}")
        if self.image_px % self.patch_px:
            yield ("", f"image_px {self.image_px} is no multiple of patch_px {self.patch_px}")
        if self.stem == "conv" and self.patch_px != 16:
            yield ("", "stem conv has patches of 16 px; set patch_px to 16")

    @property
    def has_batch_norm(self) -> bool:
        """Whether the network has statistics of the images it is shown together with."""
        return self.stem == "conv"

    @property
    def out_width(self) -> int:
        """Columns of the feature that the network gives."""
        return self.width

    @property
    def multiple_px(self) -> int:
        """Image sides must be multiples of this."""
        return self.patch_px

    def refusal(self, px: int) -> str:
        """Why the network cannot take a square image of `px` pixels, and the nearest that it can; or ""."""
        below = px - px % self.patch_px
        if px == below:
            return ""
        nearest = f"{below} or {below + self.patch_px}" if below else f"{self.patch_px}"
        return f"is no multiple of backbone.patch_px, {self.patch_px}; the nearest are {nearest}"

    def source_refusal(self, source: str) -> str:
        """Why the network has no feature of this `source`, and which it has; or ""."""
        words = "every block of a ViT has a class token; give cls"
        return words if source == "cls_or_mean" else ""

    def norm_refusal(self, norm: str, blocks: int) -> str:
        """Why the final norm cannot be put on the last `blocks` outputs as `norm` says: it fits all, ""."""
        return ""

    def num_patches(self, px: int) -> int:
        """Patches of a square image of `px` pixels, a multiple of `multiple_px`."""
        return (px // self.patch_px) ** 2

    @property
    def num_blocks(self) -> int:
        """Blocks of all stages."""
        return self.depth

    @property
    def num_layers(self) -> int:
        """Layers, roughly."""
        return 10 * self.depth + (4 if self.stem == "patch" else 16)

    @property
    def block_parameters(self) -> int:
        """Parameters of one block."""
        width = self.width
        attention = linear(width, 3 * width, bias=self.qkv_bias) + linear(width, width)
        return 2 * norm(width) + attention + mlp(width, times(width, self.mlp_ratio))

    @property
    def num_parameters(self) -> int:
        """Parameters of the network."""
        width = self.width
        stem = linear(3 * self.patch_px**2, width)
        if self.stem == "conv":
            steps = pairwise((3, *CONV_WIDTHS))
            stem = sum(9 * before * after + norm(after) for before, after in steps)
            stem += linear(CONV_WIDTHS[-1], width)
        tables = (2 + self.num_patches(self.image_px)) * width
        return stem + tables + self.depth * self.block_parameters + norm(width)

    def num_constants(self, px: int) -> int:
        """Numbers of 4 bytes that do not follow from parameters, for images of `px`: the matrix that resizes
        the position table."""
        return 0 if px == self.image_px else self.num_patches(px) * self.num_patches(self.image_px)


# name: width, depth, heads, patch_px, mlp_ratio, stem (specs: MSN's `deit_*` table)
_TABLE: dict[str, tuple[int, int, int, int, float, str]] = {
    "deit_tiny": (192, 12, 3, 16, 4.0, "patch"),
    "deit_small": (384, 12, 6, 16, 4.0, "patch"),
    "deit_small_p8": (384, 12, 6, 8, 4.0, "patch"),
    "deit_small_p7": (384, 12, 6, 7, 4.0, "patch"),
    "vitc_4gf": (384, 11, 6, 16, 3.0, "conv"),
    "deit_small_convstem": (384, 11, 6, 16, 6.0, "conv"),
    "deit_base": (768, 12, 12, 16, 4.0, "patch"),
    "deit_base_p8": (768, 12, 12, 8, 4.0, "patch"),
    "deit_base_p7": (768, 12, 12, 7, 4.0, "patch"),
    "deit_base_p4": (768, 12, 12, 4, 4.0, "patch"),
    "deit_large": (1024, 24, 16, 16, 4.0, "patch"),
    "deit_large_p8": (1024, 24, 16, 8, 4.0, "patch"),
    "deit_large_p7": (1024, 24, 16, 7, 4.0, "patch"),
    "deit_huge": (1280, 32, 16, 16, 4.0, "patch"),
    "deit_huge_p8": (1280, 32, 16, 8, 4.0, "patch"),
    "deit_huge_p7": (1280, 32, 16, 7, 4.0, "patch"),
    "deit_huge_p10": (1280, 32, 16, 10, 4.0, "patch"),
}

VIT_NAMES: tuple[str, ...] = tuple(_TABLE)
"""The architectures MSN's code names."""


def vit_spec(name: str, *, drop_path: float = 0.0) -> ViTSpec:
    """The published architecture called `name` (`VIT_NAMES`), with a position table for about 224 px.

    A patch of 10 px does not divide 224; its table is that of the 22 whole patches, 220 px.
    """
    width, depth, heads, patch_px, mlp_ratio, stem = _TABLE[name]
    return ViTSpec.model_validate(
        {
            "name": "vit",
            "width": width,
            "depth": depth,
            "heads": heads,
            "patch_px": patch_px,
            "mlp_ratio": mlp_ratio,
            "stem": stem,
            "image_px": 224 // patch_px * patch_px,
            "drop_path": drop_path,
        }
    )

"""What a description says of its size, before anything of it is built."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from belvedere.nn.build import build
from belvedere.nn.spec.count import times
from belvedere.recipe.load import load_recipe
from belvedere.recipe.shipped import recipe_names

SWIN = (
    "backbone={name: swin, embed_width: 12, blocks: [1, 3, 2], heads: [1, 2, 3], patch_px: 2, window: 3, "
    "mlp_ratio: 2.3, image_px: 32, drop_path: 0.0}"
)
OTHERS = [
    ("msn/vits16", "backbone.mlp_ratio=3.7"),
    (
        "msn/vits16",
        "backbone={name: vit, width: 24, depth: 2, heads: 2, patch_px: 16, mlp_ratio: 1.5, "
        "stem: conv, image_px: 224, drop_path: 0.0}",
    ),
    ("swav/rn50-400ep", "backbone.block=basic"),
    (
        "swav/rn50-400ep",
        "backbone={name: resnet, block: bottleneck, blocks: [1, 2, 1, 3], widen: 3, "
        "width_per_group: 16, stem: small}",
    ),
    ("swav/rn50-400ep", SWIN),
    ("esvit/vil-w7", "backbone.mode=-1"),
    ("esvit/vil-w7", "backbone.class_token=[false, true, true, false]"),
    ("esvit/cvt-w7", "backbone.kernels=[5, 3, 3, 1]", "backbone.paddings=[2, 1, 1, 0]"),
]


def _distinct() -> list[tuple[str, ...]]:
    """Shipped recipes, one of each backbone, and backbones that none of them has."""
    found = {}
    for name in recipe_names():
        found.setdefault(load_recipe(name, ["data.path=x"]).backbone.model_dump_json(), (name,))
    return [*found.values(), *OTHERS]


@pytest.mark.parametrize("words", _distinct(), ids=" ".join)
def test_parameters_are_counted_as_they_are_built(words: tuple[str, ...]) -> None:
    spec: Any = load_recipe(words[0], ["data.path=x", *words[1:]]).backbone
    with torch.device("meta"):
        network = build(spec)
    assert spec.num_parameters == sum(parameter.numel() for parameter in network.parameters())
    assert spec.num_layers == pytest.approx(len(list(network.modules())), rel=0.3)


def test_products_that_no_float_holds_are_counted() -> None:
    assert times(10, 2.35) == 23
    assert times(10**400, 2.5) == 25 * 10**399
    assert times(64, 1e308) > 10**300

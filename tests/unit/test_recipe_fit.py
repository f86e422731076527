"""What a second method, backbone and optimizer bring to checks, plan and estimate."""

from __future__ import annotations

import pytest
import torch
from backbone_checks import kept_bytes

from belvedere.core import rng
from belvedere.core.errors import RecipeError
from belvedere.nn.build import build
from belvedere.recipe.estimate import estimate
from belvedere.recipe.load import load_recipe
from belvedere.recipe.plan import Plan, plan

VIT = (
    "backbone={name: vit, width: 8, depth: 1, heads: 1, patch_px: 2, mlp_ratio: 1.0, stem: patch, "
    "image_px: 8, drop_path: 0.0}"
)
RESNET = (
    "backbone={name: resnet, block: basic, blocks: [1, 1, 1, 1], widen: 1, width_per_group: 16, stem: small}"
)
CONV_STEM = (
    "backbone={name: vit, width: 8, depth: 1, heads: 1, patch_px: 16, mlp_ratio: 1.0, stem: conv, "
    "image_px: 32, drop_path: 0.0}",
    *("views.global.px=32", "views.local.px=16", "features.resize_px=32", "features.crop_px=32"),
)
NO_NORM = "method.head={hidden: 8, out: 4, batch_norm: false}"


def _planned(*overrides: str, world_size: int = 1, name: str = "tiny/swav") -> Plan:
    return plan(load_recipe(name, overrides), num_images=1347, world_size=world_size)


def _refused(*overrides: str, world_size: int = 1, name: str = "tiny/swav") -> str:
    with pytest.raises(RecipeError) as caught:
        _planned(*overrides, world_size=world_size, name=name)
    return str(caught.value)


def test_msn_refuses_a_backbone_without_patches() -> None:
    words = _refused(RESNET, "features.source=pooled", name="tiny/msn")
    assert words == "override: backbone.name: resnet is not allowed; msn works with vit"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["features.source=cls"], "features.source: cls is not allowed; a ResNet has no class token"),
        (["features.source=cls+mean"], "features.source: cls+mean is not allowed"),
        (
            ["features.source=mean", "features.norm=all"],
            "features.norm: all has no effect; a ResNet has no final",
        ),
        (["features.source=mean", "features.blocks=5"], "5 blocks of a backbone with depth 4"),
        (["train.global_batch=1"], "train.global_batch: 1 is too small for the backbone's BatchNorm"),
        ([VIT, NO_NORM, "train.batch_norm_group=1"], "train.batch_norm_group: 1 has no effect: neither"),
        (["train.batch_norm_group=2"], "train.batch_norm_group: 2 cannot share out 1 processes; give null"),
        (["run.micro_batch=127"], "run.micro_batch: 127 leaves a micro-batch of 1 image"),
    ],
)
def test_what_a_resnet_cannot_have(overrides: list[str], words: str) -> None:
    assert words in _refused(*overrides)


def test_groups_of_processes() -> None:
    assert _refused("train.batch_norm_group=3", world_size=8) == (
        "train.batch_norm_group: 3 cannot share out 8 processes; "
        "give null (all together) or one of 1, 2, 4, 8"
    )
    for group in (1, 2, 4, 8, "null"):
        assert _planned(f"train.batch_norm_group={group}", world_size=8).warnings == ()
    one = ("train.global_batch=8", "train.batch_norm_group=1", "method.prototypes=8")
    assert "train.batch_norm_group: 1 leaves 1 image to each" in _refused(*one, world_size=8)
    assert _planned(VIT, "train.batch_norm_group=1").batch == 128  # of the head


def test_the_stem_of_a_vit_can_have_batch_norm() -> None:
    stem = (*CONV_STEM, NO_NORM)
    assert _planned(*stem, "train.batch_norm_group=1").batch == 128
    assert "too small for the backbone's BatchNorm" in _refused(*stem, "train.global_batch=1")


def test_each_method_counts_its_schedules_as_its_paper_does() -> None:
    swav, msn = _planned().lr, _planned(name="tiny/msn").lr
    assert (swav.first, swav.peak_twice) == (0, True)
    assert (msn.first, msn.peak_twice) == (1, False)
    assert dict(_planned().table())["weight decay"] == "1e-06"
    decay = _planned().weight_decay
    assert {decay(step) for step in (0, 100, 799)} == {1e-6}


def test_the_needs_of_a_run_without_teacher_and_with_a_queue() -> None:
    made = _planned(world_size=2)
    needs = estimate(made.recipe, made, trained=1000, teacher=0, backbone=800, own_bytes=500)
    assert (needs.moments, needs.own_state) == (4000, 500)
    assert needs.checkpoint == 4 * 2 * 1000 + 2 * 500
    assert needs.held == 3 * 4000 + 500
    peak = needs.memory - needs.held - needs.views - needs.process
    assert peak == pytest.approx(1.25 * (needs.loss + needs.activations), abs=2)
    rows = dict(needs.table())
    assert "LARC momentum" in rows
    assert "queue or bank" in rows
    assert "teacher" not in rows


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_activations_of_a_resnet_are_estimated_within_a_fifth(precision: str, block: str) -> None:
    """Against what a forward in train mode really keeps."""
    name = "swav/rn50-400ep-b256"
    overrides = ["data.path=x", "run.micro_batch=2", f"train.precision={precision}", "views.local.count=2"]
    recipe = load_recipe(name, [*overrides, f"backbone.block={block}", "backbone.blocks=[1, 2, 1, 1]"])
    backbone = build(recipe.backbone)
    backbone.initialize_(rng.torch_generator(0, "backbone"))
    with (
        kept_bytes(backbone) as kept,
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        large = backbone(torch.randn(4, 3, 224, 224), regions=False)
        small = backbone(torch.randn(4, 3, 96, 96), regions=False)
    assert len(large.pooled) + len(small.pooled) == 8  # keeps both graphs until here
    trained = sum(parameter.numel() for parameter in backbone.parameters())
    made = plan(recipe, num_images=5000)
    needs = estimate(recipe, made, trained=trained, teacher=0, backbone=0)
    assert needs.activations == pytest.approx(sum(kept.values()), rel=0.2)

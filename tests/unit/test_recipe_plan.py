"""The plan: a recipe, a data set, processes -> numbers."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from backbone_checks import kept_bytes

from belvedere.core import rng
from belvedere.core.errors import RecipeError
from belvedere.engine.remedy import value_at
from belvedere.nn.build import build
from belvedere.optim.spec import LearningRate
from belvedere.recipe.estimate import estimate
from belvedere.recipe.load import difference, dump, load_recipe, read_recipe, recipe_hash
from belvedere.recipe.plan import Plan, data_path, plan, run_dir
from belvedere.recipe.shipped import recipe_names

SMALL = Path(__file__).parent / "small_recipe.yaml"
IMAGENET = 1_281_167


def planned(*overrides: str, num_images: int = 1347, world_size: int = 1) -> Plan:
    return plan(load_recipe(SMALL, overrides), num_images=num_images, world_size=world_size)


def refused(*overrides: str, num_images: int = 1347, world_size: int = 1) -> str:
    with pytest.raises(RecipeError) as caught:
        planned(*overrides, num_images=num_images, world_size=world_size)
    return str(caught.value)


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_plans_and_is_saved_and_shown(name: str) -> None:
    recipe = load_recipe(name, [] if name.startswith("tiny/") else ["data.path=DIR"])
    made = plan(recipe, num_images=1347 if name.startswith("tiny/") else IMAGENET)
    assert made.total_steps == recipe.train.epochs * made.steps_per_epoch > 0
    saved = json.loads(json.dumps(made.to_dict()))
    assert saved["recipe"]["name"] == name
    assert saved["total_steps"] == made.total_steps
    assert saved["lr"]["total_steps"] == int(
        recipe.optim.stretch * recipe.train.epochs * made.steps_per_epoch
    )
    assert dict(made.table())["recipe"].startswith(name)
    assert made.warnings == ()


def test_the_published_run_of_vits16() -> None:
    """MSN's numbers on ImageNet-1k at its batch of 1024 over 16 processes."""
    made = plan(load_recipe("msn/vits16", ["data.path=DIR"]), num_images=IMAGENET, world_size=16)
    assert (made.steps_per_epoch, made.batch, made.warmup_steps) == (1251, 64, 15 * 1251)
    assert made.total_steps == 800 * 1251
    assert made.schedule_steps == 1.25 * 800 * 1251
    assert made.lr(made.warmup_steps - 1) == pytest.approx(1e-3, rel=1e-12)
    assert made.lr(0) == pytest.approx(2e-4 + 8e-4 / (15 * 1251), rel=1e-12)
    progress = (made.total_steps - made.warmup_steps) / (made.lr.total_steps - made.warmup_steps)
    last = 1e-6 + (1e-3 - 1e-6) * (1 + math.cos(math.pi * progress)) / 2
    assert made.lr(made.total_steps - 1) == pytest.approx(last, rel=1e-12)
    assert made.weight_decay(0) == pytest.approx(0.04, abs=1e-9)
    assert 0.3 < made.weight_decay(made.total_steps - 1) < 0.4


def test_lengths_that_are_not_whole() -> None:
    made = planned("train.epochs=3", "optim.lr.warmup_epochs=0.25", num_images=1347)
    assert made.steps_per_epoch == 10
    assert made.schedule_steps == 37.5
    assert made.lr.total_steps == made.weight_decay.total_steps == 37
    assert made.warmup_steps == 2


def test_the_clock() -> None:
    at = planned("train.epochs=3", "optim.lr.warmup_epochs=0.25").clock(12)
    assert (at.step, at.epoch, at.steps_per_epoch, at.total_steps, at.schedule_steps) == (12, 1, 10, 30, 37.5)


@pytest.mark.parametrize(
    ("micro", "expected"),
    [("null", (64, 1)), ("64", (64, 1)), ("1000", (64, 1)), ("16", (16, 4)), ("48", (48, 2))],
)
def test_micro_batches(micro: str, expected: tuple[int, int]) -> None:
    made = planned(f"run.micro_batch={micro}", world_size=2)
    assert made.batch == 64
    assert (made.micro_batch, made.micro_batches) == expected


def test_a_batch_that_processes_cannot_share() -> None:
    assert refused(world_size=3) == (
        "train.global_batch: 128 cannot be shared equally by 3 processes; the nearest are 126 or 129"
    )
    assert refused("train.global_batch=2", world_size=3).endswith("the nearest are 3")


def test_a_batch_larger_than_the_data_set() -> None:
    words = "train.global_batch: 128 is more than the 100 images found in digits; set it to at most 100"
    assert refused(num_images=100) == words
    assert "0 images found in digits; look at data.path" in refused(num_images=0)
    assert planned(num_images=128).steps_per_epoch == 1


def test_all_that_does_not_fit_is_said_at_once() -> None:
    assert len(refused(num_images=100, world_size=3).splitlines()) == 2


def test_no_images_named() -> None:
    assert "set data.path=DIR" in refused("data.path=null")
    with pytest.raises(RecipeError, match=r"set data\.path=DIR"):
        data_path(load_recipe("msn/vits16"))
    assert data_path(load_recipe("msn/vits16", ["data.path=/x"])) == "/x"


def test_a_recipe_built_in_python_is_checked_too() -> None:
    recipe = load_recipe(SMALL)
    lr = LearningRate(start=1.0, peak=0.1, final=0.0, warmup_epochs=1)
    wrong = recipe.model_copy(update={"optim": recipe.optim.model_copy(update={"lr": lr})})
    with pytest.raises(RecipeError, match=r"optim\.lr\.start: 1 is more than optim\.lr\.peak"):
        plan(wrong, num_images=1347)


def test_what_is_probably_not_meant_is_warned_of() -> None:
    assert planned().warnings == ()
    (prototypes,) = planned("method.prototypes=2000").warnings
    assert prototypes.startswith("method.prototypes: 2000 prototypes for 1347 images")
    assert planned("method.prototypes=1347").warnings == ()
    (left,) = planned("train.global_batch=900").warnings
    assert "leaves 447 of 1347 images out" in left
    (warm,) = planned("train.epochs=8").warnings
    assert warm.startswith("optim.lr.warmup_epochs: the warm-up takes 100 steps, the run 80")


@pytest.mark.parametrize("method", ["msn", "swav", "esvit", "mugs"])
def test_a_warning_of_too_many_prototypes_names_the_key_that_says_how_many(method: str) -> None:
    recipe = load_recipe(f"tiny/{method}", ["data.path=digits", "train.global_batch=4"])
    keys = {line.split(":")[0] for line in plan(recipe, num_images=20).warnings if " for 20 images" in line}
    (key,) = keys
    assert value_at(recipe.model_dump(), key) == recipe.method.prototypes  # type: ignore[attr-defined]


def test_where_a_run_is_written() -> None:
    assert run_dir(load_recipe("msn/vits16")) == Path("runs/msn/vits16")
    assert planned("run.dir=/somewhere/else").run_dir == Path("/somewhere/else")


def test_threads_are_those_of_the_recipe_unless_given() -> None:
    recipe = load_recipe(SMALL, ["run.threads=3"])
    assert plan(recipe, num_images=1347).threads == 3
    assert plan(recipe, num_images=1347, threads=1).threads == 1


def test_a_plan_does_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        planned().batch = 3  # type: ignore[misc]


def test_the_needs_of_a_run() -> None:
    made = planned("run.keep_last=3", "run.milestone_epochs=50", "run.micro_batch=32")
    needs = estimate(made.recipe, made, trained=1000, teacher=900, backbone=800)
    assert (needs.parameters, needs.gradients, needs.moments, needs.teacher) == (4000, 4000, 8000, 3600)
    assert needs.checkpoint == 4 * (3 * 1000 + 900)
    assert needs.checkpoints == 3 + 1 + 3
    endless = planned("run.keep_last=1000000000000")
    assert estimate(endless.recipe, endless).checkpoints == endless.total_steps + 1
    assert needs.disk == 7 * needs.checkpoint + 3200
    assert needs.held == 4000 + 4000 + 8000 + 3600
    assert needs.memory == needs.held + needs.estimated
    # with micro-batches the heads' part is over before activations are kept
    peak = needs.estimated - needs.views - needs.process
    assert peak == pytest.approx(1.25 * max(needs.loss, needs.activations), abs=2)
    assert any("estimate" in name for name, _ in needs.table())
    double = planned("train.precision=float64")
    assert estimate(double.recipe, double, trained=1000, teacher=900, backbone=800).parameters == 8000


def test_activations_grow_with_what_the_student_sees() -> None:
    def activations(*overrides: str) -> int:
        made = planned(*overrides)
        return estimate(made.recipe, made, trained=0, teacher=0, backbone=0).activations

    whole = activations()
    assert activations("run.micro_batch=64") == whole // 2
    assert activations("method.patch_drop=0.7") < whole < activations("views.focal.count=5")
    assert activations("views.target.scale=[0.9, 1]") == whole
    assert activations("train.precision=float64") == 2 * activations("train.precision=float32") > whole


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_activations_are_estimated_within_a_fifth(precision: str) -> None:
    """Against what a forward of ViT-S's width, three blocks deep, really keeps."""
    overrides = ["data.path=x", "backbone.depth=3", "views.focal.count=2"]
    recipe = load_recipe("msn/vits16", [*overrides, "run.micro_batch=2", f"train.precision={precision}"])
    backbone = build(recipe.backbone)
    backbone.initialize_(rng.torch_generator(0, "backbone"))
    keep = torch.arange(int(196 * 0.85))
    with (
        kept_bytes(backbone) as kept,
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        anchors = backbone(torch.randn(2, 3, 224, 224), keep=keep, regions=False)
        focals = backbone(torch.randn(4, 3, 96, 96), regions=False)
    assert len(anchors.pooled) + len(focals.pooled) == 6  # keeps both graphs until here
    trained = sum(parameter.numel() for parameter in backbone.parameters())
    needs = estimate(recipe, plan(recipe, num_images=2000), trained=trained, teacher=0, backbone=0)
    assert needs.activations == pytest.approx(sum(kept.values()), rel=0.2)


def test_a_run_of_fewer_steps_than_its_recipe_was_measured_with_says_so() -> None:
    measured = ("data.path=x", "measured={images: 60000, steps: 10296}")
    recipe = load_recipe("msn/fashion", measured)
    (warning,) = plan(recipe, num_images=3100).warnings
    words = "22 epochs were 10,296 steps on 60,000 images where this recipe was measured; here, on "
    assert warning.startswith(f"train.epochs: {words}3,100 images, they are 528")
    assert "train.epochs=429 has as many" in warning
    assert dict(plan(recipe, num_images=3100).table())["measured"] == f"{words}3,100 images, they are 528"
    more = plan(recipe, num_images=100_000)
    assert more.warnings == ()
    assert "they are 17,182" in dict(more.table())["measured"]
    assert "measured" not in dict(plan(recipe, num_images=60_000).table())
    (warning,) = plan(load_recipe("msn/fashion", [*measured, "train.epochs=5"]), num_images=3100).warnings
    assert warning.startswith(f"train.epochs: {words}3,100 images, 5 epochs are 120;")
    table = dict(plan(load_recipe("swav/fashion", ["data.path=x", "train.epochs=1"]), num_images=802).table())
    assert "20 epochs were 9,360 steps" in table["measured"]  # 9,360 is a multiple of 1, too
    assert "1 epoch are" not in table["measured"]
    assert table["length"].startswith("1 epoch x 6")
    own = load_recipe("msn/fashion", [*measured, "name=mine", "train.epochs=5"])
    (warning,) = plan(own, num_images=3100).warnings
    assert "was measured with 10,296 steps on 60,000 images; here it has 120 on 3,100" in warning


def test_what_a_recipe_was_measured_on_is_no_part_of_a_run() -> None:
    recipe = load_recipe("tiny/msn").model_copy(update={"measured": None})
    with_it = load_recipe("tiny/msn", ["measured={images: 1347, steps: 2200}"])
    assert recipe_hash(recipe) == recipe_hash(with_it)
    assert difference(recipe, with_it) == []
    assert "measured" not in dump(recipe)
    assert read_recipe(dump(with_it)) == with_it


@pytest.mark.parametrize(
    ("name", "override", "key"),
    [
        ("swav", "method.freeze_prototypes_steps=700", "method.freeze_prototypes_steps"),
        ("sela", "method.freeze_prototypes_steps=700", "method.freeze_prototypes_steps"),
        ("swav", "method.queue={length: 256, start_epoch: 60}", "method.queue.start_epoch"),
        ("esvit", "method.teacher_temperature.warmup_epochs=50", "method.teacher_temperature.warmup_epochs"),
        ("esvit", "method.freeze_last_layer_epochs=50", "method.freeze_last_layer_epochs"),
        ("mugs", "method.group.teacher_temperature.warmup_epochs=70", "method.group.teacher_temperature"),
        ("mugs", "method.group.freeze_last_layer_epochs=70", "method.group.freeze_last_layer_epochs"),
        ("msn", "optim.lr.warmup_epochs=50", "optim.lr.warmup_epochs"),
        ("msn", "optim.clip.from_epoch=60", "optim.clip.from_epoch"),
    ],
)
def test_a_duration_of_more_than_a_third_of_the_run_is_doubted(name: str, override: str, key: str) -> None:
    recipe = load_recipe(f"tiny/{name}", ["train.epochs=100", override])
    found = [words for words in plan(recipe, num_images=1347).warnings if " of this run of " in words]
    assert any(words.startswith(key) for words in found)


def test_a_short_run_of_a_published_recipe_doubts_its_durations() -> None:
    published = load_recipe("swav/rn50-400ep", ["data.path=x"])
    assert plan(published, num_images=IMAGENET).warnings == ()
    few = load_recipe("swav/rn50-400ep", ["data.path=x", "train.epochs=20"])
    keys = [words.partition(":")[0] for words in plan(few, num_images=IMAGENET).warnings]
    assert "optim.lr.warmup_epochs" in keys


@pytest.mark.parametrize("stretch", ["1e308", "1e300", "1e8"])
def test_schedules_of_more_epochs_than_can_be_are_refused(stretch: str) -> None:
    with pytest.raises(RecipeError, match=r"optim\.stretch: 1e\+\d+ lays the schedules out over .* epochs"):
        load_recipe("tiny/msn", [f"optim.stretch={stretch}"])

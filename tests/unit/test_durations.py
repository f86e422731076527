"""Durations in epochs follow the images; those in steps do not; and old runs go on with either."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from belvedere.core.errors import CheckpointError, RecipeError
from belvedere.engine.state import load
from belvedere.methods.options.frozen import FrozenPrototypes
from belvedere.recipe.load import difference, dump, load_recipe, read_recipe, recipe_hash
from belvedere.recipe.plan import plan
from belvedere.recipe.schema import Recipe
from belvedere.recipe.shipped import recipe_names
from belvedere.train.run import pretrain

SMALL = [name for name in recipe_names() if name.startswith("tiny/") or name.endswith("/fashion")]
STEPS, EPOCHS = "method.freeze_prototypes_steps", "method.freeze_prototypes_epochs"


def frozen(recipe: Recipe, num_images: int) -> int:
    """How many steps a run with so many images leaves the prototypes as they began."""
    assert isinstance(recipe.method, FrozenPrototypes)
    return recipe.method.frozen_steps(plan(recipe, num_images=num_images).steps_per_epoch)


@pytest.mark.parametrize("name", SMALL)
def test_small_recipes_say_what_they_were_measured_with(name: str) -> None:
    recipe = load_recipe(name, ["data.path=somewhere"])
    assert recipe.measured is not None
    assert recipe.measured.images == (1347 if name.startswith("tiny/") else 60_000)
    assert recipe.measured.steps == plan(recipe, num_images=recipe.measured.images).total_steps


@pytest.mark.parametrize("name", SMALL)
def test_no_duration_of_a_small_recipe_is_in_steps(name: str) -> None:
    keys = load_recipe(name).method.model_dump()
    assert not [key for key in keys if key.endswith("_steps")]


# name: (images measured with, the steps that the recipe said before, its hash then)
BEFORE = {
    "swav/fashion": (60_000, 468, "0035cacaabaa27a9"),
    "sela/fashion": (60_000, 468, "30089f722487a269"),
    "tiny/swav": (1347, 10, "b4e102901071b62c"),
    "tiny/sela": (1347, 10, "0aadc5a9c75d6f23"),
}


@pytest.mark.parametrize("name", BEFORE)
def test_epochs_are_the_same_steps_where_the_recipe_was_measured(name: str) -> None:
    images, steps, old_hash = BEFORE[name]
    path = ["data.path=somewhere"] if name.endswith("fashion") else []
    new, old = load_recipe(name, path), load_recipe(name, [f"{STEPS}={steps}", *path])
    assert frozen(new, images) == frozen(old, images) == steps
    assert recipe_hash(load_recipe(name, [f"{STEPS}={steps}"])) == old_hash  # nothing else has changed
    per_epoch = plan(new, num_images=images).steps_per_epoch
    assert difference(old, new, steps_per_epoch=per_epoch) == []
    assert difference(old, new) != []
    assert difference(old, new, steps_per_epoch=per_epoch + 1) != []


def test_epochs_follow_the_images() -> None:
    recipe = load_recipe("swav/fashion", ["data.path=somewhere"])
    assert [frozen(recipe, images) for images in (1280, 3072, 60_000)] == [10, 24, 468]
    half = load_recipe("swav/fashion", ["data.path=somewhere", f"{EPOCHS}=0.5"])
    assert [frozen(half, images) for images in (1280, 3200)] == [5, 12]
    published = load_recipe("swav/rn50-800ep", ["data.path=somewhere"])
    assert [frozen(published, images) for images in (50_000, 1_281_167)] == [313, 313]


def test_exactly_one_of_the_two_is_given(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    text = dump(load_recipe("tiny/sela"))
    for old, new, words in (
        ("freeze_prototypes_epochs: 1.0", "", "freeze_prototypes_steps: is missing; give it, or the same in"),
        ("freeze_prototypes_epochs", "freeze_prototypes_steps: 3\n  freeze_prototypes_epochs", "give one of"),
        ("freeze_prototypes_epochs: 1.0", "freeze_prototypes_epochs: null", "is missing"),
        ("freeze_prototypes_epochs: 1.0", "freeze_prototypes_epochs: -1.0", "number of at least 0"),
    ):
        assert old in text
        file.write_text(text.replace(old, new, 1))
        with pytest.raises(RecipeError, match=words):
            load_recipe(file)
    with pytest.raises(RecipeError, match="give one of them"):
        load_recipe("tiny/swav", [f"{STEPS}=3", f"{EPOCHS}=1"])


def test_an_override_of_one_takes_the_others_place() -> None:
    for name, key, other in (("tiny/swav", STEPS, EPOCHS), ("swav/rn50-800ep", EPOCHS, STEPS)):
        values = load_recipe(name, [f"{key}=2"]).model_dump()["method"]
        assert values[key.partition(".")[2]] == 2
        assert other.partition(".")[2] not in values


@pytest.mark.parametrize(
    ("override", "words"),
    [(f"{EPOCHS}=2", "2 of 2 epochs"), (f"{STEPS}=20", "method.freeze_prototypes_epochs: 1 in its place")],
)
def test_prototypes_that_never_learn_are_doubted_by_the_key_that_is_given(override: str, words: str) -> None:
    recipe = load_recipe("tiny/swav", [override, "train.epochs=2", "optim.lr.warmup_epochs=1"])
    told = [line for line in plan(recipe, num_images=1347).warnings if "never learn" in line]
    assert len(told) == 1
    assert told[0].startswith(override.partition("=")[0])
    assert words in told[0]


def test_a_run_that_began_with_steps_goes_on_with_epochs_and_has_the_same_bits(tmp_path: Path) -> None:
    short = ["train.epochs=2", "optim.lr.warmup_epochs=1", "train.global_batch=336", "run.device=cpu"]
    old = load_recipe("tiny/swav", [*short, f"{STEPS}=4", f"run.dir={tmp_path / 'old'}"])
    new = load_recipe("tiny/swav", [*short, f"run.dir={tmp_path / 'new'}"])
    assert pretrain(old).step == pretrain(new).step == 8
    states = [load(tmp_path / name) for name in ("old", "new")]
    assert states[0] is not None
    assert states[1] is not None
    for name, tensor in states[0].tensors.items():
        assert torch.equal(tensor, states[1].tensors[name])
    moved = new.model_copy(update={"run": old.run})
    assert pretrain(moved).step == 8
    assert read_recipe((tmp_path / "old" / "recipe.yaml").read_text()) == moved
    other = load_recipe("tiny/swav", [*short, f"{STEPS}=5", f"run.dir={tmp_path / 'old'}"])
    with pytest.raises(CheckpointError, match="begun with another recipe"):
        pretrain(other)

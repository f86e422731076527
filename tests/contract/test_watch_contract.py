"""What every method page owes the watch: health in every step, and changes that its own recipe accepts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import pytest
import torch
from drive import drain, recipe, session

from belvedere.engine.health import NAMES, measure
from belvedere.engine.remedy import Kind, first_change
from belvedere.methods.method import Extent
from belvedere.methods.pages import method_names
from belvedere.recipe.load import load_recipe
from belvedere.recipe.schema import Recipe
from belvedere.recipe.shipped import recipe_names

EXTENT = Extent(images=1347, epochs=80, steps_per_epoch=10, global_batch=128, world_size=1)
WITH = {"swav": ("method.queue={length: 1280, start_epoch: 0}",)}  # what a tiny recipe leaves out
ROUNDS = 25  # of one change after the other: more than any page knows, so that the last ones repeat

pytestmark = pytest.mark.parametrize("method", method_names())


def test_every_step_shows_its_health(method: str, images: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    for report in drain(session(recipe(method, images, tmp_path)), until=2):
        health = report.losses.health
        assert health is not None
        assert health.z.shape[:2] == health.log_p.shape[:2], "views and rows of both"
        torch.testing.assert_close(health.log_p.exp().sum(2), torch.ones(health.log_p.shape[:2]))
        for tensor in (health.z, health.log_p, health.cross_entropy, health.q):
            assert tensor is None or not tensor.requires_grad
        numbers = measure(health).numbers
        assert set(numbers) <= set(NAMES)
        assert all(math.isfinite(value) for value in numbers.values())
        assert numbers["ln_k"] == pytest.approx(math.log(health.log_p.shape[2]))
        assert 1 / health.log_p.shape[2] <= numbers.get("top_target", 1.0) <= 1 + 1e-6


@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_kind_has_a_change_and_the_recipe_accepts_each_in_turn(method: str, kind: Kind) -> None:
    overrides = dict(line.split("=", 1) for line in WITH.get(method, ()))
    before, changed = _with(f"tiny/{method}", overrides), 0
    for changed in range(ROUNDS):  # noqa: B007
        change = first_change(before.method.remedies(EXTENT), kind, before.model_dump())
        if change is None:
            break
        key, value = change.override.split("=", 1)
        kept = {old: each for old, each in overrides.items() if not old.startswith(f"{key}.")}
        overrides = {**kept, key: value}
        after = _with(f"tiny/{method}", overrides)
        assert after != before, f"{change.override} changes nothing"
        assert after.method.misfits(EXTENT) == []
        before = after
    assert changed, "the page knows none"


def test_what_is_named_first_fits_every_shipped_recipe(method: str) -> None:
    shipped = {name: load_recipe(name) for name in recipe_names()}
    own = {name: each for name, each in shipped.items() if each.method.name == method}
    assert f"tiny/{method}" in own
    for name, each in own.items():
        batch = each.train.global_batch
        extent = Extent(
            images=1_281_167,
            epochs=each.train.epochs,
            steps_per_epoch=1_281_167 // batch,
            global_batch=batch,
            world_size=1,
        )
        for kind in get_args(Kind):
            change = first_change(each.method.remedies(extent), kind, each.model_dump())
            assert change is not None, kind
            assert load_recipe(name, [change.override]) != each


def _with(name: str, overrides: dict[str, str]) -> Recipe:
    """A shipped recipe with overrides, the one of a whole block before those of its parts."""
    return load_recipe(name, [f"{key}={overrides[key]}" for key in sorted(overrides)])

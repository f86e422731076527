"""Whether a directory may take a run of a recipe: a new one, or the one that it holds.

A run goes on under the recipe that it began with; only keys under `run:` may change, and what has changed is
told. Where nothing has been trained yet (a start that failed, a kill before the first checkpoint) any recipe
may take its place. What is refused comes with the overrides that begin a new run from this one's weights.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from belvedere.core.errors import CheckpointError, RecipeError
from belvedere.core.files import write_text
from belvedere.engine.manifest import FOLDER_NAME, checkpoints
from belvedere.recipe.checks import flat
from belvedere.recipe.load import difference, dump, read_recipe_file
from belvedere.recipe.schema import Recipe

RECIPE_NAME = "recipe.yaml"
_LISTED = 20


class ChangedRecipeError(CheckpointError):
    """A run that was begun with another recipe. anew: the overrides that begin a new run from its weights;
    None where the directory holds another method's run."""

    anew: tuple[str, ...] | None = None


def compare_recipe(recipe: Recipe, directory: Path, *, steps_per_epoch: int | None = None) -> list[str]:
    """What to tell of a recipe that differs from the one that the run in `directory` began with. Only reads.

    steps_per_epoch: of the run, by which a duration in epochs may take the place of one in steps.
    Raises `ChangedRecipeError` if anything outside `run:` differs and the run has a checkpoint, and
    `CheckpointError` if the run's recipe cannot be read.
    """
    file = directory / RECIPE_NAME
    if not file.exists():
        return []
    trained = _has_state(directory)
    try:
        begun = read_recipe_of(directory)
    except CheckpointError:
        if trained:
            raise
        return [f"{file} could not be read; nothing has been trained there, and it is replaced"]
    changed = difference(begun, recipe, steps_per_epoch=steps_per_epoch)
    if not changed:
        return _changed_keys(begun, recipe) if trained else []
    if trained:
        raise _refusal(directory, begun, recipe, changed)
    return [f"nothing has been trained in {directory} yet; its recipe is replaced ({_some(changed, '; ')})"]


def write_recipe(recipe: Recipe, directory: Path) -> None:
    """Save the recipe with the run; the file always shows the latest."""
    write_text(directory / RECIPE_NAME, dump(recipe))


def read_recipe_of(directory: Path) -> Recipe:
    """The recipe saved in a run's directory. Raises `CheckpointError` that names the file."""
    file = directory / RECIPE_NAME
    if not file.exists():
        raise CheckpointError(f"{file} is missing; restore it, or start another run with run.dir=NEW")
    try:
        return read_recipe_file(file)
    except RecipeError as error:
        raise CheckpointError(
            f"{file} cannot be read; restore it, or start another run with run.dir=NEW: {error}"
        ) from error


def anew(directory: Path, recipe: Recipe) -> tuple[str, ...]:
    """The overrides that make of `recipe` a new run which begins with the weights of the run in `directory`:
    at epoch 0, its schedules laid out anew."""
    start = [f"init.from={directory}"]
    if recipe.init is not None and recipe.init.start_epoch is not None:
        start.append("init.start_epoch=null")
    if recipe.init is not None and recipe.init.take != "all":
        start.append("init.take=all")
    return (*start, f"run.dir={_free_sibling(directory)}")


def _free_sibling(directory: Path) -> Path:
    """`runs/x-2`, or the next number whose directory does not exist."""
    number = 2
    while (sibling := directory.with_name(f"{directory.name}-{number}")).exists():
        number += 1
    return sibling


def _has_state(directory: Path) -> bool:
    """Whether there is a checkpoint, or one that a save was about to replace when it was killed."""
    folder = directory / FOLDER_NAME
    return bool(checkpoints(directory)) or any(folder.glob(".replaced-*"))


def _refusal(directory: Path, begun: Recipe, recipe: Recipe, changed: list[str]) -> ChangedRecipeError:
    if begun.method.name != recipe.method.name:
        return ChangedRecipeError(
            f"{directory} holds a run of {begun.name} ({begun.method.name}), and this is {recipe.name} "
            f"({recipe.method.name}); choose another directory with run.dir=NEW"
        )
    overrides = anew(directory, recipe)
    error = ChangedRecipeError(
        f"{directory} was begun with another recipe; only keys under run: may change there. Changed:\n"
        f"    {_some(changed, chr(10) + '    ')}\n"
        "  Undo the change, or begin a new run with the weights of this one: schedules laid out anew over "
        "its whole length, a fresh optimizer, and this run stays as it is. The new run has the overrides\n"
        f"    {shlex.join(overrides)}"
    )
    error.anew = overrides
    return error


def _some(changed: list[str], between: str) -> str:
    more = [f"and {len(changed) - _LISTED} more"] if len(changed) > _LISTED else []
    return between.join([*changed[:_LISTED], *more])


def _changed_keys(begun: Recipe, recipe: Recipe) -> list[str]:
    """What changed under `run:`; nothing if nothing did."""
    before, after = _run_keys(begun), _run_keys(recipe)
    changed = [
        f"run.{key}: {_shown(before, key)} -> {_shown(after, key)}"
        for key in sorted(before.keys() | after.keys())
        if _shown(before, key) != _shown(after, key)
    ]
    return [f"changed since the last start: {'; '.join(changed)}"] if changed else []


def _run_keys(recipe: Recipe) -> dict[str, Any]:
    return {".".join(path): value for path, value in flat(recipe.run.model_dump())}


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else "(absent)"

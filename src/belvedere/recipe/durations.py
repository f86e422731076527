"""How long a run is beside what its recipe says in steps and epochs: what of it is probably not meant."""

from __future__ import annotations

from collections.abc import Iterator

from belvedere.engine.remedy import value_at
from belvedere.methods.method import Extent
from belvedere.recipe.checks import flat
from belvedere.recipe.load import load_recipe
from belvedere.recipe.schema import Recipe
from belvedere.recipe.shipped import recipe_names

LARGE = 1 / 3
"""A duration of more than this share of the run is doubted."""
_SECTIONS = ("method", "optim")
_ENDINGS = {"_steps": "steps", "_epochs": "epochs", "_epoch": "epochs"}
_INTERVALS = {"refresh_epochs"}  # from one to the next, not from the beginning
_FEW = 0.5


def durations(recipe: Recipe, extent: Extent) -> Iterator[tuple[str, float, str]]:
    """(dotted key, steps, words) of all that a method or an optimizer does for a while, or from a while on.

    Known by the ends of keys, `_steps`, `_epochs` and `_epoch`, so that those of any method count.
    """
    written = recipe.model_dump(include=set(_SECTIONS))
    for path, value in flat(written):
        unit = next((unit for end, unit in _ENDINGS.items() if path[-1].endswith(end)), None)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if unit is not None and is_number and path[-1] not in _INTERVALS:
            steps = value * (extent.steps_per_epoch if unit == "epochs" else 1)
            words = f"{in_epochs(value)}, {steps:,.10g} steps," if unit == "epochs" else f"{value:,} steps"
            yield ".".join(path), steps, words


def doubts(recipe: Recipe, extent: Extent) -> list[str]:
    """Durations that take more than a third of the run, as `dotted key: words`.

    What a published recipe has in epochs is not doubted for as many epochs as its authors trained.
    """
    return [
        f"{key}: {words} {'are' if steps != 1 else 'is'} {steps / extent.total_steps:.0%} of this run of "
        f"{extent.total_steps:,} steps; was it meant for a longer run? Make it smaller, or train longer"
        for key, steps, words in durations(recipe, extent)
        if steps > LARGE * extent.total_steps and not _as_published(recipe, key)
    ]


def _as_published(recipe: Recipe, key: str) -> bool:
    """Whether a number of epochs is that of the shipped, published recipe of this name, as is the length."""
    if recipe.published is None or recipe.name not in recipe_names() or key.endswith("_steps"):
        return False
    shipped = load_recipe(recipe.name)
    same_length = shipped.train.epochs == recipe.train.epochs
    return same_length and value_at(shipped.model_dump(), key) == value_at(recipe.model_dump(), key)


def compared(recipe: Recipe, extent: Extent) -> str | None:
    """How this run's length compares with that of the one that the recipe was measured with; None if it is
    as long, or was not measured."""
    measured, epochs, steps = recipe.measured, recipe.train.epochs, extent.total_steps
    if measured is None or measured.steps == steps:
        return None
    written = _written_epochs(recipe)
    if written is None:
        told = f"this recipe was measured with {measured.steps:,} steps on {measured.images:,} images"
        return f"{told}; here it has {steps:,} on {extent.images:,}"
    told = f"{in_epochs(written)} were {measured.steps:,} steps on {measured.images:,} images"
    here = "they are" if written == epochs else f"{in_epochs(epochs)} {'are' if epochs != 1 else 'is'}"
    return f"{told} where this recipe was measured; here, on {extent.images:,} images, {here} {steps:,}"


def _written_epochs(recipe: Recipe) -> int | None:
    """How many epochs the measured run had: what the shipped recipe of this name says, whatever this one was
    changed to; None where the measurement is not that recipe's."""
    if recipe.name not in recipe_names():
        return None
    shipped = load_recipe(recipe.name)
    return shipped.train.epochs if shipped.measured == recipe.measured else None


def in_epochs(number: float) -> str:
    """`1 epoch`, `20 epochs`, `0.5 epochs`."""
    return f"{number:,.10g} epoch{'s' if number != 1 else ''}"


def shorter(recipe: Recipe, extent: Extent) -> str | None:
    """What to say of a run of less than half of the steps that the recipe was measured with."""
    words, measured = compared(recipe, extent), recipe.measured
    if words is None or measured is None or extent.total_steps >= _FEW * measured.steps:
        return None
    epochs = -(-measured.steps // extent.steps_per_epoch)
    return f"train.epochs: {words}; train.epochs={epochs} has as many"

"""A run's images, opened as its recipe says."""

from __future__ import annotations

from typing import Any

from belvedere.core.errors import UndividedError, UsageError
from belvedere.data.sources import Source, open_source
from belvedere.data.sources.dataset import PREFIX
from belvedere.data.sources.ranged import refuse_range_without_effect
from belvedere.data.spec import told
from belvedere.engine.agreement import agree
from belvedere.recipe.plan import data_path
from belvedere.recipe.schema import Recipe


def take_images(recipe: Recipe, images: Any) -> tuple[Recipe, Source, list[str]]:
    """What `open_images` returns, of images that were handed over: a source or a data set.

    The recipe's `data.path` is then `python:NAME`. Raises UsageError where it names other images too.
    """
    data = recipe.data
    source = open_source(images, label=data.label, image=data.image, value_range=data.range)
    name = f"{PREFIX}{source.name}"
    if recipe.data.path not in (None, name):
        raise UsageError(
            f"data.path is {told(recipe.data.path)!r}, and images are handed over too: leave one of them out "
            "(data.path=null)"
        )
    if recipe.data.split is not None and not recipe.split_is_default:
        raise UsageError(
            f"data.split is {recipe.data.split!r}, which images handed over do not have; set it to null"
        )
    if recipe.data.range is not None:
        refuse_range_without_effect(source, recipe.data.range)
    given = data.model_copy(update={"path": name, "split": None})
    return recipe.model_copy(update={"data": given}), source, list(recipe.remarks)


def open_images(recipe: Recipe) -> tuple[Recipe, Source, list[str]]:
    """(the recipe as it is carried out, its images, what to tell of both).

    The recipe is another one only where its `data.split` came with a shipped recipe and the images are not
    divided into parts: all of them are then used, and `data.split` is null. A split that a person gave is
    refused there, and one that divided images do not have is refused always. Raises DataError.

    Rank 0 looks first: it indexes (unpacks, downloads) what the others then find.
    """
    path, found = data_path(recipe), list[Source]()
    chosen = {"label": recipe.data.label, "image": recipe.data.image}

    def look() -> tuple[str | None, str]:
        """(the split that was opened, why it is not the recipe's)."""
        opened = look_for_split()
        if recipe.data.range is not None:
            refuse_range_without_effect(found[0], recipe.data.range)
        return opened

    def look_for_split() -> tuple[str | None, str]:
        try:
            found.append(open_source(path, split=recipe.data.split, value_range=recipe.data.range, **chosen))
        except UndividedError as error:
            if not recipe.split_is_default:
                raise
            found.append(open_source(path, value_range=recipe.data.range, **chosen))
            return None, str(error).partition(";")[0]
        return recipe.data.split, ""

    split, reason = agree(look, only_main=True)[0]
    if not found:
        found.append(open_source(path, split=split, value_range=recipe.data.range, **chosen))
    notes = list(recipe.remarks)
    if reason:
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"split": split})})
        notes.append(
            f"{reason}: this split comes with the recipe {recipe.name} and is not used; all "
            f"{len(found[0]):,} images of {told(path)} are"
        )
    return recipe, found[0], notes

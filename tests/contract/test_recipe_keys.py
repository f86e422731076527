"""Every key of a recipe is read by something that acts on it: no setting is only validated and printed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from belvedere.core.settings import Settings
from belvedere.recipe.checks import flat
from belvedere.recipe.load import load_recipe
from belvedere.recipe.schema import Recipe
from belvedere.recipe.shipped import recipe_names

TINY = [name for name in recipe_names() if name.startswith("tiny/")]

# Reading a key here does not make it count: these validate, compare, save or print it.
_ONLOOKERS = ("pydantic", "belvedere.recipe.", "belvedere.commands.", "belvedere.viz.")
_ACTING = ("belvedere.recipe.plan",)  # all of it but:
_ONLOOKING_FUNCTIONS = {"table", "to_dict", "_warnings", "contradictions", "mistakes", "_is_a_path"} | {
    "misfits",
    "remarks",
    "doubts",
}

# a ResNet and a Swin are built from these
_ACTING_PARTS_OF_SPECS = {"planes", "inner_width", "channels", "width", "built_side", "window_of", "shift_of"}


def _counts(module: str, qualified_name: str) -> bool:
    """Whether code there acts on what it reads. A `Settings`' own validators do not."""
    names = set(qualified_name.split("."))
    if names & _ONLOOKING_FUNCTIONS or module == __name__:
        return False
    if ".spec." in f"{module}.":
        return bool(names & _ACTING_PARTS_OF_SPECS)
    return module in _ACTING or not module.startswith(_ONLOOKERS)


def _places(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(id, path) of every section of a recipe."""
    if isinstance(value, Settings):
        yield id(value), path
        for name, inner in vars(value).items():
            yield from _places(inner, (*path, name))
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _places(inner, (*path, str(name)))


@contextmanager
def recorded(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, counts: Callable[[str, str], bool] = _counts
) -> Iterator[set[tuple[str, ...]]]:
    """Collects the path of each key of `recipe` that is read while the context lasts, by code that counts."""
    places = dict(_places(recipe))
    read: set[tuple[str, ...]] = set()

    def recording(self: Settings, name: str) -> Any:
        value = object.__getattribute__(self, name)
        path = places.get(id(self))
        if path is not None and name in type(self).model_fields:
            frame = sys._getframe(1)
            if counts(frame.f_globals.get("__name__", ""), frame.f_code.co_qualname):
                read.add((*path, name))
        return value

    with monkeypatch.context() as patch:
        patch.setattr(Settings, "__getattribute__", recording)
        yield read


def _is_a_tag(recipe: Recipe, path: tuple[str, ...]) -> bool:
    """Whether a key has one possible value, so that there is nothing to read in it (`optim.name: adamw`)."""
    section: Any = recipe
    for part in path[:-1]:
        section = section[part] if isinstance(section, Mapping) else vars(section)[part]
    if not isinstance(section, Settings):
        return False
    annotation = type(section).model_fields[path[-1]].annotation
    return get_origin(annotation) is Literal and len(get_args(annotation)) == 1


def unread(recipe: Recipe, read: set[tuple[str, ...]]) -> list[str]:
    """Dotted keys that nobody acted on.

    `published` and `measured` are for people; the pooled output leaves no choice of blocks and norm.
    """
    keys = {path for path, _ in flat(recipe.model_dump()) if path[0] not in ("published", "measured")}
    if recipe.features.source == "pooled":
        keys -= {("features", "blocks"), ("features", "norm")}
    return sorted(".".join(path) for path in keys - read if not _is_a_tag(recipe, path))


def _short(name: str, directory: Path) -> Recipe:
    """One epoch of a tiny recipe with every optional section filled in, so that its keys are there."""
    roles = load_recipe(name).views
    filled = [f"views.{role}.photometry.{section}" for role in roles for section in (
        "jitter={p: 0.5, brightness: 0.1, contrast: 0.1, saturation: 0.1, hue: 0.1}",
        "blur={p: 0.5, radius: [0.1, 1.0]}",
    )]  # fmt: skip
    return load_recipe(
        name,
        [
            *filled,
            "optim.clip={kind: total, norm: 3.0, from_epoch: 0}",
            "features.resize_px=10",  # of another size than the images, so that resizing is needed
            "optim.lr.warmup_epochs=0.5",
            "train.epochs=1",
            "train.precision=float32",
            f"run.dir={directory}",
            "run.device=cpu",
            "run.workers=0",
            "run.save_every_steps=4",
            "run.milestone_epochs=1",
            "run.log_every_steps=2",
        ],
    )


@pytest.fixture
def train() -> Callable[[Recipe], object]:
    """The whole of training, and features extracted by what it says of them."""
    import torch

    from belvedere.data.sources import subset
    from belvedere.eval.features import extract
    from belvedere.train.export import card
    from belvedere.train.run import open_session, pretrain

    def trained_and_used(recipe: Recipe) -> object:
        pretrain(recipe)
        run = open_session(recipe, torch.device("cpu"))
        return extract(run.method.export().backbone, card(run), subset(run.source, range(8)), batch_size=8)

    return trained_and_used


@pytest.mark.parametrize("name", TINY)
def test_every_key_is_acted_on(
    name: str, train: Callable[[Recipe], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _short(name, tmp_path / "run")
    with recorded(recipe, monkeypatch) as read:
        train(recipe)
    assert unread(recipe, read) == []


def test_the_recorder_finds_what_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = _short("tiny/msn", tmp_path)
    with recorded(recipe, monkeypatch, counts=lambda module, name: module == __name__) as read:
        assert recipe.optim.lr.peak > 0
        assert recipe.views["focal"].px > 0
        recipe.model_dump()
    assert read == {
        ("optim",),
        ("optim", "lr"),
        ("optim", "lr", "peak"),
        ("views",),
        ("views", "focal", "px"),
    }
    left = unread(recipe, read)
    assert "optim.lr.peak" not in left
    assert "views.focal.px" not in left
    assert {"optim.lr.final", "views.anchor.px", "seed", "run.workers", "optim.clip.norm"} <= set(left)
    assert "optim.name" not in left  # one possible value


def test_looking_on_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from belvedere.recipe.load import difference, dump, recipe_hash
    from belvedere.recipe.plan import plan

    recipe = _short("tiny/msn", tmp_path)
    with recorded(recipe, monkeypatch) as read:
        dump(recipe), recipe_hash(recipe), difference(recipe, recipe)
        assert read == set()
        made = plan(recipe, num_images=1347)
        before = set(read)
        made.table(), made.to_dict()
        assert read == before
    assert ("optim", "lr", "peak") in read
    assert not any(path[:1] in (("views",), ("backbone",), ("features",)) and len(path) > 1 for path in read)

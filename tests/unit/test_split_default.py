"""A split that a shipped recipe brings is a default; one that a person gives is not."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from belvedere.core.errors import DataError, UndividedError
from belvedere.recipe.load import load_recipe, read_recipe
from belvedere.recipe.shipped import recipe_text
from belvedere.train.images import open_images
from belvedere.train.run import open_session, pretrain
from belvedere.train.session import choose_device

COUNT = 12


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 8), (level, level, level)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """The same images in several containers, none of them divided into parts, and once divided."""
    images = {f"{number:02}.png": png(20 * number) for number in range(COUNT)}
    for name, data in images.items():
        for folder in ("flat", "classes/ab"[: 9 + int(name[:2]) % 2], "divided/train", "divided/val"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_bytes(data)
    (tmp_path / "list.txt").write_text("".join(f"flat/{name}\n" for name in images))
    (tmp_path / "list.csv").write_text("file,label\n" + "".join(f"flat/{name},a\n" for name in images))
    with (
        zipfile.ZipFile(tmp_path / "set.zip", "w") as archive,
        tarfile.open(tmp_path / "set.tar", "w") as tar,
    ):
        for name, data in images.items():
            archive.writestr(name, data)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    np.save(tmp_path / "set.npy", np.zeros((COUNT, 8, 9, 3), dtype=np.uint8))
    return tmp_path


@pytest.mark.parametrize("name", ["flat", "classes", "list.txt", "list.csv", "set.zip", "set.tar", "set.npy"])
def test_a_shipped_recipes_split_is_dropped_where_there_are_no_parts(made: Path, name: str) -> None:
    recipe, source, notes = open_images(load_recipe("msn/fashion", [f"data.path={made / name}"]))
    assert len(source) == COUNT
    assert recipe.data.split is None
    assert len(notes) == 1
    assert "data.split is 'train'" in notes[0]
    assert f"comes with the recipe msn/fashion and is not used; all {COUNT} images of" in notes[0]


def test_it_is_kept_where_there_are_parts(made: Path) -> None:
    recipe, source, notes = open_images(load_recipe("msn/fashion", [f"data.path={made / 'divided'}"]))
    assert (recipe.data.split, len(source), notes) == ("train", COUNT, [])


def test_it_is_refused_where_the_parts_are_others(made: Path) -> None:
    np.savez(made / "held_out.npz", x_test=np.zeros((COUNT, 8, 8, 3), dtype=np.uint8), y_test=np.zeros(COUNT))
    with pytest.raises(DataError, match="train"):
        open_images(load_recipe("msn/fashion", [f"data.path={made / 'held_out.npz'}"]))


@pytest.mark.parametrize("given", ["data.split=train", "data.split=test"])
def test_a_given_split_is_refused_where_there_are_no_parts(made: Path, given: str) -> None:
    with pytest.raises(UndividedError, match=r"data\.split is .*set data\.split=null"):
        open_images(load_recipe("msn/fashion", [f"data.path={made / 'flat'}", given]))


def test_so_is_the_split_of_a_persons_own_file(made: Path) -> None:
    file = made / "mine.yaml"
    file.write_text(recipe_text("msn/fashion"))
    with pytest.raises(UndividedError):
        open_images(load_recipe(file, [f"data.path={made / 'flat'}"]))


def test_a_list_of_parts_says_its_splits_itself(made: Path) -> None:
    path = f"data.path=[{{path: {made / 'flat'}}}, {{path: {made / 'divided'}, split: train}}]"
    recipe, source, notes = open_images(load_recipe("msn/fashion", [path]))
    assert (recipe.data.split, len(source)) == (None, 2 * COUNT)
    assert len(notes) == 1
    assert "data.path is a list" in notes[0]


def test_the_saved_recipe_says_what_was_used_and_the_same_command_continues(made: Path) -> None:
    overrides = [
        f"data.path={made / 'flat'}",
        f"run.dir={made / 'run'}",
        "train.global_batch=4",
        "train.epochs=1",
        "optim.lr.warmup_epochs=0.5",
        "backbone.depth=1",
        "run.workers=0",
        "run.device=cpu",
    ]
    recipe = load_recipe("tiny/msn", overrides)
    outcome = pretrain(recipe)
    saved = outcome.directory / "recipe.yaml"
    assert read_recipe(saved.read_text()).data.split is None
    for again in (recipe, load_recipe("tiny/msn", overrides), load_recipe(saved)):
        session = open_session(again, choose_device("cpu"))
        assert session.resume()
        assert pretrain(again).step == outcome.step == 3

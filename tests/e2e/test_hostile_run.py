"""Training on images as people have them: no file ends a run, and what is lost stays lost, on record and
bitwise."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

from belvedere.cli import main
from belvedere.core.errors import CheckpointError
from belvedere.data.fetch import Fetch, Fetched, Wanted
from belvedere.engine.state import load
from belvedere.recipe.load import load_recipe
from belvedere.recipe.schema import Recipe
from belvedere.train import run as runner
from belvedere.train.dry import dry_run
from belvedere.train.loop import Wish
from belvedere.train.roster import ROSTER_NAME
from belvedere.train.run import pretrain
from belvedere.zoo import cards

COUNT, BATCH, STEPS = 24, 8, 9
VANISHES_AT, STOPS_AT = 2, 4  # in the first epoch and in the second


def recipe(images: Path, run: Path, *overrides: str) -> Recipe:
    settings = {
        "data.path": images,
        "data.split": "null",
        "data.max_bad_share": "0.5",
        "train.global_batch": BATCH,
        "train.epochs": 3,
        "train.precision": "float32",
        "optim.lr.warmup_epochs": 1,
        "backbone.depth": 1,
        "run.workers": 0,
        "run.device": "cpu",
        "run.dir": run,
        **dict(words.split("=", 1) for words in overrides),
    }
    return load_recipe("tiny/msn", [f"{key}={value}" for key, value in settings.items()])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two dozen small photographs in two classes."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    for number in range(COUNT):
        path = folder / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12 + number, 20, 3), dtype=np.uint8)).save(path)
    return folder


def tensors(run: Path) -> dict[str, torch.Tensor]:
    loaded = load(run)
    assert loaded is not None
    assert loaded.step == STEPS
    return loaded.tensors


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def report(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "data_report.json").read_text())
    return content


@pytest.fixture
def vanishing(images: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The file that is gone from the moment when the batch of step VANISHES_AT is put together."""
    gone: list[Path] = []
    fetch = Fetch.fetch

    def losing(self: Fetch, wanted: Wanted) -> Fetched:
        if wanted.step == VANISHES_AT:
            gone[:] = [images / self.source.key(int(wanted.asked[3]))]
            gone[0].unlink(missing_ok=True)
        return fetch(self, wanted)

    monkeypatch.setattr(Fetch, "fetch", losing)
    return gone


def stopped(monkeypatch: pytest.MonkeyPatch, run: Callable[[], runner.Outcome]) -> None:
    """Run until somebody asks it to stop after STOPS_AT steps."""
    with monkeypatch.context() as patch:
        patch.setattr(runner._Keeper, "wish", lambda self, at: Wish(stop=at.step + 1 == STOPS_AT, save=False))
        outcome = run()
    assert (outcome.step, outcome.stopped) == (STOPS_AT, True)


@pytest.mark.parametrize("afterwards", ["still gone", "back again"])
def test_a_file_that_vanishes_leaves_a_resumed_run_bitwise(
    tmp_path: Path,
    images: Path,
    vanishing: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    afterwards: str,
) -> None:
    kept = {path: path.read_bytes() for path in images.rglob("*.png")}
    pretrain(recipe(images, tmp_path / "whole"))
    (lost,) = vanishing
    lost.write_bytes(kept[lost])
    stopped(monkeypatch, lambda: pretrain(recipe(images, tmp_path / "parts")))
    assert not lost.exists()
    if afterwards == "back again":
        lost.write_bytes(kept[lost])
    capsys.readouterr()
    pretrain(recipe(images, tmp_path / "parts"))
    told = capsys.readouterr().err
    assert equal(tensors(tmp_path / "whole"), tensors(tmp_path / "parts"))
    name = lost.relative_to(images).as_posix()
    assert (f"1 of the {COUNT} images that the run began with are gone" in told) == (
        afterwards == "still gone"
    )
    for run in ("whole", "parts"):
        found = report(tmp_path / run)
        assert found["unreadable"] == {name: "cannot be read: No such file or directory"}
        assert (found["images"], found["tried"], found["not_read"]) == (COUNT, COUNT, 1)
        assert found["read"] == {"RGB": COUNT - 1}
    loaded = load(tmp_path / "parts")
    assert loaded is not None
    assert len(loaded.meta["replaced"]) == 1


def test_a_folder_that_vanished_is_no_other_data_set(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped(monkeypatch, lambda: pretrain(recipe(images, tmp_path / "run")))
    (images / "a").rename(tmp_path / "elsewhere")
    dry_run(recipe(images, tmp_path / "run"))
    capsys.readouterr()
    pretrain(recipe(images, tmp_path / "run"))
    assert f"12 of the {COUNT} images that the run began with are gone" in capsys.readouterr().err
    assert len(report(tmp_path / "run")["unreadable"]) == 12


def test_a_file_more_or_of_another_size_is_another_data_set(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(monkeypatch, lambda: pretrain(recipe(images, tmp_path / "run")))
    (images / "a" / "00.png").unlink()
    changed = images / "b" / "01.png"
    content = changed.read_bytes()
    changed.write_bytes(content + b"more")
    with pytest.raises(CheckpointError, match="other images"):
        pretrain(recipe(images, tmp_path / "run"))
    changed.write_bytes(content)
    (images / "a" / "99.png").write_bytes(content)
    with pytest.raises(CheckpointError, match="other images"):
        pretrain(recipe(images, tmp_path / "run"))
    (images / "a" / "99.png").unlink()
    (tmp_path / "run" / ROSTER_NAME).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="other images"):
        pretrain(recipe(images, tmp_path / "run"))


HOSTILE = {
    "empty.jpg": b"",
    "page.jpg": b"<!DOCTYPE html><html><body>404</body></html>",
    "drawing.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "program.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    "film.jpg": b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00" + bytes(200),
    "bomb.png": None,
    "cut.png": None,
}


def test_no_file_ends_a_run_and_each_is_listed(tmp_path: Path, images: Path) -> None:
    whole = (images / "a" / "00.png").read_bytes()
    Image.new("1", (20_000, 10_000)).save(images / "bomb.png")
    for name, content in HOSTILE.items():
        if name != "bomb.png":
            (images / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
    (images / "folder.jpg").mkdir()
    (images / "link.jpg").symlink_to(tmp_path / "nowhere")
    outcome = pretrain(recipe(images, tmp_path / "run", "train.epochs=4", "train.global_batch=6"))
    assert outcome.step == outcome.total_steps == 20
    found = report(tmp_path / "run")
    assert found["unreadable"].keys() == {*HOSTILE, "link.jpg"}
    reasons = {name: found["unreadable"][name] for name in HOSTILE}
    assert reasons["empty.jpg"] == "the file is empty"
    for name in ("page.jpg", "drawing.png", "program.jpg", "film.jpg"):
        assert reasons[name].startswith("no image format recognized; it starts with b")
    assert "pixels, refused" in reasons["bomb.png"]
    assert "truncated" in reasons["cut.png"]
    assert found["not_read"] == len(HOSTILE) + 1


def test_names_that_are_not_utf8_and_values_of_twelve_bits_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unreadable and converted images, in classes, all with names that are not UTF-8; and data.range."""
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    names = []
    for number in range(COUNT):
        names.append(os.fsdecode(b"%s\xe9/%02d\xff.png" % (b"ab"[number % 2 :][:1], number)))
        (folder / names[-1]).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 4096, (12 + number, 20), dtype=np.uint16)).save(folder / names[-1])
    (folder / names[3]).write_bytes(b"")
    whole = recipe(folder, tmp_path / "whole", "data.range=[0,4095]")
    dry_run(whole)
    assert pretrain(whole).step == STEPS
    run = tmp_path / "run"
    wish = runner._Keeper.wish
    stop = lambda keeper, at: Wish(stop=at.step == STOPS_AT, save=True)  # noqa: E731
    monkeypatch.setattr(runner._Keeper, "wish", stop)
    pretrain(recipe(folder, run, "data.range=[0,4095]"))
    monkeypatch.setattr(runner._Keeper, "wish", wish)
    assert pretrain(recipe(folder, run, "data.range=[0,4095]")).step == STEPS
    assert equal(tensors(run), tensors(tmp_path / "whole"))
    told = report(run)
    assert told["unreadable"] == {names[3]: "the file is empty"}
    assert os.fsencode(next(iter(told["unreadable"]))) == b"b\xe9/03\xff.png"
    assert set(told["converted"]["16-bit gray"]) <= set(names)
    assert json.loads((tmp_path / "whole" / "data_report.json").read_text()) == told

    checked = tmp_path / "check.json"
    assert main(["data", "check", str(folder), "--json", str(checked)]) == 0
    content = json.loads(checked.read_text())
    assert list(content["unreadable"]) == [names[3]]
    assert content["values"]["uint16"]["share_of_range"] == pytest.approx(4095 / 65535, abs=1e-3)
    seen = capsys.readouterr().out
    assert "6.2% of the range" in seen or "6.2 % of the range" in seen
    assert "--range" in seen

    assert cards.read_card(run / "backbone" / "card.yaml").value_range == (0.0, 4095.0)
    for out in ("f.parquet", "f.npz"):
        assert main(["embed", str(run), "--data", str(folder), "--out", str(tmp_path / out)]) == 0
    assert "scaled from 0..4095, as the card says" in " ".join(capsys.readouterr().err.split())
    assert (
        main(
            [
                "embed",
                str(run),
                "--data",
                str(folder),
                "--range",
                "0",
                "65535",
                "--out",
                str(tmp_path / "g.npz"),
            ]
        )
        == 0
    )
    assert "trained with data.range [0, 4095]" in " ".join(capsys.readouterr().err.split())
    one, other = (np.load(tmp_path / name) for name in ("f.npz", "g.npz"))
    assert not np.array_equal(one["features"], other["features"])
    assert (
        main(
            ["evaluate", str(run), "--data", str(folder), "--protocols", "knn", "--out", str(tmp_path / "e")]
        )
        == 0
    )
    assert json.loads((tmp_path / "e" / "report.json").read_text())["range"] == [0.0, 4095.0]
    rows = parquet.read_table(tmp_path / "f.parquet").to_pydict()
    assert rows["file"] == one["files"].tolist()
    assert rows["file"][0] == r"a\xe9/00\xff.png"
    assert set(rows["label"]) == {r"a\xe9", r"b\xe9"}

"""`belvedere data check`: what is found, what a person reads, what the JSON holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from belvedere.cli import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def scene(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Shapes and shades drawn from a seed: structure at all scales, as photographs have."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((size[1], size[0], 3))
    for cells in (3, 6, 12, 24):
        layer = rng.normal(0, 120 / cells**0.5, (cells, cells, 3))
        planes = [Image.fromarray(layer[..., c]).resize(size, Image.Resampling.BICUBIC) for c in range(3)]
        pixels += np.stack([np.asarray(plane) for plane in planes], axis=-1)
    return Image.fromarray((pixels + 128).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A pretraining set of 30 images and three bad files, and an evaluation set of 8 that shares four."""
    root = tmp_path_factory.mktemp("sets")
    pre, benchmark = root / "pre", root / "bench"
    for number in range(30):
        folder = pre / ("cat" if number % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        scene(number).save(folder / f"{number:02}.png")
    scene(3).save(pre / "dog" / "03-again.bmp")  # equal pixels, and another label
    (pre / "cat" / "empty.jpg").write_bytes(b"")
    (pre / "cat" / "text.png").write_text("no image")
    scene(100, (10, 400)).save(pre / "cat" / "thin.png")
    for number in range(50, 54):
        (benchmark / "dog").mkdir(parents=True, exist_ok=True)
        scene(number).save(benchmark / "dog" / f"{number}.png")
    shared = benchmark / "dog"
    scene(0).save(shared / "equal.bmp")
    scene(1).resize((80, 60)).save(shared / "small.jpg", quality=60)
    scene(2).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(shared / "mirror.jpg", quality=90)
    scene(4).convert("L").crop((4, 3, 157, 118)).save(shared / "gray-crop.png")
    return pre, benchmark


def checked(tmp_path: Path, *words: object) -> Any:
    out = tmp_path / "report.json"
    assert main(["data", "check", *(str(word) for word in words), "--json", str(out)]) == 0
    return json.loads(out.read_text())


def test_leakage_comes_first_with_both_keys(sets: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    report = checked(tmp_path, sets[0], "--against", sets[1])
    part = report["leakage"]
    assert (part["leaked"], part["equal"], part["near"]) == (4, 1, 3)
    assert part["share"] == 0.5
    pairs = {entry["other"]: (entry["source"], entry["how"]) for entry in part["list"]}
    assert pairs == {
        "dog/equal.bmp": ("dog/00.png", "equal"),
        "dog/small.jpg": ("cat/01.png", "near"),
        "dog/mirror.jpg": ("dog/02.png", "near, mirrored"),
        "dog/gray-crop.png": ("dog/04.png", "near"),
    }
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "LEAKAGE: 4 of 8 images of 'bench' (50 %) are also in 'pre'"
    assert "dog/equal.bmp" in out
    assert "= dog/00.png" in out


def test_sources_of_one_name_are_told_apart_by_what_was_given(tmp_path: Path, capsys: Capture) -> None:
    for number, name in enumerate(("here", "there")):
        folder = tmp_path / name / "photos"
        folder.mkdir(parents=True)
        scene(0).save(folder / "shared.png")
        scene(1 + number).save(folder / "own.png")
    here, there = tmp_path / "here" / "photos", tmp_path / "there" / "photos"
    assert main(["data", "check", str(here), "--against", str(there)]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"LEAKAGE: 1 of 2 images of '{there}' (50 %) is also in '{here}'"


def test_what_a_person_reads_of_one_source(sets: tuple[Path, Path], capsys: Capture) -> None:
    assert main(["data", "check", str(sets[0])]) == 0
    lines = capsys.readouterr().out.splitlines()
    text = "\n".join(lines)
    assert lines[0] == "pre: 34 images"
    for words in (
        "readable      32 (94.1 %)",
        "unreadable    2 (5.9 %)",
        "cat/empty.jpg: the file is empty",
        "formats       31 PNG; 1 BMP",
        "median size   160 x 120 px",
        "smallest      10 x 400 px: cat/thin.png",
        "tallest       10 x 400 px: cat/thin.png",
        "32 (100 %) have a side shorter than the usual view",
        "2 classes, 16 to 18 images each, median 17",
        "1 to spare in 1 group",
        "LABELS DIFFER  in 1 group",
        "dog/03-again.bmp",
    ):
        assert words in text
    assert not any(line.endswith(" ") for line in lines)
    assert "leak" not in text.lower()


def test_a_label_conflict_is_in_the_json(sets: tuple[Path, Path], tmp_path: Path) -> None:
    report = checked(tmp_path, sets[0])
    equal = report["duplicates"]["equal"]
    assert equal["list"] == [{"keys": ["cat/03.png", "dog/03-again.bmp"], "labels": ["cat", "dog"]}]
    assert equal["label_conflicts"] == 1
    assert report["duplicates"]["near"]["groups"] == 0
    assert report["duplicates"]["near"]["not_compared"] == 1  # 10 px wide
    assert set(report["unreadable"]) == {"cat/empty.jpg", "cat/text.png"}
    assert report["labels"]["counts"] == {"cat": 18, "dog": 16}


def test_a_source_against_itself_leaks_wholly(
    sets: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    report = checked(tmp_path, sets[1], "--against", sets[1])
    assert report["leakage"]["same_source"]
    assert report["leakage"]["share"] == 1.0
    assert "--against is SOURCE itself" in capsys.readouterr().out.splitlines()[0]


def test_no_leakage_is_said_too(sets: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    other = tmp_path / "other"
    other.mkdir()
    scene(999).save(other / "a.png")
    assert main(["data", "check", str(sets[0]), "--against", str(other)]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "no leakage found: none of 1 image of 'other' is in 'pre'"


def test_without_near_copies_only_equal_ones_are_found(
    sets: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    report = checked(tmp_path, sets[0], "--against", sets[1], "--no-near")
    assert report["leakage"]["leaked"] == 1
    assert "near" not in report["duplicates"]
    assert "not looked for (--no-near)" in capsys.readouterr().out


def test_the_two_parts_of_one_folder_are_told_apart(
    sets: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train").symlink_to(sets[0])
    (tmp_path / "set" / "test").symlink_to(sets[1])
    words = ["--split", "train", "--against", str(tmp_path / "set"), "--against-split", "test"]
    assert main(["data", "check", str(tmp_path / "set"), *words]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "LEAKAGE: 4 of 8 images of 'set (test)' (50 %) are also in 'set (train)'"


def test_a_limit_is_said(sets: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    report = checked(tmp_path, sets[0], "--limit", 10, "--against", sets[1])
    assert (report["images"], report["images_in_source"]) == (10, 34)
    out = capsys.readouterr().out
    assert "pre: 10 of 34 images, evenly spread (--limit)" in out
    assert "of those looked at" in out.splitlines()[0]


def test_identical_images_are_one_group(tmp_path: Path) -> None:
    folder = tmp_path / "same"
    folder.mkdir()
    scene(0).save(folder / "000.png")
    for number in range(1, 300):
        (folder / f"{number:03}.png").write_bytes((folder / "000.png").read_bytes())
    part = checked(tmp_path, folder)["duplicates"]
    assert (part["equal"]["groups"], part["equal"]["surplus"], part["equal_stored"]) == (1, 299, 299)
    assert part["near"]["groups"] == 0


def test_nothing_readable_and_one_image(tmp_path: Path, capsys: Capture) -> None:
    bad, one = tmp_path / "bad", tmp_path / "one"
    bad.mkdir()
    one.mkdir()
    for number in range(5):
        (bad / f"{number}.png").write_text("no image")
    scene(0).save(one / "a.png")
    report = checked(tmp_path, bad, "--against", one)
    assert (report["readable"], len(report["unreadable"]), report["leakage"]["leaked"]) == (0, 5, 0)
    assert "sizes" not in report
    assert "and 2 more" in capsys.readouterr().out
    assert checked(tmp_path, one)["duplicates"]["near"]["groups"] == 0


def test_distinct_digits_of_8_px_are_not_near_copies(tmp_path: Path) -> None:
    report = checked(tmp_path, "digits", "--split", "test")
    near = report["duplicates"]["near"]
    assert (near["groups"], near["compared"]) == (0, 0)
    assert near["not_compared"] == report["images"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--against-split", "test"], "--against-split has no effect here"),
        (["--json", "{}"], "is a folder"),
        (["--limit", "0"], "at least 1"),
    ],
)
def test_mistakes(words: list[str], message: str, sets: tuple[Path, Path], capsys: Capture) -> None:
    given = [word.format(sets[0]) for word in words]
    assert main(["data", "check", str(sets[0]), *given]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_an_interruption_writes_nothing(
    sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("belvedere.data.check.near_within", interrupted)
    out = tmp_path / "report.json"
    assert main(["data", "check", str(sets[0]), "--json", str(out)]) == 130
    assert not list(tmp_path.iterdir())

"""`belvedere data check`: what is found, what a person reads, what the JSON holds."""

from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_hostile import png
from tiffs import BLACK_IS_ZERO, RGB, WHITE_IS_ZERO, tiff

from belvedere.cli import main
from belvedere.data.sources import open_source, read

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


# --- values of more than eight bits


def png_colors(held: np.ndarray) -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in held)
    return png(held.shape[1], held.shape[0], 16, 2, rows)


HELD = np.random.default_rng(0).integers(0, 4096, (40, 40)).astype(np.uint16)
HELD[0, :2] = 0, 4095
HOT, FAR = HELD.copy(), HELD.astype(np.int16)
HOT[3, 4] = 65535
FAR[:9] = -9999
REAL = np.random.default_rng(1).random((40, 40)).astype(np.float32) * 3000
NONE = np.where(np.arange(40) < 9, np.float32(-3.4e38), REAL)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (
            "a.tif",
            tiff(HELD, BLACK_IS_ZERO),
            r"4095 in 1 uint16 image: they use 6.*% of the range; data\.range=\[0,4095\]",
        ),
        ("a.tif", tiff(HELD, WHITE_IS_ZERO), r"they use 6.*% of the range; data\.range=\[0,4095\]"),
        ("a.tif", tiff(np.stack([HELD] * 3, -1), RGB), r"uint16 image: they use 6.*data\.range=\[0,4095\]"),
        ("a.tif", tiff(np.stack([HELD] * 5, -1), RGB), r"uint16 image: they use 6.*data\.range=\[0,4095\]"),
        (
            "a.png",
            png_colors(np.stack([HELD] * 3, -1)),
            r"PNG colors.*6.*converted to TIFF, data\.range=\[0,4095\]",
        ),
        (
            "a.tif",
            tiff(HOT, BLACK_IS_ZERO),
            r"0 to 65535 in .*all but a few from \d+ to 40\d\d; data\.range=\[\d+,40\d\d\]",
        ),
        (
            "a.tif",
            tiff(FAR, BLACK_IS_ZERO),
            r"-9999 to 40\d\d in .*all but a few from \d+ to 40\d\d; data\.range=",
        ),
        ("a.tif", tiff(NONE, BLACK_IS_ZERO), r"-3\.4e\+38 to .*all but a few from [\d.]+ to 29\d\d"),
        (
            "a.tif",
            tiff(NONE, BLACK_IS_ZERO, nodata="-3.4e38"),
            r"each is scaled from its own.*360 pixels of 1 image have no value",
        ),
        ("a.tif", tiff(REAL / 3000, BLACK_IS_ZERO), r"in 1 float32 image$"),
        ("a.tif", tiff(HELD * 16, BLACK_IS_ZERO), r"in 1 uint16 image$"),
    ],
)
def test_values_that_use_little_of_their_range_are_said_with_the_range_to_set(
    tmp_path: Path, capsys: Capture, name: str, content: bytes, told: str
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / name).write_bytes(content)
    checked(tmp_path, folder)
    lines = capsys.readouterr().out.splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.startswith("  values")]
    assert re.search(told, "\n".join(lines[at : at + 2]) if "no value" in told else lines[at], re.DOTALL), (
        lines[at]
    )


def test_bytes_have_no_line_of_values_and_a_range_for_them_is_refused(
    tmp_path: Path, capsys: Capture
) -> None:
    scene(0).save(tmp_path / "a.png")
    assert main(["data", "check", str(tmp_path)]) == 0
    assert "  values" not in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path), "--range", "0", "4095"]) != 0
    assert "has no effect" in capsys.readouterr().err


# --- the list of what is good


@pytest.fixture
def mixed_bag(tmp_path: Path) -> Path:
    """Ten files in two classes: two copies, two unreadable, and names that no shell likes."""
    folder = tmp_path / "bag"
    for name, seed in (("cat/a, b.png", 0), ('cat/"c".png', 1), ("dog/d\xe9.png", 2), ("dog/equal.bmp", 0)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        scene(seed).save(folder / name)
    scene(1).save(folder / "dog" / "near.jpg", quality=70)
    scene(5).save(os.path.join(folder, os.fsdecode(b"dog/raw\xff.png")))
    scene(6).save(folder / "dog" / "two\nlines.png")
    scene(7).save(folder / "loose.png")
    (folder / "cat" / "empty.png").write_bytes(b"")
    (folder / "cat" / "text.png").write_text("no image")
    return folder


KEPT = [
    'cat/"c".png',
    "cat/a, b.png",
    "dog/d\xe9.png",
    "dog/raw\udcff.png",
    "dog/two\nlines.png",
    "loose.png",
]


@pytest.mark.parametrize("where", ["beside", "inside", "elsewhere", "a folder of its own"])
@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl"])
def test_a_kept_list_is_read_as_it_was_written(
    mixed_bag: Path, tmp_path: Path, capsys: Capture, where: str, ending: str
) -> None:
    places = {
        "beside": tmp_path / f"good{ending}",
        "inside": mixed_bag / f"good{ending}",
        "elsewhere": tmp_path / "other" / f"good{ending}",
        "a folder of its own": tmp_path / "new" / "deep" / f"good{ending}",
    }
    file = places[where]
    if where == "elsewhere":
        file.parent.mkdir()
    report = checked(tmp_path, mixed_bag, "--keep", file)
    assert report["kept"] == {
        "kept": 6,
        "unreadable": 2,
        "equal": 1,
        "near": 1,
        "conflicts": 2,
        "file": str(file),
    }
    shown = capsys.readouterr().out
    assert "2 unreadable, 1 equal, 1 near copies" in shown
    assert "differ in 2 groups of copies: the first one's is kept" in shown
    kept = open_source(str(file))
    whole = open_source(str(mixed_bag))
    keys = [whole.key(index) for index in range(len(whole))]
    assert len(kept) == 6
    for index, name in enumerate(KEPT):
        original = keys.index(name)
        assert kept.key(index).endswith(name)
        assert os.path.isabs(kept.key(index)) == (where in ("elsewhere", "a folder of its own"))
        assert np.array_equal(read(kept, index), read(whole, original))
        label = whole.labels[original]
        expected = whole.classes[label] if label >= 0 else None
        assert (kept.classes[kept.labels[index]] if kept.labels[index] >= 0 else None) == expected
    again = tmp_path / "again.csv"
    assert main(["data", "check", str(file), "--keep", str(again)]) == 0  # nothing more to leave out
    assert len(open_source(str(again))) == 6


def test_a_flat_folder_is_kept_as_text_and_equal_copies_only_without_near(tmp_path: Path) -> None:
    folder = tmp_path / "flat"
    folder.mkdir()
    for name, seed in (("a.png", 0), ("b.bmp", 0), ("c.png", 1)):
        scene(seed).save(folder / name)
    scene(1).save(folder / "d.jpg", quality=70)
    file = tmp_path / "good.txt"
    assert main(["data", "check", str(folder), "--no-near", "--keep", str(file)]) == 0
    assert file.read_text() == "flat/a.png\nflat/c.png\nflat/d.jpg\n"
    file.write_text("as it was")
    for name in ("a.png", "b.bmp", "c.png", "d.jpg"):
        (folder / name).write_bytes(b"")
    assert main(["data", "check", str(folder), "--keep", str(file)]) != 0
    assert file.read_text() == "as it was"


@pytest.mark.parametrize(
    ("train", "val"), [("train", "val"), ("Train", "Test"), ("wrap/training", "wrap/validation")]
)
@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_a_divided_folder_keeps_its_parts(tmp_path: Path, ending: str, train: str, val: str) -> None:
    for number, name in enumerate((f"{train}/cat", f"{train}/dog", f"{val}/cat", f"{val}/dog")):
        (tmp_path / "set" / name).mkdir(parents=True)
        scene(number).save(tmp_path / "set" / name / "x.png")
    file = tmp_path / f"good{ending}"
    checked(tmp_path, tmp_path / "set", "--keep", file)
    for split, name in (("train", train), ("test", val)):
        kept = open_source(str(file), split=split)
        assert [kept.key(index) for index in range(len(kept))] == [
            f"set/{name}/{each}/x.png" for each in ("cat", "dog")
        ]
        assert kept.classes == ("cat", "dog")


def test_what_cannot_be_kept_is_refused_before_anything_is_read(
    mixed_bag: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "set.npy", np.zeros((3, 40, 40), np.uint8))
    with zipfile.ZipFile(tmp_path / "bag.zip", "w") as archive:
        archive.write(mixed_bag / "loose.png", "loose.png")
    listed = tmp_path / "list.csv"
    listed.write_text("file\nbag/loose.png\n")
    refusals = [
        ((mixed_bag, "--keep", tmp_path / "good.txt"), "would lose the labels.*use .csv"),
        ((mixed_bag, "--keep", tmp_path / "good"), "ends in 'nothing'.*use .csv, .jsonl, .tsv, .txt"),
        ((mixed_bag, "--keep", tmp_path / "good.parquet"), "ends in '.parquet'"),
        ((mixed_bag, "--keep", tmp_path / "x.csv", "--limit", 3), "--limit looks at some only"),
        (
            (tmp_path / "set.npy", "--keep", tmp_path / "x.csv"),
            "'set' are no files of their own .ArraySource",
        ),
        (
            (tmp_path / "bag.zip", "--keep", tmp_path / "x.csv"),
            "no files of their own.*unpack it into a folder",
        ),
        (("digits", "--keep", tmp_path / "x.csv"), "no files of their own"),
        ((listed, "--keep", listed), "is the list that is looked at"),
    ]
    monkeypatch.setattr("belvedere.data.survey.survey", lambda *a, **k: pytest.fail("images were read"))
    for words, told in refusals:
        assert main(["data", "check", *(str(word) for word in words)]) != 0
        assert re.search(told, " ".join(capsys.readouterr().err.split())), told
    assert not (tmp_path / "x.csv").exists()

"""`belvedere evaluate` on folders as people have them: what is trained on, scored and refused."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from eval_fakes import FakeBackbone, FakeCard, feature_spec
from PIL import Image

from belvedere.cli import main
from belvedere.commands import export_weights
from belvedere.data.sources import open_source

Said = pytest.CaptureFixture[str]
CLASSES = ("blue", "red")


@pytest.fixture(autouse=True)
def fake_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ModuleType("belvedere.zoo.load")
    fake.load = lambda path: (FakeBackbone(), FakeCard(feature_spec()))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "belvedere.zoo.load", fake)


def photos(folder: Path, *, seed: int = 0, count: int = 4, classes: tuple[str, ...] = CLASSES) -> Path:
    """Noisy one-colored images, a folder per class."""
    generator = np.random.default_rng(seed)
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 60, (9, 12, 3), dtype=np.uint8)
            pixels[..., label % 3] += 190
            Image.fromarray(pixels).save(folder / name / f"{name}_{number}.png")
    return folder


def divided(folder: Path) -> Path:
    """train/ and test/ with the same names and other images."""
    photos(folder / "train", seed=1)
    photos(folder / "test", seed=2)
    return folder


def run(tmp_path: Path, data: object, *words: object, protocols: str = "knn") -> int:
    options = ["--data", data, "--protocols", protocols, "--out", tmp_path / "out", *words]
    return main(["evaluate", "weights", *map(str, options)])


def report(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "out" / "report.json").read_text())


def words_of(text: str) -> str:
    """Without the line breaks of a narrow screen."""
    return " ".join(text.split())


def predictions(tmp_path: Path) -> list[dict[str, str]]:
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# --- a list of images, looked up in the training part


def as_folder(folder: Path) -> Path:
    return divided(folder)


def as_zip(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder), "zip", divided(folder)))


def as_list(folder: Path) -> Path:
    divided(folder)
    lines = [
        f"{path.relative_to(folder.parent)},{path.parent.name},{path.parts[-3]}"
        for path in sorted(folder.rglob("*.png"), key=lambda path: path.parts[-3])
    ]
    table = folder.parent / "files.csv"
    table.write_text("\n".join(["file,label,split", *lines]) + "\n")
    return table


@pytest.mark.parametrize("make", [as_folder, as_zip, as_list])
@pytest.mark.parametrize("split", [[], ["--split", "train"]])
def test_a_subset_is_looked_up_in_the_training_part(
    tmp_path: Path, make: Callable[[Path], Path], split: list[str], capsys: Said
) -> None:
    data = make(tmp_path / "photos")
    (tmp_path / "list.txt").write_text("blue_0.png\nred_3.png\n")
    assert run(tmp_path, data, "--subset", tmp_path / "list.txt", *split) == 0
    found = report(tmp_path)
    assert (found["training"]["images"], found["scored"]) == (2, 8)
    assert found["copies"]["left_out"] == 0
    # the same as when both parts are named
    first = found["knn"]["accuracy"], found["val"]["labelled"]
    words = ["--split", "train", "--subset", tmp_path / "list.txt", "--val", data, "--val-split", "test"]
    assert run(tmp_path, data, *words) == 0
    found = report(tmp_path)
    assert (found["knn"]["accuracy"], found["val"]["labelled"]) == first
    assert "the held-out part of --data: 8 images" in capsys.readouterr().err


def test_a_classifier_to_export_is_fitted_on_the_training_part(tmp_path: Path) -> None:
    data = divided(tmp_path / "photos")
    (tmp_path / "list.txt").write_text("blue_0.png\nred_3.png\n")
    words = ["weights", "--to", "onnx", "--out", str(tmp_path / "x"), "--data", str(data), "--classifier"]
    args = export_weights.parser().parse_args([*words, "--subset", str(tmp_path / "list.txt")])
    source = export_weights._opened(args)
    assert [source.key(index) for index in range(2)] == ["train/blue/blue_0.png", "train/red/red_3.png"]


def test_the_rows_of_a_subset_are_those_of_parquets_training_part(tmp_path: Path) -> None:
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    folder = divided(tmp_path / "photos")
    (tmp_path / "table").mkdir()
    for part in ("train", "test"):
        files = sorted((folder / part).rglob("*.png"))
        rows = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
        table = pa.table({"image": rows, "label": [file.parent.name for file in files]})
        pq.write_table(table, tmp_path / "table" / f"{part}-00000.parquet")
    (tmp_path / "list.txt").write_text("train-00000/0\ntrain-00000/7\n")
    assert run(tmp_path, tmp_path / "table", "--subset", tmp_path / "list.txt") == 0
    assert (report(tmp_path)["training"]["images"], report(tmp_path)["scored"]) == (2, 8)
    (tmp_path / "list.txt").write_text("test-00000/0\ntrain-00000/7\n")
    assert run(tmp_path, tmp_path / "table", "--subset", tmp_path / "list.txt") == 1


def test_a_subset_of_the_test_part_is_scored_on_the_rest_of_it(tmp_path: Path) -> None:
    data = divided(tmp_path / "photos")
    (tmp_path / "list.txt").write_text("blue_0.png\nred_3.png\n")
    assert run(tmp_path, data, "--subset", tmp_path / "list.txt", "--split", "test") == 0
    assert (report(tmp_path)["training"]["images"], report(tmp_path)["scored"]) == (2, 6)


def test_an_ambiguous_name_is_refused_with_all_candidates(tmp_path: Path, capsys: Said) -> None:
    photos(tmp_path / "photos" / "one", classes=("blue", "red"))
    photos(tmp_path / "photos" / "two", classes=("blue", "red"))
    (tmp_path / "list.txt").write_text("blue_0.png\none/red/red_0.png\n")
    assert run(tmp_path, tmp_path / "photos", "--subset", tmp_path / "list.txt") == 1
    said = capsys.readouterr().err
    assert "'blue_0.png' can be 2 images: one/blue/blue_0.png, two/blue/blue_0.png; write more" in said
    assert "red_0" not in said


def test_labels_name_images_of_both_parts(tmp_path: Path) -> None:
    data = divided(tmp_path / "photos")
    rows = [f"{path.relative_to(data)},{path.parent.name.upper()}" for path in data.rglob("*.png")]
    (tmp_path / "names.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "list.txt").write_text("blue_0.png\nred_3.png\n")
    words = ["--subset", tmp_path / "list.txt", "--labels", tmp_path / "names.csv"]
    assert run(tmp_path, data, *words) == 0
    assert report(tmp_path)["training"]["classes"] == {"BLUE": 1, "RED": 1}
    assert report(tmp_path)["scored"] == 8


# --- what is trained on and scored as well


def equal(data: Path, tmp_path: Path) -> tuple[Path, int]:
    return data, 8


def inside(data: Path, tmp_path: Path) -> tuple[Path, int]:
    photos(data / "more", classes=CLASSES, seed=3)
    for name in CLASSES:  # classes of the folder inside must be known
        shutil.copy(data / "more" / name / f"{name}_0.png", data / name / "again.png")
        (data / name / "again.png").unlink()
    shutil.rmtree(data / "more")
    (data / "blue" / "blue").mkdir()
    (data / "blue" / "red").mkdir()
    (data / "blue" / "blue_0.png").rename(data / "blue" / "blue" / "x.png")
    (data / "blue" / "blue_1.png").rename(data / "blue" / "red" / "y.png")
    return data / "blue", 2


def linked(data: Path, tmp_path: Path) -> tuple[Path, int]:
    (tmp_path / "link").symlink_to(data)
    return tmp_path / "link", 8


def hard_linked(data: Path, tmp_path: Path) -> tuple[Path, int]:
    photos(tmp_path / "val", seed=9)
    os.link(data / "red" / "red_1.png", tmp_path / "val" / "red" / "new.png")
    return tmp_path / "val", 1


def renamed(data: Path, tmp_path: Path) -> tuple[Path, int]:
    photos(tmp_path / "val", seed=9)
    for number in range(2):
        shutil.copy(data / "red" / f"red_{number}.png", tmp_path / "val" / "red" / f"copy_{number}.png")
    return tmp_path / "val", 2


def zipped(data: Path, tmp_path: Path) -> tuple[Path, int]:
    return Path(shutil.make_archive(str(tmp_path / "val"), "zip", data)), 8


def listed(data: Path, tmp_path: Path) -> tuple[Path, int]:
    names = ["blue/blue_0.png", "red/red_0.png"]
    table = "file,label\n" + "".join(f"{data / name},{name.split('/')[0]}\n" for name in names)
    (tmp_path / "val.csv").write_text(table)
    return tmp_path / "val.csv", 2


def as_bmp(data: Path, tmp_path: Path) -> tuple[Path, int]:
    photos(tmp_path / "val", seed=9)
    Image.open(data / "red" / "red_1.png").save(tmp_path / "val" / "red" / "other.bmp")
    return tmp_path / "val", 1


def as_array(data: Path, tmp_path: Path) -> tuple[Path, int]:
    images = [np.asarray(Image.open(data / name / f"{name}_0.png")) for name in CLASSES]
    np.savez(tmp_path / "val.npz", images=np.stack(images), labels=np.array(CLASSES))
    return tmp_path / "val.npz", 2


SHARED = [equal, inside, linked, hard_linked, renamed, zipped, listed, as_bmp, as_array]


@pytest.mark.parametrize("make", SHARED)
def test_images_that_are_trained_on_and_scored_are_refused(
    tmp_path: Path, make: Callable[[Path, Path], tuple[Path, int]], capsys: Said
) -> None:
    data = photos(tmp_path / "photos")
    val, count = make(data, tmp_path)
    assert run(tmp_path, data, "--val", val) == 1
    said = capsys.readouterr().err
    assert f"{count} of the " in said
    assert "images to score (--val) are also among the 8 that are trained on: " in said
    assert "--leave-out-copies" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_copies_are_left_out_of_training_when_asked(tmp_path: Path, capsys: Said) -> None:
    data = photos(tmp_path / "photos")
    val, _ = renamed(data, tmp_path)
    os.link(data / "blue" / "blue_3.png", val / "blue" / "linked.png")
    assert run(tmp_path, data, "--val", val, "--leave-out-copies", protocols="knn") == 0
    found = report(tmp_path)
    assert (found["training"]["images"], found["scored"], found["copies"]["left_out"]) == (5, 11, 3)
    assert found["knn"]["copies"] == 0
    assert "images of --data that are scored too, not trained on (--leave-out-copies): 3" in words_of(
        capsys.readouterr().out
    )
    assert run(tmp_path, data, "--val", data, "--leave-out-copies") == 1
    assert "leaves none to train on" in capsys.readouterr().err


def test_copies_within_the_data_are_counted_and_can_be_left_out(tmp_path: Path, capsys: Said) -> None:
    data = photos(tmp_path / "photos")
    for number in range(3):
        shutil.copy(data / "red" / "red_0.png", data / "red" / f"same_{number}.png")
    shutil.copy(data / "blue" / "blue_0.png", data / "red" / "wrong.png")
    words = ["--shots", "1,2", "--splits", "4"]
    assert run(tmp_path, data, *words, protocols="knn,logistic") == 0
    found = report(tmp_path)
    counts = {key: found["copies"][key] for key in ("images", "groups", "conflicting_groups", "left_out")}
    assert counts == {"images": 6, "groups": 2, "conflicting_groups": 1, "left_out": 0}
    assert found["knn"]["copies"] == 6
    assert len(found["logistic"]["shots"]["2"]["copies"]) == 4
    assert max(found["logistic"]["shots"]["2"]["copies"]) >= 1
    said = words_of(capsys.readouterr().out)
    assert "6 images of --data are equal to others of it (2 groups, 1 of them with several labels)" in said
    assert "--leave-out-copies" in said
    assert run(tmp_path, data, *words, "--leave-out-copies", protocols="knn,logistic") == 0
    found = report(tmp_path)
    assert (found["training"]["images"], found["copies"]["left_out"], found["knn"]["copies"]) == (8, 4, 0)
    assert found["logistic"]["shots"]["2"]["copies"] == [0] * 4


def test_blank_images_are_no_copies_unless_their_files_are_equal(tmp_path: Path) -> None:
    data = photos(tmp_path / "photos")
    Image.new("RGB", (9, 12), "white").save(data / "red" / "blank.png")
    Image.new("RGB", (12, 9), "white").save(data / "blue" / "blank.png")
    assert run(tmp_path, data) == 0
    assert report(tmp_path)["copies"]["images"] == 0


def test_archives_of_equal_names_and_sizes_are_not_taken_for_each_other(tmp_path: Path) -> None:
    archives = []
    for seed, name in enumerate(("one", "two")):
        folder = photos(tmp_path / name, seed=seed)
        for path in list(folder.rglob("*.png")):
            Image.open(path).save(path.with_suffix(".bmp"))
            path.unlink()
        archives.append(shutil.make_archive(str(tmp_path / name), "zip", folder))
    first, second = (open_source(path) for path in archives)
    assert first.fingerprint() == second.fingerprint()  # of names, sizes and labels
    assert run(tmp_path, archives[0], "--val", archives[1]) == 0
    assert run(tmp_path, archives[0], "--val", archives[0]) == 1


def test_a_list_whose_rest_holds_copies_of_it_is_refused(tmp_path: Path, capsys: Said) -> None:
    data = photos(tmp_path / "photos")
    shutil.copy(data / "red" / "red_0.png", data / "red" / "same.png")
    (tmp_path / "list.txt").write_text("blue_0.png\nred_0.png\n")
    assert run(tmp_path, data, "--subset", tmp_path / "list.txt") == 1
    said = capsys.readouterr().err
    assert "1 of the 7 images to score (what --subset does not list) are also among the 2" in said
    assert "red/same.png (trained on as red/red_0.png)" in said


# --- what is not used is counted and named


def test_what_takes_no_part_is_named(tmp_path: Path, capsys: Said) -> None:
    data = photos(tmp_path / "photos", classes=("blue", "green", "red"))
    val = photos(tmp_path / "val", seed=5)
    for folder in (data, val):
        Image.new("RGB", (9, 9), "blue").save(folder / "loose.png")
    (val / "red" / "broken.png").write_bytes(b"")
    assert run(tmp_path, data, "--val", val, "--shots", "1,4", protocols="knn,logistic") == 0
    found = report(tmp_path)
    assert found["unlabelled"] == {name: {"images": 1, "first": ["loose.png"]} for name in ("data", "val")}
    assert found["only_in_training"] == ["green"]
    out = capsys.readouterr().out
    said = words_of(out)
    assert "images of --data without a label, not used: 1 (loose.png)" in said
    assert "images of --val without a label, not used: 1 (loose.png)" in said
    assert "classes of which no image is scored: green" in said
    assert "images of --val that cannot be read, not used: 1 (red/broken.png)" in said
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "told", "unsaid"),
    [
        (["--data", "nowhere"], "--data is 'nowhere', which does not exist", "data.path"),
        (["--data", "photos", "--val", "nowhere"], "--val is 'nowhere'", "data.path"),
        (["--data", "photos", "--predict", "nowhere"], "--predict is 'nowhere'", "data.path"),
        (["--data", "photos", "--split", "train"], "--split is 'train', but", "data.split"),
        (["--data", "photos", "--split", "train"], "leave out --split to take all", "null"),
        (["--data", "photos", "--val", "photos", "--val-split", "test"], "leave out --val-split", "null"),
        (["--data", "photos", "--range", "0", "9"], "--range is [0, 9], which has no effect", "data.range"),
        (["--data", "photos", "--label", "kind"], "--label is 'kind', which has no effect", "data.label"),
    ],
)
def test_mistakes_are_told_by_the_options_of_the_command(
    words: list[str], told: str, unsaid: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos")
    assert main(["evaluate", "weights", *words]) == 1
    said = words_of(capsys.readouterr().err)
    assert told in said
    assert unsaid not in said
    if "--val" not in words and "--predict" not in words:
        assert main(["embed", "weights", *words, "--out", "x.npz"]) == 1
        assert told in words_of(capsys.readouterr().err)
        assert main(["data", "check", *words[1:]]) == 1
        said = words_of(capsys.readouterr().err)
        assert told.replace("--data", "SOURCE") in said
        assert unsaid not in said


def test_a_choice_of_columns_is_told_by_the_options(tmp_path: Path, capsys: Said) -> None:
    (tmp_path / "list.csv").write_text("file,fine_label,coarse_label\nx.png,a,b\n")
    assert main(["evaluate", "weights", "--data", str(tmp_path / "list.csv")]) == 1
    said = words_of(capsys.readouterr().err)
    assert "choose one by --label, such as --label fine_label" in said
    assert "data." not in said


def test_images_to_predict_that_were_trained_on_are_counted(tmp_path: Path, capsys: Said) -> None:
    data = photos(tmp_path / "photos")
    assert run(tmp_path, data, "--predict", data / "red") == 0
    assert report(tmp_path)["predict"]["trained_on"] == 4
    assert "predicted images that are equal to images trained on: 4" in words_of(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("val", "message"),
    [
        ("flat", "'flat' (--val) has no labelled image among 1: put images into one folder per class\n"),
        (
            "other",
            "the scored set (--val) has classes that no training image has, with so many images: dog (2)",
        ),
    ],
)
def test_a_scored_set_without_labels_or_with_others(
    tmp_path: Path, val: str, message: str, capsys: Said
) -> None:
    data = photos(tmp_path / "photos")
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "flat" / "a.png")
    photos(tmp_path / "other", classes=("blue", "dog"), count=2)
    assert run(tmp_path, data, "--val", tmp_path / val) == 1
    assert message in capsys.readouterr().err


# --- sizes, and where it is written


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--k", "100000000"],
            "--k 100000000 asks for more neighbours than the 7 images that may be neighbours",
        ),
        (["--k", "9" * 40], "asks for more neighbours than the 7"),
        (
            ["--shots", "100000000"],
            "--shots asks for 100000000 labels per class, but no class has more than 4",
        ),
        (["--shots", "1,4"], "with 4 labels per class every labelled image is in training"),
        (["--shots", "1", "--splits", "10000000000"], "--splits 10000000000 would take about"),
    ],
)
def test_absurd_sizes_are_refused_before_features_are_computed(
    tmp_path: Path, words: list[str], message: str, capsys: Said
) -> None:
    if "--shots" not in words:
        words = [*words, "--shots", "1"]
    assert run(tmp_path, photos(tmp_path / "photos"), *words, protocols="knn,logistic") == 1
    said = capsys.readouterr().err
    assert message in said
    assert "features of data" not in said
    assert "Traceback" not in said


def test_default_shots_that_leave_nothing_to_score_say_which_to_give(tmp_path: Path, capsys: Said) -> None:
    assert run(tmp_path, photos(tmp_path / "photos"), protocols="logistic") == 1
    assert "give --shots 1,2, or a scored set by --val" in capsys.readouterr().err


def other_things(out: Path) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("x")


def other_report(out: Path) -> None:
    out.mkdir()
    (out / "report.json").write_text('{"rows": []}')


def a_file(out: Path) -> None:
    out.write_text("x")


def folder_in_the_way(out: Path) -> None:
    (out / "report.json").mkdir(parents=True)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder where nobody can write")
def test_out_where_nobody_can_write(tmp_path: Path, capsys: Said) -> None:
    data = photos(tmp_path / "photos")
    assert main(["evaluate", "weights", "--data", str(data), "--out", "/proc/here", "--shots", "1"]) == 1
    said = capsys.readouterr().err
    assert "error: /proc/here/splits.json cannot be written" in said
    assert "features of data" not in said


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (other_things, "holds other things than an evaluation: thesis.tex; give a new folder"),
        (other_report, "holds a report.json that no evaluation wrote"),
        (a_file, "is a file; give a folder"),
        (folder_in_the_way, "report.json"),
    ],
)
def test_out_is_tried_before_features_are_computed(
    tmp_path: Path, prepare: Callable[[Path], None], message: str, capsys: Said
) -> None:
    prepare(tmp_path / "out")
    assert run(tmp_path, photos(tmp_path / "photos")) in (1, 2)
    said = capsys.readouterr().err
    assert message in said
    assert "features of data" not in said


def test_a_full_disk_is_one_message_and_the_scores_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("belvedere.core.files.sync_file", full)
    assert run(tmp_path, photos(tmp_path / "photos")) == 1
    said = capsys.readouterr()
    assert f"error: {tmp_path / 'out' / 'report.json'} cannot be written: No space left on device" in said.err
    assert "20-NN" in said.out
    assert "Traceback" not in said.err


# --- predictions


def test_the_three_best_labels_of_each_image(tmp_path: Path) -> None:
    data = photos(tmp_path / "photos", classes=("a", "b", "c", "d"))
    flat = tmp_path / "flat"
    flat.mkdir()
    shutil.copy(data / "b" / "b_0.png", flat / "x.png")
    assert run(tmp_path, data, "--predict", flat) == 0
    (row,) = predictions(tmp_path)
    order = [
        "file",
        "label",
        "probability",
        "label_2",
        "probability_2",
        "label_3",
        "probability_3",
        "predicted",
    ]
    assert list(row) == order
    assert row["label"] == "b"
    assert len({row["label"], row["label_2"], row["label_3"]}) == 3
    values = [float(row[name]) for name in ("probability", "probability_2", "probability_3")]
    assert values == sorted(values, reverse=True)
    assert sum(values) <= 1.0 + 1e-6
    assert row["predicted"] == "yes"


def test_predicted_labels_are_never_scored(tmp_path: Path, capsys: Said) -> None:
    data = photos(tmp_path / "photos")
    flat = tmp_path / "flat"
    flat.mkdir()
    for name in CLASSES:
        shutil.copy(photos(tmp_path / name, seed=7) / name / f"{name}_0.png", flat / f"{name}.png")
    assert run(tmp_path, data, "--predict", flat) == 0
    table = tmp_path / "renamed.csv"
    shutil.copy(tmp_path / "out" / "predictions.csv", table)
    capsys.readouterr()
    assert run(tmp_path, flat, "--labels", table) == 1
    assert f"{table} holds only labels that were predicted" in capsys.readouterr().err
    # trained on, where others are scored
    assert run(tmp_path, flat, "--labels", table, "--val", data, "--shots", "1", protocols="logistic") == 0
    assert "predicted labels that are trained on, though no person gave them: 2" in capsys.readouterr().err
    assert report(tmp_path)["training"]["images"] == 2
    # a person has checked them
    table.write_text(table.read_text().replace("yes\n", "no\n"))
    assert run(tmp_path, flat, "--labels", table, "--k", "1") == 0
    assert report(tmp_path)["knn"]["scored"] == 2


def test_predictions_that_a_person_changed_are_not_replaced(tmp_path: Path, capsys: Said) -> None:
    data = photos(tmp_path / "photos")
    words = ("--predict", data / "red")
    assert run(tmp_path, data, *words) == 0
    assert run(tmp_path, data, *words) == 0
    table = tmp_path / "out" / "predictions.csv"
    table.write_text(table.read_text().replace("yes", "no", 1))
    before = table.read_bytes()
    assert run(tmp_path, data, *words) == 2
    assert (
        "predictions.csv was changed since it was written, and would be replaced" in capsys.readouterr().err
    )
    assert table.read_bytes() == before
    assert run(tmp_path, data) == 0
    assert "predictions.csv is an earlier evaluation's and stays as it is" in capsys.readouterr().err


# --- names


def test_names_that_the_console_lacks(tmp_path: Path, capsys: Said) -> None:
    odd = ("日本", "a$b_{", "[red]x", os.fsdecode(b"caf\xe9"))
    data = photos(tmp_path / "photos", classes=odd)
    os.rename(data / "日本" / "日本_0.png", os.fsencode(data / "日本") + b"/odd\xff.png")
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, name in enumerate(odd):
        shutil.copy(data / name / f"{name}_1.png", os.fsencode(flat) + b"/odd\xff%d.png" % number)
    (flat / os.fsdecode(b"broken\xff.png")).write_bytes(b"")
    assert run(tmp_path, data, "--predict", flat, "--shots", "1", protocols="knn,logistic") == 0
    assert set(report(tmp_path)["training"]["classes"]) == set(odd)
    content = (tmp_path / "out" / "predictions.csv").read_bytes()
    assert b"odd\xff0.png," in content
    # read as a table of labels, names and all
    table = tmp_path / "names.csv"
    table.write_bytes(content.replace(b"yes\n", b"no\n").replace(b"caf\xe9", b"cafe"))
    assert run(tmp_path, flat, "--labels", table) == 0
    assert report(tmp_path)["training"]["images"] == 4
    capsys.readouterr()

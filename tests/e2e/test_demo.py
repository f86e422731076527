"""`belvedere demo` from end to end with a handful of steps."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from belvedere import demo
from belvedere.core.errors import EXIT_DONE, EXIT_RUN_AGAIN, RecipeError, UsageError
from belvedere.data.sources import open_source
from belvedere.demo import place
from belvedere.eval.report import ShotScores, compare
from belvedere.eval.splits import Splits
from belvedere.train.run import Outcome, pretrain
from belvedere.zoo.cards import WEIGHTS_NAME
from belvedere.zoo.load import BACKBONE_FOLDER

FEW_STEPS = (
    "train.epochs=3",
    "optim.lr.warmup_epochs=1",
    "train.precision=float32",
    "run.threads=1",
    "run.log_every_steps=1",
)
ROWS = ["pixels", "untrained", "pretrained"]
WRITTEN = {"report.json", "splits.json", "predictions.csv", "views.png", "curves.png", "confusion.png"}


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished demo of 30 steps."""
    out = tmp_path_factory.mktemp("demo") / "out"
    result = demo.run(out, overrides=FEW_STEPS)
    assert result.exit_code == EXIT_DONE
    assert result.directory == out
    return out


@pytest.fixture(scope="module")
def report(finished: Path) -> dict:
    return json.loads((finished / "report.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_report_has_the_documented_form(report: dict) -> None:
    assert [row["features"] for row in report["rows"]] == ROWS
    for row in report["rows"]:
        assert 0.0 <= row["knn"] <= 1.0
        assert list(row["shots"]) == sorted(["1", "2", "5", "10"])
        for scores in row["shots"].values():
            values = ShotScores(tuple(scores["values"]))
            assert len(values.values) == 10
            assert all(0.0 <= value <= 1.0 for value in values.values)
            assert scores["mean"] == pytest.approx(values.mean, abs=1e-5)
            assert scores["sd"] == pytest.approx(values.sd, abs=1e-5)
    assert set(report["rows"][0]["preprocessing"]) == {"knn", "1", "2", "5", "10"}
    # pixels alone tell digits apart: scores that are mixed up between rows would show here
    assert report["rows"][0]["knn"] > 0.95
    assert report["rows"][0]["shots"]["10"]["mean"] > 0.85
    assert report["recipe"]["steps"] == 30
    assert report["protocol"]["logistic"]["lambda"]["1"] == 0.0025


@pytest.mark.slow
def test_differences_are_paired_over_splits_against_both_other_rows(report: dict) -> None:
    rows = {row["features"]: row for row in report["rows"]}
    assert [(d["row"], d["against"]) for d in report["differences"]] == [
        ("pretrained", "pixels"),
        ("pretrained", "untrained"),
    ]
    for difference in report["differences"]:
        for shots, stated in difference["shots"].items():
            first, second = (
                ShotScores(tuple(rows[name]["shots"][shots]["values"]))
                for name in ("pretrained", difference["against"])
            )
            expected = compare(first, second)
            assert stated["mean"] == pytest.approx(expected.mean, abs=1e-5)
            assert stated["standard_error"] == pytest.approx(expected.standard_error, abs=1e-5)
            assert stated["wins"] == expected.wins


@pytest.mark.slow
def test_held_out_digits_take_no_part_in_training_or_in_drawing_labels(finished: Path, report: dict) -> None:
    train, unseen = open_source("digits", split="train"), open_source("digits", split="test")
    names = [{source.key(i) for i in range(len(source))} for source in (train, unseen)]
    assert (len(names[0]), len(names[1]), len(names[0] & names[1])) == (1347, 450, 0)
    run = json.loads((finished / "pretraining" / "data_report.json").read_text(encoding="utf-8"))
    assert run["images"] == 1347
    assert report["data"]["train"]["fingerprint"] == train.fingerprint()
    assert report["data"]["scored"]["fingerprint"] == unseen.fingerprint()
    splits = Splits.load(finished / "splits.json", train.labels)  # positions among the 1,347
    assert splits.sha256 == report["splits"]["sha256"]
    for shots, drawn in splits.shots.items():
        assert len(drawn) == 10
        for split in drawn:
            assert np.bincount(train.labels[split], minlength=10).tolist() == [shots] * 10
            assert len(np.unique(split)) == 10 * shots


@pytest.mark.slow
def test_predictions_are_of_the_held_out_digits(finished: Path, report: dict) -> None:
    unseen = open_source("digits", split="test")
    with (finished / "predictions.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["file"] for line in lines] == [unseen.key(i) for i in range(450)]
    assert [line["true"] for line in lines] == [str(label) for label in unseen.labels]
    assert all(0.1 <= float(line["probability"]) <= 1.0 for line in lines)
    right = np.mean([line["label"] == line["true"] for line in lines])
    assert right == pytest.approx(report["predictions"]["accuracy"], abs=1e-6)
    # the same classifier as the row's first split
    assert right == pytest.approx(report["rows"][2]["shots"]["10"]["values"][0], abs=1e-6)


@pytest.mark.slow
def test_pictures_are_there_and_the_confusion_is_the_best_rows(finished: Path, report: dict) -> None:
    for name in ("views.png", "curves.png", "confusion.png"):
        assert min(Image.open(finished / name).size) > 300
    best = max(report["rows"], key=lambda row: row["shots"]["10"]["mean"])
    counts = np.array(report["confusion"]["counts"])
    assert report["confusion"]["features"] == best["features"]
    assert counts.sum() == 10 * 450
    assert np.trace(counts) / counts.sum() == pytest.approx(best["shots"]["10"]["mean"], abs=1e-5)


@pytest.mark.slow
def test_the_second_run_reuses_the_first_and_writes_the_same_bytes(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: (finished / name).read_bytes() for name in WRITTEN}
    checkpoints = sorted((finished / "pretraining" / "checkpoints").rglob("*"))
    times = [path.stat().st_mtime_ns for path in checkpoints]
    for name in WRITTEN:
        (finished / name).unlink()
    assert demo.run(finished, overrides=FEW_STEPS).exit_code == EXIT_DONE
    assert {name: (finished / name).read_bytes() for name in WRITTEN} == before
    assert [path.stat().st_mtime_ns for path in checkpoints] == times
    said = capsys.readouterr()
    assert "is complete: 30 of 30 steps" in said.err
    assert "Are the pretrained features better on these images, with few labels?" in said.out
    assert "1 label per class" in said.out
    assert str(finished) in said.out


@pytest.mark.slow
def test_ctrl_c_saves_says_how_to_continue_and_changes_nothing(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "interrupted"
    call = f"demo.run({str(out)!r}, overrides={FEW_STEPS!r})"
    code = f"import sys; from belvedere import demo; sys.exit({call}.exit_code)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=os.environ
    )
    metrics = out / "pretraining" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == EXIT_RUN_AGAIN, said
    assert f"belvedere demo --out {out}" in said
    assert not (out / "report.json").exists()
    outcome = pretrain(place.settle(out, FEW_STEPS))
    assert (outcome.step, outcome.stopped) == (30, False)
    weights = [path / "pretraining" / BACKBONE_FOLDER / WEIGHTS_NAME for path in (out, finished)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_ctrl_c_while_scoring_is_no_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    threads = torch.get_num_threads()
    done = Outcome(tmp_path / "out" / place.RUN, step=30, total_steps=30, stopped=False, seconds=1.0)
    monkeypatch.setattr(demo, "pretrain", lambda recipe: done)
    monkeypatch.setattr(demo, "score", interrupted)
    result = demo.run(tmp_path / "out")
    assert result.exit_code == EXIT_RUN_AGAIN
    assert result.report is None
    assert f"belvedere demo --out {tmp_path / 'out'}" in capsys.readouterr().err
    assert torch.get_num_threads() == threads


def test_a_directory_with_other_content_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match=r"not the demo's: thesis\.tex"):
        demo.run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UsageError, match="is a file"):
        demo.run(tmp_path / "thesis.tex")


def test_a_damaged_marker_is_said(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text('{"rec')
    with pytest.raises(UsageError, match=r"demo\.json is damaged"):
        place.settle(tmp_path)


def test_a_wrong_override_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train\.epoch"):
        demo.run(tmp_path / "out", overrides=("train.epoch=1",))
    assert not (tmp_path / "out").exists()


def test_bf16_only_where_the_cpu_multiplies_it_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert place.settle(tmp_path / "fast").train.precision == "bf16"
    assert not capsys.readouterr().err
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    slow = place.settle(tmp_path / "slow")
    assert slow.train.precision == "float32"
    assert "takes longer" in capsys.readouterr().err
    assert slow.train.epochs == place.settle(tmp_path / "fast").train.epochs
    # a demo continues in the precision it was begun in
    assert place.settle(tmp_path / "fast").train.precision == "bf16"


def test_the_run_lies_in_any_directory(tmp_path: Path) -> None:
    out = tmp_path / "a: b # [c]"
    assert place.settle(out).run.dir == str(out / "pretraining")

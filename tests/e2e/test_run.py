"""Pretraining as a person or a scheduler meets it: stopped, continued, refused, spread over processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from belvedere.core.errors import CheckpointError, DataError, NonFiniteError, RunLockedError
from belvedere.core.files import DirectoryLock
from belvedere.data.fetch import Fetched
from belvedere.data.loader import Loader
from belvedere.engine.state import load
from belvedere.recipe.load import load_recipe
from belvedere.recipe.schema import Recipe
from belvedere.train.dry import dry_run
from belvedere.train.run import pretrain
from belvedere.train.session import Session

FAST = (
    "train.global_batch=336",
    "train.epochs=2",
    "optim.lr.warmup_epochs=1",
    "backbone.depth=1",
    "run.workers=0",
    "run.device=cpu",
    "run.log_every_steps=1",
    "train.precision=float32",
)
STEPS = 8


def words(directory: Path, overrides: tuple[str, ...]) -> list[str]:
    latest = dict(line.split("=", 1) for line in (*FAST, f"run.dir={directory}", *overrides))
    return [f"{key}={value}" for key, value in latest.items()]


def fast(directory: Path, *overrides: str) -> Recipe:
    return load_recipe("tiny/msn", words(directory, overrides))


def command(directory: Path, *overrides: str, launcher: tuple[str, ...] = ("-m", "belvedere")) -> list[str]:
    return [sys.executable, *launcher, "pretrain", "tiny/msn", *words(directory, overrides)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    loaded = load(directory)
    assert loaded is not None
    return loaded.tensors


def test_a_run_leaves_everything_a_person_needs(tmp_path: Path) -> None:
    outcome = pretrain(fast(tmp_path / "run"))
    assert (outcome.step, outcome.total_steps, outcome.stopped) == (STEPS, STEPS, False)
    names = {path.name for path in outcome.directory.iterdir()}
    assert {
        "recipe.yaml",
        "plan.json",
        "metrics.jsonl",
        "data_report.json",
        "checkpoints",
        "backbone",
    } <= names
    lines = [json.loads(line) for line in (outcome.directory / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == list(range(STEPS))
    assert {"epoch", "loss", "ploss", "me_max", "lr", "weight_decay", "momentum", "grad_norm"} <= lines[
        0
    ].keys()


def test_a_finished_run_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain(fast(tmp_path))
    before = tensors(tmp_path)
    again = pretrain(fast(tmp_path))
    assert not again.stopped
    assert "complete" in capsys.readouterr().err
    after = tensors(tmp_path)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_command_continues(tmp_path: Path, number: signal.Signals) -> None:
    longer = ("train.global_batch=64", "train.epochs=6")
    process = subprocess.Popen(
        command(tmp_path, *longer),
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    _wait_for(tmp_path / "metrics.jsonl", process)
    process.send_signal(number)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 75, told
    assert "belvedere pretrain" in told, "it must say how to continue"
    reached = load(tmp_path)
    assert reached is not None
    assert 0 < reached.step < 126
    assert (tmp_path / "backbone" / "backbone.safetensors").exists()
    again = subprocess.run(
        command(tmp_path, *longer),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert f"{reached.step:09d}" in again.stderr
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").open()]
    assert steps == list(range(126))


def _wait_for(metrics: Path, process: subprocess.Popen[str]) -> None:
    for _ in range(600):
        if metrics.exists() and metrics.stat().st_size:
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    raise AssertionError("no step was recorded in a minute")


@pytest.mark.slow
def test_torchrun_with_two_processes_equals_one(tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "belvedere")
    exact = "train.precision=float64"
    done = subprocess.run(
        command(tmp_path / "two", exact, launcher=launcher),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    pretrain(fast(tmp_path / "one", exact))
    two, one = tensors(tmp_path / "two"), tensors(tmp_path / "one")
    assert max(float((two[name].double() - one[name].double()).abs().max()) for name in one) < 1e-8
    assert len((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()) == STEPS


def test_another_world_size_continues_and_says_it_is_not_bitwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _stopped_run(tmp_path)
    monkeypatch.setattr("belvedere.core.dist.world_size", lambda: 1)
    manifest, meta = (
        {"threads": torch.get_num_threads(), "world_size": 2},
        {"device": "cpu", "micro_batch": None},
    )
    manifest["versions"] = {"torch": torch.__version__}  # type: ignore[assignment]
    (note,) = run._not_bitwise(manifest, meta)
    assert "1 processes, were 2" in note


def _stopped_run(directory: Path, *overrides: str) -> Session:
    from belvedere.train.directory import write_recipe
    from belvedere.train.run import open_session

    recipe = fast(directory, *overrides)
    run = open_session(recipe, torch.device("cpu"))
    write_recipe(recipe, directory)
    run.save()
    return run


def test_a_changed_recipe_is_refused_with_the_difference(tmp_path: Path) -> None:
    pretrain(fast(tmp_path))
    with pytest.raises(CheckpointError, match=r"optim\.lr\.peak: 0\.\d+ -> 0\.5") as refused:
        pretrain(fast(tmp_path, "optim.lr.peak=0.5"))
    assert "run.dir" in str(refused.value)


def test_keys_under_run_may_change(tmp_path: Path) -> None:
    pretrain(fast(tmp_path))
    assert pretrain(fast(tmp_path, "run.keep_last=5", "run.log_every_steps=3")).step == STEPS


def test_other_images_are_refused(tmp_path: Path) -> None:
    from PIL import Image

    images = tmp_path / "images"
    images.mkdir()
    for number in range(8):
        Image.new("RGB", (10, 10), (number, 0, 0)).save(images / f"{number}.png")
    own = (f"data.path={images}", "data.split=null", "train.global_batch=4")
    run = tmp_path / "run"
    pretrain(fast(run, *own))
    Image.new("RGB", (10, 10)).save(images / "9.png")
    with pytest.raises(CheckpointError, match="other images"):
        pretrain(fast(run, *own))


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with DirectoryLock(tmp_path), pytest.raises(RunLockedError, match=str(os.getpid())):
        pretrain(fast(tmp_path))


def test_an_altered_checkpoint_is_skipped_for_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(fast(tmp_path, "run.save_every_steps=3", "run.keep_last=3"))
    whole = tensors(tmp_path)
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    (file,) = newest.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    pretrain(fast(tmp_path, "run.save_every_steps=3", "run.keep_last=3"))
    told = capsys.readouterr().err
    assert f"skipped {newest.name}" in told
    assert "checkpoint 000000006" in told
    again = tensors(tmp_path)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_step_that_is_not_finite_changes_nothing_and_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Session.start

    def poisoned(*args: object, **options: object) -> Session:
        run = start(*args, **options)  # type: ignore[arg-type]
        with torch.no_grad():
            run.method.student.head.fc2.weight[0, 0] = float("nan")  # type: ignore[union-attr, index]
        return run

    monkeypatch.setattr(Session, "start", staticmethod(poisoned))
    with pytest.raises(NonFiniteError, match=r"student\.head\.fc2\.weight") as told:
        pretrain(fast(tmp_path))
    assert "optim.lr.peak" in str(told.value), "it must say what to try"
    kept = load(tmp_path)
    assert kept is not None
    assert kept.step == 0
    assert not any(name.startswith("optim/") for name in kept.tensors), "the optimizer took a step"
    (batch,) = (tmp_path / "bad-steps").iterdir()
    from safetensors.torch import load_file

    assert {"views/target", "views/anchor", "draws/patch_order", "index"} <= load_file(batch).keys()


@pytest.mark.parametrize("asked", [True, False])
def test_a_worker_that_dies_of_the_signal_to_stop_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    note = Loader._note

    def ended(self: Loader, fetched: Fetched) -> None:
        note(self, fetched)
        if self.asked > 2 * 336:
            if asked:
                signal.raise_signal(signal.SIGTERM)
            raise DataError("a loader worker ended (signal 15)")

    monkeypatch.setattr(Loader, "_note", ended)
    if asked:
        assert pretrain(fast(tmp_path)).stopped
    else:
        with pytest.raises(DataError, match="signal 15"):
            pretrain(fast(tmp_path))
    kept = load(tmp_path)
    assert kept is not None
    assert kept.step == 2
    monkeypatch.undo()
    assert pretrain(fast(tmp_path)).step == STEPS


def test_too_many_bad_images_stop_the_run_by_name(tmp_path: Path) -> None:
    from PIL import Image

    images = tmp_path / "images"
    images.mkdir()
    for number in range(40):
        if number % 2:
            Image.new("RGB", (10, 10), (number, 0, 0)).save(images / f"{number:02d}.png")
        else:
            (images / f"{number:02d}.png").write_bytes(b"\x89PNG nothing")
    own = (f"data.path={images}", "data.split=null", "train.global_batch=20", "data.max_bad_share=0.1")
    with pytest.raises(DataError, match=r"data\.max_bad_share"):
        pretrain(fast(tmp_path / "run", *own))


def test_dry_run_takes_a_step_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = dry_run(fast(tmp_path / "run"))
    assert report.at.step == 0
    told = capsys.readouterr().err
    assert "step 0 with its 336 images" in told
    assert "1,344 images x 2 epochs = 8 steps, about" in told
    assert not (tmp_path / "run").exists()

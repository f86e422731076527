"""What a dry run tries out is what the run does first; and how it is told how long that takes."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path

import pytest
import torch

from belvedere.core import machine
from belvedere.core.errors import CheckpointError
from belvedere.engine.progress import Pace
from belvedere.recipe.load import load_recipe
from belvedere.recipe.plan import plan
from belvedere.recipe.schema import Recipe
from belvedere.train import trial as trial_module
from belvedere.train.dry import dry_run
from belvedere.train.forecast import Forecast, ending
from belvedere.train.record import read_metrics
from belvedere.train.run import open_session, pretrain
from belvedere.train.trial import _affordable, predicted_step_s, try_step

SMALL = (
    "train.epochs=1",
    "train.global_batch=336",
    "optim.lr.warmup_epochs=1",
    "train.precision=float32",
    "run.workers=0",
    "run.device=cpu",
    "run.log_every_steps=1",
)


def recipe(run: Path, *overrides: str, name: str = "tiny/msn") -> Recipe:
    own = ("backbone.depth=1",) if name in ("tiny/msn", "tiny/mugs") else ()
    latest = dict(line.split("=", 1) for line in (*SMALL, *own, f"run.dir={run}", *overrides))
    return load_recipe(name, [f"{key}={value}" for key, value in latest.items()])


def first_loss(run: Path, step: int = 0) -> float:
    return float(next(line for line in read_metrics(run / "metrics.jsonl") if line["step"] == step)["loss"])


@pytest.mark.parametrize("name", ["tiny/msn", "tiny/swav", "tiny/mugs"])
def test_a_dry_run_takes_the_runs_first_step(name: str, tmp_path: Path) -> None:
    given = recipe(tmp_path / "run", name=name)
    report = dry_run(given)
    assert not (tmp_path / "run").exists()
    pretrain(given)
    assert float(report.losses.total) == pytest.approx(first_loss(tmp_path / "run"), rel=1e-6)


def test_a_dry_run_goes_on_where_the_run_would(tmp_path: Path) -> None:
    """Of a run that stopped, and of one that ended."""
    given = recipe(tmp_path / "run", "run.save_every_steps=2", "run.keep_last=3")
    pretrain(given)
    (tmp_path / "run" / "checkpoints" / "000000004").rename(tmp_path / "taken")
    report = dry_run(given)
    assert report.at.step == 2
    assert float(report.losses.total) == pytest.approx(first_loss(tmp_path / "run", 2), rel=1e-6)
    with pytest.raises(CheckpointError, match="begun with another recipe"):
        dry_run(recipe(tmp_path / "run", "seed=5"))


def test_a_dry_run_of_a_complete_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = recipe(tmp_path / "run")
    pretrain(given)
    dry_run(given)
    assert "is complete" in capsys.readouterr().err


def test_a_step_that_takes_too_long_is_tried_with_its_first_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_module, "BUDGET_S", 1e-9)
    monkeypatch.setattr(try_step, "__kwdefaults__", {"budget_s": 1e-9})
    report = dry_run(recipe(tmp_path / "run", name="tiny/deepcluster"))
    told = capsys.readouterr().err
    assert "step 0 with the first 2 of its 336 images" in told
    assert "times 168 for the batch of 336" in told
    assert "not counting the assignments" in told
    assert torch.isfinite(report.losses.total)


@pytest.mark.parametrize("micro_batch", ["null", "16"])
def test_the_first_images_are_those_of_the_runs_batch(micro_batch: str, tmp_path: Path) -> None:
    session = open_session(recipe(tmp_path, f"run.micro_batch={micro_batch}"), torch.device("cpu"))
    with session.loader(workers=0) as loader, session.loader(workers=0, rows=32) as few:
        whole, part = next(iter(loader)), next(iter(few))
    assert part.rows == range(32)
    assert torch.equal(part.index, whole.index[:32])
    for role, views in part.views.items():
        assert torch.equal(views, whole.views[role][:, :32])


@pytest.mark.parametrize(
    ("batch", "micro_batch", "most", "expected"),
    [
        (128, 128, 1000.0, (128, 128)),
        (128, 32, 1000.0, (128, 32)),
        (128, 32, 100.0, (64, 32)),
        (128, 32, 40.0, (32, 16)),
        (128, 128, 40.0, (32, 32)),
        (128, 128, 0.1, (2, 2)),
        (128, 64, 0.1, (2, 2)),
        (1, 1, 1.0, (1, 1)),
        (3, 3, 2.0, (2, 2)),
    ],
)
def test_how_many_images_are_tried(
    batch: int, micro_batch: int, most: float, expected: tuple[int, int]
) -> None:
    assert _affordable(batch, micro_batch, most) == expected


def test_the_slower_of_networks_and_loading_sets_the_pace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cpu_count", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    session = open_session(recipe(tmp_path, "run.workers=2"), torch.device("cpu"))
    report = try_step(session).report

    def predicted(step_s: float, load_s: float) -> float:
        tried = trial_module.Trial(report, 168, 168, False, step_s, load_s)
        return predicted_step_s(session, tried)

    assert predicted(3.0, 1.0) == 6.0
    assert predicted(1.0, 10.0) == 10.0
    monkeypatch.setattr(machine, "cpu_count", lambda: 2)
    assert predicted(3.0, 2.0) == 8.0


def test_a_run_says_its_plan_at_once_and_when_it_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = recipe(tmp_path / "run", "train.epochs=3", "train.global_batch=448")
    pretrain(given)
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "plan"
    assert any("1,344 images x 3 epochs = 9 steps, about" in line for line in told)


def test_the_plan_is_told_before_networks_are_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("belvedere.train.session.build_method", lambda recipe: sys.exit("building"))
    for start in (pretrain, dry_run):
        with pytest.raises(SystemExit, match="building"):
            start(recipe(tmp_path / "run"))
        assert capsys.readouterr().err.startswith("plan\n")


def test_the_end_is_told_once_and_never_before_it_is_known() -> None:
    made = plan(load_recipe("tiny/msn"), num_images=1347)
    forecast = Forecast(made, 0)
    pace = Pace(images_per_s=100.0, eta_s=60.0, waiting=None)
    told = [forecast.told(step, pace if step > 1 else None, float(step)) for step in range(1, 12)]
    assert [step for step, words in enumerate(told, 1) if words] == [6]
    slow = Forecast(made, 0)
    assert slow.told(1, pace, 30.0) is not None
    assert Forecast(made, 0).told(made.total_steps, pace, 30.0) is None


def test_the_end_in_words() -> None:
    made, now = plan(load_recipe("tiny/msn"), num_images=1347), datetime(2026, 5, 1, 11, 10)
    words = "1,280 images x 220 epochs = 2,200 steps, about 3 h 10 min, ends about 14:20"
    assert ending(made, 0, 11_400, now=now) == words
    later = ending(made, 200, 86_400, now=now)
    assert "2,200 steps, about 1 day for the 2,000 that are left, ends about 2026-05-02 11:10" in later

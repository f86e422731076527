"""`metrics.jsonl`, cut back on resume, and the sinks behind it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from belvedere.core.errors import BelvedereError, MissingPackageError
from belvedere.train.record import Metrics, read_metrics
from belvedere.train.sinks import WANDB_ID, open_sinks


def lines(path: Path) -> list[dict[str, Any]]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def filled(path: Path, steps: range) -> None:
    with Metrics(path) as metrics:
        for step in steps:
            metrics.write(step, {"loss": step / 2})


def test_a_line_per_step_step_first_and_numbers_in_order(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    with Metrics(path) as metrics:
        metrics.write(9, {"epoch": 0.5, "loss": 3.25, "lr": 1e-4})
        assert path.read_text() == '{"step": 9, "epoch": 0.5, "loss": 3.25, "lr": 0.0001}\n'  # flushed
        metrics.write(19, {"epoch": 1.0, "loss": 3.0, "lr": 2e-4})
    assert [line["step"] for line in lines(path)] == [9, 19]


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with Metrics(path) as metrics:
        metrics.write(0, {"loss": math.nan, "a": math.inf, "b": -math.inf, "c": 1.0})
    assert lines(path) == [{"step": 0, "loss": None, "a": None, "b": None, "c": 1.0}]


def test_nothing_written_leaves_no_file(tmp_path: Path) -> None:
    with Metrics(tmp_path / "metrics.jsonl") as metrics:
        metrics.cut_back(0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("step", "kept"), [(0, 0), (3, 3), (4, 4), (10, 10), (99, 10)])
def test_cut_back_removes_the_step_and_later_ones(tmp_path: Path, step: int, kept: int) -> None:
    path = tmp_path / "metrics.jsonl"
    filled(path, range(10))
    before = path.read_bytes().splitlines(keepends=True)
    Metrics(path).cut_back(step)
    assert path.read_bytes() == b"".join(before[:kept])
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_stopped_and_continued_equals_uninterrupted(tmp_path: Path) -> None:
    filled(tmp_path / "whole.jsonl", range(10))
    path = tmp_path / "metrics.jsonl"
    with Metrics(path) as metrics:
        for step in range(7):
            metrics.write(step, {"loss": step / 2})
        metrics.cut_back(5)  # also while the file is open
        for step in range(5, 10):
            metrics.write(step, {"loss": step / 2})
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize(
    "torn", ['{"step": 4', '{"step": 4, "loss": 2.0}', "{", '{"step": 4, "text": "é'[:-1]]
)
def test_a_torn_last_line_is_removed(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    filled(path, range(4))
    whole = path.read_bytes()
    path.write_bytes(whole + torn.encode())
    assert [record["step"] for record in read_metrics(path)] == [0, 1, 2, 3]
    Metrics(path).cut_back(100)
    assert path.read_bytes() == whole
    path.write_bytes(whole + torn.encode())
    with Metrics(path) as metrics:  # also where nothing is cut back
        metrics.write(4, {"loss": 2.0})
    assert [line["step"] for line in lines(path)] == [0, 1, 2, 3, 4]


def test_a_long_torn_line_and_a_file_of_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + b"x" * 10_000)
    with Metrics(path) as metrics:
        metrics.write(2, {})
    assert [line["step"] for line in lines(path)] == [1, 2]
    path.write_bytes(b"x" * 10_000)
    with Metrics(path) as metrics:
        metrics.write(3, {})
    assert [line["step"] for line in lines(path)] == [3]


def test_a_line_that_is_no_record_is_removed_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\x00\x00\x00\n[2]\n{"step": 3}\n\xff\n')
    Metrics(path).cut_back(10)
    assert [line["step"] for line in lines(path)] == [1, 3]
    assert "3 lines are no records and were removed (lines 2, 3, 5)" in capsys.readouterr().err


def test_a_failing_cut_back_leaves_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    filled(path, range(5))
    before = path.read_bytes()

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        Metrics(path).cut_back(2)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


class Kept:
    """A sink that remembers."""

    def __init__(self, *, fails: bool = False) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.fails, self.closed = fails, 0

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self.rows.append((step, dict(numbers)))

    def close(self) -> None:
        self.closed += 1
        if self.fails:
            raise OSError("the sink is gone")


def test_sinks_get_every_line_and_are_all_closed_once(tmp_path: Path) -> None:
    sinks = [Kept(), Kept(fails=True), Kept()]
    metrics = Metrics(tmp_path / "metrics.jsonl", sinks=sinks)
    metrics.write(3, {"loss": 1.5})
    metrics.cut_back(0)
    metrics.write(0, {"loss": 2.5})
    with pytest.raises(OSError, match="gone"):
        metrics.close()
    metrics.close()
    assert [sink.rows for sink in sinks] == [[(3, {"loss": 1.5}), (0, {"loss": 2.5})]] * 3
    assert [sink.closed for sink in sinks] == [1, 1, 1]


def test_no_sink_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wandb", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it would raise
    assert open_sinks((), tmp_path) == ()


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_named_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError) as raised:
        open_sinks((name,), tmp_path)  # type: ignore[arg-type]
    assert f"`uv sync --extra {name}` in a clone of belvedere, or `pip install '{name}>=" in str(raised.value)
    assert "run.sinks" in str(raised.value)


def test_an_unknown_sink_is_named(tmp_path: Path) -> None:
    with pytest.raises(BelvedereError, match=r"run\.sinks.*'csv'.*tensorboard, wandb"):
        open_sinks(("csv",), tmp_path)


class FakeWriter:
    made: list[FakeWriter]

    def __init__(self, log_dir: str, purge_step: int | None = None) -> None:
        self.log_dir, self.purge_step, self.closed = log_dir, purge_step, False
        self.scalars: list[tuple[str, float, int]] = []
        FakeWriter.made.append(self)

    def add_scalar(self, name: str, value: float, global_step: int) -> None:
        self.scalars.append((name, value, global_step))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def fake_tensorboard(monkeypatch: pytest.MonkeyPatch) -> type[FakeWriter]:
    FakeWriter.made = []
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = FakeWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return FakeWriter


def test_tensorboard_gets_scalars_and_forgets_what_is_trained_again(
    tmp_path: Path, fake_tensorboard: type[FakeWriter]
) -> None:
    (sink,) = open_sinks(("tensorboard",), tmp_path, start_step=40)
    sink.write(49, {"loss": 1.5, "lr": 0.1})
    sink.close()
    (writer,) = fake_tensorboard.made
    assert writer.log_dir == str(tmp_path / "tensorboard")
    assert writer.purge_step == 40
    assert writer.scalars == [("loss", 1.5, 49), ("lr", 0.1, 49)]
    assert writer.closed


class FakeRun:
    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = False

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.logged.append((step, numbers))

    def finish(self) -> None:
        self.finished = True


class FakeWandb(ModuleType):
    """W&B that keeps the arguments of `init`."""

    def __init__(self, *, refuses: bool = False) -> None:
        super().__init__("wandb")
        self.Error = type("Error", (Exception,), {})
        self.starts: list[dict[str, Any]] = []
        self.runs: list[FakeRun] = []
        self.refuses = refuses

    def init(self, **settings: Any) -> FakeRun:
        if self.refuses:
            raise self.Error("no API key")
        self.starts.append(settings)
        self.runs.append(FakeRun())
        return self.runs[-1]


def test_wandb_continues_the_run_of_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    for _ in range(2):
        (sink,) = open_sinks(("wandb",), tmp_path, run_name="tiny/msn", settings={"seed": 0})
        sink.write(9, {"loss": 1.5})
        sink.close()
    (other,) = open_sinks(("wandb",), tmp_path / "other", run_name="tiny/msn", settings={"seed": 0})
    other.close()
    first, again, elsewhere = fake.starts
    assert first == again
    assert first["id"] == (tmp_path / WANDB_ID).read_text().strip()
    assert first["id"] != elsewhere["id"]
    assert (first["project"], first["name"], first["resume"]) == ("belvedere", "tiny/msn", "allow")
    assert first["config"] == {"seed": 0}
    assert [run.logged for run in fake.runs] == [[(9, {"loss": 1.5})]] * 2 + [[]]
    assert all(run.finished for run in fake.runs)


def test_wandb_that_does_not_start_says_what_to_do_and_closes_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_tensorboard: type[FakeWriter]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(refuses=True))
    with pytest.raises(BelvedereError, match=r"(?s)no API key.*WANDB_MODE=offline.*run\.sinks"):
        open_sinks(("tensorboard", "wandb"), tmp_path)
    assert fake_tensorboard.made[0].closed

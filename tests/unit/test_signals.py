"""Ctrl-C and SIGTERM: answered at once also in an operation that takes long; a second one quits."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from belvedere import cli
from belvedere.core.files import replacing
from belvedere.data.fetch import Fetched
from belvedere.data.loader import Loader
from belvedere.data.sources import FolderSource
from belvedere.engine.state import find
from belvedere.recipe.load import load_recipe
from belvedere.train import run as training
from belvedere.train import signals
from belvedere.train.loop import StepReport
from belvedere.train.run import pretrain
from belvedere.train.signals import StopRequest, stop_request

SMALL = (
    "data.split=test",
    "train.epochs=2",
    "train.global_batch=90",
    "backbone.depth=1",
    "optim.lr.warmup_epochs=0.5",
    "run.workers=0",
    "run.device=cpu",
)


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Signals as a program in the foreground has them: one started in the background may ignore SIGINT."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


def send(*numbers: signal.Signals) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def send_later(delay_s: float, *numbers: signal.Signals) -> None:
    """Each after the delay, from another thread: the main one is busy."""

    def wait_and_send() -> None:
        for number in numbers:
            time.sleep(delay_s)
            send(number)

    threading.Thread(target=wait_and_send, daemon=True).start()


def busy(seconds: float) -> None:
    """One operation that runs no Python, as a backward pass is one."""
    probe = time.perf_counter()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000)
    rounds = 100_000 * seconds / (time.perf_counter() - probe)
    hashlib.pbkdf2_hmac("sha256", b"", b"", int(rounds))


def until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


@contextmanager
def interrupted() -> Iterator[None]:
    """The block is interrupted, and does not sleep for long."""
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        yield
    assert time.monotonic() - started < 15


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGINT, "SIGINT: finishing this step, about 40 s, then saving; again to quit now"),
        (signal.SIGTERM, "SIGTERM: finishing this step, about 40 s, then saving"),
    ],
)
def test_a_signal_is_answered_while_an_operation_runs(number: signal.Signals, words: str) -> None:
    told: list[tuple[float, str]] = []
    with stop_request(say=lambda text: told.append((time.monotonic(), text))) as request:
        request._steps_s.extend([40.3, 40.3, 3600.0])
        send_later(0.2, number)
        busy(2.0)
        ended = time.monotonic()
        until(lambda: request.asked)
    ((at, text),) = told
    assert text == words
    assert at < ended - 0.5, "it was told only when the operation returned"


def test_what_is_finished_first_is_said() -> None:
    request = StopRequest()
    assert "this step, the first one, which can take longer" in request.first_answer(signal.SIGINT)
    request.doing = "a batch of the pass over the images that epoch 0 begins with"
    assert "finishing a batch of the pass over the images that epoch 0 begins with, then saving" in (
        request.first_answer(signal.SIGTERM)
    )
    request.begins()
    request.ended(1)
    assert "this step, about 1 s" in request.first_answer(signal.SIGINT)
    assert request.second_answer() == (
        "quitting now: there is no checkpoint yet, 1 finished step lost; the same command starts again"
    )
    request.saved, request.finished = 1_000, 1_234
    assert (
        "the checkpoint of step 1,000 is whole, 234 finished steps since then lost" in request.second_answer()
    )
    request.finished = 1_000
    assert "no finished step since then lost" in request.second_answer()


def test_a_second_one_interrupts_and_gives_the_handlers_back() -> None:
    told: list[str] = []
    former = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with interrupted(), stop_request(say=told.append) as request:
        send(signal.SIGINT)
        until(lambda: len(told) == 1)
        assert request.name == "SIGINT"
        send(signal.SIGINT)
        time.sleep(20)
    assert "quitting now" in told[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == former
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize(
    ("number", "world_size"), [(signal.SIGTERM, "1"), (signal.SIGTERM, "2"), (signal.SIGINT, "2")]
)
def test_a_signal_that_a_launcher_repeats_counts_once(
    number: signal.Signals, world_size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", world_size)
    told: list[str] = []
    with stop_request(say=told.append):
        send(number)
        until(lambda: len(told) == 1)
        send(number)
        time.sleep(0.3)
    assert len(told) == 1
    monkeypatch.setattr(signals, "_ECHO_S", 0.0)
    with interrupted(), stop_request(say=told.append):
        send(number)
        until(lambda: len(told) == 2)
        send(number)
        time.sleep(20)


def test_an_operation_that_does_not_return_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[float] = []
    monkeypatch.setattr(signals, "_TO_UNWIND_S", 0.2)
    monkeypatch.setattr(signals, "_end_here", lambda: ended.append(time.monotonic()))
    with interrupted(), stop_request(say=lambda _: None, ends_process=True):
        send_later(0.2, signal.SIGINT, signal.SIGINT)
        try:
            busy(3.0)
            time.sleep(20)
        finally:
            returned = time.monotonic()
    assert ended
    assert ended[0] < returned - 0.5
    ended.clear()
    with interrupted(), stop_request(say=lambda _: None):
        send_later(0.1, signal.SIGINT, signal.SIGINT)
        busy(1.0)
        time.sleep(20)
    assert not ended, "from Python the process is not ours to end"


def test_the_first_process_speaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    with stop_request() as request:
        send(signal.SIGTERM)
        until(lambda: request.asked)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    with stop_request() as request:
        send(signal.SIGTERM)
        until(lambda: request.asked)
        time.sleep(0.1)
    assert "SIGTERM: finishing this step" in capsys.readouterr().err


def test_a_console_that_is_gone_does_not_swallow_the_signal() -> None:
    def gone(_: str) -> None:
        raise BrokenPipeError

    with stop_request(say=gone) as request:
        send(signal.SIGINT)
        until(lambda: request.asked)


# Whole runs


def at_step(monkeypatch: pytest.MonkeyPatch, wanted: int, act: Callable[[], None]) -> None:
    """Do something when a run reports a step."""
    numbers = training._is_logged

    def logged(session: object, report: StepReport) -> bool:
        if report.at.step == wanted:
            act()
        return numbers(session, report)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "_is_logged", logged)


def test_a_second_signal_ends_a_run_that_goes_on_from_its_last_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe("tiny/msn", [*SMALL, "run.save_every_steps=2", f"run.dir={tmp_path / 'run'}"])

    def twice() -> None:
        send(signal.SIGINT)
        time.sleep(0.3)
        send(signal.SIGINT)
        time.sleep(20)

    at_step(monkeypatch, 4, twice)
    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe)
    monkeypatch.undo()
    told = capsys.readouterr().err
    assert re.search(r"SIGINT: finishing this step, about \d+ s, then saving; again to quit now", told)
    assert "the checkpoint of step 4 is whole, 1 finished step since then lost" in told
    found = find(tmp_path / "run")
    assert found is not None
    assert found.step == 4
    assert not list((tmp_path / "run").rglob(".*writing*"))
    assert pretrain(recipe).step == 10
    whole = load_recipe("tiny/msn", [*SMALL, f"run.dir={tmp_path / 'whole'}"])
    assert pretrain(whole).step == 10
    names = ("run", "whole")
    one, two = ((tmp_path / name / "backbone" / "backbone.safetensors").read_bytes() for name in names)
    assert one == two


def test_a_signal_in_the_pass_before_an_epoch_ends_the_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe("tiny/deepcluster", [*SMALL, f"run.dir={tmp_path}"])
    note = Loader._note

    def noted(self: Loader, fetched: Fetched) -> None:
        note(self, fetched)
        if self.asked == 180:
            send(signal.SIGINT)
            time.sleep(0.3)

    monkeypatch.setattr(Loader, "_note", noted)
    outcome = pretrain(recipe)
    assert (outcome.stopped, outcome.step) == (True, 0)
    told = capsys.readouterr().err
    assert (
        "SIGINT: finishing a batch of the pass over the images that epoch 0 begins with, then saving" in told
    )
    monkeypatch.undo()
    assert pretrain(recipe).step == 10


# Other commands, and what of `pretrain` comes before its steps


class Interrupted:
    """A command that writes a file and is interrupted."""

    def __init__(self, path: Path, number: signal.Signals) -> None:
        self.path, self.number = path, number

    def parser(self) -> argparse.ArgumentParser:
        raise NotImplementedError

    def run(self, args: argparse.Namespace) -> int:
        with replacing(self.path) as temporary:
            temporary.write_text("half")
            send(self.number)
            time.sleep(20)
        return 0


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_command_ends_with_its_status_and_leaves_nothing_half_written(
    number: signal.Signals, status: int, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = Interrupted(tmp_path / "file", number)
    assert cli._guarded(command, argparse.Namespace(debug=False)) == status
    assert capsys.readouterr().err.strip() == word
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.fixture
def images(tmp_path: Path) -> Path:
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(200):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(folder / f"{number:03}.png")
    return folder


def weights(folder: Path) -> Path:
    from belvedere.train.session import build_method
    from belvedere.zoo.cards import Card, export

    recipe = load_recipe("tiny/msn")
    told = {"system": "msn", "source": "test", "mean": recipe.data.mean, "std": recipe.data.std}
    card = Card(backbone=recipe.backbone, features=recipe.features, **told)  # type: ignore[arg-type]
    export(folder, build_method(recipe).export().backbone, card)
    return folder


PRETRAIN = "pretrain tiny/msn data.path={images} data.split=null run.device=cpu run.workers=0 run.dir={out}"


@pytest.mark.parametrize(
    "line",
    [
        f"{PRETRAIN} train.global_batch=100 --dry-run",
        f"{PRETRAIN} train.global_batch=100",
        "embed {weights} --data {images} --out {out}.npz --device cpu",
        "data check {images}",
    ],
)
def test_an_interruption_while_images_are_read_is_prompt(
    line: str,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stored, seen = FolderSource.stored, []

    def slow(self: FolderSource, index: int) -> object:
        seen.append(time.monotonic())
        if len(seen) == 4:
            send(signal.SIGINT)
        time.sleep(0.05)
        return stored(self, index)

    monkeypatch.setattr(FolderSource, "stored", slow)
    places = {"images": images, "out": tmp_path / "out", "weights": weights(tmp_path / "weights")}
    before = sorted(tmp_path.iterdir())
    status = cli.main(line.format(**places).split())
    told = capsys.readouterr().err
    assert status == 130, told
    assert time.monotonic() - seen[3] < 4, "it waited for images that nobody wants"
    assert "Traceback" not in told
    assert sorted(tmp_path.iterdir()) == before

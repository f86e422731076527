"""Workers that give nothing: which are waited for, which end a run, and in what words."""

import os
import signal
import time

import numpy as np
import pytest

from belvedere.core import machine
from belvedere.core.errors import DataError
from belvedere.data import stall
from belvedere.data.loader import Loader
from belvedere.data.sources.source import ArraySource
from belvedere.data.spec import DataSpec, Photometry, ViewSpec

DATA = DataSpec(path=None, split=None, mean=(0.5,) * 3, std=(0.5,) * 3, max_bad_share=0.0)
PLAIN = Photometry(flip=0.0, jitter=None, gray=0.0, blur=None, solarize=0.0)
VIEW = ViewSpec(
    count=1, px=8, scale=(0.5, 1.0), aspect=(1.0, 1.0), interpolation="bilinear", photometry=PLAIN
)


class Process:
    pid = 77


def kernel_says(proc, state: str, *, ticks: int, wakes: int) -> None:
    folder = proc / "77" / "task" / "77"
    folder.mkdir(parents=True, exist_ok=True)
    words = [state, *["0"] * 10, str(ticks), "0", *["0"] * 20]
    (proc / "77" / "stat").write_text(f"77 (a ) name) {' '.join(words)}\n")
    (folder / "status").write_text(f"Name:\tx\nvoluntary_ctxt_switches:\t{wakes}\n")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(stall.time, "monotonic", lambda: now[0])
    return now


WORK = {  # what changes from one look to the next: state, ticks of CPU time, wakes
    "stopped": ("T", 0, 0, r"stopped \(SIGSTOP, or Ctrl-Z\).*kill -CONT 77"),
    "traced": ("t", 0, 0, "stopped by a debugger"),
    "stopped while it computed": ("T", 500, 500, "stopped"),
    "a disk that does not answer": (
        "D",
        0,
        0,
        "uninterruptible: it waits for a disk.*whether what holds data.path",
    ),
    "a lock": ("S", 0, 1, "sleeping: it waits for.*whether what holds data.path"),
    "at work": ("R", 400, 0, None),
    "at work between two looks": ("S", 20, 0, None),
    "reads from a network": ("S", 0, 40, None),
    "waits for a slow disk": ("D", 0, 40, None),
}


@pytest.mark.parametrize("name", WORK)
def test_what_computes_or_wakes_up_is_slow_and_what_does_neither_is_stuck(name, tmp_path, clock, capsys):
    state, ticks, wakes, told = WORK[name]
    watch, error = stall.Stall(proc=tmp_path), None
    for look in range(1, 201):
        clock[0] = 5.0 * look
        kernel_says(tmp_path, state, ticks=100 + ticks * look, wakes=100 + wakes * look)
        try:
            watch.look([(3, Process())])
        except DataError as caught:
            error = caught
            break
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("no batch for") == 1
    assert "loader worker 3 (process 77)" in said
    if told is None:
        assert error is None
        assert "it is slow, and waited for" in said
    else:
        assert 300 <= clock[0] <= 310
        assert "ends after 300 s without progress" in said
        with pytest.raises(
            DataError, match=f"loader worker 3 .process 77. is {told}.*BELVEDERE_STALL_LIMIT_S"
        ):
            raise error


def test_a_batch_or_a_stop_of_all_processes_starts_the_time_again(tmp_path, clock):
    watch = stall.Stall(proc=tmp_path)
    kernel_says(tmp_path, "S", ticks=0, wakes=0)
    for look in range(400):
        clock[0] += 5.0
        watch.look([(0, Process())])
        if look % 50 == 0:
            watch.reset()
    clock[0] += 10_000.0  # Ctrl-Z, and fg the next day
    watch.reset()
    clock[0] += 10_000.0
    watch.look([(0, Process())])


def test_without_proc_nothing_is_ended(tmp_path, clock, capsys):
    watch = stall.Stall(proc=tmp_path)
    for _ in range(400):
        clock[0] += 5.0
        watch.look([(0, Process())])
    assert "is of unknown state" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["", "soon", "0", "-3", "nan"])
def test_a_limit_is_a_number(monkeypatch, wrong):
    monkeypatch.setenv("BELVEDERE_STALL_LIMIT_S", wrong)
    with pytest.raises(DataError, match="BELVEDERE_STALL_LIMIT_S is"):
        stall.stall_limit_s()


class Slow(ArraySource):
    """Images, each of which takes a while: computing, or waiting a little again and again."""

    how = "computes"

    def stored(self, index: int):
        end = time.monotonic() + 0.4
        while time.monotonic() < end:
            if self.how == "waits":
                time.sleep(0.02)
        return super().stored(index)


class Waiting(Slow):
    how = "waits"


def loader(kind: type[ArraySource], **changes) -> Loader:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 90, 90, 3), dtype=np.uint8)
    source = kind("noise", pixels, labels=np.full(8, -1), classes=(), keys=map(str, range(8)))
    settings = {"data": DATA, "seed": 0, "global_batch": 4, "total_steps": 4, "workers": 2} | changes
    return Loader(source, {"target": VIEW}, **settings)


@pytest.fixture(params=["shared memory", "pipes"])
def impatient(request, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BELVEDERE_STALL_LIMIT_S", "1")
    monkeypatch.setattr(stall, "LOOK_S", 0.25)
    if request.param == "pipes":
        monkeypatch.setattr(machine, "shared_bytes", lambda: 0)


@pytest.mark.usefixtures("impatient")
def test_a_stopped_worker_ends_the_run_by_name():
    with loader(ArraySource, total_steps=1000) as batches:
        stream = iter(batches)
        next(stream)
        workers = getattr(batches._ahead, "processes", None) or batches._ahead._batches._workers
        os.kill(workers[1].pid, signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(DataError, match=rf"worker 1 \(process {workers[1].pid}\) is stopped"):
            list(stream)
    assert time.monotonic() - started < 20
    assert not any(worker.is_alive() for worker in workers)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", [Slow, Waiting])
def test_a_slow_worker_is_waited_for(kind):
    with loader(kind, total_steps=2) as batches:
        assert len(list(batches)) == 2

"""Plain machines: what may be used of them, and workers on one that is too small."""

import _multiprocessing
import errno
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from belvedere.core import machine
from belvedere.core.errors import DataError
from belvedere.data import ahead, room
from belvedere.data.loader import Loader
from belvedere.data.piped import PipedWorkers
from belvedere.data.sources.source import ArraySource
from belvedere.data.spec import DataSpec, Photometry, ViewSpec

LOOKS = Photometry(flip=0.5, jitter=None, gray=0.0, blur=None, solarize=0.0)
VIEW = ViewSpec(
    count=2, px=16, scale=(0.3, 1.0), aspect=(1.0, 1.0), interpolation="bilinear", photometry=LOOKS
)
DATA = DataSpec(path=None, split=None, mean=(0.5,) * 3, std=(0.5,) * 3, max_bad_share=0.0)
GIB = 2**30


def write(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.fixture
def sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))


# --- CPUs and memory


@pytest.mark.parametrize(
    ("files", "total"),
    [
        ({}, None),
        ({"proc/meminfo": "MemTotal: 1024 kB\nMemAvailable: 5 kB\n"}, 1 << 20),
        ({"proc/meminfo": "MemTotal: 1024 kB\nSwapTotal: 1024 kB\n"}, 2 << 20),
        (
            {
                "proc/meminfo": "MemTotal: 1024 kB\n",
                "proc/self/cgroup": "0::/a\n",
                "cg/a/memory.max": "4096\n",
                "cg/a/memory.current": "1\n",
            },
            4096,
        ),
        (
            {
                "proc/meminfo": "MemTotal: 1024 kB\n",
                "proc/self/cgroup": "3:memory:/\n",
                "cg/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "cg/memory/memory.usage_in_bytes": "1\n",
            },
            1 << 20,
        ),
    ],
)
def test_all_memory_there_can_be(tmp_path: Path, files: dict[str, str], total: int | None) -> None:
    write(tmp_path, files)
    assert machine.memory_bytes(proc=tmp_path / "proc", cgroups=tmp_path / "cg") == total


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 16),
        ({"proc/self/cgroup": "0::/\n", "cg/cpu.max": "max 100000\n"}, 16),
        ({"proc/self/cgroup": "0::/\n", "cg/cpu.max": "400000 100000\n"}, 4),
        (
            {"proc/self/cgroup": "0::/\n", "cg/cpu.max": "150000 100000\n"},
            2,
        ),  # a core and a half keeps two busy
        ({"proc/self/cgroup": "0::/\n", "cg/cpu.max": "5000 100000\n"}, 1),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "cg/a/b/cpu.max": "max 100000\n",
                "cg/a/cpu.max": "300000 100000",
            },
            3,
        ),
        ({"proc/self/cgroup": "0::/not/mounted/here\n", "cg/cpu.max": "600000 100000\n"}, 6),
        (
            {
                "proc/self/cgroup": "5:memory:/x\n3:cpu,cpuacct:/job\n0::/\n",
                "cg/cpu,cpuacct/job/cpu.cfs_quota_us": "200000\n",
                "cg/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu:/\n",
                "cg/cpu/cpu.cfs_quota_us": "-1\n",
                "cg/cpu/cpu.cfs_period_us": "100000\n",
            },
            16,
        ),
        ({"proc/self/cgroup": "0::/\n", "cg/cpu.max": ""}, 16),
    ],
)
def test_cpus_are_those_a_control_group_allows(tmp_path, sixteen, files, cpus):
    write(tmp_path, files)
    assert machine.cpu_count(proc=tmp_path / "proc", cgroups=tmp_path / "cg") == cpus


def test_cpus_are_those_the_process_may_run_on(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    write(tmp_path, {"proc/self/cgroup": "0::/\n", "cg/cpu.max": "400000 100000\n"})
    assert machine.cpu_count(proc=tmp_path / "proc", cgroups=tmp_path / "cg") == 1
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS, Windows
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.cpu_count(proc=tmp_path / "none", cgroups=tmp_path / "none") == 1


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    2048 kB\n"}, 2 << 20),
        (
            {
                "proc/meminfo": "MemAvailable:    2048 kB\n",
                "proc/self/cgroup": "0::/job\n",
                "cg/job/memory.max": "1000000\n",
                "cg/job/memory.current": "900000\n",
                "cg/job/memory.stat": "anon 700000\ninactive_file 200000\n",
            },
            300_000,
        ),
        (
            {
                "proc/meminfo": "MemAvailable:    2048 kB\n",
                "proc/self/cgroup": "0::/job\n",
                "cg/job/memory.max": "max\n",
                "cg/job/memory.current": "900000\n",
            },
            2 << 20,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/job\n0::/\n",
                "cg/memory/job/memory.limit_in_bytes": "1000\n",
                "cg/memory/job/memory.usage_in_bytes": "4000\n",
                "cg/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "cg/memory/memory.usage_in_bytes": "5000\n",
            },
            0,
        ),
    ],
)
def test_memory_is_what_is_left_before_the_kernel_kills(tmp_path, files, free):
    write(tmp_path, files)
    assert machine.available_bytes(proc=tmp_path / "proc", cgroups=tmp_path / "cg") == free


def test_shared_memory_without_a_file_system_of_its_own_has_no_limit(tmp_path):
    assert machine.shared_bytes(folder=tmp_path / "none") is None
    assert machine.shared_bytes(folder=tmp_path) == pytest.approx(
        os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize, rel=0.1
    )


# --- what is said before and after


def source(count: int = 40, px: int = 40) -> ArraySource:
    pixels = np.random.default_rng(0).integers(0, 256, (count, px, px, 3), dtype=np.uint8)
    return ArraySource("noise", pixels, labels=np.full(count, -1), classes=(), keys=map(str, range(count)))


def loader(**changes) -> Loader:
    settings = {"data": DATA, "seed": 0, "global_batch": 8, "total_steps": 6} | changes
    return Loader(source(), {"target": VIEW}, **settings)


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine that has enough of everything."""
    monkeypatch.setattr(machine, "cpu_count", lambda: 16)
    monkeypatch.setattr(machine, "available_bytes", lambda: 64 * GIB)
    monkeypatch.setattr(machine, "shared_bytes", lambda: 32 * GIB)
    return monkeypatch


def test_a_roomy_machine_is_not_spoken_of(roomy):
    assert loader(workers=16).remarks == []
    roomy.setattr(machine, "available_bytes", lambda: None)
    roomy.setattr(machine, "shared_bytes", lambda: None)
    assert loader(workers=16).remarks == []


def test_more_workers_than_cpus_are_said_with_the_number_to_set(roomy):
    (told,) = loader(workers=17).remarks
    assert "run.workers is 17" in told
    assert told.endswith("set run.workers=16")
    roomy.setenv("LOCAL_WORLD_SIZE", "4")
    (told,) = loader(workers=5).remarks
    assert "5 by each of 4 training processes" in told
    assert told.endswith("set run.workers=4")


def test_too_little_memory_is_said(roomy):
    roomy.setattr(machine, "available_bytes", lambda: 1 * GIB)
    assert loader(workers=2).remarks == []
    (told,) = loader(workers=14).remarks
    assert "1.0 GiB are free" in told
    assert "lower run.workers" in told
    assert loader(workers=0).remarks == []


def test_small_shared_memory_is_said_with_the_remedy(roomy):
    roomy.setattr(machine, "shared_bytes", lambda: 64 << 10)
    (told,) = loader(workers=2).remarks
    assert "64.0 KiB free" in told
    assert "docker run --shm-size=1g" in told
    batch = 2 * 8 * 3 * 16 * 16 * 4
    assert f"{batch * 7 / 1024:.1f} KiB" in told  # for each worker two ahead and one at work; one handed out


@pytest.mark.parametrize(
    ("waited_s", "seconds", "workers", "told"),
    [
        (9.0, 100.0, 2, None),
        (4.0, 10.0, 2, None),  # too short to say anything
        (25.0, 100.0, 2, "25% .*16 CPUs may be used: set run.workers=16 .now 2"),
        (25.0, 100.0, 0, "set run.workers=16 .now 0"),
        (25.0, 100.0, 16, "run.workers=16 keeps 16 CPUs busy.*smaller"),
    ],
)
def test_waiting_is_said_with_what_to_change(roomy, waited_s, seconds, workers, told):
    remark = room.waiting_remark(waited_s, seconds, workers)
    if told is None:
        assert remark is None
    else:
        assert remark is not None
        assert re.search(told, remark)


@pytest.mark.parametrize(
    ("load_s", "step_s", "workers", "told"),
    [
        (1.0, 1.0, 0, None),
        (1.05, 1.0, 0, None),
        (1.0, 0.0, 0, "about 100% .*set run.workers=16 .now 0."),
        (0.0, 0.0, 0, None),
        (
            2.0,
            1.0,
            0,
            "about 50% of the time would go into waiting for data; 16 CPUs .*set run.workers=2 .now 0.",
        ),
        (2.0, 1.0, 2, None),
        (5.0, 1.0, 2, "about 60% .*set run.workers=5 .now 2."),
        (50.0, 1.0, 2, "set run.workers=16 .now 2."),
        (50.0, 1.0, 16, "run.workers=16 keeps 16 CPUs busy.*smaller"),
    ],
)
def test_a_dry_run_says_what_waiting_there_would_be(roomy, load_s, step_s, workers, told):
    remark = room.loading_remark(load_s, step_s, workers)
    assert (remark is None) == (told is None)
    assert told is None or re.search(told, remark)


def test_waiting_is_told_in_the_first_minute_and_once(roomy):
    now = [0.0]
    roomy.setattr("belvedere.data.loader.time.perf_counter", lambda: now[0])
    with loader(total_steps=1000) as batches:
        stream, said = iter(batches), []
        for step in range(100):
            next(stream)
            now[0] += 1.0
            batches.waited_s += 0.57
            said.append((step, batches.early_remark()))
    told = [(step, remark) for step, remark in said if remark is not None]
    assert len(told) == 1
    assert told[0][0] <= 30
    assert "57% of the time went into waiting for data; 16 CPUs may be used: set run.workers=16" in told[0][1]
    with loader(total_steps=1000) as batches:
        stream = iter(batches)
        for _ in range(100):
            next(stream)
            now[0] += 1.0
            batches.waited_s += 0.05
            assert batches.early_remark() is None


def test_a_loader_measures_waiting_from_its_first_batch(roomy):
    roomy.setattr(room, "_WORTH_TELLING_S", 0.0)
    batches = loader()
    assert batches.waiting_remark() is None
    with batches:
        stream = iter(batches)
        next(stream)
        batches.waited_s += 1000.0  # far more than has passed
        told = batches.waiting_remark()
    assert told is not None
    assert "run.workers=16" in told


# --- workers


def drained(**changes) -> list:
    with loader(**changes) as batches:
        return list(batches)


def same(first: list, second: list) -> None:
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.index, other.index)
        assert all(torch.equal(one.views[role], other.views[role]) for role in one.views)


class Device(Loader):
    """Leaves photometry to `finish` after the hand-over, as with an accelerator, on this CPU."""

    def __init__(self, **changes) -> None:
        settings = {"data": DATA, "seed": 0, "global_batch": 8, "total_steps": 6} | changes
        super().__init__(source(), {"target": VIEW}, **settings)
        self._fetch.finished = False


@pytest.mark.parametrize("kind", [loader, Device])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_shared_memory_batches_are_the_same(monkeypatch, kind, dtype):
    with kind(dtype=dtype) as batches:
        whole = list(batches)
    monkeypatch.setattr(machine, "shared_bytes", lambda: 0)
    with kind(dtype=dtype, workers=2) as batches:
        stream = iter(batches)
        parts = [next(stream)]
        assert isinstance(batches._ahead, PipedWorkers)
        parts += stream
    same(whole, parts)
    assert not any(part.views["target"].is_shared() for part in parts)
    parts[0].views["target"].add_(1)  # is the training process's own


@pytest.mark.parametrize("how", ["read-only", "4 KB"])
def test_workers_run_where_shared_memory_cannot_be_made(roomy, how):
    """Locks between processes cannot be made there either; every start of one fails."""
    with loader() as batches:
        whole = list(batches)

    def refused(*_args):
        raise OSError(errno.EROFS if how == "read-only" else errno.ENOSPC, "of shared memory")

    roomy.setattr(_multiprocessing, "SemLock", refused)
    with pytest.raises(OSError, match="of shared memory"):
        multiprocessing.get_context("forkserver").Lock()
    with loader(workers=2) as batches:
        (told,) = batches.remarks
        assert "read-only, full or forbidden" in told
        assert "through pipes" in told
        same(whole, list(batches))
        same(whole, list(batches))  # and once more


def test_a_read_only_folder_has_no_shared_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert machine.shared_bytes(folder=tmp_path) == 0


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_that_use_pipes_end_as_others_do(monkeypatch, workers):
    monkeypatch.setattr(machine, "shared_bytes", lambda: 0)
    with loader(total_steps=1000, workers=workers) as batches:
        stream = iter(batches)
        next(stream)
        processes = batches._ahead.processes
        assert len(processes) == workers
        os.kill(processes[0].pid, signal.SIGTERM)  # deaf, as all workers are
        next(stream)
        os.kill(processes[0].pid, signal.SIGKILL)
        with pytest.raises(DataError, match=r"worker ended.*SIGKILL.*lower run\.workers"):
            list(stream)
    assert not any(process.is_alive() for process in processes)
    with loader(total_steps=0, workers=workers) as batches:
        assert list(batches) == []


class Wrong(ArraySource):
    """A source with a mistake in it."""

    def stored(self, index: int):
        raise LookupError("a mistake in the source")


def test_an_error_reaches_the_consumer_through_a_pipe(monkeypatch):
    monkeypatch.setattr(machine, "shared_bytes", lambda: 0)
    wrong = Wrong(
        "x", np.zeros((20, 90, 90, 3), np.uint8), labels=np.full(20, -1), classes=(), keys=map(str, range(20))
    )
    settings = {"data": DATA, "seed": 0, "global_batch": 8, "total_steps": 6, "workers": 2}
    with (
        Loader(wrong, {"target": VIEW}, **settings) as batches,
        pytest.raises(LookupError, match="a mistake"),
    ):
        list(batches)


def test_crops_are_written_where_both_processes_see_them(monkeypatch):
    with Device() as batches:
        whole = list(batches)
    fetched = []
    monkeypatch.setattr(Device, "_note", lambda self, batch: fetched.append(batch.views["target"]))
    with Device(workers=1) as batches:
        same(whole, list(batches))
    assert all(view.is_shared() and view.dtype == torch.uint8 for view in fetched)


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (signal.SIGKILL, "SIGKILL.*memory runs out.*lower run.workers"),
        (signal.SIGBUS, "bus error.*/dev/shm.*run.workers.*--shm-size"),
    ],
)
def test_a_worker_that_dies_says_of_what(number, told):
    with loader(total_steps=1000, workers=2) as batches:
        stream = iter(batches)
        next(stream)
        os.kill(batches._ahead._batches._workers[1].pid, number)
        with pytest.raises(DataError, match=f"worker ended.*{told}"):
            list(stream)


def test_full_shared_memory_that_torch_notices_itself_is_said_the_same_way():
    for words in (
        "unable to allocate shared memory(shm) for file",
        "worker (pid 3) is killed by signal: Bus error.",
    ):
        assert "--shm-size" in ahead._why_ended([], f"Caught RuntimeError in worker 0. {words}")
    told = ahead._why_ended([0, 3, -int(signal.SIGSEGV)], "exited unexpectedly")
    assert f"exit status 3, signal {int(signal.SIGSEGV)}" in told
    assert "run.workers=0" in told


SCRIPT = """
import multiprocessing
multiprocessing.get_all_start_methods = lambda: ["spawn"]
import numpy as np
from belvedere.data.loader import Loader
from belvedere.data.sources.source import ArraySource
from belvedere.data.spec import DataSpec, Photometry, ViewSpec
looks = Photometry(flip=0.5, jitter=None, gray=0.0, blur=None, solarize=0.0)
crop = dict(count=2, px=16, scale=(0.3, 1.0), aspect=(1.0, 1.0), interpolation="bilinear")
data = DataSpec(path=None, split=None, mean=(0.5,) * 3, std=(0.5,) * 3, max_bad_share=0.0)
pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 40, 3), dtype=np.uint8)
images = ArraySource("noise", pixels, labels=np.full(40, -1), classes=(), keys=map(str, range(40)))
views = {"target": ViewSpec(photometry=looks, **crop)}
with Loader(images, views, data=data, seed=0, global_batch=8, total_steps=2, workers=1) as loader:
    batches = list(loader)
np.save(OUT, np.stack([batch.views["target"].numpy() for batch in batches]))
print("once")
"""


@pytest.mark.slow
def test_spawned_workers_give_the_same_batches_and_run_no_unguarded_script_again(tmp_path):
    script, out = tmp_path / "script.py", tmp_path / "views.npy"
    script.write_text(f"OUT = {str(out)!r}\n{SCRIPT}")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "once\n"
    assert "Traceback" not in done.stderr
    whole = np.stack([batch.views["target"].numpy() for batch in drained(total_steps=2)])
    assert np.array_equal(np.load(out), whole)


def test_workers_are_spawned_where_there_is_no_server_to_fork_from(monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    assert ahead._context().get_start_method() == "spawn"

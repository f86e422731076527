"""Batches: the same bits however they are prepared, replacements, and an end that leaves nothing behind."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from belvedere.core.errors import DataError
from belvedere.data.loader import Loader
from belvedere.data.sources import open_source, subset
from belvedere.data.spec import Blur, DataSpec, Jitter, Photometry, ViewSpec

SPEC = DataSpec(
    path=None, split=None, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), max_bad_share=0.5
)


def view(count: int, px: int) -> ViewSpec:
    looks = Photometry(
        flip=0.5,
        jitter=Jitter(p=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
        gray=0.2,
        blur=Blur(p=0.5, radius=(0.1, 2.0)),
        solarize=0.1,
    )
    return ViewSpec(
        count=count, px=px, scale=(0.3, 1.0), aspect=(0.75, 1.25), interpolation="bilinear", photometry=looks
    )


VIEWS = {"target": view(1, 8), "anchor": view(2, 6)}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Twenty photographs of different sizes in two classes."""
    rng = np.random.default_rng(0)
    for number in range(20):
        path = tmp_path / "set" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9 + number, 30 - number, 3), dtype=np.uint8)).save(path)
    return tmp_path / "set"


def loader(source, **changes) -> Loader:
    settings = {"data": SPEC, "seed": 3, "global_batch": 6, "total_steps": 8} | changes
    return Loader(source, VIEWS, **settings)


def drained(source, **changes) -> list:
    with loader(source, **changes) as batches:
        return list(batches)


def same(first, second) -> None:
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert list(one.views) == list(other.views)
        for role in one.views:
            assert torch.equal(one.views[role], other.views[role])
        assert torch.equal(one.index, other.index)
        assert torch.equal(one.label, other.label)


@pytest.fixture(params=["digits", "folder"])
def source(request, folder):
    return subset(open_source("digits"), range(20)) if request.param == "digits" else open_source(str(folder))


def test_a_batch_is_what_it_says(source):
    batches = drained(source)
    first = batches[0]
    assert list(first.views) == ["target", "anchor"]
    assert first.views["target"].shape == (1, 6, 3, 8, 8)
    assert first.views["anchor"].shape == (2, 6, 3, 6, 6)
    assert first.views["anchor"].dtype == torch.float32
    assert first.rows == range(6)
    assert first.label.tolist() == source.labels[first.index.numpy()].tolist()
    for epoch in (batches[:3], batches[3:6]):  # floor(20 / 6) steps, no image twice
        seen = torch.cat([batch.index for batch in epoch]).tolist()
        assert len(set(seen)) == 18
    assert not torch.equal(batches[0].views["target"], batches[3].views["target"])


def test_workers_and_resuming_give_the_same_bits(source):
    whole = drained(source)
    for workers in (1, 2):
        same(whole, drained(source, workers=workers))
    same(whole[4:], drained(source, start_step=4))  # in the middle of the second epoch
    same(whole[4:], drained(source, start_step=4, workers=2))


def test_ranks_share_the_global_batch(source):
    whole = drained(source)
    ranks = [drained(source, rank=rank, world_size=2) for rank in range(2)]
    assert ranks[1][0].rows == range(3, 6)
    for step, batch in enumerate(whole):
        for role in VIEWS:
            joined = torch.cat([parts[step].views[role] for parts in ranks], dim=1)
            assert torch.equal(batch.views[role], joined)
        assert batch.index.tolist() == [index for parts in ranks for index in parts[step].index.tolist()]


def test_another_seed_gives_other_batches_and_float64_the_same_views(source):
    assert not torch.equal(drained(source)[0].index, drained(source, seed=4)[0].index)
    single, double = drained(source)[0], drained(source, dtype=torch.float64)[0]
    assert double.views["target"].dtype == torch.float64
    assert (single.views["target"].double() - double.views["target"]).abs().max() < 1e-5


def test_iterating_again_starts_again(source):
    with loader(source) as batches:
        same(list(batches), list(batches))
        assert batches.asked == 2 * 8 * 6
        assert batches.waited_s > 0
        assert len(batches) == 8


def test_no_steps_left_is_an_empty_loader(source):
    assert drained(source, start_step=8) == []
    assert drained(source, start_step=8, workers=1) == []


def test_a_batch_larger_than_the_source_is_refused(source):
    with pytest.raises(DataError, match=r"train\.global_batch is 21"):
        loader(source, global_batch=21)


# --- bad images


def test_unreadable_images_are_replaced_by_the_next_readable_one(folder):
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    for name in (names[4], names[5], names[19]):
        (folder / name).write_bytes(b"")
    source = open_source(str(folder))
    runs = []
    for workers in (0, 2):
        with loader(source, workers=workers) as batches:
            runs.append(list(batches))
            assert batches.replaced == {4: 6, 5: 6, 19: 0}
            report = batches.report.to_json(source)
            assert report["unreadable"] == {names[i]: "the file is empty" for i in (4, 5, 19)}
            assert report["read"] == {"RGB": 17}
    same(*runs)
    seen = torch.cat([batch.index for batch in runs[0]])
    assert not set(seen.tolist()) & {4, 5, 19}
    labels = torch.cat([batch.label for batch in runs[0]])
    assert labels.tolist() == source.labels[seen.numpy()].tolist()


@pytest.mark.parametrize("renderer", ["compiled", "portable"])
def test_an_image_of_an_extreme_side_is_replaced_by_every_renderer(folder, monkeypatch, renderer):
    if renderer == "portable":
        monkeypatch.setattr("belvedere.data.views.native.available", lambda: False)
    line = np.zeros((1, 2**18 + 1), dtype=np.uint8)
    for number, pixels in ((3, line), (7, line.T)):
        Image.fromarray(pixels).save(folder / "b" / f"{number:02}.png")
    with loader(open_source(str(folder))) as batches:
        list(batches)
        assert batches.replaced == {11: 12, 13: 14}  # b/03.png and b/07.png
        assert all("a side of more than" in reason for _, reason in batches.report.first_failures(3))


def test_a_resumed_run_keeps_its_replacements(folder):
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    good = (folder / names[4]).read_bytes()
    (folder / names[4]).write_bytes(b"")
    whole = drained(open_source(str(folder)))
    (folder / names[4]).write_bytes(good)  # repaired in between
    source = open_source(str(folder))
    same(whole[2:], drained(source, start_step=2, replaced={4: 5}))
    same(whole[2:], drained(source, start_step=2, replaced={4: 5}, workers=2))


class ChangesWhenReadAgain:
    """A source whose image 3 is another file, or gone, from the second time on that it is read."""

    def __init__(self, source, later) -> None:
        self._source, self._later = source, later
        self.reads = [0] * len(source)

    def __getattr__(self, name):
        return getattr(self._source, name)

    def __len__(self) -> int:
        return len(self._source)

    def stored(self, index: int):
        self.reads[index] += 1
        if index == 3 and self.reads[3] > 1:
            return self._later
        return self._source.stored(index)


def test_files_too_large_to_hold_are_read_again_and_give_the_same_bits(folder, monkeypatch):
    source = ChangesWhenReadAgain(open_source(str(folder)), b"")
    first = drained(source, total_steps=3)
    assert max(source.reads) == 1
    files = [len(source.stored(index)) for index in range(20)]
    for most in (0, sum(files) // 6):
        monkeypatch.setattr("belvedere.data.fetch._MOST_HELD", most)
        again = ChangesWhenReadAgain(open_source(str(folder)), open_source(str(folder)).stored(3))
        same(first, drained(again, total_steps=3))
        assert max(again.reads) == 2


@pytest.mark.parametrize("how", ["gone", "of another size"])
def test_a_file_that_changes_before_it_is_read_again(folder, monkeypatch, how):
    monkeypatch.setattr("belvedere.data.fetch._MOST_HELD", 0)
    plain = open_source(str(folder))
    source = ChangesWhenReadAgain(plain, b"" if how == "gone" else plain.stored(17))
    with loader(source, total_steps=3) as batches:
        used = torch.cat([batch.index for batch in batches])
        assert batches.replaced == ({3: 4} if how == "gone" else {})
    assert (used == 3).any() == (how != "gone")


class FailsOnce:
    """A source whose image 5 cannot be read the first time that anybody asks for it."""

    def __init__(self, source, mark: Path) -> None:
        self.source, self.mark = source, mark
        self.name, self.classes, self.labels = source.name, source.classes, source.labels

    def __len__(self) -> int:
        return len(self.source)

    def key(self, index: int) -> str:
        return self.source.key(index)

    def stored(self, index: int):
        if index == 5 and not self.mark.exists():
            self.mark.touch()
            return b""
        return self.source.stored(index)

    def fingerprint(self) -> str:
        return self.source.fingerprint()


def test_a_file_that_fails_once_stays_replaced_in_every_worker(folder, tmp_path):
    seen = []
    for workers in (0, 2):
        source = FailsOnce(open_source(str(folder)), tmp_path / f"failed-{workers}")
        seen.append(drained(source, total_steps=60, global_batch=2, workers=workers))
    same(*seen)
    assert sum((batch.index == 5).sum() for batch in seen[1]) == 0


def test_only_batches_handed_out_count(folder):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"" if path.stem != "00" else path.read_bytes())
    with loader(open_source(str(folder))) as batches:
        stream = iter(batches)
        time.sleep(0.3)  # two more are ready
        assert batches.replaced == {}
        first = next(stream)
        assert len(batches.replaced) <= 6
        assert set(first.index.tolist()) == {0}


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_images_stop_the_run_by_name(folder, workers):
    for path in sorted(folder.rglob("*.png"))[:8]:
        path.write_bytes(b"")
    source = open_source(str(folder))
    strict = SPEC.model_copy(update={"max_bad_share": 0.2})
    with pytest.raises(DataError, match=r"\d+ of the \d+ images.*data\.max_bad_share \(0\.2\).*a/02\.png"):
        drained(source, data=strict, workers=workers, total_steps=30)
    assert len(drained(source, total_steps=30)) == 30  # half is allowed


def test_a_share_of_zero_stops_at_the_first(folder):
    (folder / "a" / "00.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of the \d+ images"):
        drained(open_source(str(folder)), data=SPEC.model_copy(update={"max_bad_share": 0.0}), total_steps=30)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_of_which_nothing_can_be_read_stops(folder, workers):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"^not one of the 20 images .*data\.path"):
        drained(open_source(str(folder)), workers=workers)


def test_a_disk_that_is_gone_is_no_thousand_replacements(folder, monkeypatch):
    monkeypatch.setattr("belvedere.data.fetch._MOST_TRIED", 7)
    source = open_source(str(folder))
    for path in folder.rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"^7 images .* in a row cannot be read; are they still there\?"):
        drained(source)


# --- ends


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "belvedere-views"]


def alive(pids: list[int]) -> list[int]:
    def running(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except OSError:
            return False

    return [pid for pid in pids if running(pid)]


def until(condition, *, timeout_s: float = 10.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


@pytest.mark.parametrize("how", ["close", "generator", "collected", "error"])
def test_an_early_end_stops_the_thread(folder, how):
    source = open_source(str(folder))
    batches = loader(source, total_steps=1000)
    stream = iter(batches)
    next(stream)
    assert threads()
    if how == "close":
        batches.close()
        with pytest.raises(RuntimeError, match="closed"):
            next(stream)
    elif how == "generator":
        stream.close()
    elif how == "error":
        batches.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    del stream, batches
    gc.collect()
    until(lambda: not threads())


@pytest.mark.parametrize("how", ["close", "collected"])
def test_an_early_end_stops_the_workers(folder, how):
    batches = loader(open_source(str(folder)), total_steps=1000, workers=2)
    stream = iter(batches)
    next(stream), next(stream)  # one by each: a worker is deaf from where it starts to read
    pids = [process.pid for process in batches._ahead._batches._workers]
    assert alive(pids) == pids
    for pid in pids:  # a terminal's Ctrl-C and a scheduler's SIGTERM reach workers too
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    next(stream)
    if how == "close":
        batches.close()
    del stream, batches
    gc.collect()
    until(lambda: not alive(pids))


class Broken:
    """A source with a mistake in it."""

    name, classes = "broken", ()
    labels = np.full(20, -1)

    def __len__(self) -> int:
        return 20

    def key(self, index: int) -> str:
        return str(index)

    def stored(self, index: int):
        raise LookupError("a mistake in the source")

    def fingerprint(self) -> str:
        return ""


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unexpected_error_reaches_the_consumer(workers):
    with pytest.raises(LookupError, match="a mistake in the source"):
        drained(Broken(), workers=workers)


@contextmanager
def no_longer_than(seconds: float, batches: Loader) -> Iterator[None]:
    """Close a loader that hangs, so that waiting for it ends in an error."""
    watch = threading.Timer(seconds, batches.close)
    watch.start()
    try:
        yield
    finally:
        watch.cancel()


@pytest.mark.parametrize("workers", [0, 1])
def test_no_memory_for_the_order_of_an_epoch_is_an_error_and_not_a_hang(folder, monkeypatch, workers):
    def order(source, seed, epoch):
        if epoch:
            raise MemoryError("no room for an order")
        return np.arange(20)

    monkeypatch.setattr("belvedere.data.loader.epoch_order", order)
    batches = loader(open_source(str(folder)), workers=workers)
    with batches, no_longer_than(60.0, batches), pytest.raises(MemoryError, match="no room"):
        list(batches)


def test_a_killed_worker_is_an_error_and_not_a_hang(folder):
    with loader(open_source(str(folder)), total_steps=1000, workers=1) as batches:
        stream = iter(batches)
        next(stream)
        os.kill(batches._ahead._batches._workers[0].pid, signal.SIGKILL)
        with pytest.raises(DataError, match=r"worker ended.*run\.workers"):
            list(stream)


SCRIPT = """
import os
from belvedere.data.loader import Loader
from belvedere.data.sources import open_source
from belvedere.data.spec import DataSpec, Photometry, ViewSpec
looks = Photometry(flip=0.5, jitter=None, gray=0.0, blur=None, solarize=0.0)
crop = dict(count=1, px=8, scale=(0.3, 1.0), aspect=(1.0, 1.0), interpolation="bilinear")
view = ViewSpec(photometry=looks, **crop)
data = DataSpec(path=None, split=None, mean=(0.5,) * 3, std=(0.5,) * 3, max_bad_share=0.0)
loader = Loader(
    open_source({folder!r}), {{"target": view}}, data=data, seed=0, global_batch=4, total_steps=1000,
    workers=2,
)
stream = iter(loader)
next(stream)
print("once", *(process.pid for process in loader._ahead._batches._workers), flush=True)
{end}
"""


@pytest.mark.parametrize(("end", "status"), [("", 0), ("os.kill(os.getpid(), 9)", -9)])
def test_a_script_without_a_guard_runs_once_and_leaves_no_worker(folder, tmp_path, end, status):
    script, output = tmp_path / "script.py", tmp_path / "output"
    script.write_text(SCRIPT.format(folder=str(folder), end=end))
    with output.open("w") as file:
        done = subprocess.run(
            [sys.executable, str(script)], stdout=file, stderr=file, timeout=120, check=False
        )
    text = output.read_text()
    assert done.returncode == status, text
    assert text.count("once") == 1
    assert "Traceback" not in text
    pids = [int(pid) for pid in text.split("once", 1)[1].split()[:2]]
    until(lambda: not alive(pids))


def test_the_loader_leaves_global_randomness_and_thread_counts_alone(folder):
    before, count = torch.get_rng_state(), torch.get_num_threads()
    for workers in (0, 1):
        drained(open_source(str(folder)), workers=workers)
    assert torch.equal(torch.get_rng_state(), before)
    counted = []
    fresh = threading.Thread(target=lambda: counted.append(torch.get_num_threads()))
    fresh.start()
    fresh.join()
    assert [torch.get_num_threads(), *counted] == [count, count]

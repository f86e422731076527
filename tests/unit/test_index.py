"""The index of a data set: kept, found again, made anew when something changed, and shared by processes."""

import io
import multiprocessing
import os
import pickle
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from belvedere.core import cache
from belvedere.core.counting import Counting
from belvedere.core.errors import DataError
from belvedere.data.sources import index_writer
from belvedere.data.sources.index import KEPT_FROM, IndexWriter, open_index
from belvedere.data.sources.names import Names

LONG_AGO = 1_000_000_000


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("BELVEDERE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_temporary_roots", [])
    cache._temporary_root.cache_clear()
    return tmp_path / "cache"


class Builder:
    """Builds an index of `count` entries below a stamped folder, and counts how often it had to."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count, self.times = folder, count, 0
        folder.mkdir(exist_ok=True)
        os.utime(folder, (LONG_AGO, LONG_AGO))

    def __call__(self, writer: IndexWriter) -> None:
        self.times += 1
        writer.stamp(self.folder)
        writer.meta["divided"] = False
        for number in range(self.count):
            label = None if number % 10 == 9 else f"class {number % 3}"
            writer.add(f"{number:06d}.png", label=label, size=number, offset=2**40 + number)

    def open(self, *, kept_from: int = 1, kind: str = "test"):
        identity = {"kind": kind, "root": str(self.folder)}
        return open_index(identity, self, describe="a test", kept_from=kept_from)


@pytest.fixture
def builder(tmp_path) -> Builder:
    return Builder(tmp_path / "set", 300)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def contents(index):
    columns = {name: values.tolist() for name, values in index.columns.items()}
    return list(index.names), index.labels.tolist(), index.classes, columns, index.notes, index.fingerprint


# --- what it holds


@pytest.mark.parametrize("kept_from", [1, 1000], ids=["mapped", "in memory"])
def test_an_index_holds_what_was_added(builder, kept_from):
    index = builder.open(kept_from=kept_from)
    assert len(index) == len(index.names) == 300
    assert index.names[7] == "000007.png"
    assert index.classes == ("class 0", "class 1", "class 2")
    assert index.labels[:10].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, -1]
    assert index.columns["size"].tolist() == list(range(300))
    assert index.columns["offset"][299] == 2**40 + 299
    assert index.meta == {"divided": False}
    assert (index.path is None) == (kept_from == 1000)
    with pytest.raises(ValueError, match="read-only"):
        index.labels[0] = 5


def test_memory_and_file_agree_and_survive_pickling(builder):
    kept, held = builder.open(), builder.open(kept_from=1000, kind="other")
    assert contents(kept) == contents(held)
    for index in (kept, held):
        assert contents(pickle.loads(pickle.dumps(index))) == contents(index)


def test_spilling_changes_nothing(builder, monkeypatch):
    whole = builder.open()
    monkeypatch.setattr(index_writer, "_SPILLED_AT", 7)
    monkeypatch.setattr(index_writer, "_READ_BYTES", 64)
    assert contents(builder.open(kind="spilled")) == contents(whole)


def test_classes_are_numbered_by_name_whatever_comes_first():
    def build(writer):
        for label in ("b", None, "c", "b"):
            writer.add(f"{writer.count}", label=label)
        writer.declare(["a", "b"])

    index = open_index({"kind": "labels"}, build, describe="labels")
    assert index.classes == ("a", "b", "c")
    assert index.labels.tolist() == [1, -1, 2, 1]


@pytest.mark.parametrize("kept_from", [0, 1])
def test_an_index_may_be_empty(kept_from):
    index = open_index({"kind": "empty"}, lambda writer: None, describe="nothing", kept_from=kept_from)
    assert len(index) == 0
    assert index.classes == ()
    assert list(pickle.loads(pickle.dumps(index)).names) == []


def test_names_that_are_no_text_and_classes_too(tmp_path):
    odd = os.fsdecode(b"caf\xe9")

    def build(writer):
        writer.add(f"{odd}.png", label=odd)
        writer.add("日本.png", label="日本")

    for _ in range(2):
        identity = {"kind": "odd", "root": odd}
        index = open_index(identity, build, describe="odd", kept_from=1)
        assert list(index.names) == [f"{odd}.png", "日本.png"]
        assert index.classes == (odd, "日本")
    with pytest.raises(UnicodeEncodeError):
        open_index({"kind": "half"}, lambda writer: writer.add("\ud800"), describe="half")


def test_columns_stay_the_same():
    def build(writer):
        writer.add("a", size=1)
        writer.add("b", offset=1)

    with pytest.raises(ValueError, match=r"\['offset'\] after \['size'\]"):
        open_index({"kind": "columns"}, build, describe="columns")


def test_the_fingerprint_is_of_names_sizes_and_labels():
    def of(*entries):
        def build(writer):
            for name, label, size, offset in entries:
                writer.add(name, label=label, size=size, offset=offset)

        return open_index({"kind": "prints"}, build, describe="prints").fingerprint

    first = of(("a", "x", 1, 10), ("bc", "y", 2, 20))
    assert of(("a", "x", 1, 99), ("bc", "y", 2, 20)) == first  # where it lies does not matter
    others = [
        of(("ab", "x", 1, 10), ("c", "y", 2, 20)),
        of(("a", "y", 1, 10), ("bc", "x", 2, 20)),
        of(("a", "x", 3, 10), ("bc", "y", 2, 20)),
        of(("bc", "y", 2, 20), ("a", "x", 1, 10)),
    ]
    assert len({first, *others}) == 5


def test_names_are_a_view():
    block, ends = np.frombuffer(b"abcd", dtype=np.uint8), np.array([0, 1, 1, 4])
    names = Names.view(block, ends)
    assert list(names) == ["a", "", "bcd"]
    assert names._block is block


# --- when it is made anew


def test_it_is_built_once(builder, own_cache):
    first = builder.open()
    assert contents(builder.open()) == contents(first)
    assert builder.times == 1
    assert [path.suffix for path in files(own_cache)] == [".index"]


def test_a_small_one_never_touches_the_cache(builder, own_cache):
    builder.open(kept_from=KEPT_FROM)
    builder.open(kept_from=KEPT_FROM)
    assert builder.times == 2
    assert not own_cache.exists()


@pytest.mark.parametrize("change", ["entry", "mode", "gone"])
def test_a_changed_folder_is_indexed_again(builder, tmp_path, change):
    inner = builder.folder / "inner"
    inner.mkdir()
    os.utime(builder.folder, (LONG_AGO, LONG_AGO))
    os.utime(inner, (LONG_AGO, LONG_AGO))

    def build(writer):
        builder(writer)
        if inner.exists():
            writer.stamp(inner)

    def opened():
        return open_index({"kind": "changing"}, build, describe="x", kept_from=1)

    opened()
    opened()
    assert builder.times == 1
    if change == "entry":
        (inner / "new.png").touch()
    elif change == "mode":
        inner.chmod(0o700)
    else:
        inner.rmdir()
    opened()
    assert builder.times == 2


def test_a_file_of_another_size_is_indexed_again_even_with_its_old_time(tmp_path):
    archive, times = tmp_path / "a.zip", []

    def opened():
        archive.touch()
        os.utime(archive, (LONG_AGO, LONG_AGO))

        def build(writer):
            times.append(writer.stamp(archive).st_size)
            writer.add("x")

        return open_index({"kind": "archive"}, build, describe="x", kept_from=1)

    opened()
    archive.write_bytes(b"longer")
    opened()
    assert times == [0, 6]


def test_a_stamp_taken_just_after_a_change_is_not_trusted(builder):
    os.utime(builder.folder)  # now
    builder.open()
    builder.open()
    assert builder.times == 2
    now = time.time_ns() - index_writer.RACY_NS - 10**8
    os.utime(builder.folder, ns=(now, now))
    builder.open()
    builder.open()
    assert builder.times == 3


def test_a_time_of_zero_is_no_time(builder):
    os.utime(builder.folder, (0, 0))
    builder.open()
    builder.open()
    assert builder.times == 2


def test_what_may_pass_by_itself_is_tried_again(builder):
    def build(passing):
        def noted(writer):
            builder(writer)
            writer.note("b: Input/output error", passing=passing)

        return noted

    for passing, times in ((True, 2), (False, 3)):
        for _ in range(2):
            identity = {"kind": "notes", "passing": passing}
            index = open_index(identity, build(passing), describe="x", kept_from=1)
            assert index.notes == ("b: Input/output error",)
        assert builder.times == times


@pytest.mark.parametrize(
    "damage", ["empty", "short", "long", "header", "arrays", "version", "other", "folder"]
)
def test_a_damaged_file_is_made_anew(builder, own_cache, damage):
    first = builder.open()
    (path,) = files(own_cache)
    data = bytearray(path.read_bytes())
    if damage == "empty":
        data.clear()
    elif damage == "short":
        del data[-1:]
    elif damage == "long":
        data += b"x"
    elif damage == "header":
        data[-5] ^= 1
    elif damage == "arrays":
        data[len(data) // 3] ^= 1
    elif damage == "version":
        data[8] += 1
    elif damage == "other":
        data = bytearray(b"GIF89a") + data[6:]
    path.unlink()
    if damage == "folder":
        path.mkdir()
        with pytest.raises(DataError, match="BELVEDERE_CACHE"):
            builder.open()
        return
    path.write_bytes(data)
    assert contents(builder.open()) == contents(first)
    assert builder.times == 2
    builder.open()
    assert builder.times == 2


def test_an_index_in_use_outlives_its_successor(builder, own_cache):
    first = builder.open()
    kept = pickle.dumps(first)
    builder.count = 200
    os.utime(builder.folder, (LONG_AGO + 1, LONG_AGO + 1))
    assert len(builder.open()) == 200
    assert len(pickle.loads(kept)) == 300  # what a worker gets that starts now
    assert len(files(own_cache)) == 2
    for path in files(own_cache):
        os.utime(path, (LONG_AGO, LONG_AGO))
    builder.count = 100
    os.utime(builder.folder, (LONG_AGO + 2, LONG_AGO + 2))
    assert len(builder.open()) == 100
    assert len(files(own_cache)) == 1  # nobody had opened the others for a month
    with pytest.raises(DataError, match="start again"):
        pickle.loads(kept)


def test_an_interrupted_or_failed_build_leaves_nothing(builder, own_cache, monkeypatch):
    def interrupted(writer):
        builder(writer)
        writer.spill()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_index({"kind": "interrupted"}, interrupted, describe="x", kept_from=1)
    assert files(own_cache) == []

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"No space left on device; free some space, or set BELVEDERE_CACHE"):
        builder.open()
    assert files(own_cache) == []


def test_two_may_build_at_once(builder):
    gate = threading.Barrier(2)
    found = []

    def build(writer):
        gate.wait(timeout=10)
        builder(writer)

    def opened():
        found.append(open_index({"kind": "two"}, build, describe="x", kept_from=1))

    threads = [threading.Thread(target=opened) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert contents(found[0]) == contents(found[1])
    assert len(found[0]) == 300


# --- sharing


def shares_file(index, answers) -> None:
    """In another process: what it reads, and whether that is the mapped file."""
    read = (index.names[299], int(index.labels[298]), int(index.columns["offset"][5]))
    mapped = str(index.path) in Path("/proc/self/maps").read_text()
    answers.put((read, mapped))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_another_process_maps_the_same_file(builder):
    index = builder.open()
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=shares_file, args=(index, answers))
    process.start()
    assert answers.get(timeout=60) == (("000299.png", 298 % 3, 2**40 + 5), True)
    process.join()


def test_a_large_one_is_sent_as_a_path(tmp_path):
    index = Builder(tmp_path / "set", 50_000).open(kept_from=KEPT_FROM)
    assert index.path is not None
    assert len(pickle.dumps(index)) < 1000


# --- the cache


def test_where_the_cache_is(tmp_path, monkeypatch):
    assert cache.cache_root() == tmp_path / "cache"
    monkeypatch.setenv("BELVEDERE_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_root() == tmp_path / "xdg" / "belvedere"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.cache_root() == tmp_path / "home" / ".cache" / "belvedere"
    monkeypatch.setenv("BELVEDERE_CACHE", "~/mine")
    assert cache.cache_root() == tmp_path / "home" / "mine"


def test_a_cache_that_cannot_be_written_is_said_once(builder, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BELVEDERE_CACHE", str(tmp_path / "file" / "cache"))
    first = builder.open()
    assert builder.open().path == first.path  # as long as the process lives
    assert builder.times == 1
    builder.open(kind="another")
    said = capsys.readouterr().err
    assert said.count("cannot be written (Not a directory)") == 1
    assert "Set BELVEDERE_CACHE" in said
    (folder,) = cache._temporary_roots
    assert first.path.is_relative_to(folder)
    cache._remove(folder, os.getpid() + 1)  # a forked child
    assert folder.exists()
    cache._remove(folder, os.getpid())
    assert not folder.exists()


def test_a_cache_that_is_only_read_is_used(builder, own_cache, monkeypatch, capsys):
    kept = builder.open()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert builder.open().path == kept.path
    assert builder.times == 1
    assert capsys.readouterr().err == ""
    other = builder.open(kind="not there yet")
    assert not other.path.is_relative_to(own_cache)
    assert "Permission denied" in capsys.readouterr().err
    cache._remove(cache._temporary_roots[0], os.getpid())


# --- what a person sees


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def shown(terminal: bool, times: list[float]) -> str:
    screen, clock = io.StringIO(), Clock()
    console = Console(file=screen, force_terminal=terminal, force_interactive=terminal, width=80)
    with Counting("indexing a set", unit="images", console=console, clock=clock) as counting:
        for number, clock.now in enumerate(times):
            counting.update(1000 * number)
    return screen.getvalue()


def test_quick_work_shows_nothing_and_slow_work_a_count():
    assert shown(True, [0.1, 0.5, 0.9]) == ""
    assert shown(False, [0.1, 0.5, 9.0]) == ""
    assert "2,000 images" in shown(True, [0.1, 0.5, 1.1])
    assert shown(False, [1.0, 11.0, 12.0]).splitlines() == [
        "indexing a set: 1,000 images in 11 s",
        "indexing a set: 2,000 images in 12 s",
    ]


def test_other_ranks_show_nothing(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert shown(True, [0.1, 5.0, 50.0]) == ""
    assert shown(False, [0.1, 5.0, 50.0]) == ""


def test_identity_is_json(builder):
    with pytest.raises(TypeError, match="not JSON serializable"):
        open_index({"root": builder.folder}, builder, describe="x")

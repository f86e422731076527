"""Files that are wholly there or not at all, and the lock of a run directory."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from belvedere.core import files
from belvedere.core.errors import RunLockedError
from belvedere.core.files import DirectoryLock


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    files.write_json(path, {"score": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, {"score": float("nan")})

    def write_half() -> None:
        with files.replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        write_half()
    assert json.loads(path.read_text()) == {"score": 0.5}
    assert os.listdir(tmp_path) == ["report.json"]


def test_writing_makes_the_folder_and_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "card.yaml"
    files.write_yaml(path, {"zebra": 1, "ape": [1.5, None], "größe": "ü"})
    files.write_yaml(path, {"zebra": 2, "ape": "ü"})
    assert path.read_text() == "zebra: 2\nape: ü\n"


def test_only_the_leftovers_of_interrupted_writers_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".backbone.safetensors.123.writing").touch()
    for name in ("backbone.safetensors", ".hidden", "a.writing", "notes.writing.txt"):
        (tmp_path / name).touch()
    files.remove_interrupted(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [
        ".hidden",
        "a.writing",
        "backbone.safetensors",
        "notes.writing.txt",
    ]


def test_sha256_of_a_file_longer_than_a_chunk_and_of_an_empty_one(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "long").write_bytes(content)
    (tmp_path / "empty").touch()
    assert files.sha256(tmp_path / "long") == hashlib.sha256(content).hexdigest()
    assert files.sha256(tmp_path / "empty") == hashlib.sha256(b"").hexdigest()


def test_free_bytes_of_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    assert files.free_bytes(tmp_path / "not" / "yet") > 0


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB"), (1 << 42, "4.0 TiB")],
)
def test_sizes_for_a_person(num_bytes: int, text: str) -> None:
    assert files.readable_size(num_bytes) == text


def test_a_second_lock_is_refused_and_names_the_holder(tmp_path: Path) -> None:
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    with DirectoryLock(tmp_path / "run"), pytest.raises(RunLockedError, match=holder):
        DirectoryLock(tmp_path / "run").acquire()
    with DirectoryLock(tmp_path / "run"):
        pass


def test_a_lock_is_not_taken_twice(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    with pytest.raises(RunLockedError, match="by this process"):
        lock.acquire()
    lock.release()
    lock.release()


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunLockedError, match="cannot lock"):
        DirectoryLock(tmp_path / "file" / "run").acquire()


def _hold_and_fork(directory: Path, pipe: object) -> None:
    """Lock, start a child as a loader does, and wait to be killed."""
    with DirectoryLock(directory):
        child = os.fork()
        if child == 0:
            signal.pause()
        pipe.send(child)  # type: ignore[attr-defined]
        signal.pause()


def _wait_for_the_end_of(pid: int) -> None:
    """`join` would also wait for the process's own child, which holds the pipe that `join` listens to."""
    deadline = time.monotonic() + 30.0
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    pytest.fail("the killed process does not end")


def test_the_lock_ends_with_a_killed_process_whose_children_live_on(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe()
    holder = context.Process(target=_hold_and_fork, args=(tmp_path, there), daemon=True)
    holder.start()
    orphan = here.recv()
    try:
        with pytest.raises(RunLockedError, match=f"process {holder.pid} on"):
            DirectoryLock(tmp_path).acquire()
        assert holder.pid is not None
        os.kill(holder.pid, signal.SIGKILL)
        _wait_for_the_end_of(holder.pid)
        os.kill(orphan, 0)  # the child is still alive
        with DirectoryLock(tmp_path):
            pass
    finally:
        os.kill(orphan, signal.SIGKILL)
    holder.join()

"""Files that are wholly there or not at all, and the lock of a run directory."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import re
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import SafetensorError

from belvedere.core import files
from belvedere.core.errors import RunLockedError, WriteError
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


def _read_all(pipe: Path, got: list[bytes]) -> threading.Thread:
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    return reader


def test_a_pipe_is_written_through_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe, got = tmp_path / "pipe", list[bytes]()
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for path in (pipe, tmp_path / "link"):
        reader = _read_all(pipe, got)
        files.write_json(path, {"a": 1})
        reader.join(10)
    assert got == [b'{\n "a": 1\n}\n'] * 2
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


def test_a_pipe_that_nobody_reads_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_READER_WAIT_S", 0.1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(WriteError, match=r"pipe cannot be written: nobody reads"):
        files.write_text(tmp_path / "pipe", "a")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device nodes")
@pytest.mark.parametrize(("minor", "full"), [(3, False), (7, True)])
def test_a_device_stays_a_device(tmp_path: Path, minor: int, full: bool) -> None:
    """Nodes like /dev/null and /dev/full, made here: a test never risks the machine's own."""
    node = tmp_path / "node"
    try:
        os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(1, minor))
        node.open("wb").close()
    except OSError:
        pytest.skip("no device nodes on this file system")
    with pytest.raises(WriteError, match="node cannot be written: No space") if full else nullcontext():
        files.write_json(node, {})
    assert stat.S_ISCHR(node.lstat().st_mode)
    assert stat.S_IMODE(node.lstat().st_mode) == 0o666 & ~_umask()
    assert os.listdir(tmp_path) == ["node"]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_open_descriptor_is_written_at_its_place(tmp_path: Path) -> None:
    """As `--json /dev/stdout > FILE`: what was and will be printed stays."""
    with (tmp_path / "out").open("wb") as file:
        file.write(b"before ")
        file.flush()
        (tmp_path / "link").symlink_to(f"/proc/self/fd/{file.fileno()}")
        files.write_text(Path(f"/dev/fd/{file.fileno()}"), "first ")
        files.write_text(tmp_path / "link", "second ")
        file.seek(0, os.SEEK_END)
        file.write(b"after")
    assert (tmp_path / "out").read_text() == "before first second after"


@pytest.mark.parametrize("there", [True, False], ids=["file", "dangling"])
def test_symbolic_links_are_followed_and_stay(tmp_path: Path, there: bool) -> None:
    (tmp_path / "far").mkdir()
    target = tmp_path / "far" / "target.json"
    if there:
        target.write_text("old")
    (tmp_path / "near").symlink_to("far/target.json")
    (tmp_path / "link").symlink_to(tmp_path / "near")
    files.write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "near").is_symlink()
    assert not target.is_symlink()
    assert target.read_text() == "new"
    assert os.listdir(tmp_path / "far") == ["target.json"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o755])
def test_permissions_and_owner_of_an_existing_file_are_kept(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(mode)
    if os.geteuid() == 0:
        os.chown(path, 12345, 23456)
    before = path.stat()
    with files.replacing(path) as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) & ~mode == 0, "never readable by more, meanwhile"
        temporary.write_text("new")
    after = path.stat()
    assert path.read_text() == "new"
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino, "replaced, not written over"


def test_safetensors_of_a_new_file_have_the_usual_permissions(tmp_path: Path) -> None:
    with files.replacing(tmp_path / "a.safetensors") as temporary:
        files.save_tensors(temporary, {"x": torch.ones(2)})
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o666 & ~_umask()


def _a_loop(folder: Path) -> Path:
    (folder / "loop").symlink_to(folder / "back")
    (folder / "back").symlink_to(folder / "loop")
    return folder / "loop"


def _a_socket(folder: Path) -> Path:
    here = os.getcwd()
    os.chdir(folder)  # a socket's path may have 100 characters only
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("socket")
    finally:
        os.chdir(here)
    return folder / "socket"


def _a_folder(folder: Path) -> Path:
    (folder / "folder").mkdir()
    return folder / "folder"


def _below_a_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file" / "below" / "name"


def _read_only(folder: Path) -> Path:
    (folder / "locked").mkdir()
    (folder / "locked" / "file").touch()
    (folder / "locked" / "file").chmod(0o444)
    return folder / "locked" / "file"


def _in_a_read_only_folder(folder: Path) -> Path:
    (folder / "locked").mkdir()
    (folder / "locked").chmod(0o555)
    return folder / "locked" / "new"


_REFUSED = [
    (_a_loop, "symbolic links lead to each other"),
    (_a_socket, "it is a socket"),
    (_a_folder, "it is a folder; name a file"),
    (_below_a_file, "file is no folder"),
    (lambda folder: folder / ("x" * 300), "[Nn]ame too long"),
    (_read_only, "read-only for this user"),
    (_in_a_read_only_folder, "denied|read-only"),
]


@pytest.mark.parametrize(("arrange", "why"), _REFUSED)
def test_what_cannot_be_written_is_named_and_left_as_it_is(
    tmp_path: Path, arrange: Callable[[Path], Path], why: str
) -> None:
    path = arrange(tmp_path)
    if os.geteuid() == 0 and "locked" in str(path):
        pytest.skip("root writes everywhere")
    before = sorted(tmp_path.rglob("*"))
    for write in (lambda: files.write_text(path, "x"), lambda: files.check_writable(path)):
        with pytest.raises(WriteError, match=f"{re.escape(str(path))} cannot be written: .*{why}"):
            write()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_name_of_255_bytes_can_be_written(tmp_path: Path) -> None:
    files.write_text(tmp_path / ("ü" * 127), "x")
    assert [len(os.fsencode(name)) for name in os.listdir(tmp_path)] == [254]


def test_a_full_disk_is_named_whoever_writes(tmp_path: Path) -> None:
    def full(path: Path) -> None:
        with files.replacing(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(WriteError, match=r"report\.json cannot be written: No space left.*free some space"):
        full(tmp_path / "report.json")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_under_safetensors_is_the_systems_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", fails)
    path = tmp_path / "w.safetensors"
    refused = pytest.raises(WriteError, match=f"{path} cannot be written: No space")
    with refused as told, files.replacing(path) as temporary:
        files.save_tensors(temporary, {})
    assert told.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_an_error_about_another_file_is_not_blamed_on_the_one_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="other"), files.replacing(tmp_path / "a") as temporary:
        temporary.write_bytes((tmp_path / "far" / "other").read_bytes())


_STRANGE = os.fsdecode(b"caf\xe9/\xff.png")


def test_names_that_are_no_utf8_come_back_from_json_and_yaml(tmp_path: Path) -> None:
    value = {_STRANGE: [_STRANGE, "ü", "日本"]}
    files.write_json(tmp_path / "a.json", value)
    files.write_yaml(tmp_path / "a.yaml", value)
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == value
    assert yaml.safe_load((tmp_path / "a.yaml").read_text("utf-8")) == value
    assert os.fsencode(next(iter(json.loads((tmp_path / "a.json").read_bytes())))) == b"caf\xe9/\xff.png"
    files.write_text(tmp_path / "a.md", f"# {_STRANGE}")
    assert (tmp_path / "a.md").read_text("utf-8") == r"# caf\udce9/\udcff.png"


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "large"])
def test_what_is_no_regular_file_or_too_large_is_not_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "manifest.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(1 << 42)
    with pytest.raises(OSError, match=r"no regular file|4\.0 TiB, more than"):
        files.read_json(path)
    lock = tmp_path / files.LOCK_NAME
    path.rename(lock)
    if kind != "large":
        files.refuse_locked(tmp_path)
        with pytest.raises(RunLockedError, match="no regular file"):
            DirectoryLock(tmp_path).acquire()

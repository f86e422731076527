"""Starts that cannot be: refused by the run and by its dry run, before anything is written."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from belvedere.core.errors import (
    BelvedereError,
    CheckpointError,
    MissingPackageError,
    RecipeError,
    RunLockedError,
    UsageError,
    WriteError,
)
from belvedere.core.files import DirectoryLock
from belvedere.recipe.load import load_recipe
from belvedere.recipe.schema import Recipe
from belvedere.train import disk, start_checks
from belvedere.train.dry import dry_run
from belvedere.train.record import Metrics
from belvedere.train.run import open_session, pretrain
from belvedere.train.start_checks import check_start

_BOTH = pytest.mark.parametrize("begin", [pretrain, dry_run])


def _recipe(directory: Path | str, *overrides: str) -> Recipe:
    return load_recipe("tiny/msn", [f"run.dir={directory}", "run.device=cpu", *overrides])


def _a_file(folder: Path) -> Path:
    (folder / "file").write_text("mine")
    return folder / "file"


def _below_a_file(folder: Path) -> Path:
    return _a_file(folder) / "below" / "run"


def _a_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def _a_link_to_nowhere(folder: Path) -> Path:
    (folder / "link").symlink_to(folder / "gone")
    return folder / "link"


def _links_in_a_circle(folder: Path) -> Path:
    (folder / "one").symlink_to(folder / "two")
    (folder / "two").symlink_to(folder / "one")
    return folder / "one"


def _photographs(folder: Path) -> Path:
    for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg"):
        (folder / name).touch()
    return folder


def _other_runs(folder: Path) -> Path:
    (folder / "vits16").mkdir()
    (folder / ".lock").touch()
    return folder


def _a_recipe_of_ones_own(folder: Path) -> Path:
    (folder / "recipe.yaml").write_text("# my own notes\nname: mine\n")
    return folder


def _a_backbone_of_ones_own(folder: Path) -> Path:
    (folder / "backbone").mkdir()
    (folder / "backbone" / "card.yaml").touch()
    return folder


_PLACES: list[tuple[Callable[[Path], Path], str]] = [
    (lambda folder: Path("/dev/null"), "/dev/null is no directory"),
    (lambda folder: Path("/dev/full"), "/dev/full is no directory"),
    (lambda folder: Path("/dev/null/run"), "/dev/null is no directory"),
    (_a_file, "file is a file"),
    (_below_a_file, "file is no directory"),
    (_a_pipe, "pipe is no directory"),
    (_a_link_to_nowhere, "link is a link that leads nowhere"),
    (_links_in_a_circle, "one cannot be used"),
    (lambda folder: folder / ("x" * 300), "too long"),
    (lambda folder: folder / "new" / ("ü" * 200), "400 bytes is too long"),
    (_photographs, "holds 'a.jpg', 'b.jpg', 'c.jpg' and 1 more and no run of belvedere"),
    (_other_runs, "holds 'vits16' and no run"),
    (_a_recipe_of_ones_own, "holds 'recipe.yaml' and no run"),
    (_a_backbone_of_ones_own, "holds 'backbone' and no run"),
]


@_BOTH
@pytest.mark.parametrize(("arrange", "words"), _PLACES)
def test_a_place_that_is_no_place_for_a_run(
    tmp_path: Path, arrange: Callable[[Path], Path], words: str, begin: Callable[[Recipe], object]
) -> None:
    place = arrange(tmp_path)
    before = [(path, path.lstat().st_mtime_ns) for path in sorted(tmp_path.rglob("*"))]
    with pytest.raises(UsageError) as told:
        begin(_recipe(place))
    assert str(told.value).startswith("run.dir: ")
    assert words in str(told.value)
    assert [(path, path.lstat().st_mtime_ns) for path in sorted(tmp_path.rglob("*"))] == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
@_BOTH
@pytest.mark.parametrize("name", [".", "new"])
def test_a_read_only_folder(tmp_path: Path, name: str, begin: Callable[[Recipe], object]) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(UsageError, match=r"run\.dir: .* cannot be written.* read-only"):
        begin(_recipe(tmp_path / "locked" / name))


@pytest.mark.parametrize("name", [".", "new"])
def test_a_read_only_file_system(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_checks.os, "access", lambda path, mode: False)
    with pytest.raises(UsageError, match=r"run\.dir: .* cannot be written.* read-only"):
        check_start(_recipe(tmp_path / name))


@_BOTH
def test_a_run_in_use(tmp_path: Path, begin: Callable[[Recipe], object]) -> None:
    with DirectoryLock(tmp_path), pytest.raises(RunLockedError, match=str(os.getpid())):
        begin(_recipe(tmp_path))


@_BOTH
@pytest.mark.parametrize(("sink", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_sink_that_is_not_installed(
    tmp_path: Path,
    sink: str,
    module: str,
    begin: Callable[[Recipe], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError, match=sink):
        begin(_recipe(tmp_path / "run", f"run.sinks=[{sink}]"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words", ["run.threads=9999999999", f"run.workers={10**30}", f"run.threads={10**30}"]
)
def test_numbers_that_no_machine_has(tmp_path: Path, words: str) -> None:
    with pytest.raises(RecipeError, match=words.partition("=")[0]):
        _recipe(tmp_path, words)


@_BOTH
def test_a_disk_without_room_for_the_checkpoints(
    tmp_path: Path, begin: Callable[[Recipe], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found out at the first save, everything trained until then would be lost."""
    monkeypatch.setattr(disk, "free_bytes", lambda path: 1 << 20)
    with pytest.raises(CheckpointError, match=r"run has 1\.0 MiB free and the run needs \d.*run\.keep_last"):
        begin(_recipe(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_what_a_run_has_written_already_is_not_needed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(_recipe(tmp_path), torch.device("cpu"))
    monkeypatch.setattr(disk, "free_bytes", lambda path: 1 << 20)
    with pytest.raises(CheckpointError):
        disk.refuse_full_disk(session)
    (tmp_path / "checkpoints" / "000000005").mkdir(parents=True)
    with (tmp_path / "checkpoints" / "000000005" / "tensors-0.safetensors").open("wb") as file:
        file.truncate(disk.needs_of(session).disk)
    disk.refuse_full_disk(session)


def _left_by_a_start(folder: Path) -> None:
    for name in (".lock", "recipe.yaml", "plan.json", "images.index", "images.1.index", "metrics.jsonl"):
        (folder / name).touch()
    (folder / "tensorboard").mkdir()
    (folder / "checkpoints" / ".writing-000000005").mkdir(parents=True)


def _hidden_things(folder: Path) -> None:
    (folder / ".DS_Store").touch()
    (folder / "lost+found").mkdir()


def _a_run_and_notes(folder: Path) -> None:
    (folder / "checkpoints" / "000000005").mkdir(parents=True)
    (folder / "notes.txt").touch()


@pytest.mark.parametrize(
    "arrange", [lambda folder: None, _left_by_a_start, _hidden_things, _a_run_and_notes, Path.rmdir]
)
def test_a_place_for_a_run(tmp_path: Path, arrange: Callable[[Path], object]) -> None:
    (tmp_path / "run").mkdir()
    arrange(tmp_path / "run")
    check_start(_recipe(tmp_path / "run"))
    (tmp_path / "link").symlink_to(tmp_path / "run")
    if (tmp_path / "run").exists():
        check_start(_recipe(tmp_path / "link"))


def test_a_start_that_fails_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    wrong = _recipe(tmp_path / "deep" / "run", f"init.from={tmp_path / 'elsewhere'}")
    with pytest.raises(BelvedereError):
        pretrain(wrong)
    assert not (tmp_path / "deep" / "run").exists()
    (tmp_path / "there").mkdir()
    with pytest.raises(BelvedereError):
        pretrain(
            wrong.model_copy(update={"run": wrong.run.model_copy(update={"dir": str(tmp_path / "there")})})
        )
    assert (tmp_path / "there").is_dir(), "it was there before"
    check_start(_recipe(tmp_path / "there"))


def test_a_lock_that_was_removed_while_it_was_waited_for_is_taken_anew(tmp_path: Path) -> None:
    first, second = DirectoryLock(tmp_path / "run"), DirectoryLock(tmp_path / "run")
    first.acquire()
    (tmp_path / "run" / "kept").touch()
    first.remove_if_alone()
    assert (tmp_path / "run" / ".lock").exists(), "not alone"
    (tmp_path / "run" / "kept").unlink()
    first.remove_if_alone()
    assert not (tmp_path / "run").exists()
    second.acquire()
    assert (tmp_path / "run" / ".lock").exists()
    first.release()
    second.release()


def test_a_record_that_finds_the_disk_full_is_named(tmp_path: Path) -> None:
    class Full:
        def write(self, content: bytes) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def flush(self) -> None: ...

        def close(self) -> None: ...

    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics._file = Full()  # type: ignore[assignment]
    with pytest.raises(WriteError, match=r"metrics\.jsonl cannot be written: No space"):
        metrics.write(0, {"loss": 1.0})


def test_a_run_directory_that_becomes_a_file_meanwhile_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(WriteError, match=r"metrics\.jsonl"):
        Metrics(tmp_path / "metrics.jsonl").write(0, {"loss": 1.0})

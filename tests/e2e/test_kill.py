"""SIGKILL at any point loses nothing: the next start ends bitwise where an uninterrupted run ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from belvedere.engine.state import load

CHILD = Path(__file__).with_name("killed_run.py")
STEPS, SAVE_EVERY = 8, 3


def start(directory: Path, point: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(CHILD), str(directory), point, str(SAVE_EVERY)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def final_state(directory: Path) -> dict[str, torch.Tensor]:
    loaded = load(directory)
    assert loaded is not None
    assert loaded.step == STEPS
    return loaded.tensors


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    directory = tmp_path_factory.mktemp("whole")
    done = start(directory, "never")
    assert done.returncode == 0, done.stderr
    return final_state(directory)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "continues_from"),
    [
        ("step:5", 3),
        ("first_file:6", 3),
        ("files_done:6", 3),
        ("before_rename:6", 3),
        ("after_rename:6", 6),
    ],
)
def test_next_start_ends_where_the_uninterrupted_run_does(
    tmp_path: Path, uninterrupted: dict[str, torch.Tensor], point: str, continues_from: int
) -> None:
    killed = start(tmp_path, point)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = start(tmp_path, "never")
    assert again.returncode == 0, again.stderr
    assert f"checkpoint {continues_from:09d}" in again.stderr, "it must name the checkpoint it used"
    final = final_state(tmp_path)
    assert final.keys() == uninterrupted.keys()
    assert [name for name in final if not torch.equal(final[name], uninterrupted[name])] == []
    steps = [line.split('"step": ')[1].split(",")[0] for line in (tmp_path / "metrics.jsonl").open()]
    assert steps == [str(step) for step in range(STEPS)], "the record has every step once"

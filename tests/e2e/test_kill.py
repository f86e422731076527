"""SIGKILL at any point loses nothing: the next start ends bitwise where an uninterrupted run ends."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from killed_run import killed_run, run

from belvedere.engine.state import load
from processes import exit_code_of

STEPS, SAVE_EVERY = 8, 3


def final_state(directory: Path) -> dict[str, torch.Tensor]:
    loaded = load(directory)
    assert loaded is not None
    assert loaded.step == STEPS
    return loaded.tensors


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    directory = tmp_path_factory.mktemp("whole")
    run(directory, save_every=SAVE_EVERY)
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
    tmp_path: Path,
    uninterrupted: dict[str, torch.Tensor],
    capsys: pytest.CaptureFixture[str],
    point: str,
    continues_from: int,
) -> None:
    assert exit_code_of(killed_run, tmp_path, point, SAVE_EVERY) == -signal.SIGKILL
    capsys.readouterr()
    run(tmp_path, save_every=SAVE_EVERY)
    told = capsys.readouterr().err
    assert f"checkpoint {continues_from:09d}" in told, "it must name the checkpoint it used"
    final = final_state(tmp_path)
    assert final.keys() == uninterrupted.keys()
    assert [name for name in final if not torch.equal(final[name], uninterrupted[name])] == []
    steps = [line.split('"step": ')[1].split(",")[0] for line in (tmp_path / "metrics.jsonl").open()]
    assert steps == [str(step) for step in range(STEPS)], "the record has every step once"

"""A run that kills its own process, at a point.

A point is `step:N` (after N finished steps) or `<event of a save>:N` (in the save of step N).
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch

from belvedere.engine import state
from belvedere.recipe.load import load_recipe
from belvedere.train import run as runner
from belvedere.train.session import Session


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(point: str) -> None:
    """Make the process kill itself at `point`."""
    event, _, step = point.partition(":")
    if event == "step":
        numbers = runner._is_logged

        def logged(session: Session, report: Any) -> bool:
            if session.step == int(step):
                _die()
            return numbers(session, report)

        runner._is_logged = logged
        return
    save = state.save

    def observed(directory: Any, at: int, *args: Any, **options: Any) -> Any:
        def hear(heard: str) -> None:
            if heard == event and at == int(step):
                _die()

        return save(directory, at, *args, observer=hear, **options)

    state.save = observed


def run(directory: Path, *, save_every: int) -> None:
    """Train to the end from where the newest checkpoint is."""
    torch.set_num_threads(1)
    small = ["train.global_batch=336", "train.epochs=2", "optim.lr.warmup_epochs=1", "backbone.depth=1"]
    own = [f"run.dir={directory}", f"run.save_every_steps={save_every}", "run.log_every_steps=1"]
    fixed = ["run.workers=0", "run.device=cpu", "train.precision=float32", "run.save_every_minutes=null"]
    outcome = runner.pretrain(load_recipe("tiny/msn", [*small, *own, *fixed]))
    assert not outcome.stopped


def killed_run(directory: Path, point: str, save_every: int) -> None:
    """`run`, in a process of its own that ends at `point`."""
    _arm(point)
    run(directory, save_every=save_every)

"""A run that kills itself: `killed_run.py DIRECTORY POINT SAVE_EVERY`.

POINT: `never`, `step:N` (after N finished steps) or `<event of a save>:N` (in the save of step N).
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import torch

from belvedere.engine import state
from belvedere.recipe.load import load_recipe
from belvedere.train import run as runner
from belvedere.train.session import Session


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str) -> None:
    """Make the process kill itself at `point`."""
    event, _, step = point.partition(":")
    if event == "never":
        return
    if event == "step":
        numbers = runner._is_logged

        def logged(session: Session, report: Any) -> bool:
            if session.step == int(step):
                die()
            return numbers(session, report)

        runner._is_logged = logged
        return
    save = state.save

    def observed(directory: Any, at: int, *args: Any, **options: Any) -> Any:
        def hear(heard: str) -> None:
            if heard == event and at == int(step):
                die()

        return save(directory, at, *args, observer=hear, **options)

    state.save = observed


if __name__ == "__main__":
    directory, point, save_every = sys.argv[1:]
    torch.set_num_threads(1)
    arm(point)
    small = ["train.global_batch=336", "train.epochs=2", "optim.lr.warmup_epochs=1", "backbone.depth=1"]
    own = [f"run.dir={directory}", f"run.save_every_steps={save_every}", "run.log_every_steps=1"]
    fixed = ["run.workers=0", "run.device=cpu", "train.precision=float32", "run.save_every_minutes=null"]
    outcome = runner.pretrain(load_recipe("tiny/msn", [*small, *own, *fixed]))
    assert not outcome.stopped

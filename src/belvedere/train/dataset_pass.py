"""The pass over the data that a method may ask for before an epoch: to fill a memory bank."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import torch

from belvedere.core import dist
from belvedere.data.batch import Batch
from belvedere.engine.progress import LINE_INTERVAL_S
from belvedere.methods.method import Clock
from belvedere.train.session import Session


class StoppedInPassError(Exception):
    """Somebody asked to stop while a method went over the data set before an epoch."""


def _never() -> bool:
    return False


def _unsaid(text: str) -> None: ...


def epoch_batches(
    session: Session,
    *,
    asked: Callable[[], bool] = _never,
    say: Callable[[str], None] = _unsaid,
    doing: Callable[[str], None] = _unsaid,
) -> Callable[[Clock], Iterator[Batch]]:
    """What a method goes over before an epoch: its batches as the epoch's steps will see them, once more.

    asked: whether somebody asked this process to stop; then the pass ends with `StoppedInPassError` on all
    processes together. say: where to tell how far the pass is, every ten seconds. doing: hears what would be
    finished before the run stops. Raises `DataError` as training does.
    """

    def batches(at: Clock) -> Iterator[Batch]:
        loader = session.loader()
        loader.start_step, loader.total_steps = at.step, at.step + at.steps_per_epoch
        told_s = -math.inf
        doing(f"a batch of the pass over the images that epoch {at.epoch} begins with")
        with loader:
            for number, batch in enumerate(loader):
                _stop_together(session, asked())
                if time.monotonic() - told_s >= LINE_INTERVAL_S:
                    say(f"embedding the images of epoch {at.epoch}: batch {number + 1} of {len(loader)}")
                    told_s = time.monotonic()
                yield batch
        doing(f"the assignments of epoch {at.epoch} and its first step")

    return batches


def _stop_together(session: Session, asked: bool) -> None:
    if dist.world_size() > 1:
        ballot = torch.tensor(float(asked), device=session.device)
        dist.all_reduce_(ballot, op="max")
        asked = bool(ballot)
    if asked:
        raise StoppedInPassError

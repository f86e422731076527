"""Whether the disk of a run's directory holds what the run will write to it."""

from __future__ import annotations

from contextlib import suppress

from belvedere.core.errors import CheckpointError
from belvedere.core.files import free_bytes, readable_size
from belvedere.engine.manifest import FOLDER_NAME
from belvedere.recipe.estimate import Estimate, estimate
from belvedere.train.session import Session
from belvedere.zoo.load import BACKBONE_FOLDER


def needs_of(session: Session) -> Estimate:
    """The needs of a run whose method is built, its parameters and buffers counted."""
    networks = session.method.networks()
    teacher = sum(p.numel() for p in networks["teacher"].parameters()) if "teacher" in networks else 0
    return estimate(
        session.recipe,
        session.plan,
        trained=sum(p.numel() for _, p in session.spread.trained),
        teacher=teacher,
        backbone=sum(p.numel() for p in session.method.export().backbone.parameters()),
        own_bytes=sum(buffer.nbytes for buffer in session.own_state().values()),
        shared_bytes=sum(buffer.nbytes for buffer in session.shared_state().values()),
    )


def refuse_full_disk(session: Session) -> None:
    """Raise CheckpointError if the disk has no room for the run's checkpoints, beside those that it has
    already: found out at the first save, everything trained until then would be lost."""
    if session.step >= session.plan.total_steps:
        return
    needed, there, free = needs_of(session).disk, _written_bytes(session), free_bytes(session.directory)
    if free + there < needed:
        beside = f" beside the {readable_size(there)} that are there" if there else ""
        raise CheckpointError(
            f"{session.directory} has {readable_size(free)} free and the run needs "
            f"{readable_size(needed - there)}{beside}; free some, set run.dir=DIR, or lower run.keep_last"
        )


def _written_bytes(session: Session) -> int:
    """What the run's checkpoints and backbone take already; they are replaced, not added to."""
    total = 0
    for folder in (FOLDER_NAME, BACKBONE_FOLDER):
        for path in (session.directory / folder).rglob("*"):
            with suppress(OSError):  # removed meanwhile
                total += path.stat().st_size if path.is_file() else 0
    return total

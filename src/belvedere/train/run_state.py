"""What another run's checkpoint has for this one, by the names of the method's state."""

from __future__ import annotations

from belvedere.core import dist
from belvedere.engine.state import Found
from belvedere.train.session import METHOD_PREFIX, Session


def entries(session: Session, found: Found) -> dict[str, str]:
    """{name in the method's state: name in the checkpoint}: what all processes of that run held alike, and,
    where it had as many as this one, what this process's counterpart had to itself."""
    own = f"rank{dist.rank()}/{METHOD_PREFIX}"
    prefixes = (METHOD_PREFIX, own) if found.manifest["world_size"] == dist.world_size() else (METHOD_PREFIX,)
    return {
        stored.removeprefix(prefix): stored
        for prefix in prefixes
        for stored in found.manifest["tensors"]
        if stored.startswith(prefix)
    }


def foreign(session: Session, found: Found) -> str | None:
    """Why what belongs to the images of that run (`Method.of_images`) means nothing here; None if it does."""
    if found.manifest["meta"].get("data") != session.source.fingerprint():
        return "it is of other images"
    before = found.manifest["world_size"]
    if before != dist.world_size():
        return f"it is of {before} processes, here are {dist.world_size()}"
    return None

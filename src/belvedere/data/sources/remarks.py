"""What a person should know about a set of images before it is used."""

from __future__ import annotations

import numpy as np

from belvedere.data.sources.mixed import Mixed
from belvedere.data.sources.source import UNLABELLED, Source

_NAMED = 5


def remarks(source: Source) -> list[str]:
    """What a person should know about a source: what it holds and was not taken, where its labels come from,
    and images without a label where others have one."""
    told = list(getattr(source, "skipped", ()))
    for part in source.parts if isinstance(source, Mixed) else (source,):
        missing = np.flatnonzero(part.labels == UNLABELLED)
        if 0 < len(missing) < len(part):
            names = ", ".join(part.key(int(index)) for index in missing[:_NAMED])
            more = ", ..." if len(missing) > _NAMED else ""
            told.append(f"{len(missing)} of {len(part)} images have no label: {names}{more}")
    return told

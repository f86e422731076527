"""What is kept of a step that was not finite, so that it can be looked at and replayed."""

from __future__ import annotations

from pathlib import Path

from belvedere.core import dist
from belvedere.core.files import replacing, save_tensors
from belvedere.train.loop import BadStepError


def save_bad_step(directory: Path, bad: BadStepError) -> Path:
    """Write this process's batch to `bad-steps/<step>-rank<r>.safetensors`; returns the file.

    Tensors: `views/<role>`, `draws/<name>`, `flags/<name>`, `index`, `label`. The state to replay it from is
    the checkpoint of the same number of finished steps.
    """
    batch = bad.batch
    tensors = {"index": batch.index, "label": batch.label}
    for kind in ("views", "draws", "flags"):
        tensors |= {f"{kind}/{name}": value for name, value in getattr(batch, kind).items()}
    file = directory / "bad-steps" / f"{bad.at.step:09d}-rank{dist.rank()}.safetensors"
    with replacing(file) as temporary:
        plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_tensors(temporary, plain)
    return file

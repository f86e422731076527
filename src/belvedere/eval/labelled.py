"""Features with labels, which is all that the protocols see."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from belvedere.core.errors import EvaluationError
from belvedere.data.sources.choice import NO_LABEL
from belvedere.data.sources.source import Source
from belvedere.engine.precision import Precision
from belvedere.eval.features import FeatureCard, Progress, extract


@dataclass(frozen=True)
class Labelled:
    """features [N, D] float32 (or windows of maps, [N, D, h, w]), labels [N] int64 in 0..C-1, and their C
    class names."""

    features: Tensor
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    @property
    def y(self) -> Tensor:
        """The labels as a tensor [N]."""
        return torch.from_numpy(self.labels)

    def take(self, index: NDArray[np.int64]) -> Labelled:
        """The images at `index`, with the same classes."""
        return Labelled(self.features[index], self.labels[index], self.classes)


def _hint(source: Source) -> str:
    """What the source says of labels that it holds and that nobody chose."""
    told = [note for note in getattr(source, "skipped", ()) if note.startswith(NO_LABEL)]
    return f"{'; '.join(told)}; or name some in a CSV (--labels)" if told else ""


def extract_labelled(
    backbone: nn.Module,
    card: FeatureCard,
    source: Source,
    *,
    batch_size: int,
    device: torch.device | None,
    precision: Precision,
    window: int | None = None,
    progress: Progress | None = None,
) -> tuple[Labelled, dict[str, str]]:
    """The labelled images of a source that can be read, and {key: reason} of those that cannot; window: see
    `extract`."""
    labelled = np.flatnonzero(source.labels >= 0)
    if not len(labelled):
        raise EvaluationError(
            f"{source.name!r} has no labelled image: "
            + (_hint(source) or "put images into one folder per class, or name some in a CSV (--labels)")
        )
    extracted = extract(
        backbone,
        card,
        source,
        indices=labelled,
        batch_size=batch_size,
        device=device,
        precision=precision,
        window=window,
        progress=progress,
    )
    labels = source.labels[extracted.index]
    return Labelled(extracted.features, labels, tuple(source.classes)), extracted.unreadable


def check_classes(train: Labelled) -> None:
    """Raise EvaluationError where there is nothing to tell apart."""
    present = np.unique(train.labels)
    if len(present) < 2:
        only = train.classes[present[0]] if len(present) else "none"
        raise EvaluationError(
            f"classification needs labelled images of at least two classes; found {only!r} only"
        )


def with_classes_of(scored: Labelled, train: Labelled) -> Labelled:
    """`scored` with its labels renumbered to the classes of `train`; a class unknown there is an error."""
    number = {name: c for c, name in enumerate(train.classes)}
    present = [scored.classes[c] for c in np.unique(scored.labels)]
    unknown = [name for name in present if name not in number]
    if unknown:
        listed = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise EvaluationError(
            f"the scored set (--val) has classes that no training image has: {listed}; folder names must "
            f"agree with --data"
        )
    renumbered = np.array([number.get(name, -1) for name in scored.classes], dtype=np.int64)
    return Labelled(scored.features, renumbered[scored.labels], train.classes)

"""Features with labels, which is all that the protocols see."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from belvedere.core.errors import EvaluationError
from belvedere.core.log import named_few
from belvedere.data.sources.choice import NO_LABEL
from belvedere.data.sources.source import Source
from belvedere.engine.precision import Precision
from belvedere.eval.features import FeatureCard, Progress, extract
from belvedere.nn.backbone import described


@dataclass(frozen=True)
class Labelled:
    """features [N, D] float32 (or windows of maps, [N, D, h, w]), labels [N] int64 in 0..C-1, and their C
    class names. Where they come from a source: index [N] in it, content [N, 2], hashes that copies share."""

    features: Tensor
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    index: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    content: NDArray[np.uint64] = field(default_factory=lambda: np.empty((0, 2), dtype=np.uint64))

    def __repr__(self) -> str:
        return f"Labelled(features={described(self.features)}, classes={len(self.classes)})"

    @property
    def y(self) -> Tensor:
        """The labels as a tensor [N]."""
        return torch.from_numpy(self.labels)

    def take(self, index: NDArray[np.int64]) -> Labelled:
        """The images at `index`, with the same classes."""
        there = len(self.content) > 0
        return Labelled(
            self.features[index],
            self.labels[index],
            self.classes,
            self.index[index] if there else self.index,
            self.content[index] if there else self.content,
        )


def extract_labelled(
    backbone: nn.Module,
    card: FeatureCard,
    source: Source,
    *,
    batch_size: int,
    device: torch.device | None,
    precision: Precision,
    option: str = "--data",
    window: int | None = None,
    progress: Progress | None = None,
) -> tuple[Labelled, dict[str, str]]:
    """The labelled images of a source that can be read, and {key: reason} of those that cannot; option: what
    the source was given as, window: see `extract`."""
    labelled = labelled_rows(source, option)
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
    found = Labelled(extracted.features, labels, tuple(source.classes), extracted.index, extracted.content)
    return found, extracted.unreadable


def labelled_rows(source: Source, option: str) -> NDArray[np.int64]:
    """The labelled images of a source; raises EvaluationError, naming the option, where there is none."""
    labelled = np.flatnonzero(source.labels >= 0)
    if not len(labelled):
        table = ", or name some in a table (--labels)" if option == "--data" else ""
        told = [note for note in getattr(source, "skipped", ()) if note.startswith(NO_LABEL)]
        raise EvaluationError(
            f"{source.name!r} ({option}) has no labelled image among {len(source)}: "
            + ("; ".join(told) or "put images into one folder per class")
            + table
        )
    return labelled


def check_classes(labels: NDArray[np.int64], classes: Sequence[str]) -> None:
    """Raise EvaluationError where there is nothing to tell apart; labels [N], all of them classes."""
    present = np.unique(labels)
    if len(present) < 2:
        only = classes[present[0]] if len(present) else "none"
        raise EvaluationError(
            f"classification needs labelled images of at least two classes; found {only!r} only"
        )


def with_classes_of(scored: Labelled, train: Labelled, *, option: str = "--val") -> Labelled:
    """`scored` with its labels renumbered to the classes of `train`; a class without a training image is an
    error."""
    check_known(
        scored.labels, scored.classes, {train.classes[c] for c in np.unique(train.labels)}, option=option
    )
    number = {name: c for c, name in enumerate(train.classes)}
    renumbered = np.array([number.get(name, -1) for name in scored.classes], dtype=np.int64)
    return replace(scored, labels=renumbered[scored.labels], classes=train.classes)


def check_known(
    labels: NDArray[np.int64], classes: Sequence[str], known: Container[str], *, option: str
) -> None:
    """Raise EvaluationError, naming them, if images have classes that are not known: no classifier gives
    those."""
    counts = np.bincount(labels[labels >= 0], minlength=len(classes))
    unknown = [f"{name} ({counts[c]})" for c, name in enumerate(classes) if counts[c] and name not in known]
    if unknown:
        cure = "list images of these classes too" if "--subset" in option else "names must agree with --data"
        raise EvaluationError(
            f"the scored set ({option}) has classes that no training image has, with so many images: "
            f"{named_few(unknown)}; {cure}"
        )

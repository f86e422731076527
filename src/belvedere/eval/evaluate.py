"""One evaluation: labelled images in, `report.json`, `splits.json` and perhaps `predictions.csv` out.

`report.json` (scores in [0, 1], six decimals, null where there is nothing to score; no dates, no machine):

    seed, precision, features {source, blocks, norm, resize_px, crop_px, interpolation}
    range       [low, high], the values that become black and white in images of more than eight bits; only
                where the images were opened with such a range
    data        {name, images, classes, labelled, fingerprint}; val the same or null
    list        the file that names the training images, or null
    training    {images, classes: {name: images}}; scored: images of the separate scored set, or null
    unreadable  {data, val, predict: {file: reason}}, only what could not be read
    knn         {rule, k, temperature, bank, scored, accuracy, by_k: {"10": accuracy, ...}, per_class,
    confused} logistic    on drawn splits: {scored_on, splits_sha256, shots: {"1": {mean, sd, values, lambda,
    lambda_chosen_by,
                short_classes: {name: labelled images}, per_class, confused}, ...}};
                on a list: {images, scored, images_per_class, folds, fits: {"published" or "given", "chosen":
                {lambda, accuracy, per_class, confused}}}
    linear      {scored_on, trained, scored, settings, accuracy (last epoch), best_epoch_accuracy, per_class,
    confused} predict     {images, trained, lambda, lambda_chosen_by, labels: {name: images}}

per_class is {name: accuracy}, confused a list of {label, predicted, count, share}; both pooled over splits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from belvedere.core.errors import EvaluationError
from belvedere.core.settings import Settings
from belvedere.data.sources import describe
from belvedere.data.sources.source import Source, value_range_of
from belvedere.engine.precision import Precision
from belvedere.eval import protocols
from belvedere.eval.features import Extracted, FeatureCard, Progress, extract
from belvedere.eval.knn import K
from belvedere.eval.labelled import Labelled, check_classes, extract_labelled, with_classes_of
from belvedere.eval.linear_pooled import AnyProbeSettings, published_probe
from belvedere.eval.predict import Predictions, predict, write_predictions
from belvedere.eval.report import write_report
from belvedere.eval.splits import Splits, draw_splits

Protocol = Literal["knn", "logistic", "linear"]
PROTOCOLS: tuple[Protocol, ...] = ("knn", "logistic", "linear")
Count = Annotated[int, Field(ge=1)]

StageProgress = Callable[[str, int, int], None]
"""Called with (data | val | predict, images done, images in all)."""


class Options(Settings):
    """lambd: a fixed regularization in place of the published and the chosen ones. probe: the linear
    protocol's; None for the one published for the backbone (SwAV's for a pooled ResNet, else MSN's)."""

    protocols: tuple[Protocol, ...] = PROTOCOLS
    shots: tuple[Count, ...] = (1, 2, 5, 10)
    splits: Count = 10
    seed: Annotated[int, Field(ge=0)] = 0
    k: Count = K
    lambd: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    probe: AnyProbeSettings | None = None
    batch_size: Count = 64
    precision: Precision = "float32"


@dataclass(frozen=True)
class Evaluation:
    """The report, the splits that logistic regression used, and what was predicted for which files."""

    report: dict[str, Any]
    splits: Splits | None = None
    predicted: tuple[list[str], Predictions] | None = None
    classes: tuple[str, ...] = ()

    def save(self, folder: Path) -> list[Path]:
        """Write the files of this evaluation into `folder`; returns their paths."""
        written = []
        if self.splits is not None:
            self.splits.save(folder / "splits.json")
            written.append(folder / "splits.json")
        if self.predicted is not None:
            keys, predictions = self.predicted
            write_predictions(folder / "predictions.csv", keys, predictions, classes=self.classes)
            written.append(folder / "predictions.csv")
        write_report(folder / "report.json", self.report)
        return [*written, folder / "report.json"]


@dataclass
class _Reader:
    """Extracts with the same backbone, device and options every time, and remembers what could not be
    read."""

    backbone: nn.Module
    card: FeatureCard
    options: Options
    device: torch.device | None
    progress: StageProgress | None
    unreadable: dict[str, dict[str, str]] = field(default_factory=dict)

    def labelled(self, stage: str, source: Source, *, window: int | None = None) -> Labelled:
        found, failed = extract_labelled(
            self.backbone,
            self.card,
            source,
            batch_size=self.options.batch_size,
            device=self.device,
            precision=self.options.precision,
            window=window,
            progress=self._progress(stage),
        )
        self.unreadable |= {stage: failed} if failed else {}
        return found

    def all(self, stage: str, source: Source) -> Extracted:
        found = extract(
            self.backbone,
            self.card,
            source,
            batch_size=self.options.batch_size,
            device=self.device,
            precision=self.options.precision,
            progress=self._progress(stage),
        )
        self.unreadable |= {stage: found.unreadable} if found.unreadable else {}
        return found

    def _progress(self, stage: str) -> Progress | None:
        return None if self.progress is None else partial(self.progress, stage)


def evaluate(
    backbone: nn.Module,
    card: FeatureCard,
    source: Source,
    *,
    val: Source | None = None,
    list_name: str | None = None,
    unlabelled: Source | None = None,
    options: Options | None = None,
    device: torch.device | None = None,
    progress: StageProgress | None = None,
) -> Evaluation:
    """Score a frozen backbone on the labelled images of `source`; see the module for the report.

    val: a scored set of its own; without it each protocol keeps its training images out of what it scores.
    list_name: `source` is a fixed list of this name, and `val` is needed; it takes the place of drawn splits.
    unlabelled: every image of it gets a label, from a classifier trained on all labels of `source`.
    """
    options = options or Options()
    if list_name is not None and val is None:
        raise EvaluationError(
            "a fixed list (--subset) needs images to score: other labelled images, or --val"
        )
    reader = _Reader(backbone, card, options, device, progress)
    train = reader.labelled("data", source)
    check_classes(train)
    scored = None if val is None else with_classes_of(reader.labelled("val", val), train)
    report: dict[str, Any] = {
        "seed": options.seed,
        "precision": options.precision,
        "features": card.features.model_dump(),
        "data": describe(source),
        "val": None if val is None else describe(val),
        "list": list_name,
        "training": {"images": len(train.labels), "classes": _per_class(train.labels, train.classes)},
        "scored": None if scored is None else len(scored.labels),
        "unreadable": reader.unreadable,
    }
    if value_range_of(source) is not None:
        report["range"] = value_range_of(source)
    splits = None
    if "logistic" in options.protocols and list_name is None:
        splits = draw_splits(train.labels, options.shots, splits=options.splits, seed=options.seed)
    report |= _protocols(train, scored, splits, options, device)
    if "linear" in options.protocols:
        report["linear"] = _linear(reader, (train, scored), (source, val))
    predicted = None
    if unlabelled is not None:
        found = reader.all("predict", unlabelled)
        predictions = predict(train, found.features, lambd=options.lambd, device=device)
        predicted = ([unlabelled.key(int(i)) for i in found.index], predictions)
        report["predict"] = _predict_report(train, predictions)
    return Evaluation(report, splits, predicted, train.classes)


def _protocols(
    train: Labelled,
    scored: Labelled | None,
    splits: Splits | None,
    options: Options,
    device: torch.device | None,
) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    if "knn" in options.protocols:
        parts["knn"] = protocols.knn(train, scored, k=options.k, device=device)
    if splits is not None:
        parts["logistic"] = protocols.logistic_shots(
            train, scored, splits, lambd=options.lambd, device=device
        )
    elif "logistic" in options.protocols:
        assert scored is not None
        parts["logistic"] = protocols.logistic_list(train, scored, lambd=options.lambd, device=device)
    return parts


def _linear(
    reader: _Reader, rows: tuple[Labelled, Labelled | None], sources: tuple[Source, Source | None]
) -> dict[str, Any]:
    """The linear protocol on rows of features, or on windows of the last map where it reads those."""
    options = reader.options
    settings = options.probe or published_probe(reader.backbone, reader.card.features)
    train, scored = rows
    if settings.window is not None:
        source, val = sources
        train = reader.labelled("data", source, window=settings.window)
        if val is not None:
            scored = with_classes_of(reader.labelled("val", val, window=settings.window), train)
    return protocols.linear(train, scored, settings=settings, seed=options.seed, device=reader.device)


def _predict_report(train: Labelled, predictions: Predictions) -> dict[str, Any]:
    return {
        "images": len(predictions.label),
        "trained": len(train.labels),
        "lambda": predictions.lambd,
        "lambda_chosen_by": f"{predictions.folds}-fold cross-validation" if predictions.folds else "fixed",
        "labels": _per_class(predictions.label, train.classes),
    }


def _per_class(labels: np.ndarray[Any, np.dtype[np.int64]], classes: Sequence[str]) -> dict[str, int]:
    counts = np.bincount(labels, minlength=len(classes))
    return {name: int(counts[c]) for c, name in enumerate(classes)}

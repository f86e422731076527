"""One evaluation: labelled images in, `report.json`, `splits.json` and perhaps `predictions.csv` out.

`report.json` (scores in [0, 1], six decimals, null where there is nothing to score; no dates, no machine):

    seed, precision, features {source, blocks, norm, resize_px, crop_px, interpolation}
    range       [low, high], the values that become black and white in images of more than eight bits; only
                where the images were opened with such a range
    data        {name, images, classes, labelled, fingerprint}; val the same or null
    list        the file that names the training images, or null
    training    {images, classes: {name: images}}; scored: images of the separate scored set, or null
    only_in_training  classes of which no image is scored; with a scored set only
    copies      {compared, left_out}; without a scored set {compared, left_out, images, groups,
                conflicting_groups}: of equal images within the data
    unlabelled  {data, val: {images, first}}, of images that have no label and take no part
    unreadable  {data, val, predict: {file: reason}}, only what could not be read
    knn         {rule, k, temperature, bank, scored, copies, accuracy, by_k: {"10": accuracy, ...}, per_class,
                confused}
    logistic    on drawn splits: {scored_on, splits_sha256, shots: {"1": {mean, sd, values, lambda,
                lambda_chosen_by, short_classes: {name: labelled images}, copies, per_class, confused}, ...}};
                on a list: {images, scored, images_per_class, folds, fits: {"published" or "given", "chosen":
                {lambda, accuracy, per_class, confused}}}
    linear      {scored_on, trained, scored, copies, settings, accuracy (last epoch), best_epoch_accuracy,
                per_class, confused}
    predict     {images, trained, trained_on, lambda, lambda_chosen_by, labels: {name: images}, sha256}

copies of a protocol: how many of its scored images are equal to one it was trained on, by split where there
are several.

per_class is {name: accuracy}, confused a list of {label, predicted, count, share}; both pooled over splits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from belvedere.core.errors import EvaluationError
from belvedere.core.files import write_bytes
from belvedere.core.settings import Settings
from belvedere.data.sources import describe
from belvedere.data.sources.dataset import as_source
from belvedere.data.sources.source import UNLABELLED, Source, value_range_of
from belvedere.engine.precision import Precision
from belvedere.eval import limits, overlap, protocols
from belvedere.eval.features import Extracted, FeatureCard, Progress, extract
from belvedere.eval.knn import K
from belvedere.eval.labelled import (
    Labelled,
    check_classes,
    check_known,
    extract_labelled,
    labelled_rows,
    with_classes_of,
)
from belvedere.eval.linear_pooled import AnyProbeSettings, published_probe
from belvedere.eval.place import PREDICTIONS, REPORT, SPLITS
from belvedere.eval.predict import Predictions, predict, predictions_text
from belvedere.eval.report import write_report
from belvedere.eval.splits import Splits, draw_splits

Protocol = Literal["knn", "logistic", "linear"]
PROTOCOLS: tuple[Protocol, ...] = ("knn", "logistic", "linear")
Count = Annotated[int, Field(ge=1)]

StageProgress = Callable[[str, int, int], None]
"""Called with (data | val | predict, images done, images in all)."""


class Options(Settings):
    """lambd: a fixed regularization in place of the published and the chosen ones. probe: the linear
    protocol's; None for the one published for the backbone (SwAV's for a pooled ResNet, else MSN's).
    leave_out_copies: train without images that are scored too, and without a scored set of its own use one of
    each group of equal images; else the first is refused and the second is counted."""

    protocols: tuple[Protocol, ...] = PROTOCOLS
    shots: tuple[Count, ...] = (1, 2, 5, 10)
    splits: Count = 10
    seed: Annotated[int, Field(ge=0)] = 0
    k: Count = K
    lambd: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    probe: AnyProbeSettings | None = None
    batch_size: Count = 64
    precision: Precision = "float32"
    leave_out_copies: bool = False


_NAMED = 5


@dataclass(frozen=True)
class Evaluation:
    """The report, the splits that logistic regression used, and what was predicted for which files."""

    report: dict[str, Any]
    splits: Splits | None = None
    predicted: tuple[list[str], Predictions] | None = None
    classes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        parts = ", ".join(name for name in (*PROTOCOLS, "predict") if name in self.report)
        return f"Evaluation({parts}; report: {len(self.report)} keys)"

    def save(self, folder: Path) -> list[Path]:
        """Write the files of this evaluation into `folder`; returns their paths. Raises WriteError."""
        written = []
        if self.splits is not None:
            self.splits.save(folder / SPLITS)
            written.append(folder / SPLITS)
        if self.predicted is not None:
            content = predictions_text(*self.predicted, classes=self.classes)
            write_bytes(folder / PREDICTIONS, content)
            written.append(folder / PREDICTIONS)
            predict = {**self.report.get("predict", {}), "sha256": hashlib.sha256(content).hexdigest()}
            write_report(folder / REPORT, {**self.report, "predict": predict})
        else:
            write_report(folder / REPORT, self.report)
        return [*written, folder / REPORT]


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

    def labelled(
        self, stage: str, source: Source, *, option: str = "--data", window: int | None = None
    ) -> Labelled:
        found, failed = extract_labelled(
            self.backbone,
            self.card,
            source,
            batch_size=self.options.batch_size,
            device=self.device,
            precision=self.options.precision,
            option=option,
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
    source: Any,
    *,
    val: Any = None,
    val_name: str = "--val",
    list_name: str | None = None,
    unlabelled: Source | None = None,
    options: Options | None = None,
    device: torch.device | None = None,
    progress: StageProgress | None = None,
) -> Evaluation:
    """Score a frozen backbone on the labelled images of `source`; see the module for the report.

    source, val: sources, or map-style torch.utils.data.Datasets. val: what is scored, called `val_name`
    in messages; without it each protocol keeps its training images out of what it scores. list_name: `source`
    is a fixed list of this name, and `val` is needed; it takes the place of drawn splits. unlabelled: every
    image of it gets a label, from a classifier trained on all labels of `source`. Raises EvaluationError for
    what these images cannot answer; images that are trained on and scored as well are refused, unless
    `options.leave_out_copies`.
    """
    options = options or Options()
    source, val = as_source(source), None if val is None else as_source(val)
    unlabelled = None if unlabelled is None else as_source(unlabelled)
    if list_name is not None and val is None:
        raise EvaluationError(
            "a fixed list (--subset) needs images to score: other labelled images, or --val"
        )
    _check(backbone, card, source, val=val, val_name=val_name, drawn=list_name is None, options=options)
    reader = _Reader(backbone, card, options, device, progress)
    sides = _sides(reader, source, val, val_name=val_name)
    train, scored = sides.train, sides.scored
    report: dict[str, Any] = {
        "seed": options.seed,
        "precision": options.precision,
        "features": card.features.model_dump(),
        "data": describe(source),
        "val": None if val is None else describe(val),
        "list": list_name,
        "training": {"images": len(train.labels), "classes": _per_class(train.labels, train.classes)},
        "scored": None if scored is None else len(scored.labels),
        "copies": sides.copies,
        "unlabelled": _unlabelled(source, val),
        "unreadable": reader.unreadable,
    }
    if value_range_of(source) is not None:
        report["range"] = value_range_of(source)
    if scored is not None:
        report["only_in_training"] = _only_in_training(train, scored)
    splits = None
    if "logistic" in options.protocols and list_name is None:
        splits = draw_splits(train.labels, options.shots, splits=options.splits, seed=options.seed)
    report |= _protocols(train, scored, splits, options, device)
    if "linear" in options.protocols:
        report["linear"] = _linear(reader, sides, val, val_name=val_name)
    predicted = None
    if unlabelled is not None:
        found = reader.all("predict", unlabelled)
        predictions = predict(train, found.features, lambd=options.lambd, device=device)
        predicted = ([unlabelled.key(int(i)) for i in found.index], predictions)
        report["predict"] = _predict_report(train, predictions, found)
    return Evaluation(report, splits, predicted, train.classes)


def _check(
    backbone: nn.Module,
    card: FeatureCard,
    source: Source,
    *,
    val: Source | None,
    val_name: str,
    drawn: bool,
    options: Options,
) -> None:
    """Raise EvaluationError for what can be told to be impossible before features are computed."""
    labels = source.labels[labelled_rows(source, "--data")]
    counts = np.bincount(labels, minlength=len(source.classes))
    check_classes(labels, source.classes)
    num_scored = len(labels)
    if val is not None:
        num_scored = len(labelled_rows(val, val_name))
        known = {name for name, count in zip(source.classes, counts, strict=True) if count}
        check_known(val.labels, val.classes, known, option=val_name)
    given = options.model_fields_set
    limits.check_batch(options.batch_size, num_images=max(len(labels), num_scored), px=card.features.crop_px)
    if "knn" in options.protocols:
        bank = len(labels) - (val is None)
        limits.check_k(options.k, bank=bank, queries=num_scored, asked="k" in given)
    if "logistic" in options.protocols and drawn:
        limits.check_shots(options.shots, counts, has_scored=val is not None, asked="shots" in given)
    if "splits" in given and drawn:
        columns = limits.num_columns(int(getattr(backbone, "width", 1)), card.features)
        limits.check_splits(options.splits, options.shots, counts, columns=columns, num_scored=num_scored)


class _Sides(NamedTuple):
    """source: what is trained on, without what was left out; train and scored: features of both sides;
    copies: the report's part."""

    source: Source
    train: Labelled
    scored: Labelled | None
    copies: dict[str, Any]


def _sides(reader: _Reader, source: Source, val: Source | None, *, val_name: str) -> _Sides:
    """Features of what is trained on and what is scored, which share no image. Raises EvaluationError."""
    leave_out = reader.options.leave_out_copies
    if val is None:
        train = reader.labelled("data", source)
        copies = overlap.copies_report(train)
        rows = train.index[overlap.repeats(train)] if leave_out else np.empty(0, dtype=np.int64)
        source, train = _apart(source, train, rows)
        check_classes(train.labels, train.classes)
        return _Sides(source, train, None, {"compared": overlap.COMPARED, "left_out": len(rows), **copies})
    shared = overlap.same_places(source, val)
    if not leave_out:
        overlap.refuse(shared, source, val, scored_name=val_name)
    left_out = len(shared.train)
    source = overlap.without(source, shared.train) if left_out else source
    train = reader.labelled("data", source)
    scored = reader.labelled("val", val, option=val_name)
    shared = overlap.same_content((source, train), (val, scored))
    if not leave_out:
        overlap.refuse(shared, source, val, scored_name=val_name)
    left_out += len(shared.train)
    source, train = _apart(source, train, shared.train)
    check_classes(train.labels, train.classes)
    scored = with_classes_of(scored, train, option=val_name)
    return _Sides(source, train, scored, {"compared": overlap.COMPARED, "left_out": left_out})


def _apart(source: Source, train: Labelled, rows: NDArray[np.int64]) -> tuple[Source, Labelled]:
    """Both without the images at these rows of the source."""
    if not len(rows):
        return source, train
    return overlap.without(source, rows), train.take(np.flatnonzero(~np.isin(train.index, rows)))


def _unlabelled(source: Source, val: Source | None) -> dict[str, Any]:
    """{data or val: {images, first}} of the images that have no label and take no part."""
    found = {}
    for stage, each in (("data", source), ("val", val)):
        if each is None:
            continue
        rows = np.flatnonzero(each.labels == UNLABELLED)
        if len(rows):
            found[stage] = {"images": len(rows), "first": [each.key(int(row)) for row in rows[:_NAMED]]}
    return found


def _only_in_training(train: Labelled, scored: Labelled) -> list[str]:
    """The classes that are trained on and of which no image is scored."""
    trained, seen = (np.bincount(each.labels, minlength=len(train.classes)) for each in (train, scored))
    return [name for c, name in enumerate(train.classes) if trained[c] and not seen[c]]


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


def _linear(reader: _Reader, sides: _Sides, val: Source | None, *, val_name: str) -> dict[str, Any]:
    """The linear protocol on rows of features, or on windows of the last map where it reads those."""
    options = reader.options
    settings = options.probe or published_probe(reader.backbone, reader.card.features)
    train, scored = sides.train, sides.scored
    if settings.window is not None:
        train = reader.labelled("data", sides.source, window=settings.window)
        if val is not None:
            maps = reader.labelled("val", val, option=val_name, window=settings.window)
            scored = with_classes_of(maps, train, option=val_name)
    return protocols.linear(train, scored, settings=settings, seed=options.seed, device=reader.device)


def _predict_report(train: Labelled, predictions: Predictions, found: Extracted) -> dict[str, Any]:
    return {
        "images": len(predictions.label),
        "trained": len(train.labels),
        "trained_on": overlap.num_copies(found.content, train.content),
        "lambda": predictions.lambd,
        "lambda_chosen_by": f"{predictions.folds}-fold cross-validation" if predictions.folds else "fixed",
        "labels": _per_class(predictions.label, train.classes),
    }


def _per_class(labels: np.ndarray[Any, np.dtype[np.int64]], classes: Sequence[str]) -> dict[str, int]:
    counts = np.bincount(labels, minlength=len(classes))
    return {name: int(counts[c]) for c, name in enumerate(classes)}

"""The protocols of one report: k-NN, few-label logistic regression, a fixed list of images, the linear probe.

Each takes labelled features and gives a part of the report. No image is scored by a classifier that saw it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from belvedere.core.errors import EvaluationError
from belvedere.eval import knn as neighbours
from belvedere.eval import logistic
from belvedere.eval.fewshot import few_shot
from belvedere.eval.labelled import Labelled
from belvedere.eval.linear import train_probe
from belvedere.eval.linear_pooled import AnyProbeSettings
from belvedere.eval.overlap import copies_report, num_copies
from belvedere.eval.report import accuracy, class_report, confusion
from belvedere.eval.splits import Splits, short_classes, stratified_split


def knn(
    train: Labelled, scored: Labelled | None, *, k: int, device: torch.device | None = None
) -> dict[str, Any]:
    """k-NN with all training images as the bank; without a scored set every image is left out in its own
    turn."""
    queries = train if scored is None else scored
    own = torch.arange(len(train.labels)) if scored is None else None
    all_k = sorted({k, *neighbours.PUBLISHED_K})
    found = neighbours.nearest(queries.features.to(device), train.features, k=all_k[-1], exclude=own)
    by_k = {}
    for each in all_k:
        part = neighbours.Neighbours(found.similarity[:, :each], found.rows[:, :each])
        votes = neighbours.votes(part, train.y, num_classes=len(train.classes))
        by_k[each] = confusion(queries.labels, votes.argmax(1).numpy(), len(train.classes))
    return {
        "rule": "leave-one-out over the labelled images" if scored is None else "bank: training images",
        "k": k,
        "temperature": neighbours.TEMPERATURE,
        "bank": len(train.labels),
        "scored": len(queries.labels),
        "copies": _copies(train, scored),
        "accuracy": accuracy(by_k[k]),
        "by_k": {str(each): accuracy(counts) for each, counts in by_k.items()},
        **class_report(by_k[k], train.classes),
    }


def _copies(train: Labelled, scored: Labelled | None) -> int:
    """How many scored images have a copy that is trained on; without a scored set: in leave-one-out."""
    return (
        int(copies_report(train)["images"]) if scored is None else num_copies(scored.content, train.content)
    )


def _copies_outside(train: Labelled, split: NDArray[np.int64]) -> int:
    """How many images outside a split have a copy in it."""
    if not len(train.content):
        return 0
    outside = np.setdiff1d(np.arange(len(train.labels)), split)
    return num_copies(train.content[outside], train.content[split])


def logistic_shots(
    train: Labelled,
    scored: Labelled | None,
    splits: Splits,
    *,
    lambd: float | None,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """Logistic regression on drawn splits, column by column."""
    columns = few_shot(
        train.features,
        train.labels,
        splits,
        num_classes=len(train.classes),
        scored=None if scored is None else (scored.features, scored.labels),
        lambd=lambd,
        device=device,
    )
    shots = {
        str(k): {
            **column.scores.to_json(),
            "lambda": list(column.lambdas),
            "lambda_chosen_by": f"{column.folds}-fold cross-validation" if column.folds else "fixed",
            "short_classes": short_classes(train.labels, k, train.classes),
            "copies": [_copies_outside(train, split) if scored is None else 0 for split in splits.shots[k]],
            **class_report(column.confusion, train.classes),
        }
        for k, column in columns.items()
    }
    rule = "all labelled images outside the split" if scored is None else "the scored set"
    return {"scored_on": rule, "splits_sha256": splits.sha256, "shots": shots}


def logistic_list(
    train: Labelled, scored: Labelled, *, lambd: float | None, device: torch.device | None = None
) -> dict[str, Any]:
    """Logistic regression on a fixed list: with the fixed (published, or given) regularization, and with a
    chosen one."""
    x, y = logistic.preprocess(train.features.to(device)), train.y.to(device)
    num_classes = len(train.classes)
    fixed = logistic.PUBLISHED_LAMBDA if lambd is None else lambd
    choice = logistic.choose_lambdas(x[None], y[None], num_classes=num_classes)
    values = {"published" if lambd is None else "given": fixed}
    if choice.folds:
        values["chosen"] = float(choice.lambd[0])
    fits = {}
    for name, value in values.items():
        weights = logistic.fit(x, y, value, num_classes=num_classes)
        predictions = logistic.predict_each(scored.features, weights[None])[0].cpu().numpy()
        counts = confusion(scored.labels, predictions, num_classes)
        fits[name] = {"lambda": value, "accuracy": accuracy(counts), **class_report(counts, train.classes)}
    per_class = np.bincount(train.labels, minlength=num_classes)
    return {
        "images": len(train.labels),
        "scored": len(scored.labels),
        "images_per_class": {"min": int(per_class.min()), "max": int(per_class.max())},
        "folds": choice.folds,
        "fits": fits,
    }


def linear(
    train: Labelled,
    scored: Labelled | None,
    *,
    settings: AnyProbeSettings,
    seed: int,
    device: torch.device | None,
) -> dict[str, Any]:
    """The linear probe; without a scored set it is trained on one stratified half and scored on the other."""
    rule = "the scored set"
    if scored is None:
        first, second = stratified_split(train.labels, 0.5, seed=seed)
        train, scored = train.take(first), train.take(second)
        rule = "one stratified half of the labelled images (a class with one image is only trained on)"
        if not len(second):
            raise EvaluationError(
                "the linear probe finds no image to score: every class has one labelled image; use --val"
            )
    result = train_probe(
        (train.features.to(device), train.y.to(device)),
        (scored.features.to(device), scored.y.to(device)),
        num_classes=len(train.classes),
        settings=settings,
        seed=seed,
    )
    counts = confusion(scored.labels, result.predictions.cpu().numpy(), len(train.classes))
    return {
        "scored_on": rule,
        "trained": len(train.labels),
        "scored": len(scored.labels),
        "copies": num_copies(scored.content, train.content),
        "settings": settings.model_dump(),
        "accuracy": result.last,
        "best_epoch_accuracy": result.best,
        **class_report(counts, train.classes),
    }

"""Kinds of features held against each other: the same images, labels, splits and protocol for all.

C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from belvedere.eval import logistic
from belvedere.eval.fewshot import FewShot, few_shot
from belvedere.eval.knn import TEMPERATURE, K, knn_predict
from belvedere.eval.labelled import Labelled
from belvedere.eval.report import Row, accuracy, better_of, confusion, rows_report
from belvedere.eval.splits import Splits

TrainAndScored = tuple[Labelled, Labelled]
"""Images that labels are drawn from, and others that alone are scored."""


@dataclass(frozen=True)
class Comparison:
    """rows: by kind, in the order given; columns: {kind: {labels per class: what that score was made of}}."""

    rows: tuple[Row, ...]
    columns: Mapping[str, Mapping[int, FewShot]]

    def report(self) -> dict[str, Any]:
        """`rows` and `differences` of `rows_report`, each few-label score with its `lambda` per split."""
        content = rows_report(self.rows)
        for row in content["rows"]:
            for shots, scores in row["shots"].items():
                scores["lambda"] = list(self.columns[row["features"]][int(shots)].lambdas)
        return content

    def confusion(self, features: str, shots: int) -> NDArray[np.int64]:
        """Counts [C, C] summed over splits: line = label, column = prediction."""
        return self.columns[features][shots].confusion


def compare_features(kinds: Mapping[str, Mapping[str, TrainAndScored]], splits: Splits) -> Comparison:
    """Score each kind; of a kind in several preprocessings, the better one column by column.

    kinds: {features: {preprocessing: (train, scored)}}. The last kind is the one held against the others.
    """
    rows, columns = [], {}
    for features, variants in kinds.items():
        tried = {name: _score(features, *pair, splits) for name, pair in variants.items()}
        if len(tried) == 1:
            row, parts = next(iter(tried.values()))
        else:
            row = better_of({name: each for name, (each, _) in tried.items()}, features=features)
            parts = {shots: tried[row.preprocessing[str(shots)]][1][shots] for shots in row.shots}
        rows.append(row)
        columns[features] = parts
    return Comparison(tuple(rows), columns)


def protocol_report(num_train: int, num_scored: int, shots: Sequence[int]) -> dict[str, Any]:
    """What every row was scored by, in numbers."""
    return {
        "knn": {"k": K, "temperature": TEMPERATURE, "bank": num_train, "scored": num_scored},
        "logistic": {
            "scored": num_scored,
            "lambda": {
                str(k): "chosen by inner cross-validation" if k > 1 else logistic.PUBLISHED_LAMBDA
                for k in shots
            },
            "lambda_choices": list(logistic.LAMBDAS),
        },
    }


def _score(
    features: str, train: Labelled, scored: Labelled, splits: Splits
) -> tuple[Row, dict[int, FewShot]]:
    num_classes = len(train.classes)
    predicted = knn_predict(scored.features, train.features, train.y, num_classes=num_classes).numpy()
    columns = few_shot(
        train.features,
        train.labels,
        splits,
        num_classes=num_classes,
        scored=(scored.features, scored.labels),
    )
    knn = accuracy(confusion(scored.labels, predicted, num_classes))
    return Row(features, knn, {k: column.scores for k, column in columns.items()}), columns

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from eval_fakes import clusters

from belvedere.core.errors import EvaluationError
from belvedere.eval import logistic
from belvedere.eval.fewshot import few_shot
from belvedere.eval.report import (
    Row,
    ShotScores,
    better_of,
    class_report,
    compare,
    confusion,
    rows_report,
    write_report,
)
from belvedere.eval.splits import draw_splits


def test_scores_have_the_sample_deviation() -> None:
    scores = ShotScores((0.5, 0.7, 0.9))
    assert scores.mean == pytest.approx(0.7)
    assert scores.sd == pytest.approx(0.2)
    assert ShotScores((0.5,)).sd == 0.0


def test_a_win_needs_twice_the_standard_error_of_paired_differences() -> None:
    base = ShotScores((0.1, 0.5, 0.9))  # splits differ far more than rows do
    assert compare(ShotScores((0.12, 0.53, 0.92)), base).wins
    assert not compare(ShotScores((0.2, 0.4, 0.95)), base).wins
    assert not compare(base, ShotScores((0.12, 0.53, 0.92))).wins
    difference = compare(ShotScores((0.2, 0.7, 0.9)), base)
    assert difference.mean == pytest.approx(0.1)
    assert difference.standard_error == pytest.approx(0.1 / math.sqrt(3))
    assert compare(ShotScores((0.6, 0.6)), ShotScores((0.5, 0.5))).wins  # no spread at all
    assert not compare(base, base).wins


def test_one_split_proves_nothing() -> None:
    difference = compare(ShotScores((0.9,)), ShotScores((0.1,)))
    assert math.isnan(difference.standard_error)
    assert not difference.wins


def test_other_splits_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="zip"):
        compare(ShotScores((0.9, 0.8)), ShotScores((0.1,)))


def _row(features: str, knn: float, one: float, ten: float) -> Row:
    return Row(features, knn, {1: ShotScores((one, one)), 10: ShotScores((ten, ten))})


def test_the_better_preprocessing_is_chosen_column_by_column() -> None:
    best = better_of(
        {"rows": _row("pixels", 0.9, 0.5, 0.7), "standardised": _row("pixels", 0.8, 0.6, 0.7)},
        features="pixels",
    )
    assert best.knn == 0.9
    assert best.shots[1].mean == pytest.approx(0.6)
    assert best.preprocessing == {"knn": "rows", "1": "standardised", "10": "rows"}


def test_rows_report_holds_the_last_row_against_the_others() -> None:
    rows = [
        _row("pixels", 0.9, 0.5, 0.7),
        _row("untrained", 0.8, 0.4, 0.9),
        _row("pretrained", 1.0, 0.6, 0.8),
    ]
    report = rows_report(rows)
    assert [row["features"] for row in report["rows"]] == ["pixels", "untrained", "pretrained"]
    assert report["rows"][0]["shots"]["1"] == {"mean": 0.5, "sd": 0.0, "values": [0.5, 0.5]}
    wins = {d["against"]: {k: v["wins"] for k, v in d["shots"].items()} for d in report["differences"]}
    assert wins == {"pixels": {"1": True, "10": True}, "untrained": {"1": True, "10": False}}


def test_confusion_and_class_report() -> None:
    counts = confusion(np.array([0, 0, 1, 1, 1]), np.array([0, 2, 0, 0, 1]), 4)
    assert counts.tolist() == [[1, 0, 1, 0], [2, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    report = class_report(counts, ["a", "b", "c", "d"])
    assert report["per_class"]["a"] == 0.5
    assert report["per_class"]["b"] == pytest.approx(1 / 3)
    assert math.isnan(report["per_class"]["c"])
    assert report["confused"] == [
        {"label": "b", "predicted": "a", "count": 2, "share": 2 / 3},
        {"label": "a", "predicted": "c", "count": 1, "share": 0.5},
    ]


def test_written_reports_are_plain_sorted_and_rounded(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.json"
    write_report(path, {"b": [1 / 3, -1e-9], "a": {"x": math.nan, 2: True, "é": None}})
    assert json.loads(path.read_text()) == {"a": {"2": True, "x": None, "é": None}, "b": [0.333333, 0.0]}
    assert path.read_text().index('"a"') < path.read_text().index('"b"')
    assert "-0.0" not in path.read_text()


def test_few_shot_equals_fits_done_one_by_one() -> None:
    features, labels = clusters([12, 12, 12], 10, spread=2.0)
    splits = draw_splits(labels, (1, 3), splits=4, seed=0)
    columns = few_shot(features, labels, splits, num_classes=3)
    assert columns[1].lambdas == (logistic.PUBLISHED_LAMBDA,) * 4
    assert columns[1].folds == 0
    assert columns[3].folds == 3
    assert set(columns[3].lambdas) <= set(logistic.LAMBDAS)
    rows = logistic.preprocess(features)
    for k, column in columns.items():
        for split, score, lambd in zip(splits.shots[k], column.scores.values, column.lambdas, strict=True):
            y = torch.from_numpy(labels)
            if k > 1:
                assert lambd == logistic.choose_lambda(rows[split], y[split], num_classes=3)
            weights = logistic.fit(rows[split], y[split], lambd, num_classes=3)
            rest = np.setdiff1d(np.arange(36), split)
            assert score == float((logistic.predict(rows[rest], weights) == y[rest]).double().mean())
        assert column.confusion.sum() == 4 * (36 - 3 * k)


def test_few_shot_on_a_scored_set_and_with_a_fixed_lambda() -> None:
    features, labels = clusters([6, 6], 5)
    scored = clusters([4, 9], 5, seed=3)
    splits = draw_splits(labels, (6,), splits=2, seed=0)
    columns = few_shot(features, labels, splits, num_classes=2, scored=scored, lambd=0.5)
    assert columns[6].lambdas == (0.5, 0.5)
    assert columns[6].confusion.sum() == 26
    with pytest.raises(EvaluationError, match="none is left to score"):
        few_shot(features, labels, splits, num_classes=2)


def test_unlabelled_images_are_neither_trained_on_nor_scored() -> None:
    features, labels = clusters([6, 6], 5)
    hidden = labels.copy()
    hidden[[0, 11]] = -1
    splits = draw_splits(hidden, (2,), splits=3, seed=0)
    assert few_shot(features, hidden, splits, num_classes=2)[2].confusion.sum() == 3 * (10 - 4)

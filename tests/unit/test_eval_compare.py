from __future__ import annotations

import numpy as np
import pytest
import torch

from belvedere.eval import words
from belvedere.eval.compare import compare_features, protocol_report
from belvedere.eval.fewshot import few_shot
from belvedere.eval.labelled import Labelled
from belvedere.eval.logistic import PUBLISHED_LAMBDA
from belvedere.eval.report import Row, ShotScores, rows_report
from belvedere.eval.splits import Splits, draw_splits

CLASSES = ("a", "b", "c")


def pair(noise: float, *, seed: int = 0) -> tuple[Labelled, Labelled]:
    """Three clusters in 6 dimensions, 60 images to lend labels and 90 to score; seed moves the noise only."""
    centres = torch.eye(3, 6) * 2

    def labelled(count: int, key: int) -> Labelled:
        labels = np.arange(count) % 3
        spread = torch.randn(count, 6, generator=torch.Generator().manual_seed(10 * seed + key))
        return Labelled(centres[labels] + noise * spread, labels, CLASSES)

    return labelled(60, 1), labelled(90, 2)


def splits() -> Splits:
    return draw_splits(pair(0.0)[0].labels, (1, 3), splits=4, seed=0)


def test_rows_are_the_protocols_own_scores_on_the_same_splits() -> None:
    easy, hard = pair(0.5), pair(1.5)
    comparison = compare_features({"hard": {"x": hard}, "easy": {"x": easy}}, splits())
    assert [row.features for row in comparison.rows] == ["hard", "easy"]
    for row, (train, scored) in zip(comparison.rows, (hard, easy), strict=True):
        alone = few_shot(
            train.features, train.labels, splits(), num_classes=3, scored=(scored.features, scored.labels)
        )
        assert {k: scores.values for k, scores in row.shots.items()} == {
            k: column.scores.values for k, column in alone.items()
        }
        assert not row.preprocessing
    content = comparison.report()
    assert [d["against"] for d in content["differences"]] == ["hard"]
    assert content["differences"][0]["shots"]["3"]["wins"]
    assert content["rows"][0]["shots"]["1"]["lambda"] == [PUBLISHED_LAMBDA] * 4
    assert comparison.confusion("easy", 3).sum() == 4 * 90


def test_of_two_preprocessings_the_better_one_is_taken_in_each_column() -> None:
    good, bad = pair(0.5), pair(2.5)
    kinds = {"pixels": {"bad": bad, "good": good}, "network": {"x": pair(1.0)}}
    comparison = compare_features(kinds, splits())
    alone = compare_features({"good": {"x": good}}, splits())
    assert comparison.rows[0].preprocessing == {"knn": "good", "1": "good", "3": "good"}
    assert comparison.rows[0].shots == alone.rows[0].shots
    assert np.array_equal(comparison.confusion("pixels", 3), alone.confusion("good", 3))


def test_the_protocol_says_which_regularization_is_fixed() -> None:
    protocol = protocol_report(60, 90, (1, 3))
    assert protocol["logistic"]["lambda"] == {"1": PUBLISHED_LAMBDA, "3": "chosen by inner cross-validation"}
    assert (protocol["knn"]["bank"], protocol["knn"]["scored"]) == (60, 90)


def row(name: str, one: tuple[float, ...], two: tuple[float, ...], knn: float = 0.5) -> Row:
    return Row(name, knn, {1: ShotScores(one), 2: ShotScores(two)})


PIXELS = row("pixels", (0.60, 0.62, 0.61), (0.80, 0.81, 0.82))
BETTER, SAME, WORSE = (0.70, 0.73, 0.71), (0.79, 0.83, 0.81), (0.50, 0.51, 0.52)


@pytest.mark.parametrize(
    ("one", "two", "verdict", "not_won"),
    [
        (BETTER, (0.90, 0.90, 0.93), "Yes.", []),
        (BETTER, SAME, "In part.", ["2 labels"]),
        (WORSE, SAME, "No.", ["1 label", "2 labels"]),
    ],
)
def test_the_answer_names_every_column_that_is_not_won(
    one: tuple[float, ...], two: tuple[float, ...], verdict: str, not_won: list[str]
) -> None:
    rows = (PIXELS, row("pretrained", one, two))
    said = words.answer(rows, rows_report(rows), scored="450 unseen digits", num_labelled=1347)
    assert said[0].endswith(verdict)
    named = [s.removeprefix("Not won: ").split(" per class")[0] for s in said if s.startswith("Not won")]
    assert named == not_won
    assert any(s.startswith("Won: ") for s in said) == (len(not_won) < 2)
    assert "450 unseen digits" in said[1]
    assert "pixels (61%)" in said[1]


def test_a_loss_is_said_with_its_size() -> None:
    rows = (PIXELS, row("pretrained", WORSE, WORSE))
    said = words.answer(rows, rows_report(rows), scored="x", num_labelled=9)
    assert "Against pixels the mean difference is -10.0 points with a standard error of 0.6." in said[2]


def test_one_split_wins_nothing_and_has_no_standard_error() -> None:
    rows = (row("pixels", (0.1,), (0.1,)), row("pretrained", (0.9,), (0.9,)))
    said = words.answer(rows, rows_report(rows), scored="x", num_labelled=9)
    assert said[0].endswith("No.")
    assert "one split has no standard error" in said[2]


def test_the_table_has_equal_lines_and_says_where_the_last_row_wins() -> None:
    rows = (PIXELS, row("pretrained", BETTER, SAME, knn=1.0))
    lines = words.table(rows, rows_report(rows)).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["features", "k-NN", "1", "label", "2", "labels"]
    assert lines[2].split() == ["pretrained", "100.0", "71.3", "±", "1.5", "81.0", "±", "2.0"]
    assert lines[3].split() == ["pretrained", "wins", "yes", "no"]

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from belvedere.core.errors import EvaluationError
from belvedere.eval.splits import (
    Splits,
    draw_splits,
    few_shot_splits,
    short_classes,
    stratified_folds,
    stratified_split,
)

LABELS = np.array([0] * 12 + [1] * 3 + [2] * 20 + [-1] * 5, dtype=np.int64)


def test_each_split_has_k_of_every_class_and_no_unlabelled_image() -> None:
    splits = few_shot_splits(LABELS, 3, splits=6, seed=0)
    for split in splits:
        assert np.array_equal(np.bincount(LABELS[split]), [3, 3, 3])
        assert len(np.unique(split)) == 9
        assert np.array_equal(split, np.sort(split))
    assert len({split.tobytes() for split in splits}) > 1


def test_a_class_with_fewer_images_gives_what_it_has() -> None:
    for split in few_shot_splits(LABELS, 5, splits=2, seed=0):
        assert np.array_equal(np.bincount(LABELS[split]), [5, 3, 5])
    assert short_classes(LABELS, 5, ("a", "b", "c", "none")) == {"b": 3, "none": 0}


def test_draws_follow_the_seed_and_every_image_can_be_drawn() -> None:
    same = few_shot_splits(LABELS, 2, splits=3, seed=0)
    again = few_shot_splits(LABELS, 2, splits=3, seed=0)
    assert all(np.array_equal(a, b) for a, b in zip(same, again, strict=True))
    other = few_shot_splits(LABELS, 2, splits=3, seed=1)
    assert any(not np.array_equal(a, b) for a, b in zip(same, other, strict=True))
    seen = np.unique(np.concatenate(few_shot_splits(LABELS, 2, splits=200, seed=0)))
    assert np.array_equal(seen, np.flatnonzero(LABELS >= 0))


def test_a_new_class_leaves_the_draws_of_the_others() -> None:
    fewer = few_shot_splits(np.where(LABELS == 2, -1, LABELS), 2, splits=2, seed=0)
    for small, large in zip(fewer, few_shot_splits(LABELS, 2, splits=2, seed=0), strict=True):
        assert set(small) < set(large)


def test_saved_splits_come_back_and_are_checked(tmp_path: Path) -> None:
    splits = draw_splits(LABELS, (1, 5), splits=2, seed=3)
    path = tmp_path / "splits.json"
    splits.save(path)
    first = path.read_bytes()
    splits.save(path)
    assert path.read_bytes() == first
    back = Splits.load(path, LABELS)
    assert back.sha256 == splits.sha256
    assert all(np.array_equal(a, b) for a, b in zip(back.shots[5], splits.shots[5], strict=True))
    with pytest.raises(EvaluationError, match="other labels"):
        Splits.load(path, LABELS[::-1])
    content = json.loads(first)
    content["shots"]["1"][0][0] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(EvaluationError, match="altered"):
        Splits.load(path, LABELS)
    path.write_text("[]")
    with pytest.raises(EvaluationError, match="no file of splits"):
        Splits.load(path, LABELS)


@pytest.mark.parametrize(("shots", "splits"), [(0, 1), (1, 0)])
def test_counts_below_one_are_refused(shots: int, splits: int) -> None:
    with pytest.raises(EvaluationError, match="at least 1"):
        few_shot_splits(LABELS, shots, splits=splits, seed=0)


def test_no_labels_are_refused() -> None:
    with pytest.raises(EvaluationError, match="needs labels"):
        few_shot_splits(np.full(4, -1), 1, splits=1, seed=0)


def test_folds_hold_each_class_and_differ_by_one_row_at_most() -> None:
    labels = np.repeat(np.arange(7), 6)
    folds = stratified_folds(labels, 5)
    assert set(folds) == set(range(5))
    for f in range(5):
        assert set(labels[folds == f]) == set(range(7))
    sizes = np.bincount(folds)
    assert sizes.max() - sizes.min() <= 1


def test_folds_with_rare_classes() -> None:
    assert set(stratified_folds(np.array([0, 0, 1, 1]), 5)) == {0, 1}
    folds = stratified_folds(np.array([0, 0, 0, 1]), 5)
    assert folds[3] == -1  # never held out
    assert sorted(folds[:3]) == [0, 1, 2]
    assert set(stratified_folds(np.array([0, 1, 2]), 5)) == {-1}


def test_halves_share_every_class_and_no_image() -> None:
    first, second = stratified_split(LABELS, 0.5, seed=0)
    assert not set(first) & set(second)
    assert len(first) + len(second) == 35
    assert np.array_equal(np.bincount(LABELS[first]), [6, 2, 10])
    empty, rest = stratified_split(np.full(3, -1), 0.5, seed=0)
    assert len(empty) == len(rest) == 0

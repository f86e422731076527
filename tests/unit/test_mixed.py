"""Several sources as one: what an epoch takes from each, and how images and labels are named."""

import pickle

import numpy as np
import pytest

from belvedere.core.errors import DataError
from belvedere.data.order import epoch_order, mixture, permutation
from belvedere.data.sources.mixed import Mixed
from belvedere.data.sources.source import ArraySource


def source(name: str, count: int, *, classes: tuple[str, ...] = (), first: int = 0) -> ArraySource:
    pixels = np.arange(first, first + count, dtype=np.uint8).reshape(-1, 1, 1, 1)
    labels = np.arange(count) % len(classes) if classes else np.full(count, -1)
    keys = [f"{name}/{number}" for number in range(count)]
    return ArraySource(name, pixels, labels=labels, classes=classes, keys=keys)


def taken(mixed: Mixed, order: np.ndarray) -> list[int]:
    """How many images of each part are in an order."""
    return np.bincount([mixed.place(int(index))[0] for index in order], minlength=len(mixed.parts)).tolist()


def test_images_keys_and_labels_are_those_of_the_parts():
    parts = [
        source("a", 3, classes=("dog", "fox")),
        source("b", 2),
        source("c", 2, classes=("cat", "dog"), first=9),
    ]
    mixed = Mixed(parts, [1, 1, 1])
    assert len(mixed) == 7
    assert mixed.name == "a+b+c"
    assert mixed.classes == ("cat", "dog", "fox")
    assert mixed.labels.tolist() == [1, 2, 1, -1, -1, 0, 1]
    assert [mixed.key(index) for index in (0, 2, 3, 6)] == ["a/a/0", "a/a/2", "b/b/0", "c/c/1"]
    assert mixed.stored(6).item() == 10
    assert mixed.place(3) == (1, 0)
    for index in (-1, 7):
        with pytest.raises(IndexError):
            mixed.key(index)


@pytest.mark.parametrize("names", [("x", "x"), ("x", "x/y")])
def test_parts_that_names_do_not_tell_apart_are_numbered(names):
    mixed = Mixed([source(name, 2) for name in names], [1, 1])
    found = [mixed.key(index) for index in range(4)]
    assert found == [f"0/{names[0]}/0", f"0/{names[0]}/1", f"1/{names[1]}/0", f"1/{names[1]}/1"]


def test_what_was_skipped_is_named_by_part():
    first, second = source("a", 1), source("b", 1)
    first.skipped = ("x/: Permission denied",)
    assert Mixed([first, second], [1, 1]).skipped == ("a/x/: Permission denied",)


@pytest.mark.parametrize(
    ("sizes", "weights", "shares"),
    [
        ((10, 30), (1, 1), (20, 20)),
        ((10, 30), (10, 30), (10, 30)),
        ((10, 10, 11), (1, 1, 1), (11, 10, 10)),  # thirds of 31
        ((5, 5, 5), (0.5, 0.3, 0.2), (8, 4, 3)),  # 7.5, 4.5, 3: the larger float remainder is the first's
        ((99, 1), (1, 99), (1, 99)),
        ((100, 100), (1e-300, 1e-300), (100, 100)),
        ((100, 100), (1e300, 1e300), (100, 100)),
    ],
)
def test_every_epoch_has_the_shares_of_the_weights(sizes, weights, shares):
    parts = [source(str(number), size) for number, size in enumerate(sizes)]
    mixed = Mixed(parts, weights)
    assert mixed.shares == shares
    for epoch in range(3):
        order = epoch_order(mixed, 5, epoch)
        assert len(order) == len(mixed)
        assert taken(mixed, order) == list(shares)


def test_all_images_of_a_part_are_seen_equally_often_over_epochs():
    mixed = Mixed([source("small", 7), source("large", 50)], [2, 1])
    assert mixed.shares == (38, 19)
    counts = np.zeros(57, dtype=np.int64)
    for epoch in range(25):
        order = epoch_order(mixed, 1, epoch)
        counts += np.bincount(order, minlength=57)
        for part in (counts[:7], counts[7:]):
            assert part.max() - part.min() <= 1
    assert counts[:7].sum() == 25 * 38
    assert counts[7:].sum() == 25 * 19


def test_an_epoch_is_a_function_of_its_number():
    mixed = Mixed([source("a", 7), source("b", 50)], [2, 1])
    in_turn = [epoch_order(mixed, 1, epoch).copy() for epoch in range(8)]
    mixture.cache_clear()
    assert np.array_equal(epoch_order(mixed, 1, 7), in_turn[7])
    assert not np.array_equal(in_turn[6], in_turn[7])
    assert not np.array_equal(epoch_order(mixed, 2, 7), in_turn[7])
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(mixed, 1, 7)[0] = 1


def test_passes_do_not_depend_on_how_many_are_sorted_at_once(monkeypatch):
    expected = mixture((3, 40), (30, 13), seed=0, epoch=2).copy()
    monkeypatch.setattr("belvedere.data.order._SORTED_AT_ONCE", 5)
    mixture.cache_clear()
    assert np.array_equal(mixture((3, 40), (30, 13), seed=0, epoch=2), expected)


def test_parts_are_shuffled_together():
    mixed = Mixed([source("a", 100), source("b", 100)], [1, 1])
    halves = np.array_split(epoch_order(mixed, 0, 0) < 100, 4)
    assert all(15 <= half.sum() <= 35 for half in halves)


def test_one_part_has_the_order_it_has_alone():
    alone = source("a", 50)
    for epoch in range(3):
        order = epoch_order(Mixed([alone], [0.3]), 4, epoch)
        assert np.array_equal(order, epoch_order(alone, 4, epoch))
        assert np.array_equal(order, permutation(50, 4, epoch))


@pytest.mark.parametrize(
    ("sizes", "weights", "message"),
    [
        ((10, 10), (1, 0), r"weight of '1' is 0\.0; it must be a positive number"),
        ((10, 10), (1, -1), "must be a positive number"),
        ((10, 10), (float("nan"), 1), "must be a positive number"),
        ((10, 10), (1, float("inf")), "must be a positive number"),
        ((10, 0), (1, 1), "'1' holds no image"),
        ((10, 10), (1, 0.001), r"weight of '1' is 0\.001, less than one of the 20 images.*at least 0\.05"),
        ((), (), "empty list"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused(sizes, weights, message):
    with pytest.raises(DataError, match=message) as caught:
        Mixed([source(str(number), size) for number, size in enumerate(sizes)], weights)
    assert "data.path" in str(caught.value)


def test_the_fingerprint_is_of_parts_weights_and_classes():
    a, b = source("a", 5, classes=("x", "y")), source("b", 5)
    first = Mixed([a, b], [1, 2]).fingerprint()
    assert Mixed([a, b], [1, 2]).fingerprint() == first
    others = [
        Mixed([a, b], [2, 1]),
        Mixed([b, a], [1, 2]),
        Mixed([source("a", 5, classes=("x", "z")), b], [1, 2]),
    ]
    assert len({first, *(mixed.fingerprint() for mixed in others)}) == 4


def test_workers_get_the_parts_and_no_labels():
    mixed = Mixed([source("a", 100, classes=("x", "y")), source("b", 100)], [1, 3])
    before = len(pickle.dumps(mixed))
    assert mixed.labels[1] == 1
    assert len(pickle.dumps(mixed)) == before
    again = pickle.loads(pickle.dumps(mixed))
    assert again.fingerprint() == mixed.fingerprint()
    assert again.labels.tolist() == mixed.labels.tolist()
    assert np.array_equal(epoch_order(again, 0, 0), epoch_order(mixed, 0, 0))

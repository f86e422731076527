from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from eval_fakes import clusters

from belvedere.core.errors import EvaluationError
from belvedere.eval.knn import knn_predict, nearest, votes

CASE = Path(__file__).parents[1] / "golden/cases/esvit/knn"


def test_recorded_votes() -> None:
    """The recorded case of EsViT's k-NN, which is the same published rule."""
    args = json.loads((CASE / "case.json").read_text())["args"]
    arrays = np.load(CASE / "arrays.npz")
    train, test = torch.from_numpy(arrays["in_train"]), torch.from_numpy(arrays["in_test"])
    for k in args["nb_knn"]:
        found = nearest(test, train, k=k, query_chunk=50, bank_chunk=77)
        got = votes(
            found,
            torch.from_numpy(arrays["in_train_labels"]),
            num_classes=args["num_classes"],
            temperature=args["temperature"],
        )
        np.testing.assert_array_equal(got.argmax(1), arrays[f"out_k{k}_pred_top1"])
        top = got.sort(1, descending=True).values[:, :5]
        np.testing.assert_allclose(top, arrays[f"out_k{k}_votes_top5"], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("query_chunk", "bank_chunk"), [(1, 1), (3, 7), (1000, 1000)])
def test_chunks_find_the_same_neighbours(query_chunk: int, bank_chunk: int) -> None:
    bank, _ = clusters([20, 20], 6)
    queries, _ = clusters([5, 4], 6, seed=1)
    similarity = torch.nn.functional.normalize(queries, dim=1) @ torch.nn.functional.normalize(bank, dim=1).T
    expected = similarity.argsort(dim=1, descending=True, stable=True)[:, :9]
    found = nearest(queries, bank, k=9, query_chunk=query_chunk, bank_chunk=bank_chunk)
    assert torch.equal(found.rows, expected)
    torch.testing.assert_close(found.similarity, similarity.gather(1, expected))


@pytest.mark.parametrize("bank_chunk", [1, 2, 3, 8, 100])
def test_of_equals_the_lower_row_wins_whatever_the_chunk(bank_chunk: int) -> None:
    bank = torch.eye(4)[[1, 0, 0, 2, 0, 0, 0, 3]]
    found = nearest(torch.eye(4)[:1], bank, k=3, bank_chunk=bank_chunk)
    assert found.rows.tolist() == [[1, 2, 4]]
    found = nearest(torch.eye(4)[:1], bank, k=7, bank_chunk=bank_chunk)
    assert found.rows.tolist() == [[1, 2, 4, 5, 6, 0, 3]]


def test_k_larger_than_the_bank_uses_the_bank() -> None:
    bank, labels = clusters([2, 1], 5)
    queries, _ = clusters([3, 3], 5, seed=1)
    found = nearest(queries, bank, k=10)
    assert (found.rows[:, 3:] == -1).all()
    assert (found.similarity[:, 3:] == -torch.inf).all()
    all_rows = knn_predict(queries, bank, torch.from_numpy(labels), num_classes=2, k=10)
    assert torch.equal(all_rows, knn_predict(queries, bank, torch.from_numpy(labels), num_classes=2, k=3))


def test_excluded_rows_do_not_vote() -> None:
    bank, _ = clusters([6, 6], 4)
    found = nearest(bank, bank, k=11, exclude=torch.arange(12), bank_chunk=5)
    assert not (found.rows == torch.arange(12)[:, None]).any()
    assert (found.rows >= 0).all()
    alone = nearest(bank[:1], bank[:1], k=2, exclude=torch.zeros(1, dtype=torch.int64))
    assert alone.rows.tolist() == [[-1, -1]]
    assert votes(alone, torch.tensor([1]), num_classes=2).tolist() == [[0.0, 0.0]]


def test_the_nearer_image_outweighs_two_that_are_far() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.5, 0.866], [0.5, -0.866]])
    labels = torch.tensor([0, 1, 1])
    assert knn_predict(torch.tensor([[5.0, 0.0]]), bank, labels, num_classes=2, k=3).tolist() == [0]
    hot = knn_predict(torch.tensor([[5.0, 0.0]]), bank, labels, num_classes=2, k=3, temperature=10.0)
    assert hot.tolist() == [1]


def test_mistakes_and_no_queries() -> None:
    bank, _ = clusters([2, 2], 3)
    with pytest.raises(EvaluationError, match="at least 1; got 0"):
        nearest(bank, bank, k=0)
    with pytest.raises(EvaluationError, match="bank"):
        nearest(bank, bank[:0], k=1)
    assert nearest(bank[:0], bank, k=2).rows.shape == (0, 2)

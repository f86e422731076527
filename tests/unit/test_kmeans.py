"""Spherical k-means and the search for the nearest centroid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.core.errors import RecipeError
from belvedere.ops import nearest as nearest_module
from belvedere.ops.kmeans import cluster, cluster_sums
from belvedere.ops.nearest import nearest
from processes import answers_of


def _unit(rows: int, width: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    noise = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(noise).to(dtype)


def _plainly(bank: Tensor, start: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """The algorithm as it is described, one cluster at a time."""
    centroids = bank[start].clone()
    for _ in range(iterations):
        assignments = (bank @ centroids.T).argmax(1)
        for k in range(len(centroids)):
            members = bank[assignments == k]
            if len(members):
                centroids[k] = members.mean(0)
        centroids = F.normalize(centroids)
    return centroids, (bank @ centroids.T).argmax(1)


# The nearest centroid


@pytest.mark.parametrize("clusters", [1, 7, 128, 131, 1000])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_narrowing_finds_what_the_full_product_finds(clusters: int, scale: float) -> None:
    bank, centroids = scale * _unit(1300, 24), _unit(clusters, 24, seed=1)
    expected = (bank.double() @ centroids.double().T).argmax(1)
    assert torch.equal(nearest(bank, centroids, narrow=True), expected)
    assert torch.equal(nearest(bank, centroids, narrow=False), expected)


@pytest.mark.parametrize("apart", [1e-5, 1e-3, 1e-2])
def test_narrowing_tells_centroids_apart_that_bfloat16_confuses(apart: float) -> None:
    centroids = _unit(200, 16, seed=2)
    twins = F.normalize(centroids + apart * _unit(200, 16, seed=3))
    centroids = torch.cat([centroids, twins])
    bank = F.normalize(centroids[torch.randperm(400)].repeat(3, 1) + 0.02 * _unit(1200, 16, seed=4))
    scores = bank.double() @ centroids.double().T
    found = nearest(bank, centroids, narrow=True)
    rough = (bank.bfloat16() @ centroids.bfloat16().T).argmax(1)
    assert (rough != scores.argmax(1)).float().mean() > 0.1, "the case is too easy"
    short = scores.amax(1) - scores.gather(1, found.unsqueeze(1)).squeeze(1)
    assert short.max() < 2e-7, "not the best within the rounding of a float32 product"


def test_no_embedding_is_nearest_to_a_copy_that_only_fills_a_group() -> None:
    centroids = _unit(129, 8, seed=5)  # 31 copies of the first make groups whole
    bank = centroids[:1].repeat(10, 1)
    assert nearest(bank, centroids, narrow=True).tolist() == [0] * 10
    assert nearest(-bank, -centroids.abs(), narrow=True).max() < 129


def test_the_first_of_equal_centroids_is_taken() -> None:
    centroids = _unit(100, 8).repeat(3, 1)
    bank = _unit(400, 8, seed=1)
    for narrow in (True, False):
        assert nearest(bank, centroids, narrow=narrow).max() < 100


def test_embeddings_that_are_almost_the_same_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = F.normalize(torch.ones(600, 16) + 1e-4 * _unit(600, 16))
    centroids = bank[:300]

    def refuse(*_: Any) -> Tensor:
        raise AssertionError("every pair would be compared")

    monkeypatch.setattr(nearest_module, "_best_of", refuse)
    found = nearest(bank, centroids, narrow=True)
    assert torch.equal(found, nearest(bank, centroids, narrow=False))


def test_what_is_not_a_number_is_answered_as_by_the_full_product() -> None:
    bank, centroids = _unit(40, 8), _unit(150, 8, seed=1)
    bank[7] = torch.nan
    assert torch.equal(nearest(bank, centroids, narrow=True), nearest(bank, centroids, narrow=False))


def test_no_embeddings_have_no_nearest_centroids() -> None:
    for narrow in (True, False):
        assert nearest(torch.zeros(0, 8), _unit(200, 8), narrow=narrow).shape == (0,)


def test_autocast_does_not_reach_it() -> None:
    bank, centroids = _unit(500, 16), _unit(200, 16, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        found = nearest(bank, centroids, narrow=False)
    assert torch.equal(found, (bank.double() @ centroids.double().T).argmax(1))


def test_float64_is_searched_in_float64() -> None:
    centroids = _unit(2, 8, dtype=torch.float64)
    centroids[1] = F.normalize(centroids[0] + 1e-6 * torch.arange(8), dim=0)
    assert torch.equal(nearest(centroids, centroids), torch.tensor([0, 1]))


# Clusters


@pytest.mark.parametrize(
    ("rows", "clusters", "iterations"), [(500, 9, 10), (700, 150, 4), (5, 5, 3), (6, 1, 2)]
)
def test_it_is_the_algorithm_as_described(rows: int, clusters: int, iterations: int) -> None:
    bank = _unit(rows, 12, dtype=torch.float64)
    start = torch.randperm(rows, generator=torch.Generator().manual_seed(0))[:clusters]
    centroids, assignments = cluster(bank, start=start, iterations=iterations)
    expected_centroids, expected = _plainly(bank, start, iterations)
    assert torch.equal(assignments, expected)
    torch.testing.assert_close(centroids, expected_centroids, rtol=0, atol=1e-12)


def test_an_empty_cluster_keeps_its_centroid() -> None:
    bank = torch.eye(3)[[0, 0, 1, 2]]  # the second start is a copy of the first: nothing is nearer to it
    centroids, assignments = cluster(bank, start=torch.tensor([0, 1, 2]), iterations=1)
    assert torch.equal(centroids[1], bank[0])
    assert assignments[:3].tolist() == [
        1,
        1,
        2,
    ]  # the first moved on with the last embedding, the second stayed


def test_members_that_cancel_leave_a_centroid_finite() -> None:
    bank = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    centroids, _ = cluster(bank, start=torch.tensor([0]), iterations=2)
    assert torch.equal(centroids, torch.zeros(1, 2))


def test_sums_go_over_chunks_and_large_clusters_without_loss() -> None:
    bank = torch.full((70_001, 2), 0.1)
    labels = torch.ones(70_001, dtype=torch.int64)
    labels[40_000] = 3
    sums, sizes = cluster_sums(bank, labels, 5)
    assert sizes.tolist() == [0, 70_000, 0, 1, 0]
    expected = torch.zeros(5, 2, dtype=torch.float64)
    expected[1], expected[3] = 70_000 * bank[0].double(), bank[0].double()
    torch.testing.assert_close(sums, expected, rtol=1e-12, atol=0)


def test_bfloat16_embeddings_are_clustered_in_float32() -> None:
    bank = _unit(300, 8).bfloat16()
    start = torch.arange(10)
    centroids, assignments = cluster(bank, start=start)
    wide, expected = cluster(bank.float(), start=start)
    assert centroids.dtype == torch.float32
    assert torch.equal(assignments, expected)
    torch.testing.assert_close(centroids, wide)


def test_it_repeats_bitwise() -> None:
    bank, start = _unit(3000, 16), torch.arange(200)
    first, second = cluster(bank, start=start), cluster(bank, start=start)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_more_clusters_than_embeddings_are_refused_with_the_bound() -> None:
    with pytest.raises(RecipeError, match=r"method\.heads: 6 clusters .* 5 embeddings; set it to at most 5"):
        cluster(_unit(5, 3), start=torch.arange(6), key="method.heads")


def test_a_start_that_no_embedding_has_is_refused() -> None:
    with pytest.raises(ValueError, match="position 9 is held by 0 embeddings"):
        cluster(_unit(5, 3), start=torch.tensor([0, 9]))


# Several processes

_BATCH, _STEPS = 6, 50


def _of_rank(bank: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """What one of two processes holds of a bank that was filled in steps, and where it stands."""
    positions = torch.arange(len(bank)).view(_STEPS, 2, _BATCH)[:, rank].flatten()
    return bank[positions], positions


def _answer(rank: int) -> Any:
    start = torch.arange(0, 600, 4)
    results = []
    for dtype in (torch.float32, torch.float64):
        bank, positions = _of_rank(_unit(600, 16, dtype=dtype), rank)
        results.append(cluster(bank, start=start, positions=positions, iterations=5))
    one_has_all = _unit(600, 16)[: 600 * (1 - rank)]
    results.append(cluster(one_has_all, start=start, iterations=5))
    try:
        cluster(_unit(3, 4), start=torch.arange(7))
        refusal = ""
    except RecipeError as error:
        refusal = str(error)
    return rank, [tuple(t.numpy() for t in pair) for pair in results], refusal


def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    told = answers_of(_answer, tmp_path)
    for number, (dtype, atol) in enumerate(((torch.float32, 1e-6), (torch.float64, 1e-14))):
        bank = _unit(600, 16, dtype=dtype)
        centroids, assignments = cluster(bank, start=torch.arange(0, 600, 4), iterations=5)
        for rank, results, refusal in told:
            theirs, mine = (torch.from_numpy(array) for array in results[number])
            torch.testing.assert_close(theirs, centroids, rtol=0, atol=atol)
            assert torch.equal(mine, assignments[_of_rank(bank, rank)[1]])
            assert "at most 6" in refusal
        assert (told[0][1][number][0] == told[1][1][number][0]).all(), "the processes differ"
    centroids, assignments = cluster(_unit(600, 16), start=torch.arange(0, 600, 4), iterations=5)
    for rank, results, _ in told:
        torch.testing.assert_close(torch.from_numpy(results[2][0]), centroids, rtol=0, atol=1e-6)
        assert torch.equal(torch.from_numpy(results[2][1]), assignments[: 600 * (1 - rank)])

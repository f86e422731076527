"""DeepCluster-v2's clustering on a CPU against faiss, and against a loop over clusters.

    uv pip install faiss-cpu      # for this comparison only; belvedere does not use it
    python benchmarks/kmeans.py

Spherical k-means of 200,000 embeddings of 128 columns into 3,000 clusters: 10 updates of the centroids from
the same first ones, then the assignment to the last. Embeddings are points around 5,000 centers on a sphere.
The three sides alternate in one process with the same number of threads: `ops.kmeans.cluster`; faiss-cpu's
`Kmeans` (spherical, no subsampling) and a search in its index; the algorithm as it is usually written, a full
product and then one mean per cluster in a Python loop. All three must reach the same inertia (the mean
distance 1 - x . c of an embedding to its centroid) within 0.1 %.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.ops.kmeans import cluster
from belvedere.ops.nearest import narrowing_is_fast

INERTIA_TOLERANCE = 1e-3
CENTERS_PER_CLUSTER = 5 / 3
SPREAD = 0.7  # the length of the noise around a center of length 1
LOOP_ROWS = 4096

Result = tuple[Tensor, Tensor]


def embeddings(rows: int, columns: int, clusters: int) -> Tensor:
    """Unit rows [N, D] around more centers than clusters, so that no clustering is obvious."""
    generator = torch.Generator().manual_seed(0)
    num_centers = int(clusters * CENTERS_PER_CLUSTER)
    centers = F.normalize(torch.randn(num_centers, columns, generator=generator))
    chosen = torch.randint(num_centers, (rows,), generator=generator)
    noise = F.normalize(torch.randn(rows, columns, generator=generator))
    return F.normalize(centers[chosen] + SPREAD * noise)


def with_faiss(bank: Tensor, start: Tensor, iterations: int) -> Result:
    import faiss

    kmeans = faiss.Kmeans(
        bank.shape[1],
        len(start),
        niter=iterations,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=len(bank),
        seed=0,
    )
    kmeans.train(bank.numpy(), init_centroids=bank[start].numpy())
    _, assignments = kmeans.index.search(bank.numpy(), 1)
    return torch.from_numpy(kmeans.centroids), torch.from_numpy(assignments[:, 0])


def with_a_loop(bank: Tensor, start: Tensor, iterations: int) -> Result:
    def assigned() -> Tensor:
        return torch.cat([(rows @ centroids.T).argmax(1) for rows in bank.split(LOOP_ROWS)])

    centroids = bank[start]
    for _ in range(iterations):
        assignments = assigned()
        means = centroids.clone()
        for k in range(len(centroids)):
            members = (assignments == k).nonzero()[:, 0]
            if len(members):
                means[k] = bank[members].mean(0)
        centroids = F.normalize(means)
    return centroids, assigned()


def inertia(bank: Tensor, result: Result) -> float:
    """The mean of 1 - x . c, in float64."""
    centroids, assignments = result
    products = [
        (rows.double() * centroids[index].double()).sum(1)
        for rows, index in zip(bank.split(LOOP_ROWS), assignments.split(LOOP_ROWS), strict=True)
    ]
    return 1 - torch.cat(products).mean().item()


def measure(given: argparse.Namespace) -> None:
    bank = embeddings(given.rows, given.columns, given.clusters)
    start = torch.randperm(given.rows, generator=torch.Generator().manual_seed(1))[: given.clusters]
    sides: dict[str, Callable[[], Result]] = {
        "belvedere": lambda: cluster(bank, start=start, iterations=given.iterations),
        "faiss": lambda: with_faiss(bank, start, given.iterations),
        "loop": lambda: with_a_loop(bank, start, given.iterations),
    }
    wall: dict[str, list[float]] = {name: [] for name in sides}
    busy: dict[str, list[float]] = {name: [] for name in sides}
    reached: dict[str, float] = {}
    for turn in range(given.rounds):
        for name, run in sides.items():
            if name == "loop" and turn:
                continue  # minutes each, and not close
            before, worked = time.perf_counter(), time.process_time()
            result = run()
            wall[name].append(time.perf_counter() - before)
            busy[name].append(time.process_time() - worked)
            reached[name] = inertia(bank, result)
    report(wall, busy, reached)


def report(wall: dict[str, list[float]], busy: dict[str, list[float]], reached: dict[str, float]) -> None:
    """The table, and the check that all sides found equally good clusters."""
    print("| | median | least | processor time, least | inertia |\n| --- | --- | --- | --- | --- |")
    for name, seconds in wall.items():
        times = f"{statistics.median(seconds):.2f} s | {min(seconds):.2f} s | {min(busy[name]):.2f} s"
        print(f"| {name} | {times} | {reached[name]:.6f} |")
    for name in ("faiss", "loop"):
        ratio = statistics.median(wall[name]) / statistics.median(wall["belvedere"])
        print(f"{name} / belvedere: {ratio:.2f} by medians")
    apart = max(abs(value / reached["belvedere"] - 1) for value in reached.values())
    assert apart < INERTIA_TOLERANCE, f"the inertias differ by {apart:.3%}: {reached}"
    print(f"inertias are at most {apart:.4%} apart")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("rows", 200_000), ("columns", 128), ("clusters", 3000), ("iterations", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3, help="of belvedere and faiss; the loop runs once")
    return parser.parse_args()


if __name__ == "__main__":
    given = parsed()
    try:
        import faiss
    except ImportError:
        sys.exit("this comparison needs faiss: uv pip install faiss-cpu")
    torch.set_num_threads(given.threads)
    faiss.omp_set_num_threads(given.threads)
    narrowed = "yes" if narrowing_is_fast(torch.empty(0)) else "no"
    print(f"{given.rows:,} x {given.columns}, {given.clusters:,} clusters, {given.iterations} updates")
    print(f"{platform.machine()}, {given.threads} threads, torch {torch.__version__}", end=", ")
    print(f"faiss {version('faiss-cpu')}; narrowed in bfloat16: {narrowed}")
    with torch.inference_mode():
        measure(given)

"""What balanced assignments cost, against a plain Sinkhorn-Knopp, by batch and number of prototypes.

    python benchmarks/sinkhorn.py

Two comparisons, 3 iterations at epsilon 0.05 each, of scores of random unit embeddings of 128 columns:

- *in the loop*: `ops.sinkhorn` of a batch (and queue), as MSN and SwAV run it in every step;
- *data set*: `ops.assign` of a memory bank, as SeLa-v2 runs it once an epoch, scores included.

The plain form is exp(scores / epsilon), then sums over columns and rows and divisions by them, in place, in
float32 and in float64. Sides alternate in one process with the same number of threads and must agree; ratios
are those of the plain forms to belvedere's. Memory, of the largest case, is the most that a process of its
own holds above what it held before. What the plain form costs in safety is shown last: the largest
difference from log-domain float64 as epsilon falls, and where it is not finite.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from process_memory import memory_mib
from torch import Tensor

from belvedere.ops.assign import balanced_labels, balanced_shares, potentials
from belvedere.ops.sinkhorn import sinkhorn

COLUMNS = 128
EPSILON = 0.05
ITERATIONS = 3
SIZES = {
    "in the loop": ((128, 300), (4096, 300), (64, 3000), (512, 3000), (4096, 3000)),
    "data set": ((50_000, 300), (50_000, 3000)),
}
NAMES = ("belvedere", "plain float32", "plain float64")
EPSILONS = (0.05, 0.03, 0.01, 0.005, 0.001)
TOLERANCE = 1e-5
LEAST_SECONDS = 0.02
"""Of one measurement; short calls are repeated to fill it."""

Side = Callable[[], Tensor]


def unit(rows: int, *, seed: int) -> Tensor:
    return F.normalize(torch.randn(rows, COLUMNS, generator=torch.Generator().manual_seed(seed)))


def plain(logits: Tensor, iterations: int) -> Tensor:
    """The plain form of logits [B, K], which it overwrites."""
    q = logits.exp_()
    q /= q.sum()
    batch, prototypes = q.shape
    for _ in range(iterations):
        q /= q.sum(0, keepdim=True) * prototypes
        q /= q.sum(1, keepdim=True) * batch
    return q * batch


def in_log_domain(logits: Tensor, iterations: int) -> Tensor:
    """What all sides should find, in float64."""
    q = logits.double()
    for _ in range(iterations):
        q = q - q.logsumexp(0, keepdim=True)
        q = q - q.logsumexp(1, keepdim=True)
    return q.exp()


def batch_sides(rows: int, prototypes: int) -> dict[str, Side]:
    """Assignments of a batch whose scores are there, as they are in a step."""
    logits = unit(rows, seed=0) @ unit(prototypes, seed=1).T / EPSILON
    # The float64 side converts, since embeddings are float32.
    runs: tuple[Side, ...] = (
        lambda: sinkhorn(logits, ITERATIONS),
        lambda: plain(logits.clone(), ITERATIONS),
        lambda: plain(logits.double(), ITERATIONS),
    )
    return dict(zip(NAMES, runs, strict=True))


def bank_sides(rows: int, prototypes: int) -> dict[str, Side]:
    """The prototype of every embedding of a data set."""
    bank, weight = unit(rows, seed=0), unit(prototypes, seed=1)

    def ours() -> Tensor:
        v = potentials(bank, weight, epsilon=EPSILON, iterations=ITERATIONS)
        return balanced_labels(bank, weight, v, epsilon=EPSILON)

    def directly(dtype: torch.dtype) -> Tensor:
        scores = bank.to(dtype) @ weight.to(dtype).T
        return plain(scores.div_(EPSILON), ITERATIONS).argmax(1)

    runs: tuple[Side, ...] = (ours, lambda: directly(torch.float32), lambda: directly(torch.float64))
    return dict(zip(NAMES, runs, strict=True))


SIDES = {"in the loop": batch_sides, "data set": bank_sides}


# Measuring


def alternate(sides: dict[str, Side], rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of a call of each side, and its least processor time, in turns, after calls that are
    not timed. Where other work shares the machine, processor time is the fairer of the two."""
    wall: dict[str, list[float]] = {name: [] for name in sides}
    busy: dict[str, list[float]] = {name: [] for name in sides}
    repeats: dict[str, int] = {}
    for name, run in sides.items():
        run()
        before = time.perf_counter()
        run()
        repeats[name] = max(1, int(LEAST_SECONDS / (time.perf_counter() - before)))
    for _ in range(rounds):
        for name, run in sides.items():
            before, worked = time.perf_counter(), time.process_time()
            for _ in range(repeats[name]):
                run()
            wall[name].append((time.perf_counter() - before) / repeats[name])
            busy[name].append((time.process_time() - worked) / repeats[name])
    medians = {name: statistics.median(seconds) for name, seconds in wall.items()}
    return medians, {name: min(seconds) for name, seconds in busy.items()}


def check(kind: str, sides: dict[str, Side]) -> None:
    """All sides found the same."""
    found = {name: run() for name, run in sides.items()}
    for name, other in found.items():
        if kind == "in the loop":
            apart = (found["belvedere"].double() - other.double()).abs().max().item()
            assert apart < TOLERANCE, f"{name} and belvedere are {apart:.1e} apart"
        else:
            unlike = (found["belvedere"] != other).double().mean().item()
            assert unlike < 1e-4, f"{name} and belvedere give {unlike:.3%} other labels"


def peak_mib(kind: str, rows: int, prototypes: int, name: str, threads: int) -> int:
    """What a process of its own held at most above what it held before the call."""
    asked = json.dumps([kind, rows, prototypes, name])
    command = [sys.executable, str(Path(__file__).resolve()), "--memory", asked, "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def held_by(asked: str) -> int:
    """MiB above those before, of one call in this process."""
    kind, rows, prototypes, name = json.loads(asked)
    SIDES[kind](8, 4)[name]()  # what a first call loads
    run = SIDES[kind](rows, prototypes)[name]
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak so far is forgotten
    before = memory_mib("VmRSS")
    run()
    return round(memory_mib("VmHWM") - before)


def compare(kind: str, memory: dict[tuple[str, int, int], list[int]], rounds: int) -> None:
    """One table: milliseconds, ratios and memory."""
    print(f"\n{kind}: {ITERATIONS} iterations, epsilon {EPSILON}\n")
    print(
        "| rows x prototypes | belvedere | plain float32 | float64 | ratios | of processor time | MiB each |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for rows, prototypes in SIZES[kind]:
        sides = SIDES[kind](rows, prototypes)
        check(kind, sides)
        wall, busy = alternate(sides, rounds)
        times = " | ".join(f"{wall[name] * 1e3:.3g} ms" for name in sides)
        ratios = [
            ", ".join(f"{seconds[name] / seconds['belvedere']:.2f}" for name in sides if name != "belvedere")
            for seconds in (wall, busy)
        ]
        held = ", ".join(map(str, memory.get((kind, rows, prototypes), [])))
        print(f"| {rows:,} x {prototypes:,} | {times} | {' | '.join(ratios)} | {held} |", flush=True)


def safety(rows: int, prototypes: int) -> None:
    """The largest difference of assignments from those in the log domain in float64, as epsilon falls."""
    bank, weight = unit(rows, seed=0), unit(prototypes, seed=1)
    # As of a young network: all embeddings in one part of the sphere, some prototypes far from all of them.
    bank = F.normalize(bank + unit(1, seed=2))
    scores = bank @ weight.T
    print(f"\nlargest error of an assignment, {rows} x {prototypes}\n")
    names = ("belvedere", "data set", "plain float32", "plain float64")
    print(f"| epsilon | {' | '.join(names)} |\n| --- | --- | --- | --- | --- |")
    for epsilon in EPSILONS:
        right = in_log_domain(scores.double() / epsilon, ITERATIONS)
        v = potentials(bank, weight, epsilon=epsilon, iterations=ITERATIONS)
        found = (
            sinkhorn(scores / epsilon, ITERATIONS),
            balanced_shares(bank, weight, v, epsilon=epsilon),
            plain(scores / epsilon, ITERATIONS),
            plain(scores.double() / epsilon, ITERATIONS),
        )
        errors = [(q.double() - right).abs().max().item() for q in found]
        told = ["not finite" if error != error else f"{error:.0e}" for error in errors]
        print(f"| {epsilon} | {' | '.join(told)} |")
        assert all(q.isfinite().all() for q in found[:2]), "belvedere's must always be finite"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    given = parsed()
    torch.set_num_threads(given.threads)
    with torch.inference_mode():
        if given.memory:
            print(json.dumps(held_by(given.memory)))
            sys.exit()
        # First: Linux counts the parent's own peak at the start of a process as the child's.
        memory = {
            (kind, *sizes[-1]): [peak_mib(kind, *sizes[-1], name, given.threads) for name in NAMES]
            for kind, sizes in SIZES.items()
        }
        print(f"{platform.machine()}, {given.threads} threads, torch {torch.__version__}")
        for kind in SIDES:
            compare(kind, memory, given.rounds)
        safety(512, 300)

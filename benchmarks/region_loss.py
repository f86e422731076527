"""The memory and time of EsViT's region loss in chunks, against the direct form.

    python benchmarks/region_loss.py --images 16     # what users run out of memory on
    python benchmarks/region_loss.py --device cuda --images 32

Regions of 2 x 49 and 8 x 9 per image, rows of 256 columns before the last layer, features of 768. Both sides
take the same rows and matrices, compute loss and gradients in rows and in the student's last layer, and must
agree. The direct form is the loss as it is usually written: logits of all regions, a log-softmax of all of
the student's, and for each pair of crops the matched targets times those. It forms the targets of one pair at
a time; what it keeps for its backward pass it keeps for all. Peak memory is above what the inputs take: on a
CPU of a process of its own for each side, by what the system says it held at most.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from process_memory import memory_mib
from torch import Tensor

from belvedere.ops.matching import best_matches
from belvedere.ops.view_losses import Regions, region_loss

COLUMNS, WIDTH = 256, 768
RUNS = ((2, 49), (8, 9))
TEMPERATURE, TEACHER_TEMPERATURE = 0.1, 0.04
TOLERANCE = 1e-4
SIDES = ("chunks", "direct")


def inputs(images: int, prototypes: int, device: str, dtype: torch.dtype) -> tuple[Regions, Regions, Tensor]:
    """Student, teacher and center of random numbers."""
    generator = torch.Generator().manual_seed(0)

    def rows(views: int, count: int, columns: int) -> Tensor:
        made = torch.randn(views, images, count, columns, generator=generator)
        return F.normalize(made, dim=-1).to(device, dtype)

    def matrix() -> Tensor:
        return F.normalize(torch.randn(prototypes, COLUMNS, generator=generator), dim=1).to(device)

    z = [rows(views, count, COLUMNS).requires_grad_() for views, count in RUNS]
    student = Regions(z, matrix().requires_grad_(), [rows(*run, WIDTH) for run in RUNS])
    teacher = Regions([rows(*RUNS[0], COLUMNS)], matrix(), [rows(*RUNS[0], WIDTH)])
    return student, teacher, torch.zeros(1, prototypes, device=device)


def direct(student: Regions, teacher: Regions, center: Tensor) -> Tensor:
    """The region loss, written out: no chunks, no gradient but autograd's."""
    z, h = teacher.z[0], teacher.h[0]
    with torch.no_grad():
        logits = (z @ teacher.weight.to(z.dtype).T).float()
        q = ((logits - center) / TEACHER_TEMPERATURE).softmax(-1)  # [2, B, N, K]
    log_p = [
        ((run @ student.weight.to(run.dtype).T).float() / TEMPERATURE).log_softmax(-1) for run in student.z
    ]
    total, pairs, first = torch.zeros((), device=z.device), 0, 0
    for run, features in zip(log_p, student.h, strict=True):
        matches = best_matches(features, h)  # [2, V, B, N]
        for other in range(2):
            for view in (view for view in range(len(run)) if first + view != other):
                index = matches[other, view].unsqueeze(-1).expand(-1, -1, q.shape[-1])
                total = total - (q[other].gather(1, index) * run[view]).sum(-1).mean()
                pairs += 1
        first += len(run)
    return total / pairs


def step(side: str, student: Regions, teacher: Regions, center: Tensor) -> list[Tensor]:
    """The loss and its gradients."""
    if side == "direct":
        loss = direct(student, teacher, center)
    else:
        loss = region_loss(
            student,
            teacher,
            center,
            temperature=TEMPERATURE,
            teacher_temperature=TEACHER_TEMPERATURE,
        )
    return [loss.detach(), *torch.autograd.grad(loss, [*student.z, student.weight])]


def measured(side: str, args: argparse.Namespace) -> dict[str, float | list[float]]:
    """Peak bytes above the inputs', the median of the seconds, and sums that the other side must share."""
    cuda = args.device == "cuda"
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    given = inputs(args.images, args.prototypes, args.device, dtype)
    step(side, *inputs(1, 8, args.device, dtype))  # what the first call loads is not counted
    before = torch.cuda.memory_allocated() if cuda else _held()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(args.repeats):
        started = time.perf_counter()
        results = step(side, *given)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() if cuda else _held()
    sums = [float(result.double().norm()) for result in results]
    return {"bytes": float(peak - before), "seconds": statistics.median(seconds), "norms": sums}


def _held() -> int:
    """The most bytes that this process ever held in memory."""
    return round(memory_mib("VmHWM")) << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--prototypes", type=int, default=65536)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--bf16", action="store_true", help="rows as autocast leaves them")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measured(args.side, args)))
        return
    words = [sys.executable, str(Path(__file__)), *sys.argv[1:]]
    found = {}
    for side in SIDES:
        done = subprocess.run([*words, "--side", side], capture_output=True, text=True, check=True)
        found[side] = json.loads(done.stdout)
    regions = sum(views * count for views, count in RUNS) * args.images
    print(f"{platform.processor() or platform.machine()}, {args.device}, torch {torch.__version__}, ", end="")
    print(f"{torch.get_num_threads()} threads; {args.images} images, {regions} regions x {args.prototypes}")
    for side, numbers in found.items():
        print(f"{side:8} {numbers['bytes'] / 2**20:9.0f} MiB  {numbers['seconds']:7.2f} s")
    chunks, plain = found["chunks"], found["direct"]
    print(f"direct / chunks: {plain['bytes'] / chunks['bytes']:.1f} x the memory, ", end="")
    print(f"{plain['seconds'] / chunks['seconds']:.2f} x the time")
    for ours, theirs in zip(chunks["norms"], plain["norms"], strict=True):
        limit = TOLERANCE * (100 if args.bf16 else 1)
        assert abs(ours - theirs) <= limit * theirs, f"the sides differ: {ours} and {theirs}"


if __name__ == "__main__":
    main()

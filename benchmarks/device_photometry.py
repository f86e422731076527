"""Photometry and normalization on a CUDA device, of 256 images as the 12 views of msn/vits16.

    python benchmarks/device_photometry.py

The crops of every role, uint8, lie on the device; the rows that say what happens to them lie on the CPU, as
they do in a run. One round makes all views: by the fused kernels, by the torch operations, and, for what the
card can do at best, it copies a gigabyte on the device. The three take turns, their order reversed every
other round. A time is the wall clock's, from the call until the device is idle: it holds the packing of
parameters and the launches. GB/s are the bytes of the crops and of the views over that time; a copy's bytes
count twice, read and written. Both sides must have made the same bits.

Without a CUDA device nothing is measured, and it says so.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from belvedere.data.views import fused
from belvedere.data.views.draw import draw, view_key
from belvedere.data.views.photometry import normalize, photometry
from belvedere.recipe.load import load_recipe

SOURCE_PX = 500
COPY_BYTES = 1 << 30
WARM_UP_ROUNDS = 3
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Roles = list[tuple[Tensor, np.ndarray]]
"""Crops [N, 3, px, px] and rows [N, P] of each role."""


def roles(recipe, images: int, device: torch.device) -> Roles:
    """Crops of random pixels, and rows as the recipe draws them for photographs of 500 px."""
    positions, sizes = np.arange(images), np.full((images, 2), SOURCE_PX)
    made = []
    for role, view in recipe.views.items():
        rows = draw(view, view_key(recipe.seed, 0, role), positions, sizes).reshape(images * view.count, -1)
        shape = (images * view.count, 3, view.px, view.px)
        made.append((torch.randint(0, 256, shape, dtype=torch.uint8, device=device), rows))
    return made


def sides(data, made: Roles, dtype: torch.dtype) -> dict[str, Callable[[], list[Tensor]]]:
    """What is timed, by name."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=made[0][0].device)
    target = torch.empty_like(source)

    def by_kernels() -> list[Tensor]:
        return [fused.finish(crops, rows, mean=data.mean, std=data.std, dtype=dtype) for crops, rows in made]

    def by_torch() -> list[Tensor]:
        return [normalize(photometry(crops, rows), data.mean, data.std, dtype) for crops, rows in made]

    return {"fused": by_kernels, "torch": by_torch, "copy": lambda: [target.copy_(source)]}


def alternate(timed: dict[str, Callable[[], list[Tensor]]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side over `rounds` turns, after a few that are not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(WARM_UP_ROUNDS + rounds):
        for name in list(timed) if number % 2 else reversed(timed):
            torch.cuda.synchronize()
            before = time.perf_counter()
            timed[name]()
            torch.cuda.synchronize()
            if number >= WARM_UP_ROUNDS:
                seconds[name].append(time.perf_counter() - before)
    return seconds


def check_equal(timed: dict[str, Callable[[], list[Tensor]]]) -> None:
    for ours, theirs in zip(timed["fused"](), timed["torch"](), strict=True):
        different = int((ours != theirs).sum())
        assert different == 0, f"{different} of {ours.numel()} numbers differ between fused and torch"


def report(seconds: dict[str, list[float]], made: Roles, dtype: torch.dtype) -> None:
    """The table: medians, least, GB/s and the share of the copy's rate."""
    pixels = sum(crops.numel() for crops, _ in made)
    moved = dict.fromkeys(("fused", "torch"), pixels * (1 + dtype.itemsize)) | {"copy": 2 * COPY_BYTES}
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rates = {name: moved[name] / medians[name] / 1e9 for name in medians}
    views = sum(len(crops) for crops, _ in made)
    print(f"{views} views, {pixels / 1e6:.0f} MB of uint8 to {dtype}; {len(seconds['fused'])} rounds")
    print(f"{'':6s} {'median ms':>10s} {'least ms':>9s} {'GB/s':>7s} {'of copy':>8s}")
    for name, values in seconds.items():
        share = rates[name] / rates["copy"]
        print(
            f"{name:6s} {medians[name] * 1e3:10.3f} {min(values) * 1e3:9.3f} {rates[name]:7.0f} {share:8.1%}"
        )
    print(f"ratio of medians, torch to fused: {medians['torch'] / medians['fused']:.1f}")


def machine(device: torch.device) -> str:
    import triton

    return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, triton {triton.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    given = parser.parse_args()
    device, dtype = torch.device("cuda"), DTYPES[given.dtype]
    if not torch.cuda.is_available():
        print("not measured: this machine has no CUDA device")
        return
    if (reason := fused.obstacle(device, dtype)) is not None:
        print(f"not measured: {reason}")
        return
    recipe = load_recipe("msn/vits16", ["data.path=digits"])
    made = roles(recipe, given.images, device)
    timed = sides(recipe.data, made, dtype)
    print(machine(device))
    check_equal(timed)
    torch.cuda.reset_peak_memory_stats()
    seconds = alternate(timed, given.rounds)
    report(seconds, made, dtype)
    print(
        f"peak memory, crops and the copy's buffers included: {torch.cuda.max_memory_allocated() >> 20} MiB"
    )


if __name__ == "__main__":
    main()

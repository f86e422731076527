"""Backbones against other implementations of the same networks: forward, and forward with backward.

    uv pip install timm      # for Swin's rows only; belvedere does not use it
    python benchmarks/backbones.py
    python benchmarks/backbones.py --pairs swin_tiny --precision bf16 --threads 2

Each pair of networks has the same weights, sees the same images and takes turns in one process. The forward
pass is that of evaluation, without gradient; the training step is a forward pass in train mode, without drop
path, and the backward pass of the mean of the squared features (an optimizer costs both the same and is left
out). Where a pair computes the same function its features must agree. Peak memory is that of a process of its
own for each side and size, on a CUDA device that of the allocator.

timm's Swin is built for 224 px with `strict_img_size=False`, which keeps its windows at 96 px; there it rolls
maps before it pads them, so that its features are others, for as much work. CvT and ViL (all nine chunks) are
compared with the plain implementations of `backbones_plain.py`.
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
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from backbones_plain import PlainCvT, PlainViL
from process_memory import memory_mib
from torch import Tensor, nn

from belvedere.engine.precision import networks
from belvedere.nn.build import build
from belvedere.nn.spec import CvTSpec, ViLSpec
from belvedere.nn.spec.cvt import cvt_spec
from belvedere.nn.spec.swin import swin_spec
from belvedere.nn.spec.vil import vil_spec
from belvedere.zoo.convert.swin import swin_state

PIXELS = {224: 8, 96: 32}
"""Image sides, and how many images of each are a batch: about as many pixels."""
TOLERANCE = {"float32": 1e-4, "bf16": 0.1}
"""How far features that should agree may be apart, in units of their standard deviation."""

Taken = dict[str, dict[str, list[tuple[float, float]]]]
"""By kind of pass and side: seconds and processor seconds of each turn."""


@dataclass(frozen=True)
class Pair:
    """Two implementations of a network. build: ours, and the other one, which gives the pooled features, with
    the same weights; agree: the image sides at which both compute the same."""

    name: str
    other: str
    build: Callable[[], tuple[nn.Module, nn.Module]]
    agree: tuple[int, ...]


def swin_and_timm() -> tuple[nn.Module, nn.Module]:
    try:
        import timm
    except ImportError:
        sys.exit("Swin is compared with timm's: uv pip install timm")
    theirs = timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=0, drop_path_rate=0.0, strict_img_size=False
    )
    for module in theirs.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    ours = build(swin_spec("swin_tiny", drop_path=0.0))
    ours.initialize_(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    ours.load_state_dict(swin_state(theirs.state_dict())[0], strict=True)
    return ours, theirs


def beside_plain(spec: CvTSpec | ViLSpec, other: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A network drawn by its spec, and the plain one with its weights."""
    ours = build(spec)
    ours.initialize_(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    other.load_state_dict(ours.state_dict(), strict=True)
    return ours, other


def cvt_and_plain() -> tuple[nn.Module, nn.Module]:
    spec = cvt_spec("cvt_tiny", drop_path=0.0)
    return beside_plain(spec, PlainCvT(spec))


def vil_and_plain() -> tuple[nn.Module, nn.Module]:
    spec = vil_spec("vil_2262", mode=0)
    return beside_plain(spec, PlainViL(spec))


PAIRS = (
    Pair("swin_tiny", "timm", swin_and_timm, agree=(224,)),
    Pair("cvt_tiny", "plain", cvt_and_plain, agree=(224, 96)),
    Pair("vil_2262", "plain", vil_and_plain, agree=(224, 96)),
)
"""What is compared. A pair more is a line here and a function that builds it."""


class Side:
    """One network of a pair on a device, as a forward pass and as a training step."""

    def __init__(self, network: nn.Module, given: argparse.Namespace) -> None:
        self.network, self.device, self.precision = network.to(given.device), given.device, given.precision
        if given.compile:
            self.network.compile()

    def pooled(self, images: Tensor) -> Tensor:
        with networks(self.precision, images.device):
            output = self.network(images)
        return getattr(output, "pooled", output)

    def forward(self, images: Tensor) -> Tensor:
        self.network.eval()
        with torch.no_grad():
            return self.pooled(images)

    def train(self, images: Tensor) -> None:
        self.network.train()
        self.network.zero_grad(set_to_none=True)
        self.pooled(images).float().square().mean().backward()


def sides(pair: Pair, given: argparse.Namespace) -> dict[str, Side]:
    ours, other = pair.build()
    return {"belvedere": Side(ours, given), pair.other: Side(other, given)}


def batch(px: int, given: argparse.Namespace) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(max(1, PIXELS[px] * given.images // 8), 3, px, px, generator=generator).to(
        given.device
    )


def seconds(call: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """How long a call took, and how much processor time, which other work on the machine disturbs less."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    before, worked = time.perf_counter(), time.process_time()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - before, time.process_time() - worked


def check_agreement(pair: Pair, px: int, both: dict[str, Side], given: argparse.Namespace) -> str:
    """Words on how far the features of both are apart; stops where they should agree and do not."""
    if px not in pair.agree:
        return "other features by design"
    ours, theirs = (side.forward(batch(px, given)[:2]).double() for side in both.values())
    apart = ((ours - theirs).abs().max() / theirs.std()).item()
    assert apart < TOLERANCE[given.precision], f"{pair.name} at {px} px: features are {apart:.2g} apart"
    return f"features at most {apart:.1g} apart"


def alternate(both: dict[str, Side], px: int, given: argparse.Namespace) -> Taken:
    """Seconds of each kind of pass and side, in turns, after one of each that is not timed."""
    images = batch(px, given)
    calls = {
        kind: {name: partial(getattr(side, kind), images) for name, side in both.items()}
        for kind in ("forward", "train")
    }
    taken = {kind: {name: [] for name in both} for kind in calls}
    for turn in range(given.rounds + 1):
        for kind, by_side in calls.items():
            for name, call in by_side.items():
                elapsed = seconds(call, given.device)
                if turn:
                    taken[kind][name].append(elapsed)
    return taken


def peak_mib(pair: Pair, side: str, kind: str, px: int) -> int:
    """The most memory a process of its own held over two passes of one side."""
    command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:]]
    command += ["--memory", pair.name, side, kind, str(px)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_memory(given: argparse.Namespace) -> int:
    name, side, kind, px = given.memory
    (pair,) = (pair for pair in PAIRS if pair.name == name)
    both = sides(pair, given)
    network = both.pop(side)
    both.clear()
    images = batch(int(px), given)
    if given.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        getattr(network, kind)(images)
    if given.device.type == "cuda":
        return torch.cuda.max_memory_allocated() >> 20
    return round(memory_mib("VmHWM"))


def report(pair: Pair, px: int, given: argparse.Namespace) -> None:
    kinds, names = ("forward", "train"), ("belvedere", pair.other)
    memory = {
        (kind, name): "" if given.no_memory else f"{peak_mib(pair, name, kind, px)} MiB"
        for kind in kinds
        for name in names
    }
    both = sides(pair, given)
    agreement = check_agreement(pair, px, both, given)
    taken = alternate(both, px, given)
    print(f"\n{pair.name}, {len(batch(px, given))} images of {px} px, {given.precision}: {agreement}\n")
    print("| | median | least | processor time, least | peak memory |\n| --- | --- | --- | --- | --- |")
    for kind in kinds:
        found = {name: _summary(taken[kind][name]) for name in names}
        for name, (median, least, worked) in found.items():
            times = f"{median:.3f} s | {least:.3f} s | {worked:.3f} s"
            print(f"| {kind}, {name} | {times} | {memory[kind, name]} |")
        ours, theirs = found.values()
        ratios = " | ".join(f"{b / a:.2f}" for a, b in zip(ours, theirs, strict=True))
        print(f"| {pair.other} / belvedere | {ratios} | |")


def _summary(turns: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Median and least seconds, and the least processor seconds."""
    wall, worked = zip(*turns, strict=True)
    return statistics.median(wall), min(wall), min(worked)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [pair.name for pair in PAIRS]
    parser.add_argument("--pairs", nargs="+", choices=names, default=names)
    parser.add_argument("--px", nargs="+", type=int, choices=list(PIXELS), default=list(PIXELS))
    parser.add_argument("--images", type=int, default=8, help="a batch at 224 px; four times as many at 96")
    parser.add_argument("--precision", choices=list(TOLERANCE), default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--compile", action="store_true", help="torch.compile for both sides")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    parser.add_argument("--memory", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = parsed()
    torch.set_num_threads(given.threads)
    if given.memory:
        print(json.dumps(measure_memory(given)))
        return
    name = torch.cuda.get_device_name() if given.device.type == "cuda" else platform.machine()
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"{name}, {given.threads} threads, {capability}, torch {torch.__version__}")
    for pair in PAIRS:
        if pair.name in given.pairs:
            for px in given.px:
                report(pair, px, given)


if __name__ == "__main__":
    main()

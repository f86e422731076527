"""Everything about a GPU in one command: first whether it computes the right numbers, then how fast.

    python benchmarks/gpu.py --json gpu.json          # at most 8 minutes on one card, no network
    python benchmarks/gpu.py --only msn,features      # some parts of it
    python benchmarks/gpu.py --tiny --device cpu      # tries the script itself where there is no card
    python benchmarks/gpu_rows.py gpu.json            # writes the figures into docs/results.md

Parts run one after another, each in a process of its own with a limit of its own, in this order: `build`,
`kernels` (every test marked gpu of the renderer), `golden` (losses and trajectories of the authors' code, on
the card), `contract` (equal runs, resume, micro-batches, on the card), `renderer` (views of the published
recipes against the CPU's bytes), `msn`, `esvit`, `swav`, `mugs` (a training step at the published batch per
GPU), `features`, `waiting` (for data), `photometry`, `kmeans`. A part that fails is recorded with its reason,
and the next one begins; a part for which no time is left is recorded as not run. The exit status is 1 if a
part failed.

It needs torch, what belvedere needs and pytest; `features` also timm and transformers, and says so where they
are missing. Nothing is installed or fetched.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
for place in (ROOT / "src", ROOT / "benchmarks"):
    sys.path.insert(0, str(place))
MINUTES = 8.0
SOURCE_PX = 500
TINY_PATIENCE = 10
"""A CPU that does other things besides is given this many times a part's limit."""
SHORTEST_S = 15.0
"""A part that has less time left than this is not begun."""

Result = dict[str, Any]


@dataclass(frozen=True)
class Where:
    """device: `cuda` or `cpu`; tiny: sizes that try the script and measure nothing."""

    device: str
    tiny: bool


# Correctness


def build(where: Where) -> Result:
    """Build the CPU's renderer in place, as an installation does: without it views are made more slowly."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    from belvedere.data.views import native

    told = "native" if native.available() else f"portable: {(done.stderr or done.stdout).strip()[-300:]}"
    return {"ok": True, "renderer": told}


def run_tests(where: Where, *paths: str, select: str = "", marks: str = "") -> Result:
    """Run tests in a process of pytest; counts, and the names of those that failed with their last line."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-o",
            "addopts=",
            "--tb=short",
            "-p",
            "no:cacheprovider",
        ]
        command += [
            f"--junitxml={report}",
            *(["-m", marks] if marks else []),
            *(["-k", select] if select else []),
        ]
        command += [str(ROOT / path) for path in paths]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
            "BELVEDERE_TEST_DEVICE": where.device,
            "NVIDIA_TF32_OVERRIDE": "0",  # recorded numbers are float32, convolutions included
        }
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if not report.exists():
            return {"ok": False, "error": (done.stdout + done.stderr)[-1500:]}
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failed = {
        case.get("name", "?"): bad[0].get("message", "")[:300]
        for case in cases
        if (bad := [*case.findall("failure"), *case.findall("error")])
    }
    skipped = sum(case.find("skipped") is not None for case in cases)
    passed = len(cases) - len(failed) - skipped
    return {"ok": passed > 0 and not failed, "passed": passed, "skipped": skipped, "failed": failed}


def kernels(where: Where) -> Result:
    """Every test marked gpu of views and kernels; on a CPU there is none that could run."""
    if where.device == "cpu":
        return {"ok": True, "not_measured": "these tests need a CUDA device"}
    return run_tests(where, "tests/unit", marks="gpu")


def golden(where: Where) -> Result:
    """The authors' losses, and a training run of each method."""
    kinds = "sinkhorn or msn_train" if where.tiny else "loss or trajectory or train or infonce or clusters"
    return run_tests(where, "tests/golden", select=kinds)


def contract(where: Where) -> Result:
    """Two equal runs, resume in the middle, micro-batches, one step against the CPU's."""
    return run_tests(where, "tests/contract/test_device.py", marks="gpu", select="msn" if where.tiny else "")


def renderer(where: Where) -> Result:
    """Views of the published recipes, rendered there and on the CPU: how many numbers differ."""
    import numpy as np
    import torch

    from belvedere.data.views.draw import draw, view_key
    from belvedere.data.views.render import finish
    from belvedere.recipe.load import load_recipe

    device, images = torch.device(where.device), 2 if where.tiny else 32
    positions, sizes = np.arange(images), np.full((images, 2), SOURCE_PX)
    found: Result = {}
    for name in ("msn/vits16", "swav/rn50-800ep", "esvit/swin-tiny-w7", "mugs/vits16-100ep"):
        recipe = load_recipe(name, ["data.path=digits"])
        different = 0
        for role, view in recipe.views.items():
            rows = draw(view, view_key(recipe.seed, 0, role), positions, sizes)  # [B, V, P]
            crops = torch.randint(0, 256, (view.count, images, 3, view.px, view.px), dtype=torch.uint8)
            here = finish(crops.clone(), rows, data=recipe.data, dtype=torch.float32)
            there = finish(crops.to(device), rows, data=recipe.data, dtype=torch.float32)
            different += int((here != there.cpu()).sum())
        found[name] = different
    return {"ok": not any(found.values()), "different": found}


# A training step


STEPS = {
    "msn": ("msn/vits16", 64),
    "esvit": ("esvit/swin-tiny-w7", 32),
    "swav": ("swav/rn50-800ep", 64),
    "mugs": ("mugs/vits16-100ep", 64),
}
"""The recipe, and the published run's images per GPU: 16 x 64, 16 x 32, 64 x 64 and 8 x 64."""


def training_step(where: Where, method: str) -> Result:
    """Seconds, images per second, memory and arithmetic of a whole step over views that are there already."""
    import torch

    name, rows = STEPS[method]
    recipe_name = f"tiny/{method}" if where.tiny else name
    rows = 8 if where.tiny else rows
    step, recipe = prepared_step(recipe_name, rows, where)
    flops = counted_flops(step)
    timed = seconds_of(step, rounds=rounds(where, 20), warm_up=rounds(where, 5))
    result: Result = {
        "ok": True,
        "recipe": recipe_name,
        "images": rows,
        "precision": recipe.train.precision,
        "seconds": timed,
        "images_per_s": rows / timed,
        "tflop_per_step": flops / 1e12,
    }
    if where.device == "cuda":
        result["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    result |= bf16_share(flops / timed, where)
    if method == "msn":
        result |= against_plain(recipe, timed, where)
    return result


def prepared_step(name: str, rows: int, where: Where) -> tuple[Callable[[], float], Any]:
    """A call that takes one step of the real loop and returns its loss; and the recipe."""
    import torch

    from belvedere.engine.parallel import Spread, prepare_
    from belvedere.engine.precision import parameter_dtype
    from belvedere.optim.groups import build_optimizer
    from belvedere.recipe.load import load_recipe
    from belvedere.recipe.plan import plan
    from belvedere.train.loop import steps
    from belvedere.train.session import build_method

    device = torch.device(where.device)
    recipe = load_recipe(
        name, ["data.path=digits", f"train.global_batch={rows}", f"run.device={where.device}"]
    )
    laid_out = plan(recipe, num_images=1_281_167, world_size=1, device=where.device)
    method = build_method(recipe)
    method.allocate(laid_out.extent)
    prepare_(method, device=device, dtype=parameter_dtype(recipe.train.precision))
    spread = Spread(method, device=device, precision=recipe.train.precision, seed=recipe.seed)
    optimizer = build_optimizer(method.groups(), recipe.optim)
    run = steps(method, optimizer, repeated(recipe, rows, device), laid_out, spread)
    return lambda: float(next(run).losses.total), recipe


def repeated(recipe: Any, rows: int, device: Any) -> Any:
    """One batch of noise at the recipe's sizes, again and again."""
    import torch

    from belvedere.data.batch import Batch

    generator = torch.Generator().manual_seed(0)
    views = {
        role: torch.randn(view.count, rows, 3, view.px, view.px, generator=generator).to(device)
        for role, view in recipe.views.items()
    }
    weak = torch.arange(rows, device=device) % 2 == 0
    strong = any(view.strong is not None and view.strong.coin == "image" for view in recipe.views.values())
    while True:
        yield Batch(
            dict(views),
            torch.arange(rows, device=device),
            torch.full((rows,), -1, device=device),
            range(rows),
            flags={"weak": weak} if strong else {},
        )


def rounds(where: Where, wanted: int) -> int:
    """How often something is timed."""
    return 1 if where.tiny else wanted


def wait(device: str) -> None:
    """Until the device is idle."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def seconds_of(step: Callable[[], object], *, rounds: int, warm_up: int) -> float:
    """The median of a call's seconds; each call ends in a read of the device, so nothing is left to do."""
    taken = []
    for number in range(warm_up + rounds):
        before = time.perf_counter()
        step()
        if number >= warm_up:
            taken.append(time.perf_counter() - before)
    return sorted(taken)[len(taken) // 2]


def counted_flops(step: Callable[[], object]) -> float:
    """Multiplications and additions of one call: matrix products, convolutions and attention."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def bf16_share(flops_per_s: float, where: Where) -> Result:
    """What share that is of the rate at which this card multiplies large bfloat16 matrices, measured now."""
    import torch

    side = 256 if where.tiny else 8192
    a, b = (torch.randn(side, side, device=where.device, dtype=torch.bfloat16) for _ in range(2))

    def multiply() -> None:
        a @ b
        wait(where.device)

    rate = 2 * side**3 / seconds_of(multiply, rounds=rounds(where, 10), warm_up=5)
    return {"bf16_tflop_per_s": rate / 1e12, "bf16_share": flops_per_s / rate}


def against_plain(recipe: Any, ours: float, where: Where) -> Result:
    """The plain step of `msn_step.py` on the same device under bfloat16 autocast and in float32."""
    import msn_step
    import torch

    from belvedere.recipe.plan import plan
    from belvedere.train.session import build_method

    laid_out = plan(recipe, num_images=msn_step.IMAGENET_IMAGES, world_size=1, device=where.device)
    rows, device = recipe.train.global_batch, torch.device(where.device)
    patches = (recipe.views["anchor"].px // recipe.backbone.patch_px) ** 2
    order = torch.randperm(patches, generator=torch.Generator().manual_seed(0)).to(device)
    batch = next(repeated(recipe, rows, device))
    batch.draws = {"patch_order": order}
    found = {}
    for precision in ("bf16", "float32"):
        plain = msn_step.PlainStep(build_method(recipe), laid_out)
        for network in (plain.student, plain.teacher):
            network.to(device)
        plain.prototypes.data = plain.prototypes.data.to(device)
        step = partial(plain, batch, 0)
        with torch.autocast(where.device, torch.bfloat16, enabled=precision == "bf16"):
            found[precision] = seconds_of(step, rounds=rounds(where, 8), warm_up=3)
    return {"plain_seconds": found, "times_plain_bf16": found["bf16"] / ours}


# Features, data, clustering


def features(where: Where) -> Result:
    """Images per second of a ViT-B/16's features against timm's and transformers', in turns."""
    try:
        import timm  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        return {"ok": True, "not_measured": f"{error.name} is not installed"}
    import inference
    import torch

    batches = [1] if where.tiny else [64, 256]
    given = argparse.Namespace(
        batches=batches,
        precision=["float32"] if where.tiny else ["bf16", "float32"],
        autocast=False,
        rounds=rounds(where, 10),
    )
    cells = inference.measure(given, torch.device(where.device))
    return {"ok": True, "cells": cells}


def waiting(where: Where) -> Result:
    """The share of a training run's time that the device waits for data, by loader workers."""
    import torch
    import views

    found: Result = {}
    with tempfile.TemporaryDirectory() as folder:
        views.save_photographs(Path(folder), 32 if where.tiny else 2048)
        for workers in (0, 2) if where.tiny else (2, 8, 16):
            found[str(workers)] = waited(Path(folder), workers, where)
            if where.device == "cuda":
                torch.cuda.empty_cache()
    return {"ok": True, "cpus": os.cpu_count(), "workers": found}


def waited(images: Path, workers: int, where: Where) -> Result:
    """Steps of a real run, files included: images per second, and the share of the time spent waiting."""
    import torch

    from belvedere.recipe.load import load_recipe
    from belvedere.train.loop import steps
    from belvedere.train.run import open_session

    name, rows = ("tiny/msn", 8) if where.tiny else STEPS["msn"]
    overrides = [
        f"data.path={images}",
        "data.split=null",
        f"train.global_batch={rows}",
        f"run.workers={workers}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        overrides += [f"run.dir={folder}/run", f"run.device={where.device}"]
        run = open_session(load_recipe(name, overrides), torch.device(where.device))
        warm_up, counted = (1, 2) if where.tiny else (8, 50)
        with run.loader() as loader:
            reports = steps(run.method, run.optimizer, loader, run.plan, run.spread)
            for _ in range(warm_up):
                next(reports)
            wait(where.device)
            before, spent = loader.waited_s, time.perf_counter()
            for _ in range(counted):
                next(reports)
            wait(where.device)
            seconds = time.perf_counter() - spent
    return {"images_per_s": counted * rows / seconds, "waiting": (loader.waited_s - before) / seconds}


def photometry(where: Where) -> Result:
    """Photometry of 256 x 12 views by the fused kernels, by torch, and the card's copy rate."""
    import device_photometry
    import torch

    from belvedere.data.views import fused
    from belvedere.recipe.load import load_recipe

    device = torch.device(where.device)
    if (reason := fused.obstacle(device, torch.float32)) is not None:
        return {"ok": where.device == "cpu", "not_measured": reason}
    recipe = load_recipe("msn/vits16", ["data.path=digits"])
    made = device_photometry.roles(recipe, 256, device)
    timed = device_photometry.sides(recipe.data, made, torch.float32)
    device_photometry.check_equal(timed)
    seconds = device_photometry.alternate(timed, 20)
    medians = {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}
    moved = sum(crops.numel() for crops, _ in made) * (1 + torch.float32.itemsize)
    rates = {"fused": moved / medians["fused"], "copy": 2 * device_photometry.COPY_BYTES / medians["copy"]}
    return {
        "ok": True,
        "seconds": medians,
        "gb_per_s": {name: rate / 1e9 for name, rate in rates.items()},
        "times_torch": medians["torch"] / medians["fused"],
    }


def kmeans(where: Where) -> Result:
    """DeepCluster-v2's clustering, on the device and of as many embeddings as ImageNet has images."""
    import kmeans as benchmark
    import torch

    from belvedere.ops.kmeans import cluster

    rows, columns, clusters = (2_000, 16, 20) if where.tiny else (1_281_167, 128, 3000)
    bank = benchmark.embeddings(rows, columns, clusters).to(where.device)
    start = torch.randperm(rows, generator=torch.Generator().manual_seed(1))[:clusters].to(where.device)
    kept: list[Any] = []

    def run() -> None:
        kept[:] = [cluster(bank, start=start, iterations=10)]
        wait(where.device)

    with torch.inference_mode():
        seconds = seconds_of(run, rounds=rounds(where, 3), warm_up=1)
        inertia = benchmark.inertia(bank, kept[0])
    return {
        "ok": True,
        "rows": rows,
        "columns": columns,
        "clusters": clusters,
        "seconds": seconds,
        "inertia": inertia,
    }


# Running the parts


PARTS: dict[str, tuple[Callable[[Where], Result], float]] = {
    "build": (build, 60),
    "kernels": (kernels, 120),
    "golden": (golden, 100),
    "contract": (contract, 100),
    "renderer": (renderer, 60),
    "msn": (lambda where: training_step(where, "msn"), 75),
    "esvit": (lambda where: training_step(where, "esvit"), 60),
    "swav": (lambda where: training_step(where, "swav"), 60),
    "mugs": (lambda where: training_step(where, "mugs"), 60),
    "features": (features, 60),
    "waiting": (waiting, 90),
    "photometry": (photometry, 45),
    "kmeans": (kmeans, 45),
}
"""What runs, in order, and after how many seconds it is stopped."""


def one_part(name: str, where: Where) -> Result:
    """A part in this process; a failure of any kind is its result."""
    try:
        return PARTS[name][0](where)
    except Exception as error:  # whatever it is, the next part has to run
        return {
            "ok": False,
            "error": f"{type(error).__name__}: {error}",
            "trace": traceback.format_exc()[-1500:],
        }


def in_a_process(name: str, where: Where, limit_s: float) -> Result:
    """A part in a process of its own, stopped after `limit_s` seconds."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, str(Path(__file__).resolve()), "--part", name, "--answer", str(answer)]
        command += ["--device", where.device, *(["--tiny"] if where.tiny else [])]
        environment = os.environ | {"BELVEDERE_CACHE": f"{folder}/cache"}
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                timeout=limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"ok": False, "error": f"stopped after {limit_s:.0f} s"}
        if not answer.exists():
            return {"ok": False, "error": f"ended with status {done.returncode}: {done.stderr[-1500:]}"}
        return dict(json.loads(answer.read_text()))


def machine(device: str) -> Result:
    """What the figures belong to."""
    import torch

    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    card = torch.cuda.get_device_name() if device == "cuda" else "none: the CPU"
    return {
        "card": card,
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
        "commit": commit.stdout.strip() or "unknown",
        "date": datetime.date.today().isoformat(),
    }


def run_all(names: list[str], where: Where, *, minutes: float) -> Result:
    """All parts within the time, each result told as it comes."""
    end = time.monotonic() + 60 * minutes
    parts: Result = {}
    for name in names:
        left = end - time.monotonic()
        if left < SHORTEST_S:
            parts[name] = {"ok": False, "not_run": f"the {minutes:g} minutes were used up"}
        else:
            started = time.monotonic()
            parts[name] = in_a_process(
                name, where, min(PARTS[name][1] * (TINY_PATIENCE if where.tiny else 1), left)
            )
            parts[name]["part_seconds"] = round(time.monotonic() - started, 1)
        print(f"{name:11s} {told(parts[name])}", flush=True)
    return parts


def told(result: Result) -> str:
    """A part's result in a line."""
    state = "ok    " if result["ok"] else "FAILED"
    shown = {name: value for name, value in result.items() if name not in ("ok", "trace")}
    return f"{state} {json.dumps(shown, default=str)[:400]}"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="parts, separated by commas")
    parser.add_argument("--minutes", type=float, help=f"for all parts together (default: {MINUTES:g})")
    parser.add_argument("--json", type=Path, help="write everything here, after every part")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that try the script and measure nothing")
    parser.add_argument("--part", choices=tuple(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    unknown = set(given.only.split(",")) - set(PARTS) if given.only else set()
    if unknown:
        parser.error(f"--only: there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return given


def main() -> int:
    given = parsed()
    where = Where(given.device, given.tiny)
    if given.part:
        given.answer.write_text(json.dumps(one_part(given.part, where), default=str))
        return 0
    import torch

    if where.device == "cuda" and not torch.cuda.is_available():
        print("not measured: torch sees no CUDA device here; --tiny --device cpu tries the script itself")
        return 1
    found: Result = {"machine": machine(where.device), "tiny": where.tiny}
    print(json.dumps(found["machine"]))
    names = [name for name in PARTS if given.only is None or name in given.only.split(",")]
    minutes = given.minutes or MINUTES * (TINY_PATIENCE if where.tiny else 1)
    found["parts"] = run_all(names, where, minutes=minutes)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if all(part["ok"] for part in found["parts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())

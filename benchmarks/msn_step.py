"""One optimization step of msn/vits16 on a CPU, belvedere's against a plain one.

    python benchmarks/msn_step.py

The step: 8 images, each as 1 target and 1 anchor of 224 px and 10 focal views of 96 px; both networks, the
loss, the backward pass, clipping, AdamW and the teacher's average. The plain step is written out below the
usual way: float32, `nn` modules, `scaled_dot_product_attention`, one pass per resolution, a loop over the
parameters for the average, the optimizer as torch gives it. It drops patches before the blocks and computes
nothing twice. Belvedere's is the recipe through `train.loop.steps`, as `belvedere pretrain` runs it.

Both start from the same weights and see the same images and patch orders; their losses must agree. They
alternate in one process. Peak memory is that of a process which does nothing else, one for each.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from process_memory import memory_mib
from torch import Tensor, nn

from belvedere.data.batch import Batch
from belvedere.engine.parallel import Spread, prepare_
from belvedere.engine.precision import parameter_dtype
from belvedere.methods.msn import MSN
from belvedere.optim.groups import build_optimizer
from belvedere.recipe.load import load_recipe
from belvedere.recipe.plan import Plan, plan
from belvedere.train.loop import steps
from belvedere.train.session import build_method

IMAGENET_IMAGES = 1_281_167
LOSS_TOLERANCE = 0.01
"""Relative, bfloat16 networks against float32 ones; bfloat16 rounds to 0.4 %."""


# The plain step


class PlainBlock(nn.Module):
    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.attn["qkv"](self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.attn["proj"](mixed)
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class PlainEncoder(nn.Module):
    """Backbone and head under the names of belvedere's `Encoder`, so that one loads the other's weights."""

    def __init__(self, recipe) -> None:
        super().__init__()
        vit, head = recipe.backbone, recipe.method.head
        side = vit.image_px // vit.patch_px
        self.backbone = nn.Module()
        self.backbone.patch_embed = nn.ModuleDict(
            {"proj": nn.Conv2d(3, vit.width, vit.patch_px, vit.patch_px)}
        )
        self.backbone.cls_token = nn.Parameter(torch.zeros(1, 1, vit.width))
        self.backbone.pos_embed = nn.Parameter(torch.zeros(1, side * side + 1, vit.width))
        blocks = [PlainBlock(vit.width, vit.heads, vit.mlp_ratio) for _ in range(vit.depth)]
        self.backbone.blocks = nn.Sequential(*blocks)
        self.backbone.norm = nn.LayerNorm(vit.width, eps=1e-6)
        self.head = nn.Sequential()
        for name, layer in (
            ("fc1", nn.Linear(vit.width, head.hidden)),
            ("bn1", nn.BatchNorm1d(head.hidden)),
            ("gelu1", nn.GELU()),
            ("fc2", nn.Linear(head.hidden, head.hidden)),
            ("bn2", nn.BatchNorm1d(head.hidden)),
            ("gelu2", nn.GELU()),
            ("fc3", nn.Linear(head.hidden, head.out)),
        ):
            self.head.add_module(name, layer)

    def position(self, patches: int) -> Tensor:
        table = self.backbone.pos_embed
        if table.shape[1] - 1 == patches:
            return table
        old, new = math.isqrt(table.shape[1] - 1), math.isqrt(patches)
        square = table[:, 1:].unflatten(1, (old, old)).permute(0, 3, 1, 2)
        resized = F.interpolate(square, size=(new, new), mode="bicubic")
        return torch.cat([table[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        patches = self.backbone.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        x = torch.cat([self.backbone.cls_token.expand(len(images), -1, -1), patches], dim=1)
        x = x + self.position(patches.shape[1])
        if keep is not None:
            x = torch.cat([x[:, :1], x[:, 1:][:, keep]], dim=1)
        return self.head(self.backbone.norm(self.backbone.blocks(x))[:, 0])


def sinkhorn(p: Tensor, iterations: int) -> Tensor:
    q = p.T / p.sum()
    prototypes, batch = q.shape
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / prototypes
        q = q / q.sum(0, keepdim=True) / batch
    return (q * batch).T


class PlainStep:
    """Student, teacher, prototypes and the optimizer; a call is one step and returns its loss."""

    def __init__(self, like: MSN, laid_out: Plan) -> None:
        self.plan, self.options, recipe = laid_out, like.options, laid_out.recipe
        self.student, self.teacher = PlainEncoder(recipe), PlainEncoder(recipe)
        for mine, other in ((self.student, like.student), (self.teacher, like.teacher)):
            mine.load_state_dict(other.state_dict(), strict=True)
        self.teacher.requires_grad_(False)
        self.prototypes = nn.Parameter(like.prototypes.detach().clone())
        named = list(self.student.named_parameters())
        plain = [p for name, p in named if p.ndim == 1 or "bias" in name or "bn" in name]
        decayed = [p for _, p in named if all(p is not other for other in plain)]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed}, {"params": plain}, {"params": [self.prototypes]}],
            betas=recipe.optim.betas,
            eps=recipe.optim.eps,
        )

    def predictions(self, z: Tensor) -> Tensor:
        cosine = F.normalize(z) @ F.normalize(self.prototypes).T
        return (cosine / self.options.temperature).softmax(1)

    def loss(self, batch: Batch, sharpen: float) -> Tensor:
        order = batch.draws["patch_order"]
        keep = order[: int(len(order) * (1 - self.options.patch_drop))]
        with torch.no_grad():
            target = self.predictions(self.teacher(batch.views["target"].flatten(0, 1))) ** (1 / sharpen)
            target = sinkhorn(target / target.sum(1, keepdim=True), self.options.sinkhorn_iterations)
        z = [self.student(batch.views["anchor"].flatten(0, 1), keep)]
        z.append(self.student(batch.views["focal"].flatten(0, 1)))
        p = self.predictions(torch.cat(z))
        cross_entropy = -(target.repeat(len(p) // len(target), 1) * p.log()).sum(1).mean()
        mean = p.mean(0)
        me_max = math.log(len(mean)) + (mean * mean.log()).sum()
        return cross_entropy + self.options.memax_weight * me_max

    def __call__(self, batch: Batch, step: int) -> float:
        progress = step / self.plan.clock(step).schedule_steps
        sharpen, momentum = self.options.sharpen, self.options.momentum
        self.optimizer.zero_grad()
        loss = self.loss(batch, sharpen.start + progress * (sharpen.final - sharpen.start))
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), self.plan.recipe.optim.clip.norm)
        for number, group in enumerate(self.optimizer.param_groups):
            group["lr"] = self.plan.lr(step)
            group["weight_decay"] = self.plan.weight_decay(step) if number == 0 else 0.0
        self.optimizer.step()
        old = momentum.start + progress * (momentum.final - momentum.start)
        with torch.no_grad():
            for mine, other in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                mine.mul_(old).add_(other, alpha=1 - old)
        return loss.item()


# Belvedere's step


def belvedere_step(method: MSN, laid_out: Plan, batches: Iterator[Batch]) -> Iterator[float]:
    """The training loop over `batches`; each loss is read, so that nothing of the step is left to do."""
    recipe, device = laid_out.recipe, torch.device("cpu")
    precision = recipe.train.precision
    prepare_(method, device=device, dtype=parameter_dtype(precision))
    if recipe.run.compile:
        for encoder in (method.student, method.teacher):
            encoder.backbone.compile()
    spread = Spread(method, device=device, precision=precision, seed=recipe.seed)
    optimizer = build_optimizer(method.groups(), recipe.optim)
    for report in steps(method, optimizer, batches, laid_out, spread):
        yield float(report.losses.total)


def prepared_batches(recipe, count: int) -> list[Batch]:
    """Views of noise at the recipe's sizes, ready before anything is timed."""
    generator = torch.Generator().manual_seed(0)
    rows = recipe.train.global_batch
    patches = (recipe.views["anchor"].px // recipe.backbone.patch_px) ** 2

    def one() -> Batch:
        views = {
            role: torch.randn(view.count, rows, 3, view.px, view.px, generator=generator)
            for role, view in recipe.views.items()
        }
        order = torch.randperm(patches, generator=generator)
        none = torch.full((rows,), -1)
        return Batch(views, torch.arange(rows), none, range(rows), draws={"patch_order": order})

    return [one() for _ in range(count)]


# Measuring


def both(recipe, count: int) -> dict[str, Callable[[], float]]:
    """The two steps by name, made ready over the same batches. Neither holds anything until it is built."""
    laid_out = plan(recipe, num_images=IMAGENET_IMAGES, world_size=1, device="cpu")
    batches = prepared_batches(recipe, count)

    def plain() -> Callable[[], float]:
        step, numbers = PlainStep(build_method(recipe), laid_out), iter(range(count))
        return lambda: step(batches[number := next(numbers)], number)

    def ours() -> Callable[[], float]:
        run = belvedere_step(build_method(recipe), laid_out, iter(batches))
        return lambda: next(run)

    return {"plain": plain, "belvedere": ours}


def alternate(recipe, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds and losses of `rounds` steps of each, in turns, after one of each that is not timed."""
    sides = {name: build() for name, build in both(recipe, rounds + 1).items()}
    measured = {name: {"seconds": [], "losses": []} for name in sides}
    for number in range(rounds + 1):
        for name, step in sides.items():
            before = time.perf_counter()
            measured[name]["losses"].append(step())
            if number:
                measured[name]["seconds"].append(time.perf_counter() - before)
            elif name == "belvedere":
                print(f"belvedere's first step: {time.perf_counter() - before:.1f} s")
    return measured


def peak_mib(side: str, overrides: list[str]) -> int:
    """The most memory a process of its own held over two steps of one side."""
    command = [sys.executable, str(Path(__file__).resolve()), "--memory", side, *overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def report(measured: dict[str, dict[str, list[float]]], memory: dict[str, int]) -> None:
    """The table, and the check that both sides computed the same losses."""
    plain, ours = (measured[name]["losses"] for name in ("plain", "belvedere"))
    apart = max(abs(a - b) / abs(a) for a, b in zip(plain, ours, strict=True))
    assert apart < LOSS_TOLERANCE, f"the losses differ by {apart:.2%}: {plain} and {ours}"
    print(f"{'':10s} {'median s':>9s} {'least s':>9s} {'peak MiB':>9s}")
    medians = {}
    for name, values in measured.items():
        medians[name] = statistics.median(values["seconds"])
        print(f"{name:10s} {medians[name]:9.3f} {min(values['seconds']):9.3f} {memory[name]:9d}")
    print(f"ratio of medians: {medians['plain'] / medians['belvedere']:.2f}")
    ends = f"{plain[-1]:.4f} and {ours[-1]:.4f} at the end"
    print(f"losses: {len(ours)} steps, at most {apart:.2%} apart ({ends})")


def machine() -> str:
    """What the numbers belong to."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = (
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line
        )
        name = next(lines, name)
    capability = torch.backends.cpu.get_cpu_capability()
    amx, bf16 = (getattr(torch.cpu, f"_is_{kind}_supported")() for kind in ("amx_tile", "avx512_bf16"))
    return (
        f"{name}, {torch.get_num_threads()} threads, {capability}, AMX {'yes' if amx else 'no'}, "
        f"AVX512-BF16 {'yes' if bf16 else 'no'}, torch {torch.__version__}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", choices=["plain", "belvedere"], help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="recipe keys, KEY=VALUE, for both sides")
    given = parser.parse_args()
    recipe = load_recipe(
        "msn/vits16", ["data.path=digits", "train.global_batch=8", "run.device=cpu", *given.overrides]
    )
    if given.memory:
        step = both(recipe, 2)[given.memory]()
        for _ in range(2):
            step()
        print(json.dumps(round(memory_mib("VmHWM"))))
        return
    print(machine())
    memory = {side: peak_mib(side, given.overrides) for side in ("plain", "belvedere")}
    report(alternate(recipe, given.rounds), memory)


if __name__ == "__main__":
    main()

"""Mugs: losses over successive steps, two processes, groups and clipping, schedules, and trajectories through
the real loop."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mugs_cases import filled, options, ours, vit_spec
from torch import Tensor, nn

from belvedere.core import dist
from belvedere.core.schedule import WarmupCosine
from belvedere.data.batch import Batch
from belvedere.engine.parallel import Spread, prepare_
from belvedere.methods.method import Clock
from belvedere.methods.mugs import Mugs, Options
from belvedere.nn.spec import ViTSpec
from belvedere.nn.vit import ViT
from belvedere.optim.clip import clip_, gradient_norms
from belvedere.optim.groups import build_optimizer, set_
from belvedere.optim.spec import Clip
from belvedere.recipe.plan import plan
from belvedere.recipe.schema import Recipe
from belvedere.train.loop import StepReport, steps
from golden import DEVICE, compare, here, normal, placed
from processes import answers_of

Case = dict[str, Any]
Arrays = dict[str, np.ndarray]


# Losses, through the method's own `loss` and `after_update`, with recorded rows in place of networks


class _Given(nn.Module):
    """A network whose heads give recorded rows, and whose groups' last layer, the identity, leaves them."""

    def __init__(self, rows: dict[str, Tensor]) -> None:
        super().__init__()
        self.rows = rows
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, *, part: str) -> Tensor | tuple[Tensor, Tensor]:
        if part == "relation":
            return x[:, 0]
        rows = self.rows[part]
        return (rows, torch.eye(rows.shape[1], device=rows.device)) if part == "group_head" else rows


def _loss_method(run: dict[str, Any], heads: dict[str, int], *, width: int = 2) -> Mugs:
    """run: as `options` has it; a supervision without an `*_out*` in `heads` is off."""
    names = ("instance_out_dim", "local_group_out_dim", "group_out_dim")
    on = [float(name in heads) for name in names]
    sizes = {"hidden_dim": 1, "group_bottleneck_dim": 1, **dict.fromkeys(names, 2)} | heads
    spec = ViTSpec(
        name="vit",
        width=width,
        depth=1,
        heads=1,
        patch_px=2,
        mlp_ratio=1.0,
        stem="patch",
        image_px=2,
        drop_path=0.0,
    )
    return Mugs(options(sizes, run, on), ViT(spec), seed=0).to(DEVICE)


def _step(
    method: Mugs,
    student: dict[str, Tensor],
    teacher: dict[str, Tensor],
    *,
    views: int,
    epoch: int = 0,
    patches: Tensor | None = None,
    weak: Tensor | None = None,
) -> dict[str, Tensor]:
    """One step of the method with these rows: its terms, and the gradients of each, by the head's name."""
    leaves = {name: rows.clone().requires_grad_() for name, rows in student.items()}
    method.student, method.teacher = _Given(leaves), _Given(teacher)  # type: ignore[assignment]
    images = len(next(iter(student.values()))) // views
    width = 1 if patches is None else patches.shape[1]

    def features(count: int) -> dict[str, Tensor]:
        found = {"cls_0": torch.zeros(count, images, width, device=DEVICE)}
        if patches is None:
            return found
        return found | {
            "query_0": torch.ones(count, images, width, device=DEVICE),
            "patches_0": patches.expand(count, -1, -1),
        }

    flags = {} if weak is None else {"weak": weak}
    (batch,) = placed([Batch({}, torch.arange(images), torch.zeros(images), range(images), flags=flags)])
    at = Clock(epoch, 1, 1000, 1000)
    losses = method.loss(method.student, features(views), features(2), batch, at)
    gradients = torch.autograd.grad(losses.total, list(leaves.values()))
    method.after_update(features(views), losses, at)
    whole = sum(method.options.weights.values())  # the total is a mean
    return {name: term.clone() for name, term in losses.terms.items()} | {
        f"grad_{name}": whole * gradient for name, gradient in zip(leaves, gradients, strict=True)
    }


def _start_queue_(method: Mugs, queue: np.ndarray, pointer: int = 0) -> None:
    method.instance_queue.queue.copy_(torch.from_numpy(queue).T)
    method.instance_queue.queue_ptr.fill_(pointer)


def check_infonce(case: Case, arrays: Arrays) -> None:
    args = case["args"]
    run = {"instance_queue_size": args["queue_size"], "instance_temp": args["temperature"]}
    method = _loss_method(run, {"instance_out_dim": args["dim"]})
    _start_queue_(method, arrays["in_queue0"], args["ptr0"])
    found: dict[str, list[Tensor]] = {}
    for student, teacher in zip(arrays["in_student"], arrays["in_teacher"], strict=True):
        rows = ({"instance_head": here(part)} for part in (student, teacher))
        told = _step(method, *rows, views=args["ncrops"])
        now = {
            "out_loss": told["instance"],
            "out_grad_student": told["grad_instance_head"],
            "out_queue_ptr": method.instance_queue.queue_ptr[0].clone(),
            "out_queue": method.instance_queue.queue.T.clone(),
        }
        for name, value in now.items():
            found.setdefault(name, []).append(value)
    for name, values in found.items():
        compare(case, name, torch.stack(values), arrays[name])


def check_clustering(case: Case, arrays: Arrays) -> None:
    args = case["args"]
    run = {
        "group_student_temp": args["student_temp"],
        "group_warmup_teacher_temp": args["warmup_teacher_temp"],
        "group_teacher_temp": args["teacher_temp"],
        "group_warmup_teacher_temp_epochs": args["warmup_teacher_temp_epochs"],
        "center_momentum": args["center_momentum"],
    }
    method = _loss_method(run, {"group_out_dim": args["out_dim"]})
    found: dict[str, list[Tensor]] = {}
    for epoch, student, teacher in zip(
        args["epochs_of_steps"], arrays["in_student"], arrays["in_teacher"], strict=True
    ):
        rows = ({"group_head": here(part)} for part in (student, teacher))
        told = _step(method, *rows, views=args["ncrops"], epoch=epoch)
        now = {
            "out_loss": told["group"],
            "out_grad_student": told["grad_group_head"],
            "out_center": method.center.clone(),
        }
        for name, value in now.items():
            found.setdefault(name, []).append(value)
    for name, values in found.items():
        compare(case, name, torch.stack(values), arrays[name])
    course = [method.options.group.teacher_temperature(epoch) for epoch in range(args["nepochs"])]
    compare(case, "out_teacher_temp_schedule", np.array(course), arrays["out_teacher_temp_schedule"])


# Two processes


def of_rank(args: dict[str, Any], arrays: Arrays, rank: int) -> dict[str, np.ndarray]:
    """What one process computes and holds, step by step. The local groups' rows are those of the instances:
    their memory is what is looked at."""
    dims = dict.fromkeys(("instance_out_dim", "local_group_out_dim"), args["dim"])
    run = {
        "instance_queue_size": args["queue_size"],
        "local_group_queue_size": args["queue_size"],
        "memory": args["mem_K"],
        "local_group_knn_top_n": args["mem_top_n"],
        "instance_temp": args["temperature"],
        "group_student_temp": args["student_temp"],
        "group_warmup_teacher_temp": args["teacher_temp"],
    }
    slots, width = arrays["in_mem0"].shape
    assert slots == args["mem_K"]
    method = _loss_method(run, dims | {"group_out_dim": args["group_out_dim"]}, width=width)
    _start_queue_(method, arrays["in_queue0"])
    for queue in (method.student_memory.queue_q, method.student_memory.queue_k):
        queue.copy_(torch.from_numpy(arrays["in_mem0"]))
    found: dict[str, list[Tensor]] = {}
    for step in range(args["steps"]):
        student, teacher = (
            {
                "instance_head": torch.from_numpy(arrays[f"in_{who}"][step, rank]),
                "local_group_head": torch.from_numpy(arrays[f"in_{who}"][step, rank]),
                "group_head": torch.from_numpy(arrays[f"in_group_{who}"][step, rank]),
            }
            for who in ("student", "teacher")
        )
        weak = torch.from_numpy(arrays["in_flags"][step, rank]).bool()
        patches = torch.from_numpy(arrays["in_mem_features"][step, rank])
        told = _step(method, student, teacher, views=args["ncrops"], patches=patches, weak=weak)
        now = {
            "infonce_loss": told["instance"],
            "infonce_grad": told["grad_instance_head"],
            "group_loss": told["group"],
            "queue": method.instance_queue.queue.T,
            "queue_ptr": method.instance_queue.queue_ptr[0],
            "center": method.center,
            "memory": method.student_memory.queue_k,
            "memory_ptr": method.student_memory.queue_ptr[0],
            "len_weak": dist.gathered(weak).sum(),
        }
        for name, value in now.items():
            found.setdefault(f"out_{name}", []).append(value.clone())
    return {name: torch.stack(values).numpy() for name, values in found.items()}


def check_two_ranks(case: Case, arrays: Arrays) -> None:
    args = case["args"]
    with tempfile.TemporaryDirectory() as folder:
        answer = partial(of_rank, args, arrays)
        ranks = answers_of(answer, Path(folder), count=args["world_size"])
    own = ("out_infonce_loss", "out_infonce_grad", "out_group_loss")
    for name, expected in arrays.items():
        if name in own:
            compare(case, name, np.stack([rank[name] for rank in ranks], 1), expected)
        elif name.startswith("out_"):
            for rank in ranks:
                compare(case, name, rank[name], expected)


# Groups, clipping, schedules


def check_groups(case: Case, arrays: Arrays) -> None:
    args = case["args"]
    chosen = options(args, args | {"instance_queue_size": 1, "local_group_queue_size": 8})
    method = filled(case, chosen, vit_spec(args))
    named = {name: p for name, p in method.student.named_parameters() if p.requires_grad}
    assert list(named) == [ours(name) for name in args["param_order"]]
    names = {id(p): name for name, p in named.items()}
    for group, expected in zip(method.groups(), args["groups"], strict=True):
        assert [names[id(p)] for p in group.parameters] == [ours(name) for name in expected["params"]]
        assert group.decay == expected.get("apply_wd", True)
        assert group.lr_scale == (0.2 if "patch_embed" in expected["name"] else 1.0)

    for number, parameter in enumerate(named.values()):
        random = np.random.RandomState(args["grad_seed"] + number)
        raw = random.standard_normal(tuple(parameter.shape)).astype(np.float32)
        size = args["clip"] * 2 ** random.uniform(-2, 2) / np.linalg.norm(raw.astype(np.float64))
        parameter.grad = torch.from_numpy((raw * size).astype(np.float32))
    trained = list(named.values())
    before = gradient_norms(trained)
    clip_(trained, before, Clip(kind="per_tensor", norm=args["clip"]))
    compare(case, "out_grad_norm_before", before.double(), arrays["out_grad_norm_before"])
    compare(case, "out_grad_norm_after", gradient_norms(trained).double(), arrays["out_grad_norm_after"])
    cls = named["backbone.cls_token"].grad
    compare(case, "out_cls_token_grad_after", cls, arrays["out_cls_token_grad_after"])
    last = [named[ours(name)] for name in args["last_layer_names"]]
    kept = []
    for epoch in args["cancel_epochs"]:
        for parameter in last:
            parameter.grad = torch.ones_like(parameter)
        method.before_update(Clock(epoch, 1, 1000, 1000))
        kept.append([parameter.grad is not None for parameter in last])
    compare(case, "out_last_layer_grad_kept", np.array(kept), arrays["out_last_layer_grad_kept"])


def _recipe(
    chosen: Options, backbone: ViTSpec, run: dict[str, Any], views: dict[str, tuple[int, int]]
) -> Recipe:
    """run: the authors' arguments, with `world_size`; views: {role: (how many, pixels)}."""
    batch = run["batch_size_per_gpu"] * run["world_size"]
    still = {"flip": 0.0, "jitter": None, "gray": 0.0, "blur": None, "solarize": 0.0}
    shape = {"scale": (0.5, 1.0), "aspect": (0.75, 1.3333), "interpolation": "bicubic", "photometry": still}
    peak, warm, px = run["lr"] * batch / 256, run["warmup_epochs"], backbone.image_px
    clip = run.get("clip_grad", 3.0)
    pixels = (0.5, 0.5, 0.5)
    return Recipe.model_validate(
        {
            "name": "golden",
            "seed": 0,
            "method": chosen.model_dump(),
            "backbone": backbone.model_dump(),
            "views": {role: {"count": n, "px": size, **shape} for role, (n, size) in views.items() if n},
            "data": {"path": "digits", "split": None, "mean": pixels, "std": pixels, "max_bad_share": 0.0},
            "optim": {
                "name": "adamw",
                "betas": (0.9, 0.999),
                "eps": 1e-8,
                "lr": {
                    "start": 0.0 if warm else peak,
                    "peak": peak,
                    "final": run["min_lr"],
                    "warmup_epochs": warm,
                },
                "weight_decay": {"start": run["weight_decay"], "final": run["weight_decay_end"]},
                "clip": {"kind": "per_tensor", "norm": clip} if clip else None,
                "stretch": 1.0,
            },
            "train": {"precision": "float32", "epochs": run["epochs"], "global_batch": batch},
            "features": {"source": "cls", "blocks": 1, "norm": "all", "interpolation": "bicubic"}
            | {"resize_px": px, "crop_px": px},
        }
    )


def check_schedules(case: Case, arrays: Arrays) -> None:
    args = case["args"]
    run = {
        **args["run"],
        **{n: value for n, value in args.items() if n.startswith(("group_", "world", "patch"))},
    }
    batch = run["batch_size_per_gpu"] * args["world_size"]
    sizes = {"hidden_dim": 1, "instance_out_dim": 1, "local_group_out_dim": 1, "group_out_dim": 2}
    backbone = vit_spec({"embed_dim": 3, "depth": 1, "num_heads": 1, "patch_size": 16, "img_size": 32})
    slots = {"instance_queue_size": batch, "local_group_queue_size": batch}
    chosen = options(sizes | {"group_bottleneck_dim": 1}, run | slots)
    recipe = _recipe(chosen, backbone, run, {"target": (2, 32), "global": (2, 32), "local": (1, 16)})
    laid_out = plan(
        recipe, num_images=args["niter_per_epoch"] * batch, world_size=args["world_size"], device="cpu"
    )
    method = Mugs(chosen, ViT(backbone), seed=0)
    optimizer = build_optimizer(method.groups(), recipe.optim)
    wanted = args["at_iterations"]
    numbers = list(range(laid_out.total_steps)) if wanted == "all" else wanted
    compare(case, "out_iteration", np.array(numbers), arrays["out_iteration"])
    momentum = run["momentum_teacher"]
    course = WarmupCosine(momentum, momentum, 1.0, 0, laid_out.total_steps)
    found: dict[str, list[float]] = {}
    for step in numbers:
        set_(optimizer, lr=laid_out.lr(step), weight_decay=laid_out.weight_decay(step))
        decayed, patches = optimizer.param_groups[:2]
        scheduled = method.scheduled(laid_out.clock(step))
        assert scheduled["momentum"] == course(step)
        now = {
            "lr": decayed["lr"],
            "lr_patch_embed": patches["lr"],
            "wd": decayed["weight_decay"],
            "momentum": scheduled["momentum"],
        }
        for name, value in now.items():
            found.setdefault(f"out_{name}", []).append(value)
    epochs = [laid_out.clock(epoch * args["niter_per_epoch"]) for epoch in range(run["epochs"])]
    found["out_teacher_temp_per_epoch"] = [method.scheduled(at)["teacher_temperature"] for at in epochs]
    for name, values in found.items():
        compare(case, name, np.array(values), arrays[name])


# Trajectory


class _Watched(Mugs):
    """The method, noting gradients before frozen ones are dropped, as the authors' norms are taken."""

    norms: dict[str, float]

    def before_update(self, at: Clock) -> None:
        self.norms = _norms(self.student)
        super().before_update(at)


def _norms(network: nn.Module) -> dict[str, float]:
    """Of the gradients, -1 where there is none."""
    return {n: -1.0 if p.grad is None else float(p.grad.norm()) for n, p in network.named_parameters()}


def _recorded_batches(args: dict[str, Any], arrays: Arrays) -> Iterator[Batch]:
    """View v of step t from its own seed, around a color of each image's own."""
    run, seed = args["run"], args["image_seed"]
    batch, local = run["batch_size_per_gpu"], run["local_crops_number"]
    roles = {
        "target": (2, args["large_size"]),
        "global": (2, args["large_size"]),
        "local": (local, args["small_size"]),
    }
    for step, weak in enumerate(arrays["in_weak_flags"]):
        color, views, number = normal(seed + 100 * step + 50, (batch, 3, 1, 1)), {}, 0
        for role, (count, px) in roles.items():
            if count:
                seeds = range(seed + 100 * step + number, seed + 100 * step + number + count)
                views[role] = torch.stack([normal(each, (batch, 3, px, px)) + color for each in seeds])
            number += count
        flags = {"weak": torch.from_numpy(weak).bool()}
        rows = torch.arange(batch)
        yield Batch(views, rows, torch.full((batch,), -1), range(batch), flags=flags)


def _trajectory_method(case: Case, arrays: Arrays, chosen: Options, backbone: ViTSpec) -> _Watched:
    method = filled(case, chosen, backbone)
    method.__class__ = _Watched
    assert isinstance(method, _Watched)
    for name in ("instance", "local_group"):
        getattr(method, f"{name}_queue").queue.copy_(torch.from_numpy(arrays[f"in_{name}_queue0"]).T)
    for network in ("student", "teacher"):
        slots = getattr(method, f"{network}_memory")
        for queue in ("queue_q", "queue_k"):
            rule = case["recipes"][f"{network}_{queue}"]
            getattr(slots, queue).copy_(normal(rule["seed"], rule["shape"]))
    return method


def check_train_trajectory(case: Case, arrays: Arrays) -> None:
    args = case["args"]
    assert args["world_size"] == 1
    run = args["run"] | {"world_size": 1}
    chosen, backbone = options(args["heads"], run), vit_spec(args["vit"])
    views = {
        "target": (2, args["large_size"]),
        "global": (2, args["large_size"]),
        "local": (run["local_crops_number"], args["small_size"]),
    }
    recipe = _recipe(chosen, backbone, run, views)
    images = args["steps_per_epoch"] * recipe.train.global_batch
    laid_out = plan(recipe, num_images=images, world_size=1, device="cpu")
    method = _trajectory_method(case, arrays, chosen, backbone)
    prepare_(method, device=DEVICE, dtype=torch.float32)
    spread = Spread(method, device=DEVICE, precision="float32", seed=0)
    optimizer = build_optimizer(method.groups(), recipe.optim)
    told: list[dict[str, Any]] = []
    batches = placed(_recorded_batches(args, arrays))
    for report in steps(method, optimizer, batches, laid_out, spread):
        told.append(_told(method, report, optimizer, args))
    for name in told[0]:
        strict = {"rtol": 1e-9, "atol": 0.0} if name in _SCHEDULED else {}
        strict = {"rtol": 1e-4} if name.endswith("_loss") else strict
        values = np.array([step[name] for step in told])
        compare(case | strict, f"out_{name}", values, arrays[f"out_{name}"])
    _compare_final(case, arrays, method)


_SCHEDULED = ("lr_per_group", "wd_per_group", "momentum")


def _told(
    method: _Watched, report: StepReport, optimizer: torch.optim.Optimizer, args: dict[str, Any]
) -> dict[str, Any]:
    """A step's numbers, by the names that the case has for them."""
    student, teacher = (dict(each.named_parameters()) for each in (method.student, method.teacher))
    order = [ours(name) for name in args["student_param_order"]]
    clipped = _norms(method.student)
    queues = (method.instance_queue, method.local_group_queue, method.student_memory, method.teacher_memory)
    return {
        "total_loss": float(report.losses.total),
        **{f"{name}_loss": float(term) for name, term in report.losses.terms.items()},
        "lr_per_group": [group["lr"] for group in optimizer.param_groups],
        "wd_per_group": [group["weight_decay"] for group in optimizer.param_groups],
        "momentum": report.scheduled["momentum"],
        "queue_ptrs": [int(each.queue_ptr) for each in queues],
        "center_norm": float(method.center.norm()),
        "student_param_norms": [float(student[name].detach().norm()) for name in order],
        "teacher_param_norms": [
            float(teacher[ours(name)].detach().norm()) for name in args["teacher_param_order"]
        ],
        "grad_norms_before_clip": [method.norms[name] for name in order],
        "grad_norms_at_optimizer_step": [clipped[name] for name in order],
    }


def _compare_final(case: Case, arrays: Arrays, method: Mugs) -> None:
    final = {
        "out_final_center": method.center,
        "out_final_instance_queue": method.instance_queue.queue.T,
        "out_final_local_group_queue": method.local_group_queue.queue.T,
        "out_final_student_memory": method.student_memory.queue_k,
        "out_final_teacher_memory": method.teacher_memory.queue_k,
    }
    for network in ("student", "teacher"):
        state = getattr(method, network).state_dict()
        for name in case["args"]["final_tensors"]:
            if ours(name) in state:
                value = state[ours(name)]
                large = value.numel() > 4096
                final[f"out_final_{network}.{name}"] = value.flatten(1)[:16, :64] if large else value
    for name, expected in arrays.items():
        if name.startswith("out_final_"):
            compare(case, name, final[name], expected)


HANDLERS = {
    ("mugs", "infonce_loss"): check_infonce,
    ("mugs", "clustering_loss"): check_clustering,
    ("mugs", "distributed_two_ranks"): check_two_ranks,
    ("mugs", "param_groups_and_clipping"): check_groups,
    ("mugs", "schedules"): check_schedules,
    ("mugs", "train_trajectory"): check_train_trajectory,
}

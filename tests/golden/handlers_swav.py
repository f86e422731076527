"""SwAV: its loss over successive steps, and trajectories through the real loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from belvedere.data.batch import Batch
from belvedere.engine.parallel import Spread, prepare_
from belvedere.methods.method import Clock, Losses
from belvedere.methods.swav import Options, SwAV, swav_loss
from belvedere.nn.resnet import ResNet
from belvedere.nn.spec import ResNetSpec
from belvedere.optim.groups import build_optimizer
from belvedere.optim.larc import larc_scaled
from belvedere.recipe.plan import plan
from belvedere.recipe.schema import Recipe
from belvedere.train.loop import steps
from golden import DEVICE, compare, fill_, here, normal, placed, weights

Case = dict[str, Any]
Arrays = dict[str, np.ndarray]

_PER_STEP = (
    "loss",
    "lr",
    "sinkhorn_rows",
    "larc_ratio_first_param",
    "n_larc_params",
    "prototypes_per_step",
)
_ARCH = {"name": "resnet", "stem": "imagenet"}


def _options(args: dict[str, Any], *, queue: dict[str, int] | None, head: dict[str, Any]) -> Options:
    return Options.model_validate(
        {
            "name": "swav",
            "prototypes": args["nmb_prototypes"],
            "assign": tuple(args["crops_for_assign"]),
            "temperature": args["temperature"],
            "epsilon": args["epsilon"],
            "sinkhorn_iterations": args["sinkhorn_iterations"],
            "freeze_prototypes_steps": args.get("freeze_prototypes_niters", 0),
            "queue": queue,
            "head": head,
        }
    )


# Loss


def _method_of_loss(args: dict[str, Any], arrays: Arrays) -> tuple[SwAV, int]:
    """The method with the case's prototypes and queue, and how many steps that queue is from being empty."""
    queue = {"length": args["queue_length"], "start_epoch": 0} if args["queue_length"] else None
    head = {"hidden": 0, "out": args["dim"], "batch_norm": False}
    spec = ResNetSpec.model_validate(
        {**_ARCH, "block": "basic", "blocks": (1, 1, 1, 1), "widen": 1, "width_per_group": 1}
    )
    method = SwAV(_options(args, queue=queue, head=head), ResNet(spec), seed=0)
    fill_(method.prototypes, {"weight": torch.from_numpy(arrays["prototypes_in"])})
    method.to(DEVICE)
    if queue is None:
        return method, 0
    method.queue = here(arrays["queue_start"].copy())
    filled = int((method.queue != 0).any(2).all(0).sum())
    return method, filled // args["batch"]


def check_loss(case: Case, arrays: Arrays) -> None:
    args = case["args"]
    method, before = _method_of_loss(args, arrays)
    batch, views, num_steps = args["batch"], sum(args["nmb_crops"]), args["steps"]
    found: dict[str, list[Any]] = {name: [] for name in arrays}
    for step in range(num_steps):
        at = Clock(before + step, before + num_steps, before + num_steps, before + num_steps)
        z = here(arrays["embeddings"][step]).unflatten(0, (views, batch))
        method.start_step(at)
        prototypes = method.prototypes.weight.detach().clone()
        compare(case, "prototypes_normalised", prototypes, arrays["prototypes_normalised"])
        scores = (z @ prototypes.T).requires_grad_()
        queue = method.full_queue(at, batch)
        queued = None if queue is None else queue @ prototypes.T
        losses = swav_loss(scores, queued, options=method.options)
        (gradient,) = torch.autograd.grad(losses.total, scores)
        method.after_update({}, Losses(losses.total, kept={"z": z}), at)
        found["scores"].append(scores.detach().flatten(0, 1))
        found["loss"].append(losses.total.detach())
        found["grad_scores"].append(gradient.flatten(0, 1))
        found["assignments"].append(losses.kept["targets"])
        found["sinkhorn_rows"].append(_sinkhorn_rows(method, at, batch))
        if method.queue is not None:
            found["queue_after"].append(method.queue.clone())
    for name, values in found.items():
        if values:
            compare(case, name, torch.stack(values), arrays[name], relative=name == "loss")


def _sinkhorn_rows(method: SwAV, at: Clock, batch: int) -> Tensor:
    """How many samples share the prototypes out, for each assigned view."""
    queue = method.full_queue(at, batch)
    rows = batch + (0 if queue is None else queue.shape[1])
    return torch.tensor([rows] * len(method.options.assign))


# Trajectory


def _views(args: dict[str, Any]) -> dict[str, Any]:
    still = {"flip": 0.0, "jitter": None, "gray": 0.0, "blur": None, "solarize": 0.0}
    shape = {
        "scale": (0.5, 1.0),
        "aspect": (0.75, 1.3333),
        "interpolation": "bilinear",
        "photometry": still,
    }
    sizes = zip(args["nmb_crops"], args["size_crops"], strict=True)
    return {
        role: {"count": count, "px": px, **shape}
        for role, (count, px) in zip(("global", "local"), sizes, strict=False)
    }


def _recipe(case: Case) -> Recipe:
    args, shapes = case["args"], case["weights"]["shapes"]
    assert len(args["nmb_crops"]) <= 2, "a role for large views and one for small ones"
    head = {
        "hidden": args["hidden_mlp"],
        "out": args["feat_dim"],
        "batch_norm": "projection_head.1.running_mean" in shapes,
    }
    queue = {"length": args["queue_length"], "start_epoch": args["epoch_queue_starts"]}
    in_use = args["queue_length"] and args["epoch_queue_starts"] < args["epochs"]
    arch, larc, warm = args["arch"], args["larc"], args["warmup_epochs"]
    assert not larc["clip"], "LARC's clipping mode is no part of SwAV"
    return Recipe.model_validate(
        {
            "name": "golden",
            "seed": 0,
            "method": _options(args, queue=queue if in_use else None, head=head).model_dump(),
            "backbone": _ARCH
            | {name: arch[name] for name in ("block", "widen", "width_per_group")}
            | {"blocks": tuple(arch["layers"])},
            "views": _views(args),
            "data": {
                "path": "digits",
                "split": None,
                "mean": (0.5, 0.5, 0.5),
                "std": (0.5, 0.5, 0.5),
                "max_bad_share": 0.0,
            },
            "optim": {
                "name": "larc",
                "momentum": args["momentum"],
                "trust": larc["trust_coefficient"],
                "eps": larc["eps"],
                "lr": {
                    "start": args["start_warmup"] if warm else args["base_lr"],
                    "peak": args["base_lr"],
                    "final": args["final_lr"],
                    "warmup_epochs": warm,
                },
                "weight_decay": {"start": args["wd"], "final": args["wd"]},
                "clip": None,
                "stretch": 1.0,
            },
            "train": {"precision": "float32", "epochs": args["epochs"], "global_batch": args["batch"]},
            "features": {
                "source": "pooled",
                "blocks": 1,
                "norm": "none",
                "resize_px": 32,
                "crop_px": 32,
                "interpolation": "bilinear",
            },
        }
    )


def _recorded_batches(args: dict[str, Any], num_steps: int) -> Iterator[Batch]:
    """The images of every step: crop v of step s from its own seed."""
    seed, batch = args["images"]["seed"], args["batch"]
    for step in range(num_steps):
        number = 0
        views = {}
        for role, count, px in zip(("global", "local"), args["nmb_crops"], args["size_crops"], strict=False):
            crops = [normal(seed + 1000 * step + number + v, (batch, 3, px, px)) for v in range(count)]
            views[role] = torch.stack(crops)
            number += count
        yield Batch(views, torch.arange(batch), torch.full((batch,), -1), range(batch))


def _by_authors_names(method: SwAV) -> dict[str, Tensor]:
    """A copy of parameters and running statistics, as the authors' one network calls them."""
    student = {
        name.removeprefix("backbone."): value.detach().clone()
        for name, value in method.student.state_dict().items()
    }
    return student | {"prototypes.weight": method.prototypes.weight.detach().clone()}


def _loaded(recipe: Recipe, case: Case) -> SwAV:
    state = weights(case)
    method = SwAV(recipe.method, ResNet(recipe.backbone), seed=0)  # type: ignore[arg-type]
    fill_(method.prototypes, {"weight": state.pop("prototypes.weight")})
    fill_(
        method.student,
        {n if n.startswith("projection_head") else f"backbone.{n}": value for n, value in state.items()},
    )
    return method


def check_train_trajectory(case: Case, arrays: Arrays) -> None:
    recipe, args = _recipe(case), case["args"]
    assert args["world_size"] == 1
    laid_out = plan(recipe, num_images=args["ipe"] * args["batch"], world_size=1, device="cpu")
    method = _loaded(recipe, case)
    method.allocate(laid_out.extent)
    prepare_(method, device=DEVICE, dtype=torch.float32)
    start = before = _by_authors_names(method)
    spread = Spread(method, device=DEVICE, precision="float32", seed=0)
    optimizer = build_optimizer(method.groups(), recipe.optim)
    series: dict[str, list[Any]] = {name: [] for name in _PER_STEP}
    batches = placed(_recorded_batches(args, laid_out.total_steps))
    for report in steps(method, optimizer, batches, laid_out, spread):
        ratio, adapted = _larc(method, before, args)
        before = _by_authors_names(method)
        series["loss"].append(float(report.losses.total))
        series["lr"].append(report.lr)
        series["sinkhorn_rows"].append(_sinkhorn_rows(method, report.at, args["batch"]).numpy())
        series["larc_ratio_first_param"].append(ratio)
        series["n_larc_params"].append(adapted)
        series["prototypes_per_step"].append(before["prototypes.weight"].cpu().numpy())
    for name, values in series.items():
        relative = name in ("loss", "lr", "larc_ratio_first_param")
        compare(case, name, np.array(values), arrays[name], relative=relative)
    _compare_final(case, arrays, start, before)
    assert ("queue_final" in arrays) == (method.queue is not None)
    if method.queue is not None:
        compare(case, "queue_final", method.queue, arrays["queue_final"])


def _larc(method: SwAV, before: dict[str, Tensor], args: dict[str, Any]) -> tuple[float, int]:
    """The first parameter's trust ratio in the step just taken, and how many tensors were rescaled.

    before: parameters before the step (the prototypes' length, which it changed since, is not zero).
    """
    named = dict(method.student.named_parameters()) | {"prototypes.weight": method.prototypes.weight}
    gradients = {n.removeprefix("backbone."): p.grad for n, p in named.items() if p.grad is not None}
    scaled = larc_scaled(
        [before[name] for name in gradients],
        list(gradients.values()),
        trust=args["larc"]["trust_coefficient"],
        weight_decay=args["wd"],
        eps=args["larc"]["eps"],
    )
    return float(scaled.factor[list(gradients).index("conv1.weight")]), int(scaled.adapted.sum())


def _compare_final(case: Case, arrays: Arrays, start: dict[str, Tensor], final: dict[str, Tensor]) -> None:
    names, buffers = case["args"]["param_names"], case["args"]["buffer_names"]

    def norms(tensors: list[Tensor]) -> np.ndarray:
        return np.array([float(tensor.double().norm()) for tensor in tensors])

    moved = [final[name].double() - start[name].double() for name in names]
    compare(case, "param_norm", norms([final[n] for n in names]), arrays["param_norm"], relative=True)
    compare(case, "param_delta", norms(moved), arrays["param_delta"], relative=True)
    compare(case, "buffer_norm", norms([final[n] for n in buffers]), arrays["buffer_norm"], relative=True)
    for name, expected in arrays.items():
        if name.startswith("final:"):
            compare(case, name, final[name.removeprefix("final:").partition("[")[0]], expected)


HANDLERS = {
    ("swav", "loss"): check_loss,
    ("swav", "train_trajectory"): check_train_trajectory,
}

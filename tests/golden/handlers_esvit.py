"""EsViT: heads, losses over successive steps, crops of several sizes, schedules, and trajectories through the
real loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from handlers_esvit_swin import case_spec
from torch import Tensor, nn

from belvedere.core.schedule import WarmupCosine
from belvedere.data.batch import Batch
from belvedere.engine.parallel import Spread, prepare_
from belvedere.methods.esvit import EsViT, Options
from belvedere.methods.method import Clock
from belvedere.nn.build import build
from belvedere.nn.heads import WeightNormHead
from belvedere.nn.norm import commit_, globalize_
from belvedere.nn.spec import WeightNormHeadSpec
from belvedere.nn.spec.resnet import resnet_spec
from belvedere.nn.spec.vit import vit_spec
from belvedere.optim.groups import build_optimizer
from belvedere.recipe.plan import Plan, plan
from belvedere.recipe.schema import Recipe
from belvedere.train.loop import StepReport, steps
from golden import DEVICE, compare, fill_, here, normal, placed, stats, weights

Case = dict[str, Any]
Arrays = dict[str, np.ndarray]
_HEADS = ("head.", "head_dense.")
_ROLES = ("global", "local", "local_2", "local_3")


def _state(case: Case, like: nn.Module) -> dict[str, Tensor]:
    """The case's weights; those to be set to one have the shape of the module's own."""
    state = weights(case)
    own = like.state_dict()
    return state | {name: torch.ones_like(own[name]) for name in case["weights"].get("set_to_one", ())}


def _head_spec(args: dict[str, Any], **defaults: Any) -> WeightNormHeadSpec:
    return WeightNormHeadSpec.model_validate(
        {
            "hidden": args.get("hidden_dim", 2048),
            "bottleneck": args.get("bottleneck_dim", 256),
            "out": args["out_dim"],
            "layers": args.get("nlayers", 3),
            "batch_norm": args.get("use_bn", False),
            "norm_last_layer": args.get("norm_last_layer", True),
        }
        | defaults
    )


def _options(head: WeightNormHeadSpec, train: dict[str, Any], *, region: bool) -> Options:
    """train: the authors' arguments, of which the loss's may be all there are."""
    momentum = train.get("momentum_teacher", 0.996)
    return Options.model_validate(
        {
            "name": "esvit",
            "region": region,
            "temperature": train.get("student_temp", 0.1),
            "teacher_temperature": {
                "start": train["warmup_teacher_temp"],
                "final": train["teacher_temp"],
                "warmup_epochs": train["warmup_teacher_temp_epochs"],
            },
            "center_momentum": train.get("center_momentum", 0.9),
            "momentum": {"start": momentum, "final": 1.0},
            "freeze_last_layer_epochs": train.get("freeze_last_layer", 0),
            "mixup": None,
            "head": head.model_dump(),
        }
    )


# Heads


def check_head(case: Case, arrays: Arrays) -> None:
    args = case["args"]
    head = WeightNormHead(args["head"]["in_dim"], _head_spec(args["head"]))
    fill_(head, _state(case, head))
    globalize_(head)
    head.train(args["train_mode"])
    x = torch.from_numpy(arrays["in_x"]).requires_grad_()
    y = head(x)
    compare(case, "out_y", y, arrays["out_y"])
    trained = {name: p for name, p in head.named_parameters() if p.requires_grad}
    wanted = [name for name in args["store_grads"] if name in trained]
    cotangent = torch.from_numpy(arrays["in_cotangent"])
    gradients = torch.autograd.grad((y * cotangent).sum(), [x, *(trained[name] for name in wanted)])
    commit_(head)
    found = {"out_grad_x": gradients[0]}
    found |= {_key("out_grad", name): g for name, g in zip(wanted, gradients[1:], strict=True)}
    found |= {_key("out", name): buffer for name, buffer in head.named_buffers()}
    found["out_trainable_weight_g"] = torch.tensor(int(head.last_layer.weight_g.requires_grad))
    for name, expected in arrays.items():
        if name.startswith("out_") and name != "out_y":
            compare(case, name, found[name], expected)


def _key(prefix: str, name: str) -> str:
    return f"{prefix}_{name.replace('.', '__')}"


# Losses, through the method's own `loss` and `after_update`, with logits in place of networks


class _Given(nn.Module):
    """A network whose heads give recorded logits: rows that the last layer, the identity, leaves alone."""

    def __init__(self, rows: dict[str, Tensor]) -> None:
        super().__init__()
        self.rows = rows
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, *, part: str) -> tuple[Tensor, Tensor]:
        rows = self.rows[part]
        return rows, torch.eye(rows.shape[1], device=rows.device)


def _loss_method(args: dict[str, Any], *, region: bool) -> EsViT:
    head = _head_spec({"out_dim": args["out_dim"], "hidden_dim": 1, "bottleneck_dim": 1})
    backbone = {"width": 2, "depth": 1, "heads": 1, "patch_px": 2, "image_px": 2}
    spec = vit_spec("deit_tiny").model_copy(update=backbone)
    return EsViT(_options(head, args, region=region), build(spec), seed=0).to(DEVICE)


def _runs(args: dict[str, Any], features: np.ndarray, counts: list[int], views: int) -> dict[str, Tensor]:
    """Recorded region features, rows by crop, image and token, as the method encodes them: in runs of crops
    with the same number of tokens, the first of which are the teacher's two."""
    runs, row = {}, 0
    for number, (count, crops) in enumerate(zip(counts, (2, views - 2), strict=False)):
        rows = crops * args["batch"] * count
        part = here(features[row : row + rows])
        runs[f"regions_{number}"] = part.view(crops, args["batch"], count, -1)
        row += rows
    assert row == len(features)
    return runs


def _check_loss(case: Case, arrays: Arrays, *, region: bool) -> None:
    args = case["args"]
    loss, batch, views = args["loss"], args["batch"], args["loss"]["ncrops"]
    method = _loss_method(loss, region=region)
    view_name = "cls" if region else ""
    student_name, teacher_name = f"in_student_{view_name}".rstrip("_"), f"in_teacher_{view_name}".rstrip("_")
    found: dict[str, list[Tensor]] = {}
    for step, epoch in enumerate(args["epochs_used"]):
        rows = {"head": here(arrays[student_name][step]).requires_grad_()}
        targets = {"head": here(arrays[teacher_name][step])}
        encoded = {"pooled_0": torch.zeros(views, batch, 1, device=DEVICE)}
        target = {"pooled_0": torch.zeros(2, batch, 1, device=DEVICE)}
        if region:
            rows["head_dense"] = here(arrays["in_student_region"][step]).requires_grad_()
            targets["head_dense"] = here(arrays["in_teacher_region"][step])
            encoded |= _runs(args, arrays["in_student_fea"][step], args["npatch_student"], views)
            target |= _runs(args, arrays["in_teacher_fea"][step], args["npatch_teacher"], 2)
        student = method.student = _Given(rows)  # type: ignore[assignment]
        method.teacher = _Given(targets)  # type: ignore[assignment]
        drawn = {"shares": here(arrays["in_targets_mixup"][step])} if _mixed(arrays) else {}
        (seen,) = placed([Batch({}, torch.arange(batch), torch.zeros(batch), range(batch), draws=drawn)])
        at = Clock(epoch, 1, loss["nepochs"], loss["nepochs"])
        losses = method.loss(student, encoded, target, seen, at)
        gradients = torch.autograd.grad(losses.total, list(rows.values()))
        method.after_update(encoded, losses, at)
        result = {"out_loss": losses.total.detach(), "out_center": method.center}
        names = ("cls", "region") if region else ("",)
        for name, gradient in zip(names, gradients, strict=True):
            result[f"out_grad_student_{name}".rstrip("_")] = gradient
        if region:
            result["out_center_grid"] = method.center_grid
        for name, value in result.items():
            found.setdefault(name, []).append(value.clone())
    for name, values in found.items():
        compare(case, name, torch.stack(values), arrays[name])
    if "out_teacher_temp_schedule" in arrays:
        temperature = method.options.teacher_temperature
        course = np.array([temperature(epoch) for epoch in range(loss["nepochs"])])
        compare(case, "out_teacher_temp_schedule", course, arrays["out_teacher_temp_schedule"])


def _mixed(arrays: Arrays) -> bool:
    return "in_targets_mixup" in arrays


def check_view_loss(case: Case, arrays: Arrays) -> None:
    _check_loss(case, arrays, region=False)


def check_region_loss(case: Case, arrays: Arrays) -> None:
    _check_loss(case, arrays, region=True)


# Crops of several sizes


def _ours(name: str) -> str:
    """What the authors' name of a parameter is in `TaskHeads`."""
    if name.startswith(_HEADS):
        return name
    return name.removeprefix("backbone.") if name.startswith("backbone.backbone.") else f"backbone.{name}"


def _method(case: Case, options: Options, *, seed: int = 0) -> EsViT:
    """The method with the case's weights in student and teacher."""
    method = EsViT(options, build(case_spec(case["args"]["backbone"])), seed=seed)
    state = {_ours(name): value for name, value in _state(case, method.student).items()}
    fill_(method.student, state)
    fill_(method.teacher, state)
    return method


def check_multicrop(case: Case, arrays: Arrays) -> None:
    args = case["args"]
    temperatures = {"warmup_teacher_temp": 0.04, "teacher_temp": 0.07, "warmup_teacher_temp_epochs": 0}
    options = _options(_head_spec(args["head"]), temperatures, region=args["use_dense_prediction"])
    method = _method(case, options).eval()
    groups: list[list[Tensor]] = []
    for image in args["images"]:
        crop = normal(image["seed"], image["shape"])
        if not groups or groups[-1][0].shape != crop.shape:
            groups.append([])
        groups[-1].append(crop)
    views = {role: torch.stack(crops) for role, crops in zip(_ROLES, groups, strict=False)}
    assert len(views) == len(groups), "more sizes than roles"
    batch = len(groups[0][0])
    seen = Batch(views, torch.arange(batch), torch.zeros(batch), range(batch))
    with torch.no_grad():
        encoded = method.encode_student(method.student, seen, Clock(0, 1, 1, 1))
        pooled = torch.cat([h.flatten(0, 1) for name, h in encoded.items() if name.startswith("pooled")])
        compare(case, "out_cls", method.student.head(pooled), arrays["out_cls"])
        regions = [h for name, h in encoded.items() if name.startswith("regions")]
        assert bool(regions) == args["use_dense_prediction"] == (method.student.head_dense is not None)
        if method.student.head_dense is None:
            return
        features = torch.cat([h.flatten(0, 2) for h in regions])
        logits = method.student.head_dense(features)
    stride, channels = args["store_row_stride"], args["fea_channel_stride"]
    compare(case, "out_region_rows", logits[::stride], arrays["out_region_rows"])
    compare(case, "out_fea_rows", features[::stride, ::channels], arrays["out_fea_rows"])
    for name, whole in (("region", logits), ("fea", features)):
        compare(case, f"out_{name}_shape", np.array(whole.shape), arrays[f"out_{name}_shape"])
        compare(case, f"out_{name}_mean_std_l2", stats(whole), arrays[f"out_{name}_mean_std_l2"])
    compare(case, "out_npatch", np.array([h.shape[2] for h in regions]), arrays["out_npatch"])


# Schedules and trajectories


def _optim(train: dict[str, Any], *, start: float) -> dict[str, Any]:
    peak = train["lr"] * train["batch_size"] * train["world_size"] / 256
    warm, clip = train["warmup_epochs"], train["clip_grad"]
    optim = {
        "lr": {
            "start": start if warm else peak,
            "peak": peak,
            "final": train["min_lr"],
            "warmup_epochs": warm,
        },
        "weight_decay": {"start": train["weight_decay"], "final": train["weight_decay_end"]},
        "clip": {"kind": "per_tensor", "norm": clip, "from_epoch": 0} if clip else None,
        "stretch": 1.0,
        "name": train["optimizer"],
    }
    own: dict[str, dict[str, Any]] = {
        "adamw": {"betas": (0.9, 0.999), "eps": 1e-8},
        "sgd": {"momentum": 0.9},
        "lars": {"momentum": 0.9, "trust": 0.001},
    }
    return optim | own[train["optimizer"]]


def _recipe(
    backbone: Any, head: WeightNormHeadSpec, train: dict[str, Any], *, region: bool, start: float = 0.0
) -> Recipe:
    still = {"flip": 0.0, "jitter": None, "gray": 0.0, "blur": None, "solarize": 0.0}
    shape = {"scale": (0.5, 1.0), "aspect": (0.75, 1.3333), "interpolation": "bicubic", "photometry": still}
    sizes = [(2, train["global_size"]), *_local(train)]
    px = train["global_size"]
    return Recipe.model_validate(
        {
            "name": "golden",
            "seed": 0,
            "method": _options(head, train, region=region).model_dump(),
            "backbone": backbone.model_dump(),
            "views": {
                role: {"count": n, "px": px, **shape} for role, (n, px) in zip(_ROLES, sizes, strict=False)
            },
            "data": {
                "path": "digits",
                "split": None,
                "mean": (0.5, 0.5, 0.5),
                "std": (0.5, 0.5, 0.5),
                "max_bad_share": 0.0,
            },
            "optim": _optim(train, start=start),
            "train": {
                "precision": "float64",
                "epochs": train["epochs"],
                "global_batch": train["batch_size"] * train["world_size"],
            },
            "features": {
                "source": "pooled",
                "blocks": 1,
                "norm": "none",
                "resize_px": px,
                "crop_px": px,
                "interpolation": "bicubic",
            },
        }
    )


def _local(train: dict[str, Any]) -> list[tuple[int, int]]:
    """How many small crops of each size."""
    pairs = zip(train["local_crops_number"], train["local_crops_size"], strict=True)
    return [(number, px) for number, px in pairs if number]


def _laid_out(recipe: Recipe, train: dict[str, Any]) -> Plan:
    images = train["niter_per_ep"] * recipe.train.global_batch
    return plan(recipe, num_images=images, world_size=train["world_size"], device="cpu")


def check_schedules(case: Case, arrays: Arrays) -> None:
    args = case["args"]
    train = {
        **args,
        "batch_size": args["batch_size_per_gpu"],
        "clip_grad": 0.0,
        "optimizer": "adamw",
        "global_size": 32,
        "local_crops_size": [],
        "local_crops_number": [],
    }
    head = _head_spec({"out_dim": 2})
    recipe = _recipe(resnet_spec("resnet18"), head, train, region=False)
    laid_out = _laid_out(recipe, train)
    warmer = _recipe(resnet_spec("resnet18"), head, train, region=False, start=args["start_warmup_value"])
    momentum = args["momentum_teacher"]
    courses = {
        "out_lr": laid_out.lr,
        "out_wd": laid_out.weight_decay,
        "out_lr_warmup_start_nonzero": _laid_out(warmer, train).lr,
        "out_momentum": WarmupCosine(momentum, momentum, 1.0, 0, laid_out.total_steps),
    }
    for name, course in courses.items():
        values = np.array([course(step) for step in range(laid_out.total_steps)])
        compare(case, name, values, arrays[name])
    method = EsViT(recipe.method, build(recipe.backbone), seed=0)  # type: ignore[arg-type]
    scheduled = [method.scheduled(laid_out.clock(step)) for step in range(laid_out.total_steps)]
    compare(case, "out_momentum", np.array([s["momentum"] for s in scheduled]), arrays["out_momentum"])
    temperatures = [s["teacher_temperature"] for s in scheduled][:: args["niter_per_ep"]]
    compare(case, "out_teacher_temp", np.array(temperatures), arrays["out_teacher_temp"])
    compare(case, "out_lr_peak", np.array(recipe.optim.lr.peak), arrays["out_lr_peak"])


def _recorded_batches(args: dict[str, Any], num_steps: int, dtype: torch.dtype) -> Iterator[Batch]:
    """Crop j of step s from its own seed."""
    train, batch = args["train"], args["train"]["batch_size"]
    sizes = [(2, train["global_size"]), *_local(train)]
    for step in range(num_steps):
        views, number = {}, 0
        for role, (count, px) in zip(_ROLES, sizes, strict=False):
            seeds = range(
                args["image_seed"] + 1000 * step + number, args["image_seed"] + 1000 * step + number + count
            )
            views[role] = torch.stack([normal(seed, (batch, 3, px, px)).to(dtype) for seed in seeds])
            number += count
        yield Batch(views, torch.arange(batch), torch.full((batch,), -1), range(batch))


class _Watched(EsViT):
    """The method, noting gradients before frozen ones are dropped, as the authors' norms are taken."""

    norms: dict[str, Tensor]
    dropped: bool

    def before_update(self, at: Clock) -> None:
        gradients = {n: p.grad for n, p in self.student.named_parameters() if p.grad is not None}
        self.norms = {name: gradient.norm() for name, gradient in gradients.items()}
        super().before_update(at)
        self.dropped = all(
            p.grad is None for name, p in self.student.named_parameters() if "last_layer" in name
        )


def _train(case: Case, dtype: torch.dtype) -> tuple[_Watched, list[dict[str, Any]], dict[str, np.ndarray]]:
    """The method after training, what each step gave, and the first step's gradient norms by name."""
    args, train = case["args"], case["args"]["train"]
    assert train["world_size"] == 1
    recipe = _recipe(
        case_spec(args["backbone"]),
        _head_spec(args["head"]),
        train,
        region=args["use_dense_prediction"],
    )
    laid_out = _laid_out(recipe, train)
    method = _method(case, recipe.method)  # type: ignore[arg-type]
    method.__class__ = _Watched
    assert isinstance(method, _Watched)
    method.allocate(laid_out.extent)
    precision = "float64" if dtype == torch.float64 else "float32"
    prepare_(method, device=DEVICE, dtype=dtype)
    spread = Spread(method, device=DEVICE, precision=precision, seed=0)  # type: ignore[arg-type]
    optimizer = build_optimizer(method.groups(), recipe.optim)
    batches = placed(_recorded_batches(args, laid_out.total_steps, dtype))
    told, first = [], {}
    for report in steps(method, optimizer, batches, laid_out, spread):
        told.append(_told(method, report, optimizer))
        if not first:
            first = {name: norm.cpu().numpy() for name, norm in method.norms.items()}
    return method, told, first


def _told(method: _Watched, report: StepReport, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    decayed, plain = optimizer.param_groups
    teacher = torch.stack([p.detach().norm() for p in method.teacher.parameters()])
    return {
        "loss": float(report.losses.total),
        "lr": report.lr,
        "wd": decayed["weight_decay"],
        "wd_group1": plain["weight_decay"],
        "temp": report.scheduled["teacher_temperature"],
        "momentum": report.scheduled["momentum"],
        "grad_norm_total": float(torch.stack(list(method.norms.values())).norm()),
        "last_layer_grad_none": float(method.dropped),
        "teacher_param_l2": float(teacher.norm()),
    }


def check_train_trajectory(case: Case, arrays: Arrays) -> None:
    args, epochs = case["args"], case["args"]["train"]["epochs"]
    method, told, first = _train(case, torch.float64)

    def per_epoch(series: list[dict[str, Any]]) -> np.ndarray:
        values = np.array([[step[name] for name in ("loss", "lr", "wd")] for step in series])
        return values.reshape(epochs, -1, 3).mean(1)

    for name in (n for n in arrays if n.startswith("step_") and n != "step_loss_float32"):
        values = np.array([step[name.removeprefix("step_")] for step in told])
        compare(case, name, values, arrays[name])
    compare(case, "epoch_stats", per_epoch(told), arrays["epoch_stats"])
    last = [step["teacher_param_l2"] for step in told][
        args["train"]["niter_per_ep"] - 1 :: args["train"]["niter_per_ep"]
    ]
    compare(case, "epoch_teacher_param_l2", np.array(last), arrays["epoch_teacher_param_l2"])
    trained = [name for name in args["param_names"] if _ours(name) in first]
    norms = np.array([float(first[_ours(name)]) for name in trained])
    compare(case, "first_step_param_grad_norms", norms, arrays["first_step_param_grad_norms"])
    _compare_final(case, arrays, method)
    _compare_layout(args, method)
    _, told32, _ = _train(case, torch.float32)
    tolerance = case["rtol_float32"]
    losses = np.array([step["loss"] for step in told32])
    np.testing.assert_allclose(losses, arrays["step_loss_float32"], rtol=tolerance)
    np.testing.assert_allclose(per_epoch(told32), arrays["epoch_stats_float32"], rtol=tolerance)


def _compare_final(case: Case, arrays: Arrays, method: EsViT) -> None:
    args = case["args"]
    networks = {"student": method.student.state_dict(), "teacher": method.teacher.state_dict()}
    for network, state in networks.items():
        norms = np.array([float(state[_ours(name)].norm()) for name in args["param_names"]])
        compare(case, f"final_{network}_norms", norms, arrays[f"final_{network}_norms"])
        for kind, names in (("", args["store_tensors"]), ("_buffer", args.get("store_buffers", []))):
            for name in names:
                key = _key(f"final_{network}{kind}_", name)
                compare(case, key, state[_ours(name)], arrays[key])
    for name, center in method.named_buffers(recurse=False):
        compare(case, f"final_{name}", center, arrays[f"final_{name}"])
    assert ("final_center_grid" in arrays) == method.options.region


def _compare_layout(args: dict[str, Any], method: EsViT) -> None:
    """Groups and names are the authors'; what they store beside parameters follows from the settings here."""
    names = {id(p): name for name, p in method.student.named_parameters()}
    groups = [{names[id(p)] for p in group.parameters} for group in method.groups()]
    expected = [{_ours(name.removeprefix("module.")) for name in group} for group in args["param_groups"]]
    assert groups == expected
    for network in ("student", "teacher"):
        stored = {_ours(name.removeprefix("module.")) for name in args["checkpoint"][network]}
        tables = {name for name in stored if name.endswith(("relative_position_index", "attn_mask"))}
        assert set(getattr(method, network).state_dict()) == stored - tables
    assert [name for name, _ in method.named_buffers(recurse=False)] == args["checkpoint"]["dino_loss"]


HANDLERS = {
    ("esvit", "dino_head"): check_head,
    ("esvit", "dino_loss"): check_view_loss,
    ("esvit", "ddino_loss"): check_region_loss,
    ("esvit", "multicrop"): check_multicrop,
    ("esvit", "schedules"): check_schedules,
    ("esvit", "train_trajectory"): check_train_trajectory,
}

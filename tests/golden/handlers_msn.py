"""MSN: losses, networks, schedules and trajectories against the authors' numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from belvedere.data.batch import Batch
from belvedere.engine.parallel import Spread, prepare_
from belvedere.methods.method import Losses
from belvedere.methods.msn import MSN, Encoder, Options, msn_loss
from belvedere.nn.heads import ProjectionHead
from belvedere.nn.norm import commit_, globalize_
from belvedere.nn.position import resize_position
from belvedere.nn.spec import HeadSpec, ViTSpec
from belvedere.nn.spec.vit import vit_spec
from belvedere.nn.vit import ViT
from belvedere.ops.sinkhorn import sinkhorn
from belvedere.optim.groups import build_optimizer
from belvedere.recipe.plan import Plan, plan
from belvedere.recipe.schema import Recipe
from belvedere.train.loop import StepReport, steps
from golden import DEVICE, compare, fill_, here, normal, placed, stats, weights

PROTOTYPES_ATOL = 1e-5
"""Closer than a case's own: weight decay on the prototypes, which there must not be, moves them by 1e-4."""

Case = dict[str, Any]
Arrays = dict[str, np.ndarray]


# Losses


def _options(**changes: Any) -> Options:
    values: dict[str, Any] = {
        "name": "msn",
        "prototypes": 32,
        "temperature": 0.1,
        "sharpen": {"start": 0.25, "final": 0.25},
        "momentum": {"start": 0.996, "final": 1.0},
        "sinkhorn_iterations": 3,
        "memax_weight": 1.0,
        "entropy_weight": 0.0,
        "label_smoothing": 0.0,
        "patch_drop": 0.15,
        "head": {"hidden": 64, "out": 16, "batch_norm": True},
    }
    return Options.model_validate(values | changes)


def check_loss(case: Case, arrays: Arrays) -> None:
    args = case["args"]
    if "recipe_inputs" in args:
        rule = args["recipe_inputs"]
        target, prototypes = (
            normal(rule[n]["seed"], rule[n]["shape"]) for n in ("target_views", "prototypes")
        )
        anchors = normal(rule["a0"]["seed"], rule["a0"]["shape"]) + target.repeat(args["num_views"], 1)
    else:
        names = ("anchor_views", "target_views", "prototypes")
        anchors, target, prototypes = (torch.from_numpy(arrays[name]) for name in names)
    anchors, target, prototypes = here(anchors), here(target), here(prototypes)
    anchors.requires_grad_()
    prototypes.requires_grad_()
    options = _options(
        prototypes=len(prototypes),
        temperature=args["temperature"],
        sinkhorn_iterations=args.get("sinkhorn_iterations", 3) if args["use_sinkhorn"] else 0,
        memax_weight=args["memax_weight"] if args["me_max"] else 0.0,
        entropy_weight=args["ent_weight"] if args["use_entropy"] else 0.0,
        label_smoothing=args["label_smoothing"],
    )
    losses = msn_loss(anchors, target, prototypes, options=options, sharpen=args["T"])
    losses.total.backward()
    on = {"ploss": True, "me_max": args["me_max"], "ent": args["use_entropy"]}
    for array, term in (("ploss", "ploss"), ("rloss", "me_max"), ("sloss", "ent")):
        # The authors report 0 for a term that is off; ours is reported for the record all the same.
        compare(case, array, losses.terms[term] if on[term] else 0.0, arrays[array])
    compare(case, "loss", losses.total, arrays["loss"])
    compare(case, "targets", losses.kept["targets"], arrays["targets"])
    for array, watch in (("np", "prototypes_used"), ("max_t", "max_target"), ("min_t", "min_target")):
        compare(case, array, losses.watch[watch], arrays[array])
    for name, leaf in (("anchor", anchors), ("prototypes", prototypes)):
        assert leaf.grad is not None
        compare(case, f"grad_{name}", leaf.grad, arrays[f"grad_{name}"])
        if f"grad_{name}_stats" in arrays:
            compare(case, f"grad_{name}_stats", stats(leaf.grad), arrays[f"grad_{name}_stats"])


def check_sinkhorn(case: Case, arrays: Arrays) -> None:
    for name, expected in arrays.items():
        if name.startswith("out"):
            number, iterations = name.removeprefix("out").split("_it")
            compare(
                case, name, sinkhorn(torch.from_numpy(arrays[f"in{number}"]).log(), int(iterations)), expected
            )


# Networks


def encoder(model: ViTSpec, head: dict[str, Any] | None, state: dict[str, Tensor]) -> Encoder:
    """An encoder holding a state dict under MSN's names (`fc.*` is the head)."""
    backbone = ViT(model)
    fill_(backbone, {name: value for name, value in state.items() if not name.startswith("fc.")})
    spec = head or {"hidden_dim": 4, "output_dim": 4, "use_bn": True}
    values = {"hidden": spec["hidden_dim"], "out": spec["output_dim"], "batch_norm": spec["use_bn"]}
    projection = ProjectionHead(model.width, HeadSpec.model_validate(values))
    if head is not None:
        fill_(projection, {n.removeprefix("fc."): v for n, v in state.items() if n.startswith("fc.")})
    return Encoder(backbone, projection)


def check_forward_features(case: Case, arrays: Arrays) -> None:
    args = case["args"]
    model = encoder(vit_spec(args["model"]), args["head"], weights(case)).eval()
    vit = model.backbone
    images = normal(args["image"]["seed"], args["image"]["shape"])
    with torch.no_grad():
        features = vit(images, blocks=4)
        outputs: dict[str, Tensor] = {
            "h": features.pooled,
            "blocks1": _cls(features.blocks[-1:]),
            "blocks4": _cls(features.blocks),
            "last4_avgpool": torch.cat(
                [*(vit.norm(block.cls) for block in features.blocks), features.regions.mean(1)], dim=1
            ),
        }
        torch.testing.assert_close(vit(images, regions=False).pooled, features.pooled, rtol=1e-4, atol=1e-5)
        if "attn_cls" in arrays:
            attention = vit.attention(images)
            outputs |= {"attn_cls": attention[:, :, 0], "attn": attention}
        for number, drop in enumerate(args["patch_drops"]):
            order = torch.from_numpy(arrays[f"perm{number}"])
            keep = order[: int(len(order) * (1 - drop["patch_drop"]))]
            assert len(keep) == drop["kept"]
            dropped = vit(images, keep=keep, blocks=1)
            outputs[f"h_drop{number}"] = vit(images, keep=keep, regions=False).pooled
            outputs[f"blocks1_drop{number}"] = _cls(dropped.blocks)
        if args["head"] is not None:
            outputs["z_eval"] = model(features.pooled, part="head")
    for name, expected in arrays.items():
        if name.startswith("perm"):
            continue
        if name.endswith("_stats"):
            compare(case, name, stats(outputs[name.removesuffix("_stats")]), expected)
        elif name == "blocks4":  # the one array that holds the last columns
            compare(case, name, outputs[name][:, -expected.shape[1] :], expected)
        else:
            compare(case, name, outputs[name], expected)


def _cls(blocks: Any) -> Tensor:
    return torch.cat([block.cls for block in blocks], dim=1)


def check_multicrop(case: Case, arrays: Arrays) -> None:
    args = case["args"]
    seed, batch = args["images"]["seed"], args["batch"]
    sizes = [args["rand_size"]] * args["rand_views"] + [args["focal_size"]] * args["focal_views"]
    views = [normal(seed + v, (batch, 3, px, px)) for v, px in enumerate(sizes)]
    options = _options(
        patch_drop=args["patch_drop"],
        head={
            "hidden": args["head"]["hidden_dim"],
            "out": args["head"]["output_dim"],
            "batch_norm": args["head"]["use_bn"],
        },
    )
    method = MSN(options, ViT(vit_spec(args["model"])), seed=0)
    method.student = encoder(vit_spec(args["model"]), args["head"], weights(case))
    globalize_(method)
    method.train()
    given = Batch(
        {
            "anchor": torch.stack(views[: args["rand_views"]]),
            "focal": torch.stack(views[args["rand_views"] :]),
        },
        torch.arange(batch),
        torch.full((batch,), -1),
        range(batch),
        draws={"patch_order": torch.from_numpy(arrays["perm"])},
    )
    encoded = method.encode_student(method.student, given, None)  # type: ignore[arg-type]
    z = torch.cat([method.student(h.flatten(0, 1), part="head") for h in encoded.values()])
    commit_(method)
    compare(case, "z", z, arrays["z"])
    buffers = dict(method.student.head.named_buffers())
    for name, expected in arrays.items():
        if name.startswith("fc."):
            compare(case, name, buffers[name.removeprefix("fc.")], expected)
    if "num_batches_tracked" in arrays:
        compare(
            case, "num_batches_tracked", buffers["bn1.num_batches_tracked"], arrays["num_batches_tracked"]
        )


def check_pos_interp(case: Case, arrays: Arrays) -> None:
    for number, one in enumerate(case["args"]["cases"]):
        table = normal(one["pos_embed"]["seed"], one["pos_embed"]["shape"])
        resized = resize_position(table, (one["dst"], one["dst"]))
        compare(case, f"out{number}", resized, arrays[f"out{number}"])


# Schedules and trajectories


def _recipe(optimization: dict[str, Any], method: dict[str, Any], train: dict[str, Any], vit: dict[str, Any],
            views: dict[str, Any]) -> Recipe:  # fmt: skip
    photometry = {"flip": 0.0, "jitter": None, "gray": 0.0, "blur": None, "solarize": 0.0}
    shape = {
        "aspect": (0.75, 1.3333),
        "interpolation": "bilinear",
        "photometry": photometry,
        "scale": (0.5, 1.0),
    }
    return Recipe.model_validate(
        {
            "name": "golden",
            "seed": 0,
            "method": _options(**method).model_dump(),
            "backbone": {"name": "vit", "stem": "patch", "drop_path": 0.0} | vit,
            "views": {role: shape | view for role, view in views.items()},
            "data": {
                "path": "digits",
                "split": None,
                "mean": (0.5, 0.5, 0.5),
                "std": (0.5, 0.5, 0.5),
                "max_bad_share": 0.0,
            },
            "optim": {
                "name": "adamw",
                "betas": (0.9, 0.999),
                "eps": 1e-8,
                "lr": {
                    "start": optimization["start_lr"],
                    "peak": optimization["lr"],
                    "final": optimization["final_lr"],
                    "warmup_epochs": optimization["warmup"],
                },
                "weight_decay": {
                    "start": optimization["weight_decay"],
                    "final": optimization["final_weight_decay"],
                },
                "clip": {"kind": "total", "norm": optimization["clip_grad"]}
                if optimization.get("clip_grad")
                else None,
                "stretch": 1.25,
            },
            "train": {"precision": "float32", "epochs": optimization["epochs"]} | train,
            "features": {
                "source": "cls",
                "blocks": 1,
                "norm": "none",
                "resize_px": 32,
                "crop_px": 32,
                "interpolation": "bilinear",
            },
        }
    )


_TINY_VIT = {"width": 8, "depth": 1, "heads": 1, "patch_px": 8, "mlp_ratio": 1.0, "image_px": 16}
_TINY_VIEWS = {"target": {"count": 1, "px": 16}, "anchor": {"count": 1, "px": 16}}


def check_schedules(case: Case, arrays: Arrays) -> None:
    args = case["args"]
    method = {
        "sharpen": {"start": args["start_sharpen"], "final": args["final_sharpen"]},
        "momentum": {"start": args["start_momentum"], "final": args["final_momentum"]},
    }
    recipe = _recipe(args, method, {"global_batch": 2}, _TINY_VIT, _TINY_VIEWS)
    laid_out = plan(recipe, num_images=2 * args["ipe"], world_size=1, device="cpu")
    assert laid_out.total_steps == args["steps"]
    page = MSN(recipe.method, ViT(recipe.backbone), seed=0)  # type: ignore[arg-type]
    scheduled = [page.scheduled(laid_out.clock(step)) for step in range(args["steps"])]
    values = {
        "lr": [laid_out.lr(step) for step in range(args["steps"])],
        "wd": [laid_out.weight_decay(step) for step in range(args["steps"])],
        "m": [each["momentum"] for each in scheduled],
        "T": [each["sharpen"] for each in scheduled],
        "lr_full": [laid_out.lr(step) for step in range(len(arrays["lr_full"]))],
        "wd_full": [laid_out.weight_decay(step) for step in range(len(arrays["wd_full"]))],
    }
    for name, expected in arrays.items():
        compare(case, name, np.array(values[name]), expected)


def _trajectory_recipe(case: Case) -> Recipe:
    args, cfg, vit = case["args"], case["args"]["cfg"], case["args"]["vit"]
    criterion, data, meta = cfg["criterion"], cfg["data"], cfg["meta"]
    assert vit["qkv_bias"]
    method = {
        "prototypes": criterion["num_proto"],
        "temperature": criterion["temperature"],
        "sharpen": {"start": criterion["start_sharpen"], "final": criterion["final_sharpen"]},
        "sinkhorn_iterations": 3 if criterion["use_sinkhorn"] else 0,
        "memax_weight": criterion["memax_weight"] if criterion["me_max"] else 0.0,
        "entropy_weight": criterion["ent_weight"] if criterion["use_ent"] else 0.0,
        "label_smoothing": data["label_smoothing"],
        "patch_drop": data["patch_drop"],
        "head": {"hidden": meta["hidden_dim"], "out": meta["output_dim"], "batch_norm": meta["use_bn"]},
    }
    network = {
        "width": vit["embed_dim"],
        "depth": vit["depth"],
        "heads": vit["num_heads"],
        "patch_px": vit["patch_size"],
        "mlp_ratio": float(vit["mlp_ratio"]),
        "image_px": vit["img_size"][0],
        "drop_path": meta["drop_path_rate"],
    }
    views = {
        "target": {"count": 1, "px": data["rand_size"]},
        "anchor": {"count": data["rand_views"], "px": data["rand_size"]},
    }
    if data["focal_views"]:
        views["focal"] = {"count": data["focal_views"], "px": data["focal_size"]}
    return _recipe(cfg["optimization"], method, {"global_batch": args["batch"]}, network, views)


def _recorded_batches(case: Case, arrays: Arrays, laid_out: Plan) -> Any:
    args, recipe = case["args"], laid_out.recipe
    roles = [role for role, view in recipe.views.items() for _ in range(view.count)]
    for step in range(laid_out.total_steps):
        views: dict[str, list[Tensor]] = {}
        for number, role in enumerate(roles):
            px = recipe.views[role].px
            image = normal(args["images"]["seed"] + 1000 * step + number, (args["batch"], 3, px, px))
            views.setdefault(role, []).append(image)
        rows = args["batch"]
        yield Batch(
            {role: torch.stack(each) for role, each in views.items()},
            torch.arange(rows),
            torch.full((rows,), -1),
            range(rows),
            draws={"patch_order": torch.from_numpy(arrays["perms"][step])},
        )


def _by_msn_names(encoder: nn.Module) -> dict[str, Tensor]:
    state = {name: value.detach().clone() for name, value in encoder.state_dict().items()}
    renamed = {name.replace("head.", "fc.", 1): v for name, v in state.items() if name.startswith("head.")}
    rest = {name.removeprefix("backbone."): v for name, v in state.items() if name.startswith("backbone.")}
    return rest | renamed


def check_train_trajectory(case: Case, arrays: Arrays) -> None:
    recipe = _trajectory_recipe(case)
    args = case["args"]
    laid_out = plan(recipe, num_images=args["ipe"] * args["batch"], world_size=1, device="cpu")
    state = weights(case)
    method = MSN(recipe.method, ViT(recipe.backbone), seed=0)  # type: ignore[arg-type]
    network = {name: value for name, value in state.items() if name != "prototypes"}
    head = {
        "hidden_dim": recipe.method.head.hidden,  # type: ignore[attr-defined]
        "output_dim": recipe.method.head.out,  # type: ignore[attr-defined]
        "use_bn": recipe.method.head.batch_norm,  # type: ignore[attr-defined]
    }
    method.student = encoder(recipe.backbone, head, network)
    method.teacher = encoder(recipe.backbone, head, network).requires_grad_(False)
    prototypes = state.get("prototypes", torch.from_numpy(arrays["prototypes_init"]))
    compare(case, "prototypes_init", prototypes, arrays["prototypes_init"])
    method.prototypes = nn.Parameter(prototypes.clone())
    prepare_(method, device=DEVICE, dtype=torch.float32)
    start = {"enc": _by_msn_names(method.student), "tgt": _by_msn_names(method.teacher)}
    spread = Spread(method, device=DEVICE, precision="float32", seed=0)
    optimizer = build_optimizer(method.groups(), recipe.optim)
    reports = list(
        steps(method, optimizer, placed(_recorded_batches(case, arrays, laid_out)), laid_out, spread)
    )
    _compare_steps(case, arrays, reports)
    final = {"enc": _by_msn_names(method.student), "tgt": _by_msn_names(method.teacher)}
    _compare_final(case, arrays, start, final)
    np.testing.assert_allclose(
        method.prototypes.detach().cpu().numpy(),
        arrays["prototypes_final"],
        rtol=0,
        atol=PROTOTYPES_ATOL,
        err_msg="prototypes_final",
    )


def _grad_stats(report: StepReport) -> list[float]:
    """The authors' gradient log: first and last qkv weight, then extremes over the weight matrices."""
    named = dict(zip(report.names, report.norms.tolist(), strict=True))
    qkv = [norm for name, norm in named.items() if name.endswith("qkv.weight")]
    vectors = (".bias", "norm1.weight", "norm2.weight", "norm.weight", "bn1.weight", "bn2.weight")
    matrices = [norm for name, norm in named.items() if not name.endswith(vectors)]
    return [qkv[0], qkv[-1], min(matrices), max(matrices)]


def _compare_steps(case: Case, arrays: Arrays, reports: list[StepReport]) -> None:
    assert len(reports) == len(arrays["loss"])
    terms = {
        name: np.array([float(r.losses.terms[name]) for r in reports]) for name in reports[0].losses.terms
    }
    use_ent = case["args"]["cfg"]["criterion"]["use_ent"]
    me_max = case["args"]["cfg"]["criterion"]["me_max"]

    def watch(name: str) -> np.ndarray:
        return np.array([float(report.losses.watch[name]) for report in reports])

    series = {
        "loss": np.array([float(report.losses.total) for report in reports]),
        "ploss": terms["ploss"],
        "me_max": terms["me_max"] * me_max,
        "ent": terms["ent"] * use_ent,
        "lr": np.array([report.lr for report in reports]),
        "wd": np.array([report.weight_decay for report in reports]),
        "T": np.array([report.scheduled["sharpen"] for report in reports]),
        "m": np.array([report.scheduled["momentum"] for report in reports]),
        "np": watch("prototypes_used"),
        "max_t": watch("max_target"),
        "grad_norm": np.array([float(report.total_norm) for report in reports]),
        "grad_stats": np.array([_grad_stats(report) for report in reports]),
    }
    for name, actual in series.items():
        if name in arrays and arrays[name].size:
            compare(case, name, actual, arrays[name], relative=name not in ("np", "max_t", "grad_stats"))
    kept: dict[str, Losses] = {"first": reports[0].losses, "last": reports[-1].losses}
    for when, losses in kept.items():
        for tensor in ("z", "h"):
            if f"{tensor}_{when}" in arrays:
                compare(case, f"{tensor}_{when}", losses.kept[tensor], arrays[f"{tensor}_{when}"])


def _compare_final(case: Case, arrays: Arrays, start: Any, final: Any) -> None:
    names, buffers = case["args"]["encoder_names"], case["args"]["buffer_names"]
    for which in ("enc", "tgt"):
        norm = np.array([float(final[which][name].double().norm()) for name in names])
        moved = [(final[which][name].double() - start[which][name].double()).norm() for name in names]
        compare(case, f"{which}_norm", norm, arrays[f"{which}_norm"], relative=True)
        compare(case, f"{which}_delta", np.array(moved), arrays[f"{which}_delta"], relative=True)
        buffer = np.array([float(final[which][name].double().norm()) for name in buffers])
        compare(case, f"{which}_buf_norm", buffer, arrays[f"{which}_buf_norm"], relative=True)
    for name, expected in arrays.items():
        which, colon, tensor = name.partition(":")
        if colon:
            compare(case, name, final[which][tensor.partition("[")[0]], expected)


HANDLERS = {
    ("msn", "loss"): check_loss,
    ("msn", "sinkhorn"): check_sinkhorn,
    ("msn", "forward_features"): check_forward_features,
    ("msn", "multicrop"): check_multicrop,
    ("msn", "pos_interp"): check_pos_interp,
    ("msn", "schedules"): check_schedules,
    ("msn", "train_trajectory"): check_train_trajectory,
}

"""What the handlers of Mugs' cases share: the authors' names and arguments as ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from belvedere.methods.mugs import Mugs, Options
from belvedere.nn.spec import ContrastiveHeadSpec, ViTSpec, WeightNormHeadSpec
from belvedere.nn.vit import ViT
from golden import fill_, weights

Case = dict[str, Any]

ARCHITECTURES = {
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
}


def ours(name: str) -> str:
    """What the authors' name of an entry is in `GranularNetwork`."""
    bare = name.removeprefix("module.")
    if bare.startswith("backbone.relation_blocks."):
        return bare.removeprefix("backbone.")
    if bare.startswith("group_head.projector."):
        return bare.replace("projector.", "mlp.")
    return bare


def theirs(case: Case, like: nn.Module | None = None) -> dict[str, Tensor]:
    """The case's weights under our names; those to be set to one have the shape of the module's own."""
    state = {ours(name): value for name, value in weights(case).items()}
    own = like.state_dict() if like is not None else {}
    ones = {ours(name): torch.ones_like(own[ours(name)]) for name in case["weights"].get("set_to_one", ())}
    return state | ones


def vit_spec(args: dict[str, Any], *, patch: str = "patch_size", px: int = 224) -> ViTSpec:
    """A ViT by the authors' arguments: of an architecture's name, or with its sizes."""
    width, depth, heads = ARCHITECTURES.get(args.get("arch", ""), (0, 0, 0))
    return ViTSpec(
        name="vit",
        width=args.get("embed_dim", width),
        depth=args.get("depth", depth),
        heads=args.get("num_heads", heads),
        patch_px=args[patch],
        mlp_ratio=float(args.get("mlp_ratio", 4)),
        stem="patch",
        image_px=args.get("img_size", px),
        drop_path=float(args.get("drop_path_rate", 0.0)),
        position_margin=0.1,
    )


def contrastive_spec(args: dict[str, Any], out: int) -> ContrastiveHeadSpec:
    return ContrastiveHeadSpec(
        hidden=args.get("hidden_dim", 2048),
        out=out,
        layers=args.get("nlayers", 3),
        predictor=args.get("pred_hidden_dim", 4096) or 1,
        batch_norm=args.get("use_bn_in_head", args.get("proj_bn", False)),
        norm_before_predictor=args.get("norm_before_pred", True),
    )


def group_spec(args: dict[str, Any], **changes: Any) -> WeightNormHeadSpec:
    values = {
        "hidden": args.get("hidden_dim", 2048),
        "bottleneck": args.get("group_bottleneck_dim", 256),
        "out": args.get("group_out_dim", 65536),
        "layers": args.get("nlayers", 3),
        "batch_norm": args.get("use_bn_in_head", False),
        "norm_last_layer": args.get("norm_last_layer", True),
    }
    return WeightNormHeadSpec.model_validate(values | changes)


def options(heads: dict[str, Any], run: dict[str, Any], loss_weights: list[float] | None = None) -> Options:
    """heads: the authors' arguments of the heads; run: those of losses, queues, memory and schedules."""
    of_instance, of_local, of_group = loss_weights or run.get("loss_weights", [1.0, 1.0, 1.0])
    momentum = run.get("momentum_teacher", 0.996)
    slots = run.get("local_group_queue_size", 65536)
    start = run.get("group_warmup_teacher_temp", 0.04)
    final = run.get("group_teacher_temp", start)
    return Options.model_validate(
        {
            "name": "mugs",
            "instance": {
                "weight": of_instance,
                "temperature": run.get("instance_temp", 0.2),
                "queue": run.get("instance_queue_size", 65536),
                "head": contrastive_spec(heads, heads.get("instance_out_dim", 256)).model_dump(),
            },
            "local_group": {
                "weight": of_local,
                "temperature": run.get("local_group_temp", 0.2),
                "queue": slots,
                "head": contrastive_spec(heads, heads.get("local_group_out_dim", 256)).model_dump(),
                "memory": run.get("memory", slots),
                "neighbours": run.get("local_group_knn_top_n", 8),
            },
            "group": {
                "weight": of_group,
                "temperature": run.get("group_student_temp", 0.1),
                "teacher_temperature": {
                    "start": start,
                    "final": final,
                    "warmup_epochs": run.get("group_warmup_teacher_temp_epochs", 0),
                },
                "center_momentum": run.get("center_momentum", 0.9),
                "freeze_last_layer_epochs": run.get("freeze_last_layer", 0),
                "head": group_spec(heads).model_dump(),
            },
            "momentum": {"start": momentum, "final": 1.0},
            "patch_embed_lr": run.get("patch_embed_lr_mult", 0.2),
        }
    )


def filled(case: Case, chosen: Options, backbone: ViTSpec) -> Mugs:
    """The method with the case's weights in both networks: a teacher's lack the predictors, which it has not;
    a student's are all there."""
    method = Mugs(chosen, ViT(backbone), seed=0)
    state, teacher = theirs(case, method.student), method.teacher.state_dict()
    predictors = {n: v for n, v in method.student.state_dict().items() if n not in teacher}
    assert not any(name in state for name in predictors) or all(name in state for name in predictors)
    fill_(method.student, predictors | state)
    fill_(method.teacher, {name: value for name, value in state.items() if name in teacher})
    return method

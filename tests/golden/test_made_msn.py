"""Every MSN kind again on a made case with every size changed: shapes follow from the case, not from habit.

The expected numbers here come from our own code, so these tests say nothing about the authors' numbers; they
fail when a handler or the code below it holds on to a size.
"""

from __future__ import annotations

from typing import Any

import handlers_msn as handlers
import numpy as np
import pytest
import torch
from weight_recipe import recipe_state_dict

from belvedere.nn.heads import ProjectionHead
from belvedere.nn.spec import HeadSpec
from belvedere.nn.spec.vit import vit_spec
from belvedere.nn.vit import ViT
from golden import normal


def _shapes(model: str, head: dict[str, Any] | None) -> dict[str, list[int]]:
    shapes = {name: list(value.shape) for name, value in ViT(vit_spec(model)).state_dict().items()}
    if head is not None:
        values = {"hidden": head["hidden_dim"], "out": head["output_dim"], "batch_norm": head["use_bn"]}
        module = ProjectionHead(vit_spec(model).width, HeadSpec.model_validate(values))
        shapes |= {f"fc.{name}": list(value.shape) for name, value in module.state_dict().items()}
    return shapes


def _case(kind: str, args: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"kind": kind, "args": args, "rtol": 1e-4, "atol": 1e-5} | more


def test_sinkhorn() -> None:
    p = torch.rand(5, 9, generator=torch.Generator().manual_seed(1))
    p = p / p.sum(1, keepdim=True)
    q = p / p.sum()
    for _ in range(2):  # the plain form, as the paper writes it
        q = q / q.sum(0) / 9
        q = q / q.sum(1, keepdim=True) / 5
    handlers.check_sinkhorn(_case("sinkhorn", {}), {"in0": p.numpy(), "out0_it2": (q * 5).numpy()})


@pytest.mark.parametrize("sinkhorn", [True, False])
def test_loss(sinkhorn: bool) -> None:
    args = {
        "batch": 5, "num_views": 3, "num_proto": 7, "dim": 6, "T": 0.5, "temperature": 0.2,
        "use_sinkhorn": sinkhorn, "me_max": True, "use_entropy": True, "memax_weight": 2.0,
        "ent_weight": 0.5, "label_smoothing": 0.1,
    }  # fmt: skip
    anchors, targets, prototypes = normal(1, (15, 6)), normal(2, (5, 6)), normal(3, (7, 6))
    expected = _plain_loss(anchors, targets, prototypes, args)
    arrays = {
        "anchor_views": anchors.numpy(),
        "target_views": targets.numpy(),
        "prototypes": prototypes.numpy(),
    }
    handlers.check_loss(_case("loss", args), arrays | expected)


def _plain_loss(
    anchors: torch.Tensor, targets: torch.Tensor, prototypes: torch.Tensor, args: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Specification A.4, written as directly as it reads."""
    anchors, prototypes = anchors.clone().requires_grad_(), prototypes.clone().requires_grad_()
    count, smoothing = args["num_proto"], args["label_smoothing"]
    labels = torch.eye(count) * (1 - smoothing) + smoothing / count

    def probabilities(x: torch.Tensor) -> torch.Tensor:
        unit = x / x.norm(dim=1, keepdim=True)
        axes = prototypes / prototypes.norm(dim=1, keepdim=True)
        return torch.softmax(unit @ axes.T / args["temperature"], 1) @ labels

    p = probabilities(anchors)
    with torch.no_grad():
        t = probabilities(targets) ** (1 / args["T"])
        t = t / t.sum(1, keepdim=True)
        if args["use_sinkhorn"]:
            for _ in range(3):
                t = t / t.sum(0)
                t = t / t.sum(1, keepdim=True)
    ploss = -(t.repeat(args["num_views"], 1) * p.log()).sum(1).mean()
    mean = p.mean(0)
    rloss = (mean * mean.log()).sum() + np.log(count)
    sloss = -(p * p.log()).sum(1).mean()
    loss = ploss + args["memax_weight"] * rloss + args["ent_weight"] * sloss
    loss.backward()
    assert anchors.grad is not None
    assert prototypes.grad is not None
    tensors = {
        "ploss": ploss, "rloss": rloss, "sloss": sloss, "loss": loss, "targets": t,
        "np": torch.tensor(float(len(t.argmax(1).unique()))), "max_t": t.amax(1).mean(),
        "min_t": t.amin(1).mean(), "grad_anchor": anchors.grad, "grad_prototypes": prototypes.grad,
    }  # fmt: skip
    return {name: value.detach().double().numpy() for name, value in tensors.items()}


@pytest.mark.parametrize("model", ["deit_tiny", "deit_small_convstem", "deit_small_p7"])
def test_forward_features(model: str) -> None:
    head = {"use_bn": False, "hidden_dim": 24, "output_dim": 10}
    px = 28 if model.endswith("p7") else 48
    order = torch.randperm((px // vit_spec(model).patch_px) ** 2, generator=torch.Generator().manual_seed(0))
    kept = int(len(order) * (1 - 0.4))
    args = {
        "model": model,
        "head": head,
        "image": {"seed": 5, "shape": [2, 3, px, px]},
        "patch_drops": [{"patch_drop": 0.4, "kept": kept}],
    }
    case = _case("forward_features", args, weights={"seed": 4, "shapes": _shapes(model, head)})
    state = {n: torch.from_numpy(v) for n, v in recipe_state_dict(case["weights"]["shapes"], 4).items()}
    network = handlers.encoder(vit_spec(model), head, state).eval()
    images = normal(5, (2, 3, px, px))
    with torch.no_grad():
        features = network.backbone(images, blocks=4)
        dropped = network.backbone(images, keep=order[:kept].sort().values)  # their order must not matter
        z = network(features.pooled, part="head")
    arrays = {
        "h": features.pooled.numpy(),
        "z_eval": z.numpy(),
        "perm0": order.numpy(),
        "h_drop0": dropped.pooled.numpy(),
    }
    handlers.check_forward_features(case, arrays)


def test_multicrop_of_one_size_is_one_group() -> None:
    head = {"use_bn": True, "hidden_dim": 12, "output_dim": 6}
    args = {
        "model": "deit_tiny", "head": head, "batch": 2, "rand_views": 2, "focal_views": 1,
        "rand_size": 32, "focal_size": 32, "patch_drop": 0.5, "images": {"seed": 7},
    }  # fmt: skip
    case = _case("multicrop", args, weights={"seed": 6, "shapes": _shapes("deit_tiny", head)})
    state = {n: torch.from_numpy(v) for n, v in recipe_state_dict(case["weights"]["shapes"], 6).items()}
    network = handlers.encoder(vit_spec("deit_tiny"), head, state).train()
    order = torch.tensor([3, 1, 0, 2])
    images = torch.cat([normal(7 + v, (2, 3, 32, 32)) for v in range(3)])
    z = network(network.backbone(images, keep=order[:2]).pooled, part="head")
    arrays = {
        "perm": order.numpy(),
        "z": z.detach().numpy(),
        "fc.bn1.running_mean": network.head.bn1.running_mean.numpy(),  # type: ignore[union-attr]
        "num_batches_tracked": np.array(1),
    }
    handlers.check_multicrop(case, arrays)


def test_pos_interp_equals_torch_bicubic() -> None:
    table = normal(8, (1, 26, 5))
    square = table[:, 1:].reshape(1, 5, 5, 5).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(square, scale_factor=3 / 5, mode="bicubic")
    flat = torch.cat([table[:, :1], resized.permute(0, 2, 3, 1).reshape(1, 9, 5)], 1)
    one = {"dst": 3, "pos_embed": {"seed": 8, "shape": [1, 26, 5]}}
    handlers.check_pos_interp(_case("pos_interp", {"cases": [one]}), {"out0": flat.numpy()})


@pytest.mark.parametrize("focal_views", [0, 2])
def test_train_trajectory(focal_views: int) -> None:
    """Shapes alone: the tolerances let every number pass."""
    batch, steps, width, hidden, out, prototypes, depth, px = 6, 4, 12, 10, 5, 9, 3, 24
    spec = {"width": width, "depth": depth, "heads": 2, "patch_px": 4, "mlp_ratio": 2.0, "image_px": px}
    values = {"name": "vit", "stem": "patch", "drop_path": 0.0} | spec
    network = handlers.ViT(handlers.ViTSpec.model_validate(values))
    projection = ProjectionHead(
        width, HeadSpec.model_validate({"hidden": hidden, "out": out, "batch_norm": True})
    )
    shapes = {name: list(value.shape) for name, value in network.state_dict().items()}
    shapes |= {f"fc.{name}": list(value.shape) for name, value in projection.state_dict().items()}
    args = {
        "cfg": {
            "meta": {"output_dim": out, "hidden_dim": hidden, "use_bn": True, "drop_path_rate": 0.0},
            "criterion": {
                "ent_weight": 0.1, "start_sharpen": 0.3, "final_sharpen": 0.2, "me_max": False,
                "memax_weight": 1.0, "num_proto": prototypes, "temperature": 0.2, "use_ent": True,
                "use_sinkhorn": True,
            },
            "data": {
                "label_smoothing": 0.05, "patch_drop": 0.25, "rand_size": px, "focal_size": 16,
                "rand_views": 2, "focal_views": focal_views,
            },
            "optimization": {
                "clip_grad": 0.5, "epochs": 2, "final_lr": 0.0, "final_weight_decay": 0.1, "lr": 0.01,
                "start_lr": 0.001, "warmup": 0.5, "weight_decay": 0.0,
            },
        },
        "ipe": 2,
        "batch": batch,
        "vit": {
            "img_size": [px], "patch_size": 4, "embed_dim": width, "depth": depth, "num_heads": 2,
            "mlp_ratio": 2, "qkv_bias": True,
        },
        "images": {"seed": 3},
        "encoder_names": ["cls_token", "fc.fc1.weight"],
        "buffer_names": ["fc.bn1.running_var"],
    }  # fmt: skip
    anchors = (2 + focal_views) * batch
    arrays = {name: np.ones(steps) for name in ("loss", "ploss", "ent", "lr", "m", "T", "max_t", "grad_norm")}
    arrays |= {
        "grad_stats": np.ones((steps, 4)),
        "perms": np.stack([np.random.RandomState(s).permutation(36) for s in range(steps)]),
        "z_first": np.ones((anchors, out), dtype=np.float32),
        "h_first": np.ones((batch, out), dtype=np.float32),
        "prototypes_init": normal(12, (prototypes, out)).numpy(),
        "enc:fc.fc1.weight": np.ones((hidden, width), dtype=np.float32),
        "enc:blocks.2.attn.qkv.weight[:3]": np.ones((3, width), dtype=np.float32),
    }
    for which in ("enc", "tgt"):
        arrays |= {f"{which}_norm": np.ones(2), f"{which}_delta": np.ones(2), f"{which}_buf_norm": np.ones(1)}
    case = _case("train_trajectory", args, weights={"seed": 2, "shapes": shapes})
    case |= {"rtol": 1e9, "atol": 1e9}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handlers, "PROTOTYPES_ATOL", 1e9)
        arrays["prototypes_final"] = arrays["prototypes_init"]
        handlers.check_train_trajectory(case, arrays)


def test_schedules() -> None:
    args = {
        "ipe": 3, "epochs": 4, "warmup": 1, "start_lr": 0.0, "lr": 0.5, "final_lr": 0.1, "weight_decay": 0.2,
        "final_weight_decay": 0.3, "start_momentum": 0.9, "final_momentum": 0.99, "start_sharpen": 0.4,
        "final_sharpen": 0.2, "steps": 12,
    }  # fmt: skip
    arrays = {
        "lr": np.array(
            [0.5 / 3, 1 / 3, 0.5] + [0.1 + 0.2 * (1 + np.cos(np.pi * k / 12)) for k in range(1, 10)]
        ),
        "m": 0.9 + np.arange(12) * 0.09 / 15,
        "T": 0.4 - np.arange(12) * 0.2 / 15,
        "lr_full": np.array([0.5 / 3]),
        "wd_full": np.array([0.3 - 0.05 * (1 + np.cos(np.pi / 15))]),
    }
    handlers.check_schedules(_case("schedules", args), arrays)

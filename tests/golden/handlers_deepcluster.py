"""DeepCluster-v2: clustering, labels and loss of one epoch, and two epochs through the training loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from handlers_swav_bricks import check_clusters as check_kmeans
from torch import Tensor, nn

from belvedere.data.batch import Batch
from belvedere.engine.parallel import Spread, prepare_
from belvedere.methods.deepcluster import DeepCluster, Options, deepcluster_loss
from belvedere.methods.method import Clock, Extent
from belvedere.nn.vit import ViT
from belvedere.optim.groups import build_optimizer
from belvedere.recipe.plan import Plan, plan
from belvedere.recipe.schema import Recipe
from belvedere.train.loop import steps
from golden import DEVICE, compare, placed

Case = dict[str, Any]
Arrays = dict[str, np.ndarray]

_PX = 2  # a view has 3 * 2 * 2 = 12 numbers, room for an embedding


class Recorded(DeepCluster):
    """The page with recorded first centroids [epochs * H, n] in place of drawn ones."""

    perms: Tensor

    def first_centroids(self, at: Clock, head: int) -> Tensor:
        count = self.options.prototypes[head]
        return self.perms[at.epoch * len(self.options.prototypes) + head][:count]


class Given(nn.Module):
    """Stands in for the student: a view holds its own embedding. One parameter, without influence."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.scale = width, nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, *, part: str) -> Tensor:
        given: Tensor = x.flatten(1)[:, : self.width] + 0 * self.scale if part == "backbone" else x
        return given


def _recipe(args: dict[str, Any], *, batch: int, epochs: int, crops: int) -> Recipe:
    photometry = {"flip": 0.0, "jitter": None, "gray": 0.0, "blur": None, "solarize": 0.0}
    view = {
        "px": _PX,
        "scale": (0.5, 1.0),
        "aspect": (0.75, 1.25),
        "interpolation": "bilinear",
        "photometry": photometry,
    }
    return Recipe.model_validate(
        {
            "name": "golden",
            "seed": 0,
            "method": {
                "name": "deepcluster",
                "prototypes": tuple(args["nmb_prototypes"]),
                "assign": (0, 1),
                "temperature": args["temperature"],
                "kmeans_iterations": args.get("kmeans_iterations", 10),
                "head": {"hidden": 0, "out": args["feat_dim"], "batch_norm": False},
            },
            "backbone": {
                "name": "vit",
                "width": 4,
                "depth": 1,
                "heads": 1,
                "patch_px": 1,
                "mlp_ratio": 1.0,
                "stem": "patch",
                "image_px": _PX,
                "drop_path": 0.0,
            },
            "views": {"global": {"count": 2} | view, "local": {"count": crops - 2} | view},
            "data": {
                "path": "digits",
                "split": None,
                "mean": (0.5, 0.5, 0.5),
                "std": (0.5, 0.5, 0.5),
                "max_bad_share": 0.0,
            },
            "optim": {
                "name": "larc",
                "momentum": 0.9,
                "trust": 1e-3,
                "eps": 1e-8,
                "lr": {"start": 0.6, "peak": 0.6, "final": 0.6, "warmup_epochs": 0},
                "weight_decay": {"start": 1e-6, "final": 1e-6},
                "clip": None,
                "stretch": 1.0,
            },
            "train": {"precision": "float32", "epochs": epochs, "global_batch": batch},
            "features": {
                "source": "pooled",
                "blocks": 1,
                "norm": "none",
                "resize_px": _PX,
                "crop_px": _PX,
                "interpolation": "bilinear",
            },
        }
    )


def _page(recipe: Recipe, perms: Tensor) -> Recorded:
    assert isinstance(recipe.method, Options)
    method = Recorded(recipe.method, ViT(recipe.backbone), seed=0)  # type: ignore[arg-type]
    method.perms = perms
    return method


def _no_pass(*_: object) -> Iterable[Any]:
    raise AssertionError("the bank is full: nothing is to be embedded")


def check_clusters(case: Case, arrays: Arrays) -> None:
    """k-means itself, then what the page makes of it: prototypes, table, loss and its gradient."""
    check_kmeans(case, arrays)
    args = case["args"]
    heads, crops = len(args["nmb_prototypes"]), sum(args["nmb_crops"])
    perms = torch.stack([torch.from_numpy(arrays[f"perm{head}"]) for head in range(heads)])
    method = _page(_recipe(args, batch=args["bank"], epochs=1, crops=crops), perms)
    method.allocate(Extent(args["dataset"], 1, 1, args["bank"], 1))
    method.bank.write_(0, torch.from_numpy(arrays["bank"]), torch.from_numpy(arrays["index"]))
    method.start_epoch(Clock(0, 1, 1, 1), _no_pass)
    compare(case, "assignments", method.assignments, arrays["assignments"].astype(np.int32))
    for head, weight in enumerate(method.prototypes.weights()):
        compare(case, f"centroids{head}", weight, arrays[f"centroids{head}"])

    z = torch.from_numpy(arrays["loss_embeddings"])
    scores = [score.requires_grad_() for score in method.prototypes(z)]
    labels = method.assignments[:, torch.from_numpy(arrays["loss_index"])].long()
    losses = deepcluster_loss(scores, labels, temperature=args["temperature"])
    compare(case, "loss", losses.total, arrays["loss"])
    for head, gradient in enumerate(torch.autograd.grad(losses.total, scores)):
        compare(case, f"grad_scores{head}", gradient, arrays[f"grad_scores{head}"])


def _recorded_batches(args: dict[str, Any], arrays: Arrays, laid_out: Plan) -> Iterator[Batch]:
    """Views whose first numbers are the recorded embeddings, in the recorded order of images."""
    rows = args["batch"]
    for step in range(laid_out.total_steps):
        epoch, within = divmod(step, laid_out.steps_per_epoch)
        given = torch.from_numpy(arrays["embeddings"][step]).unflatten(0, (args["crops"], rows))  # [V, B, D]
        pixels = torch.zeros(args["crops"], rows, 3 * _PX * _PX)
        pixels[:, :, : args["feat_dim"]] = given
        views = pixels.unflatten(2, (3, _PX, _PX))
        index = torch.from_numpy(arrays["order"][epoch][within * rows : (within + 1) * rows])
        roles = {"global": views[:2], "local": views[2:]}
        yield Batch(roles, index, torch.full((rows,), -1), range(rows))


def check_train_steps(case: Case, arrays: Arrays) -> None:
    args = case["args"]
    assert args["world_size"] == 1
    epochs, per_epoch = len(arrays["order"]), args["iterations_per_epoch"]
    recipe = _recipe(args, batch=args["batch"], epochs=epochs, crops=args["crops"])
    laid_out = plan(recipe, num_images=args["dataset"], world_size=1, device="cpu")
    assert laid_out.steps_per_epoch == per_epoch
    method = _page(recipe, torch.from_numpy(arrays["perms"]))
    method.student = Given(args["feat_dim"])  # type: ignore[assignment]
    method.allocate(laid_out.extent)
    bank, index = torch.from_numpy(arrays["bank_start"]), torch.from_numpy(arrays["index_start"])
    for step in range(per_epoch):
        rows = slice(step * args["batch"], (step + 1) * args["batch"])
        method.bank.write_(step, bank[:, rows], index[rows])

    prepare_(method, device=DEVICE, dtype=torch.float32)
    spread = Spread(method, device=DEVICE, precision="float32", seed=0)
    optimizer = build_optimizer(method.groups(), recipe.optim)
    batches = placed(_recorded_batches(args, arrays, laid_out))
    losses = []
    for report in steps(method, optimizer, batches, laid_out, spread, epoch_batches=_no_pass):
        losses.append(float(report.losses.total))
        epoch, within = divmod(report.at.step, per_epoch)
        if within == 0:
            expected = arrays["assignments"][epoch].astype(np.int32)
            compare(case, "assignments", method.assignments, expected)
        if within == per_epoch - 1:
            compare(case, f"bank_after{epoch}", method.bank.embeddings, arrays[f"bank_after{epoch}"])
            compare(case, f"index_after{epoch}", method.bank.index, arrays[f"index_after{epoch}"])
    compare(case, "loss", np.array(losses), arrays["loss"])
    for head, weight in enumerate(method.prototypes.weights()):
        compare(case, f"prototypes{head}_final", weight, arrays[f"prototypes{head}_final"])


HANDLERS = {
    ("deepcluster", "clusters"): check_clusters,
    ("deepcluster", "train_steps"): check_train_steps,
}

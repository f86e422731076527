"""What SwAV and DeepCluster-v2 are built of: ResNets, LARC, schedule, Sinkhorn, k-means.

Of the kind `clusters` the clustering alone is here; `handlers_deepcluster` holds the whole of it.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from belvedere.core.schedule import WarmupCosine
from belvedere.nn.heads import PrototypeHeads, mlp_head
from belvedere.nn.resnet import ResNet
from belvedere.nn.spec import MLPHeadSpec
from belvedere.nn.spec.resnet import resnet_spec
from belvedere.ops.kmeans import cluster
from belvedere.ops.sinkhorn import sinkhorn
from belvedere.optim.larc import LARC
from golden import compare, fill_, normal, stats, weights

Case = dict[str, Any]
Arrays = dict[str, np.ndarray]


# Networks


def _part(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def _head(width: int, kwargs: dict[str, Any], state: dict[str, Tensor]) -> nn.Module:
    spec = MLPHeadSpec(
        hidden=kwargs.get("hidden_mlp", 0), out=kwargs["output_dim"], batch_norm="1.running_mean" in state
    )
    head = mlp_head(width, spec)
    fill_(head, state)
    return head


def _prototypes(width: int, counts: int | list[int], state: dict[str, Tensor]) -> nn.Module:
    single = isinstance(counts, int)
    layer = nn.Linear(width, counts, bias=False) if single else PrototypeHeads(width, counts)
    fill_(layer, state)
    return layer


def check_forward_features(case: Case, arrays: Arrays) -> None:
    args, state = case["args"], weights(case)
    kwargs = args["kwargs"]
    backbone = ResNet(resnet_spec(args["arch"]))
    fill_(backbone, {n: v for n, v in state.items() if not n.startswith(("projection_head.", "prototypes."))})
    images = normal(args["image"]["seed"], args["image"]["shape"])
    with torch.no_grad():
        features = backbone.eval()(images, blocks=1)
        assert features.regions is not None
        assert features.grid is not None
        outputs = {
            "features": features.pooled,
            "featmap": features.regions.transpose(1, 2).unflatten(2, features.grid),
        }
        torch.testing.assert_close(features.blocks[0].tokens, features.regions)
        if kwargs.get("output_dim", 0):
            head = _head(backbone.width, kwargs, _part(state, "projection_head")).eval()
            z = head(features.pooled)
            outputs["embedding"] = F.normalize(z) if kwargs.get("normalize") else z
        if counts := kwargs.get("nmb_prototypes"):
            layer = _prototypes(kwargs["output_dim"], counts, _part(state, "prototypes"))
            scores = layer(outputs["embedding"])
            named = {"scores": scores} if isinstance(counts, int) else dict(enumerate(scores))
            outputs |= {n if isinstance(n, str) else f"scores{n}": score for n, score in named.items()}
    for name, expected in arrays.items():
        actual = stats(outputs[name.removesuffix("_stats")]) if name.endswith("_stats") else outputs[name]
        compare(case, name, actual, expected)


# Optimization


def check_larc(case: Case, arrays: Arrays) -> None:
    args, state = case["args"], weights(case)
    assert not args["clip"], "LARC's clipping mode is no part of SwAV"
    found = re.search(r"RandomState\((\d+)\*100\+10\*i\+j\)", args["gradients"])
    assert found, f"another rule for gradients: {args['gradients']}"
    base = 100 * int(found[1])
    state["zero.bias"].zero_()
    parameters = {name: nn.Parameter(state[name]) for name in args["order"]}
    optimizer = LARC(
        parameters.values(),
        momentum=args["momentum"],
        weight_decay=args["weight_decay"],
        trust=args["trust_coefficient"],
        eps=args["eps"],
    )
    for step in range(args["steps"]):
        for number, (name, parameter) in enumerate(parameters.items()):
            gradient = normal(base + 10 * step + number, tuple(parameter.shape))
            frozen = "prototypes" in name and step < args["prototypes_grad_none_before_step"]
            parameter.grad = None if frozen else gradient * (name != "zerograd.weight")
        optimizer.param_groups[0]["lr"] = args["lr"][step]
        optimizer.step()
        for name, parameter in parameters.items():
            compare(case, f"{name}@{step}", parameter, arrays[f"{name}@{step}"])


def check_schedules(case: Case, arrays: Arrays) -> None:
    args = case["args"]
    per_epoch = args["iterations_per_epoch"]
    schedule = WarmupCosine(
        args["start_warmup"],
        args["base_lr"],
        args["final_lr"],
        args["warmup_epochs"] * per_epoch,
        args["epochs"] * per_epoch,
        peak_twice=True,
    )
    compare(case, "lr", np.array([schedule(step) for step in range(len(arrays["lr"]))]), arrays["lr"])


# Assignments


def check_sinkhorn(case: Case, arrays: Arrays) -> None:
    for name, expected in arrays.items():
        if found := re.fullmatch(r"q(\d+)_eps([\d.e-]+)_it(\d+)", name):
            scores = torch.from_numpy(arrays[f"scores{found[1]}"])
            compare(case, name, sinkhorn(scores / float(found[2]), int(found[3])), expected)


def check_clusters(case: Case, arrays: Arrays) -> None:
    args = case["args"]
    iterations = args["kmeans_iterations"]
    assert args["e_steps"] == iterations + 1
    assert args["world_size"] == 1
    table = torch.full((len(args["nmb_prototypes"]), args["dataset"]), -100)
    for head, clusters in enumerate(args["nmb_prototypes"]):
        bank = torch.from_numpy(arrays["bank"][head % args["banks"]])
        start = torch.from_numpy(arrays[f"perm{head}"][:clusters])
        for iteration, expected in enumerate(arrays[f"assign_iters{head}"]):
            _, assignments = cluster(bank, start=start, iterations=iteration)
            compare(case, f"assign_iters{head}", assignments, expected)
        first, _ = cluster(bank, start=start, iterations=1)
        compare(case, f"centroids{head}_iter0", first, arrays[f"centroids{head}_iter0"])
        centroids, assignments = cluster(bank, start=start, iterations=iterations)
        compare(case, f"centroids{head}", centroids, arrays[f"centroids{head}"])
        table[head, torch.from_numpy(arrays["index"])] = assignments
    compare(case, "assignments", table, arrays["assignments"])


HANDLERS = {
    ("swav", "forward_features"): check_forward_features,
    ("swav", "larc"): check_larc,
    ("swav", "schedules"): check_schedules,
    ("swav", "sinkhorn"): check_sinkhorn,
}

"""Reading a published MSN checkpoint: import, load, and the authors' features and head outputs."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from belvedere.nn.heads import ProjectionHead
from belvedere.nn.spec import HeadSpec
from belvedere.nn.spec.vit import VIT_NAMES
from belvedere.zoo.importing import import_checkpoint
from belvedere.zoo.load import fill_, load, load_heads
from golden import compare, normal, weights

Case = dict[str, Any]
Arrays = dict[str, np.ndarray]


def published(state: dict[str, Tensor], *, out: int) -> dict[str, Any]:
    """A checkpoint as MSN's code saves it, around this target encoder."""
    return {
        "encoder": {name: tensor + 1 for name, tensor in state.items()},
        "target_encoder": state,
        "prototypes": torch.linspace(-1, 1, 7 * out).view(7, out),
        "opt": {"state": {}, "param_groups": [{"lr": np.float64(1e-3), "params": [0]}]},
        "epoch": 3,
        "loss": np.float64(2.5),
        "batch_size": 64,
        "world_size": 2,
        "lr": np.float32(1e-3),
        "temperature": 0.1,
        "args": argparse.Namespace(),
    }


def head_of(tensors: dict[str, Tensor]) -> ProjectionHead:
    """The projection head kept beside a backbone."""
    own = {name.removeprefix("head."): tensor for name, tensor in tensors.items() if name.startswith("head.")}
    hidden, width = own["fc1.weight"].shape
    spec = HeadSpec(hidden=hidden, out=own["fc3.weight"].shape[0], batch_norm="bn1.weight" in own)
    head = ProjectionHead(width, spec)
    fill_(head, own, origin="heads")
    return head.eval()


def check_checkpoint(case: Case, arrays: Arrays) -> None:
    args = case["args"]
    state = weights(case)
    bare = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    out = bare["fc.fc3.weight"].shape[0] if "fc.fc3.weight" in bare else 5
    content = published(state, out=out)
    del content["args"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "case-latest.pth.tar"
        torch.save(content, file)
        architecture = args["model"] if args.get("model") in VIT_NAMES else None
        card = import_checkpoint(file, Path(folder) / "imported", architecture=architecture)
        loaded, heads = load(Path(folder) / "imported"), load_heads(Path(folder) / "imported")
    assert sorted(card.dropped) == sorted(content.keys() - {"target_encoder", "encoder", "prototypes"})
    assert {name for name in bare if not name.startswith("fc.")} == set(loaded.backbone.state_dict())
    for name, tensor in loaded.backbone.state_dict().items():
        assert torch.equal(tensor, bare[name]), name
    images = normal(args["image"]["seed"], args["image"]["shape"])
    with torch.no_grad():
        features = loaded.backbone(images, blocks=1)
        compare(case, "embs", features.blocks[-1].cls, arrays["embs"])
        compare(case, "h", features.pooled, arrays["h"])
        if "z_eval" in arrays:
            compare(case, "z_eval", head_of(heads)(features.pooled), arrays["z_eval"])
    if "labels" in arrays:
        compare(case, "labels", torch.arange(len(images)), arrays["labels"])
    if "head_keys" in args:
        kept = {f"{args.get('prefix', '')}fc.{n.removeprefix('head.')}" for n in heads if n != "prototypes"}
        assert kept == set(args["head_keys"])


HANDLERS = {("msn", "checkpoint"): check_checkpoint}

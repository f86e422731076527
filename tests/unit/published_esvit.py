"""EsViT's files, as its code saves them."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from published_files import (
    drawn,
    moved,
    optimizer_state,
    prefixed,
    small_cvt,
    small_resnet,
    small_swin,
    small_vil,
    small_vit,
    trained,
)
from torch import Tensor

from belvedere.nn.heads import WeightNormHead
from belvedere.nn.spec import BackboneSpec, WeightNormHeadSpec
from belvedere.nn.windows import relative_index

WIDTHS = {"vit": 128, "swin": 24, "cvt": 128, "vil": 48, "resnet": 64}
SPECS: dict[str, BackboneSpec] = {
    "vit": small_vit(),
    "swin": small_swin(),
    "cvt": small_cvt(),
    "vil": small_vil(),
    "resnet": small_resnet(),
}


def head(width: int, *, batch_norm: bool = False, layers: int = 3) -> dict[str, Tensor]:
    spec = WeightNormHeadSpec(
        hidden=10, bottleneck=6, out=16, layers=layers, batch_norm=batch_norm, norm_last_layer=False
    )
    return drawn(WeightNormHead(width, spec))


def network(
    kind: str, *, region: bool = True, batch_norm: bool = False, layers: int = 3
) -> dict[str, Tensor]:
    """A teacher's state dict under its published names, tables left out."""
    state = prefixed(drawn(SPECS[kind]), "backbone.backbone." if kind == "resnet" else "")
    state |= prefixed(head(WIDTHS[kind], batch_norm=batch_norm, layers=layers), "head.")
    if region:
        state |= prefixed(moved(head(WIDTHS[kind])), "head_dense.")
    return state


def with_tables(kind: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the authors' networks store beside their parameters."""
    found = {}
    for name, tensor in state.items():
        found[name] = tensor
        if kind == "swin" and name.endswith("relative_position_bias_table"):
            index = relative_index(7, torch.device("cpu")).view(49, 49)
            found[name.replace("bias_table", "index")] = index
        if kind == "vil" and ".attn.query." in name:
            found[name.replace("query", "query_global")] = tensor
        if kind == "vil" and ".attn.kv." in name:
            found[name.replace("kv", "kv_global")] = tensor
        if kind == "vil" and ".attn.proj." in name and name.replace("proj", "query") in state:
            found[name.replace("proj", "proj_global")] = tensor
        if kind == "vil" and ".attn.local_relative_position_bias_table" in name:
            found[name.replace("local_relative_position_bias_table", "relative_position_index")] = torch.ones(
                3
            )
    if kind == "swin":
        found["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    return found


def groups(student: dict[str, Tensor]) -> list[list[Tensor]]:
    parameters = trained(student)
    plain = {name for name, tensor in parameters.items() if tensor.ndim == 1 or name.endswith(".bias")}
    return [
        [tensor for name, tensor in parameters.items() if (name in plain) == vectors]
        for vectors in (False, True)
    ]


def published(kind: str, *, region: bool = True, wrapped: bool = False, **changes: Any) -> dict[str, Any]:
    teacher = network(kind, region=region, **changes)
    student = moved(teacher)
    loss = {"center": torch.randn(1, 16)} | ({"center_grid": torch.randn(1, 16)} if region else {})
    return {
        "student": prefixed(with_tables(kind, student), "module."),
        "teacher": prefixed(with_tables(kind, teacher), "module." if wrapped else ""),
        "optimizer": optimizer_state(groups(student)),
        "epoch": 300,
        "args": argparse.Namespace(arch=kind, lr=np.float64(0.1)),
        "dino_loss": loss,
        "fp16_scaler": {"scale": 1.0},
    }

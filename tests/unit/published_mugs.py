"""Mugs' files, as its code saves them."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from published_files import drawn, moved, optimizer_state, prefixed, small_vit, trained
from torch import Tensor

from belvedere.nn.granular import ContrastiveHead
from belvedere.nn.heads import WeightNormHead
from belvedere.nn.spec import ContrastiveHeadSpec, WeightNormHeadSpec
from belvedere.zoo.convert.mugs import _groups

WIDTH, OUT, SLOTS, PROTOTYPES = 128, 6, 20, 16


def contrastive(*, predictor: bool, batch_norm: bool) -> dict[str, Tensor]:
    spec = ContrastiveHeadSpec(
        hidden=10, out=OUT, layers=3, predictor=8, batch_norm=batch_norm, norm_before_predictor=True
    )
    state = drawn(ContrastiveHead(WIDTH, spec))
    return {name: tensor for name, tensor in state.items() if predictor or not name.startswith("predictor")}


def network(*, student: bool = False, relation: bool = True, batch_norm: bool = False) -> dict[str, Tensor]:
    """Student or teacher under the published names."""
    backbone = drawn(small_vit())
    state = prefixed(backbone, "backbone.")
    if relation:
        block = {n.removeprefix("blocks.0."): t + 1 for n, t in backbone.items() if n.startswith("blocks.0.")}
        state |= prefixed(block, "backbone.relation_blocks.0.")
    for head in ("instance_head.", "local_group_head."):
        state |= prefixed(contrastive(predictor=student, batch_norm=batch_norm), head)
    spec = WeightNormHeadSpec(
        hidden=10, bottleneck=OUT, out=PROTOTYPES, layers=3, batch_norm=batch_norm, norm_last_layer=False
    )
    group = {n.replace("mlp.", "projector."): t for n, t in drawn(WeightNormHead(WIDTH, spec)).items()}
    state |= prefixed(group, "group_head.")
    return moved(state) if student else state


def memory(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = {
        f"block.queue_{which}": torch.randn(SLOTS, WIDTH, generator=generator) for which in ("q", "k", "v")
    }
    return rows | {"block.queue_ptr": torch.tensor([4])}


def published(*, batch_norm: bool = False) -> dict[str, Any]:
    student = network(student=True, batch_norm=batch_norm)
    parameters = trained(student)
    grouped = [[parameters[name] for name in group] for group in _groups(parameters)]
    queue = {"queue": torch.randn(OUT, SLOTS), "queue_ptr": torch.tensor([8])}
    return {
        "student": prefixed(student, "module."),
        "teacher": prefixed(network(batch_norm=batch_norm), "module." if batch_norm else ""),
        "student_mem": memory(1),
        "teacher_mem": memory(2),
        "instance-sup.": queue,
        "local-group-sup.": {"queue": torch.randn(OUT, SLOTS), "queue_ptr": torch.tensor([2])},
        "group-sup.": {"center": torch.randn(1, PROTOTYPES)},
        "optimizer": optimizer_state(grouped),
        "epoch": 800,
        "args": argparse.Namespace(arch="vit_small"),
    }

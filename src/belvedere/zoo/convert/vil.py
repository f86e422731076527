"""EsViT's ViL by the shapes of its tensors, and what its published files say twice."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from belvedere.core.errors import WeightsError
from belvedere.core.match import Shape
from belvedere.nn.spec import ViLSpec
from belvedere.zoo.convert.checkpoint import shape

_PART = re.compile(r"layer(\d+)\.(\d+)\.")
_TABLE = "local_relative_position_bias_table"
_SHARED = re.compile(r"(.*\.)(query|kv|proj)_global(\.(?:weight|bias))")
_WINDOW, _IMAGE_PX = 7, 224


def without_shared(state: Mapping[str, Tensor], *, origin: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A state dict without the second names of the projections that class tokens share with cells, and which
    these were. Raises `WeightsError` where the two are not the same (SHARE_W false), which is another
    network."""
    dropped: dict[str, str] = {}
    for name, tensor in state.items():
        if found := _SHARED.fullmatch(name):
            first = found[1] + found[2] + found[3]
            if first not in state or not torch.equal(state[first], tensor):
                raise WeightsError(
                    f"{origin}: {name} differs from {first}; belvedere's ViL shares them (SHARE_W true), as "
                    "all published ones do"
                )
            dropped[name] = "a second name of the projection that class tokens and cells share"
    return {name: tensor for name, tensor in state.items() if name not in dropped}, dropped


def vil_spec_of(shapes: Mapping[str, Shape], *, origin: str) -> ViLSpec:
    """The network that has tensors of these shapes. mode, which shapes leave open and which has no effect
    but in training, is 0, all chunks."""
    parts: dict[int, int] = {}
    for name in shapes:
        if found := _PART.match(name):
            parts[int(found[1])] = max(parts.get(int(found[1]), 0), int(found[2]))
    stages = range(1, max(parts, default=0) + 1)
    embeddings = [shape(shapes, f"layer{stage}.0.proj.weight", 4, origin=origin) for stage in stages]
    tables = [shape(shapes, f"layer{stage}.1.attn.{_TABLE}", 2, origin=origin) for stage in stages]
    sparse = [f"layer{stage}.1.attn.query.weight" in shapes for stage in stages]
    patches = [one[-1] for one in embeddings]
    windows = {
        (_side(rows, origin) + 1) // 4
        for (rows, _), is_sparse in zip(tables, sparse, strict=True)
        if is_sparse
    }
    if len(windows) > 1:
        raise WeightsError(
            f"{origin}: its stages have windows of {sorted(windows)} cells; belvedere's have one"
        )
    sizes = {
        (_side(rows, origin) + 1) // 2 * math.prod(patches[: number + 1])
        for number, (rows, _) in enumerate(tables)
        if not sparse[number]
    }
    hidden = shape(shapes, "layer1.2.mlp.fc1.weight", 2, origin=origin)[0]
    return ViLSpec(
        name="vil",
        widths=tuple(one[0] for one in embeddings),
        heads=tuple(heads for _, heads in tables),
        blocks=tuple(parts.get(stage, 2) // 2 for stage in stages),
        patches=tuple(patches),
        sparse=tuple(sparse),
        class_token=tuple(f"layer{stage}.0.cls_token" in shapes for stage in stages),
        window=next(iter(windows), _WINDOW),
        mode=0,
        mlp_ratio=hidden / embeddings[0][0],
        image_px=max(sizes, default=_IMAGE_PX),
        drop_path=0.0,
    )


def _side(rows: int, origin: str) -> int:
    side = math.isqrt(rows)
    if side * side != rows:
        raise WeightsError(f"{origin}: a table of relative positions has {rows} rows, which is no square")
    return side

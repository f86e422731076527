"""What the tests of imports share: small networks, optimizers' state as torch numbers it, hostile files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from belvedere.nn.build import build
from belvedere.nn.spec import BackboneSpec, CvTSpec, ResNetSpec, SwinSpec, ViLSpec, ViTSpec
from belvedere.nn.spec.resnet import resnet_spec

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def small_vit(**changes: Any) -> ViTSpec:
    """A ViT of two blocks, 128 wide, with patches of 6 px."""
    values: dict[str, Any] = {
        "name": "vit",
        "width": 128,
        "depth": 2,
        "heads": 2,
        "patch_px": 6,
        "mlp_ratio": 1.5,
        "stem": "patch",
        "image_px": 18,
        "drop_path": 0.0,
    }
    return ViTSpec(**(values | changes))


def small_resnet(**changes: Any) -> ResNetSpec:
    """A ResNet-18's blocks halved, 8 channels in the stem."""
    values = resnet_spec("resnet18").model_dump() | {"blocks": (1, 1, 1, 1), "width_per_group": 8}
    return ResNetSpec(**(values | changes))


def small_swin(**changes: Any) -> SwinSpec:
    """Two stages for 224 px, windows of 7, of 56 and 28 cells a side."""
    values: dict[str, Any] = {
        "name": "swin",
        "embed_width": 12,
        "blocks": (2, 1),
        "heads": (2, 3),
        "patch_px": 4,
        "window": 7,
        "mlp_ratio": 2.0,
        "image_px": 224,
        "drop_path": 0.0,
    }
    return SwinSpec(**(values | changes))


def small_cvt(**changes: Any) -> CvTSpec:
    """Two stages of 64 and 128 channels."""
    values: dict[str, Any] = {
        "name": "cvt",
        "widths": (64, 128),
        "heads": (1, 2),
        "blocks": (1, 2),
        "kernels": (7, 3),
        "strides": (4, 2),
        "paddings": (2, 1),
        "window": 7,
        "mlp_ratio": 2.0,
        "drop_path": 0.0,
    }
    return CvTSpec(**(values | changes))


def small_vil() -> ViLSpec:
    """A sparse stage and two with attention over all cells, for 56 px."""
    return ViLSpec(
        name="vil",
        widths=(12, 24, 48),
        heads=(2, 3, 4),
        blocks=(1, 2, 1),
        patches=(4, 2, 1),
        sparse=(True, False, False),
        class_token=(True, True, False),
        window=7,
        mode=0,
        mlp_ratio=2.0,
        image_px=56,
        drop_path=0.0,
    )


def drawn(module: nn.Module | BackboneSpec, seed: int = 1) -> dict[str, Tensor]:
    """A module's state dict, every tensor of floats drawn anew."""
    if not isinstance(module, nn.Module):
        module = build(module)
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor + seed
        for name, tensor in module.state_dict().items()
    }
    return {name: t.abs() if name.endswith("running_var") else t for name, t in state.items()}


def moved(state: Mapping[str, Tensor], by: float = 1.0) -> dict[str, Tensor]:
    """The same tensors with other values: a student beside its teacher."""
    return {name: tensor + by if tensor.is_floating_point() else tensor + 1 for name, tensor in state.items()}


def prefixed(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def trained(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries that an optimizer holds, in order."""
    return {name: tensor for name, tensor in state.items() if name.rpartition(".")[2] not in BUFFERS}


def optimizer_state(
    groups: Sequence[Sequence[Tensor]], *, kinds: Sequence[str] = ("exp_avg", "exp_avg_sq")
) -> dict[str, Any]:
    """What torch's optimizers save of parameters in these groups; each moment is told by its number."""
    state: dict[int, dict[str, Any]] = {}
    sections: list[dict[str, Any]] = []
    for group in groups:
        first = len(state)
        for number, parameter in enumerate(group, start=first):
            state[number] = {kind: torch.full_like(parameter, number + 0.5) for kind in kinds}
            if "exp_avg" in kinds:
                state[number]["step"] = torch.tensor(7.0)
        sections.append({"lr": 0.1, "params": list(range(first, first + len(group)))})
    return {"state": state, "param_groups": sections}


class Command:
    """What a hostile file holds: a call to make while it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Assert that both hold the same tensors under the same names."""
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name

"""The network cases of SwAV and EsViT through the importer: written as published, read back exactly."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from belvedere.nn.heads import WeightNormHead
from belvedere.nn.spec import BackboneSpec, WeightNormHeadSpec
from belvedere.nn.spec.cvt import cvt_spec
from belvedere.nn.spec.resnet import resnet_spec
from belvedere.nn.spec.swin import swin_spec
from belvedere.nn.spec.vil import vil_spec
from belvedere.zoo.importing import import_checkpoint
from belvedere.zoo.load import load, load_heads
from golden import weights

CASES = Path(__file__).parent / "cases"
SPECS: dict[str, BackboneSpec] = {
    "swin_tiny_w14_forward": swin_spec("swin_tiny", window=14, drop_path=0.0),
    "cvt_tiny_forward": cvt_spec("cvt_tiny", drop_path=0.0),
    "vil_2262_forward": vil_spec("vil_2262", mode=0),
    "resnet50_forward": resnet_spec("resnet50"),
}


def described(system: str, name: str) -> dict[str, Tensor]:
    """The weights of a case under the authors' names."""
    return weights(json.loads((CASES / system / name / "case.json").read_text()))


def head(width: int) -> dict[str, Tensor]:
    spec = WeightNormHeadSpec(
        hidden=8, bottleneck=4, out=6, layers=3, batch_norm=False, norm_last_layer=False
    )
    made = WeightNormHead(width, spec)
    made.initialize_(torch.Generator().manual_seed(0))
    return {f"head.{name}": tensor for name, tensor in made.state_dict().items()}


@pytest.mark.parametrize("name", list(SPECS))
def test_esvit(name: str, tmp_path: Path) -> None:
    state = described("esvit", name)
    is_resnet = name.startswith("resnet")
    stored = {f"backbone.{n}" if is_resnet else n: t for n, t in state.items()}
    stored |= head(2048 if is_resnet else 768)
    content: dict[str, Any] = {
        "teacher": {f"module.{n}": t for n, t in stored.items()},
        "dino_loss": {"center": torch.zeros(1, 6)},
        "args": argparse.Namespace(arch=name),
        "epoch": 300,
    }
    torch.save(content, tmp_path / "checkpoint.pth")
    card = import_checkpoint(tmp_path / "checkpoint.pth", tmp_path / "out")
    assert card.backbone == SPECS[name]
    found = load(tmp_path / "out").backbone.state_dict()
    shared = ("query_global", "kv_global", "proj_global")
    expected = {
        n.removeprefix("backbone."): t for n, t in state.items() if not any(word in n for word in shared)
    }
    assert sorted(found) == sorted(expected)
    assert all(torch.equal(found[n], tensor) for n, tensor in expected.items())


def test_swav(tmp_path: Path) -> None:
    state = described("swav", "swav_resnet50_64")
    torch.save({f"module.{name}": t for name, t in state.items()}, tmp_path / "swav.pth.tar")
    card = import_checkpoint(tmp_path / "swav.pth.tar", tmp_path / "out")
    assert card.backbone == resnet_spec("resnet50")
    found = load(tmp_path / "out").backbone.state_dict() | load_heads(tmp_path / "out")
    assert sorted(found) == sorted(state)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())

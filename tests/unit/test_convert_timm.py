"""timm's state dicts: ViTs, Swins and ResNets, bare and from training files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from published_files import Command, drawn, prefixed, same, small_resnet, small_swin, small_vit
from safetensors.torch import save_file
from torch import Tensor

from belvedere.core.errors import WeightsError
from belvedere.zoo.importing import import_checkpoint
from belvedere.zoo.load import load


def vit() -> dict[str, Tensor]:
    return drawn(small_vit()) | {"head.weight": torch.zeros(3, 128), "head.bias": torch.zeros(3)}


def swin() -> dict[str, Tensor]:
    """With the halving where timm has it."""
    state = {
        n.replace("layers.0.downsample", "layers.1.downsample"): t for n, t in drawn(small_swin()).items()
    }
    tables = {
        f"layers.{stage}.blocks.0.attn.relative_position_index": torch.zeros(49, 49) for stage in (0, 1)
    }
    return state | tables | {"head.fc.weight": torch.zeros(3, 24), "head.fc.bias": torch.zeros(3)}


def saved(tmp_path: Path, content: Any, name: str = "model.pth") -> Path:
    torch.save(content, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_a_vit_arrives(tmp_path: Path, wrapper: str | None) -> None:
    content: Any = vit()
    if wrapper:
        beside = {"epoch": 3, "arch": "vit", "optimizer": {}, "args": argparse.Namespace(), "metric": 0.5}
        content = {wrapper: prefixed(content, "module.")} | beside
    card = import_checkpoint(saved(tmp_path, content), tmp_path / "out")
    same(load(tmp_path / "out").backbone.state_dict(), drawn(small_vit()))
    assert (card.system, card.backbone, card.licence) == ("timm", small_vit(), None)
    assert card.dropped["head.weight"] == "the classifier"
    assert card.features.crop_px == 18
    assert card.data.get("epoch") == (3 if wrapper else None)
    assert "mean and standard deviation" in card.notes["images"]
    assert "epsilon of 1e-06, assumed" in card.notes["activation"]


def test_a_swin_arrives(tmp_path: Path) -> None:
    card = import_checkpoint(saved(tmp_path, swin()), tmp_path / "out")
    same(load(tmp_path / "out").backbone.state_dict(), drawn(small_swin()))
    assert card.backbone == small_swin(norm_eps=1e-5)
    assert "layers.*.blocks.*.attn.relative_position_index" in card.dropped
    assert {"head.fc.weight", "head.fc.bias"} <= card.dropped.keys()
    assert "epsilon of 1e-05, assumed" in card.notes["activation"]


def test_a_resnet_asked_for_as_timms(tmp_path: Path) -> None:
    state = drawn(small_resnet()) | {"fc.weight": torch.zeros(3, 64), "fc.bias": torch.zeros(3)}
    card = import_checkpoint(saved(tmp_path, state), tmp_path / "out", architecture="timm")
    assert (card.system, card.backbone) == ("timm", small_resnet())
    same(load(tmp_path / "out").backbone.state_dict(), drawn(small_resnet()))


def test_settings_of_the_hub_are_read(tmp_path: Path) -> None:
    save_file(vit(), tmp_path / "model.safetensors")
    settings = {"pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 0.5]}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    card = import_checkpoint(tmp_path, tmp_path / "out")
    assert (card.mean, card.std) == ((0.5, 0.5, 0.5), (0.25, 0.5, 0.5))
    assert "deviation" not in card.notes["images"]


@pytest.mark.parametrize(
    ("name", "px"), [("vit_tiny_patch16_224", 224), ("swin_tiny_patch4_window7_224", 224), ("resnet18", 96)]
)
def test_timms_own_networks_give_the_same(tmp_path: Path, name: str, px: int) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model(name).eval()
    import_checkpoint(saved(tmp_path, network.state_dict()), tmp_path / "out")
    images = torch.randn(1, 3, px, px)
    with torch.inference_mode():
        expected = network.forward_head(network.forward_features(images), pre_logits=True)
        found = load(tmp_path / "out").backbone(images).pooled
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "change", "told"),
    [
        (vit, lambda s: s.update({"blocks.0.ls1.gamma": torch.zeros(128)}), "unexpected .*ls1.gamma"),
        (vit, lambda s: s.update({"reg_token": torch.zeros(1, 4, 128)}), "unexpected .*reg_token"),
        (vit, lambda s: s.pop("blocks.1.attn.qkv.bias"), "missing .*blocks.1.attn.qkv.bias"),
        (swin, lambda s: s.pop("layers.1.downsample.norm.bias"), "missing .*layers.0.downsample.norm.bias"),
        (swin, lambda s: s.update({"norm.weight": torch.zeros(7)}), r"norm.weight is \[7\], must be \[24\]"),
    ],
)
def test_odd_entries_are_refused_by_name(tmp_path: Path, make: Any, change: Any, told: str) -> None:
    state = make()
    change(state)
    with pytest.raises(WeightsError, match=told):
        import_checkpoint(saved(tmp_path, state), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_system_than_asked_for_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, swin())
    with pytest.raises(WeightsError, match=r"--as msn/vits16 says msn; .* is of timm"):
        import_checkpoint(path, tmp_path / "out", architecture="msn/vits16")
    with pytest.raises(WeightsError, match="is a Swin; --as deit_small says a ViT"):
        import_checkpoint(path, tmp_path / "out", architecture="deit_small")
    with pytest.raises(WeightsError, match="mis-shaped"):
        import_checkpoint(path, tmp_path / "out", architecture="swin_tiny")


def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path: Path) -> None:
    content = {"state_dict": vit(), "optimizer": Command(tmp_path / "ran")}
    with pytest.raises(WeightsError, match=r"is refused: .*mkdir"):
        import_checkpoint(saved(tmp_path, content), tmp_path / "out")
    assert not (tmp_path / "ran").exists()

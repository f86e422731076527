"""torchvision's state dicts: ResNets, ViTs and Swins, as its own networks make them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from published_files import Command, drawn, same, small_resnet
from torch import Tensor, nn

from belvedere.core.errors import WeightsError
from belvedere.zoo.importing import import_checkpoint
from belvedere.zoo.load import load


def vit() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=128, mlp_dim=96, num_classes=3
    ).eval()


def swin() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.SwinTransformer(
        patch_size=[4, 4],
        embed_dim=12,
        depths=[2, 1, 1],
        num_heads=[2, 3, 4],
        window_size=[7, 7],
        mlp_ratio=2.0,
        num_classes=3,
    ).eval()


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18().eval()


def saved(tmp_path: Path, content: Any, name: str = "model.pth") -> Path:
    torch.save(content, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize(
    ("make", "px", "kind"), [(vit, 32, "vit"), (swin, 224, "swin"), (resnet, 64, "resnet")]
)
def test_the_imported_network_computes_the_same(tmp_path: Path, make: Any, px: int, kind: str) -> None:
    network = make()
    card = import_checkpoint(saved(tmp_path, network.state_dict()), tmp_path / "out")
    assert (card.system, card.backbone.name) == ("torchvision", kind)
    assert set(card.dropped.values()) <= {"the classifier", "follows from the window"}
    for name in ("heads", "head", "fc"):
        if hasattr(network, name):
            setattr(network, name, nn.Identity())
    images = torch.randn(2, 3, px, px)
    with torch.inference_mode():
        found, expected = load(tmp_path / "out").backbone(images).pooled, network(images)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_names_of_older_vits(tmp_path: Path) -> None:
    state = {
        name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): tensor
        for name, tensor in vit().state_dict().items()
    }
    import_checkpoint(saved(tmp_path, vit().state_dict(), "new.pth"), tmp_path / "new")
    import_checkpoint(saved(tmp_path, state, "old.pth"), tmp_path / "old")
    same(load(tmp_path / "old").backbone.state_dict(), load(tmp_path / "new").backbone.state_dict())


def test_a_resnet_from_before_counts(tmp_path: Path) -> None:
    state = drawn(small_resnet())
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    import_checkpoint(saved(tmp_path, old), tmp_path / "out")
    found = load(tmp_path / "out").backbone.state_dict()
    same({name: tensor for name, tensor in found.items() if name in old}, old)
    del old["bn1.running_mean"]
    with pytest.raises(WeightsError, match=r"missing .*bn1.running_mean"):
        import_checkpoint(saved(tmp_path, old), tmp_path / "other")


def _drop(state: dict[str, Tensor], name: str) -> None:
    del state[name]


@pytest.mark.parametrize(
    ("make", "change", "told"),
    [
        (vit, lambda s: _drop(s, "encoder.ln.bias"), "missing .*norm.bias"),
        (vit, lambda s: s.update({"encoder.odd": torch.zeros(1)}), "unexpected .*encoder.odd"),
        (swin, lambda s: _drop(s, "features.2.norm.bias"), "missing .*layers.0.downsample.norm.bias"),
        (
            swin,
            lambda s: s.update({"features.0.9.weight": torch.zeros(1)}),
            "unexpected .*features.0.9.weight",
        ),
        (resnet, lambda s: s.update({"bn1.odd": torch.zeros(1)}), "unexpected .*bn1.odd"),
    ],
)
def test_odd_entries_are_refused_by_name(tmp_path: Path, make: Any, change: Any, told: str) -> None:
    state = dict(make().state_dict())
    change(state)
    with pytest.raises(WeightsError, match=told):
        import_checkpoint(saved(tmp_path, state), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [{"width_per_group": 128}, {"groups": 32, "width_per_group": 4}])
def test_networks_that_belvedere_has_not_are_named(tmp_path: Path, options: dict[str, int]) -> None:
    """wide_resnet50_2 and resnext50_32x4d, a block in each stage."""
    network = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], **options)
    with pytest.raises(WeightsError, match="is a wide_resnet or a ResNeXt"):
        import_checkpoint(saved(tmp_path, network.state_dict()), tmp_path / "out")


def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path: Path) -> None:
    content = dict(vit().state_dict()) | {"odd": Command(tmp_path / "ran")}
    with pytest.raises(WeightsError, match=r"is refused: .*mkdir"):
        import_checkpoint(saved(tmp_path, content), tmp_path / "out")
    assert not (tmp_path / "ran").exists()

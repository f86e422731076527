"""torch.hub's entry points, through torch.hub itself."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from belvedere.core.errors import UsageError, WeightsError
from belvedere.nn.build import build
from belvedere.nn.spec import ResNetSpec
from belvedere.nn.spec.resnet import resnet_spec
from belvedere.zoo import hub
from belvedere.zoo.cards import export
from belvedere.zoo.hub import ENTRIES, hub_network

ROOT = Path(__file__).parents[2]


def _entry(name: str, **arguments: object) -> nn.Module:
    return torch.hub.load(str(ROOT), name, source="local", **arguments)


def test_every_entry_is_there_and_says_what_it_is() -> None:
    listed = runpy.run_path(str(ROOT / "hubconf.py"))
    assert {name for name in listed if not name.startswith("_") and name != "dependencies"} == set(ENTRIES)
    assert {"resnet50", "resnet50w2", "resnet50w4", "resnet50w5", "msn_vits16"} <= set(ENTRIES)


def test_a_fresh_network_follows_torchs_seed() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(_entry("resnet50"))
    assert not drawn[0].training
    assert torch.equal(drawn[0].conv1.weight, drawn[1].conv1.weight)
    with torch.no_grad():
        images = torch.randn(2, 3, 32, 32)
        assert drawn[0](images).shape == (2, 2048)
        assert torch.equal(drawn[0](images), drawn[0].forward(images).pooled)


def test_every_entry_names_a_network() -> None:
    from belvedere.zoo.convert.asked import asked_for

    with torch.device("meta"):
        widths = {name: build(asked_for(asked).backbone).width for name, asked in ENTRIES.items()}  # type: ignore[arg-type]
    assert widths["resnet50w4"] == 8192
    assert widths["msn_vitl7"] == 1024
    assert widths["esvit_swin_base_w14"] == 1024
    assert widths["mugs_vitb16"] == 768


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> ResNetSpec:
    """`resnet50` made small, so that its file is."""
    spec = resnet_spec("resnet18").model_copy(update={"blocks": (1, 1, 1, 1)})
    asked = hub.asked_for("resnet50")
    monkeypatch.setattr(hub, "asked_for", lambda name: type(asked)(name, None, spec))
    monkeypatch.setitem(ENTRIES, "resnet50", "swav")
    return spec


def test_a_published_file_is_read_strictly(small: ResNetSpec, tmp_path: Path) -> None:
    network = build(small)
    network.initialize_(torch.Generator().manual_seed(0))
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    head = {"0.weight": (16, 512), "0.bias": (16,), "1.weight": (16,), "1.bias": (16,)}
    head |= {"1.running_mean": (16,), "1.running_var": (16,), "3.weight": (8, 16), "3.bias": (8,)}
    state |= {f"module.projection_head.{name}": torch.ones(shape) for name, shape in head.items()}
    state["module.projection_head.1.num_batches_tracked"] = torch.tensor(5)
    state["module.prototypes.weight"] = torch.ones(30, 8)
    torch.save(state, tmp_path / "swav.pth.tar")
    loaded = hub_network("resnet50", tmp_path / "swav.pth.tar")
    assert torch.equal(loaded.layer4[0].conv2.weight, network.layer4[0].conv2.weight)
    del state["module.layer4.0.conv2.weight"]
    torch.save(state, tmp_path / "less.pth.tar")
    with pytest.raises(WeightsError, match=r"layer4\.0\.conv2"):
        hub_network("resnet50", tmp_path / "less.pth.tar")


def test_our_own_folder_must_be_of_that_network(small: ResNetSpec, tmp_path: Path) -> None:
    from export_networks import card, outgoing, vit

    network = build(small)
    network.initialize_(torch.Generator().manual_seed(1))
    export(tmp_path / "own", network, card(small))
    assert torch.equal(hub_network("resnet50", tmp_path / "own").conv1.weight, network.conv1.weight)
    export(tmp_path / "vit", outgoing(vit()).backbone, card(vit()))
    with pytest.raises(WeightsError, match="does not fit"):
        hub_network("resnet50", tmp_path / "vit")


def test_nothing_is_downloaded() -> None:
    with pytest.raises(UsageError, match="path"):
        hub_network("resnet50", pretrained=True)
    with pytest.raises(WeightsError, match="does not exist"):
        hub_network("resnet50", pretrained="/nowhere/swav.pth.tar")

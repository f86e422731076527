"""SwAV's, DeepCluster-v2's and SeLa-v2's files: bare and wrapped, every width, every head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from published_files import Command, optimizer_state, prefixed, same, small_resnet, trained
from published_swav import HEADS, published

from belvedere.core.errors import WeightsError
from belvedere.nn.build import build
from belvedere.nn.spec.resnet import RESNET_NAMES, resnet_spec
from belvedere.zoo.convert.networks import backbone_shapes
from belvedere.zoo.convert.resnet import resnet_spec_of
from belvedere.zoo.importing import import_checkpoint
from belvedere.zoo.load import load, load_heads, load_training


def saved(tmp_path: Path, content: Any, name: str = "swav_800ep_pretrain.pth.tar") -> Path:
    torch.save(content, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("head", list(HEADS))
def test_every_tensor_arrives(tmp_path: Path, wrapped: bool, prefix: str, head: str) -> None:
    state = published(head=head)
    content: dict[str, Any] = prefixed(state, prefix)
    if wrapped:
        content = {"epoch": 3, "state_dict": content, "optimizer": {"state": {}}, "amp": {"loss_scaler0": {}}}
    card = import_checkpoint(saved(tmp_path, content), tmp_path / "out")
    loaded, heads = load(tmp_path / "out"), load_heads(tmp_path / "out")
    same(loaded.backbone.state_dict() | heads, state)
    assert (card.system, card.backbone, card.std) == ("swav", small_resnet(), (0.228, 0.224, 0.225))
    assert card.published == {}  # the name is that of a published file, the sizes are not
    assert sorted(card.dropped) == (["amp", "epoch", "optimizer"] if wrapped else [])
    assert "CC-BY-NC" in (card.licence or "")


@pytest.mark.parametrize("name", RESNET_NAMES)
def test_every_width_is_known_by_its_shapes(name: str) -> None:
    assert resnet_spec_of(backbone_shapes(resnet_spec(name)), origin="x") == resnet_spec(name)


@pytest.mark.parametrize("widen", [1, 2, 4, 5])
def test_wide_networks_with_bottlenecks(tmp_path: Path, widen: int) -> None:
    spec = small_resnet(block="bottleneck", width_per_group=8, widen=widen)
    state = published(spec, head="w5" if widen == 5 else "usual")
    card = import_checkpoint(saved(tmp_path, state), tmp_path / "out")
    assert card.backbone == spec
    same(load(tmp_path / "out").backbone.state_dict() | load_heads(tmp_path / "out"), state)


@pytest.mark.parametrize(
    ("file", "said", "system"),
    [
        ("deepclusterv2_800ep_pretrain.pth.tar", None, "deepcluster"),
        ("selav2_400ep_pretrain.pth.tar", None, "sela"),
        ("mine.pth", "sela", "sela"),
        ("mine.pth", "deepcluster/resnet18", None),
    ],
)
def test_several_sets_of_prototypes(tmp_path: Path, file: str, said: str | None, system: str | None) -> None:
    state = published(counts=(5, 6))
    path = saved(tmp_path, state, file)
    if system is None:
        with pytest.raises(WeightsError, match=r"mis-shaped \(\d+\): conv1.weight is \[8, 3, 7, 7\]"):
            import_checkpoint(path, tmp_path / "out", architecture=said)
        return
    assert import_checkpoint(path, tmp_path / "out", architecture=said).system == system
    same(load(tmp_path / "out").backbone.state_dict() | load_heads(tmp_path / "out"), state)


def test_prototypes_that_leave_the_system_open_ask_for_it(tmp_path: Path) -> None:
    path = saved(tmp_path, published(counts=(5, 5, 5)), "mine.pth")
    with pytest.raises(WeightsError, match="--as deepcluster or --as sela"):
        import_checkpoint(path, tmp_path / "out")
    with pytest.raises(WeightsError, match="SwAV has one"):
        import_checkpoint(path, tmp_path / "out", architecture="swav")
    with pytest.raises(WeightsError, match=r"--as mugs says mugs; .* is of swav or deepcluster or sela"):
        import_checkpoint(path, tmp_path / "out", architecture="mugs")
    assert not (tmp_path / "out").exists()


def test_one_set_asked_for_as_sela_has_a_number(tmp_path: Path) -> None:
    import_checkpoint(saved(tmp_path, published(), "mine.pth"), tmp_path / "out", architecture="sela")
    assert "prototypes.prototypes0.weight" in load_heads(tmp_path / "out")


def test_momentum_comes_along(tmp_path: Path) -> None:
    state = published()
    parameters = trained(state)
    stored = optimizer_state([list(parameters.values())], kinds=["momentum_buffer"])
    content = {"epoch": 3, "state_dict": prefixed(state, "module."), "optimizer": stored, "amp": {}}
    card = import_checkpoint(saved(tmp_path, content), tmp_path / "out")
    training = load_training(tmp_path / "out")
    assert (sorted(card.dropped), card.data) == (["amp", "epoch"], {"epoch": 3})
    names = {
        name: name
        if name.startswith("prototypes.")
        else f"student.{name}"
        if name.startswith("projection_head.")
        else f"student.backbone.{name}"
        for name in parameters
    }
    assert len(training) == len(parameters)
    for number, (name, parameter) in enumerate(parameters.items()):
        moment = training[f"optim/{names[name]}/momentum_buffer"]
        assert torch.equal(moment, torch.full_like(parameter, number + 0.5)), name


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda o: o["param_groups"][0]["params"].pop(), "must be"),
        (
            lambda o: o["state"][0].update(momentum_buffer=torch.zeros(3)),
            "number 0 is not of the shape of conv1",
        ),
        (lambda o: o["state"].clear(), "no state"),
    ],
)
def test_an_optimizer_that_does_not_fit_is_left_out(tmp_path: Path, change: Any, told: str) -> None:
    state = published()
    stored = optimizer_state([list(trained(state).values())], kinds=["momentum_buffer"])
    change(stored)
    card = import_checkpoint(saved(tmp_path, {"state_dict": state, "optimizer": stored}), tmp_path / "out")
    assert told in card.dropped["optimizer"]
    assert load_training(tmp_path / "out") == {}


def test_all_that_does_not_fit_is_listed_and_nothing_written(tmp_path: Path) -> None:
    state = published()
    state["layer2.0.conv1.weights"] = state.pop("layer2.0.conv1.weight")
    state["bn1.bias"] = torch.zeros(9)
    with pytest.raises(WeightsError) as raised:
        import_checkpoint(saved(tmp_path, state), tmp_path / "out")
    told = str(raised.value)
    assert "layer2.0.conv1.weight (nearest: layer2.0.conv1.weights)" in told
    assert "bn1.bias is [9], must be [8]" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda s: s.update({"projection_head.3.bias": torch.zeros(5)}),
            r"head.3.bias is \[5\], must be \[4\]",
        ),
        (lambda s: s.pop("projection_head.0.bias"), "missing .*projection_head.0.bias"),
        (lambda s: s.update({"prototypes.weight": torch.zeros(6, 5)}), r"prototypes.weight is \[6, 5\]"),
        (lambda s: s.update({"prototypes.bias": torch.zeros(6)}), "prototypes.bias"),
        (lambda s: s.update({"layer1.0.conv1.weight": torch.zeros(9, 8, 3, 3)}), "wide_resnet or a ResNeXt"),
        (lambda s: [s.pop(name) for name in list(s) if name.startswith("layer3")], "has no layer3"),
        (lambda s: s.update({"module.conv1.weight": s["conv1.weight"]}), "conv1.weight twice"),
    ],
)
def test_odd_entries_are_refused_by_name(tmp_path: Path, change: Any, told: str) -> None:
    state = published()
    change(state)
    with pytest.raises(WeightsError, match=told):
        import_checkpoint(saved(tmp_path, state), tmp_path / "out")


def test_another_architecture_than_asked_for_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, published())
    with pytest.raises(WeightsError, match="is a ResNet; --as swav/deit_small says a ViT"):
        import_checkpoint(path, tmp_path / "out", architecture="swav/deit_small")
    with pytest.raises(WeightsError, match="missing"):
        import_checkpoint(path, tmp_path / "out", architecture="swav/rn50w2-400ep")


@pytest.mark.parametrize("where", ["optimizer", "epoch"])
def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path: Path, where: str) -> None:
    content = {"state_dict": published(), where: Command(tmp_path / "ran")}
    with pytest.raises(WeightsError, match=r"is refused: .*mkdir"):
        import_checkpoint(saved(tmp_path, content), tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_the_imported_network_computes_what_the_published_one_does(tmp_path: Path) -> None:
    state = published()
    import_checkpoint(saved(tmp_path, state), tmp_path / "out")
    network = build(small_resnet()).eval()
    network.load_state_dict({name: state[name] for name in network.state_dict()})
    images = torch.randn(2, 3, 33, 40)
    assert torch.equal(network(images).pooled, load(tmp_path / "out").backbone(images).pooled)

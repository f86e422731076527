"""Exports to timm, torchvision and belvedere's own folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from export_networks import card, cvt, outgoing, resnet, swin, vit
from safetensors.torch import load_file

from belvedere.core.errors import UsageError, WeightsError
from belvedere.eval.classifier import FeatureNetwork
from belvedere.nn.spec import BackboneSpec
from belvedere.nn.spec.resnet import resnet_spec
from belvedere.nn.spec.swin import swin_spec
from belvedere.nn.spec.vit import vit_spec
from belvedere.zoo import load, load_heads
from belvedere.zoo.importing import import_checkpoint
from belvedere.zoo.write import TARGETS, Outgoing, fitting_target, write
from belvedere.zoo.write.timm import architecture


@pytest.mark.parametrize("spec", [vit(), resnet(), swin(), vit(image_px=48, position_margin=0.1)])
def test_timm_computes_the_same(spec: BackboneSpec, tmp_path: Path) -> None:
    for one in write(tmp_path, TARGETS["timm"], outgoing(spec)):
        if "own eps" in one.what:
            assert 1e-8 < one.difference < 1e-2
            continue
        assert one.difference < (1e-5 if getattr(spec, "image_px", 32) == 48 else 1e-10)


@pytest.mark.parametrize(
    "spec", [vit(), resnet(), resnet(block="bottleneck", blocks=(3, 4, 6, 3)), vit(image_px=48)]
)
def test_torchvision_computes_the_same(spec: BackboneSpec, tmp_path: Path) -> None:
    for one in write(tmp_path, TARGETS["torchvision"], outgoing(spec)):
        assert one.difference < 1e-5
    if spec.name == "resnet":
        names = set(load_file(tmp_path / "model.safetensors"))
        assert names == set(outgoing(spec).backbone.state_dict())


def test_the_shown_python_loads_it(tmp_path: Path) -> None:
    for name, spec in (("timm", vit()), ("timm", swin()), ("torchvision", resnet()), ("safetensors", cvt())):
        folder = tmp_path / f"{name}-{spec.name}"
        folder.mkdir()
        sent = outgoing(spec)
        write(folder, TARGETS[name], sent)
        code = TARGETS[name].loading(sent).replace("DIR", str(folder))
        found: dict[str, Any] = {"images": torch.randn(2, 3, 32, 32)}
        exec(code, found)
        model = found.get("model", found.get("backbone"))
        with torch.no_grad():
            theirs, own = model.eval()(found["images"]), sent.backbone(found["images"]).pooled
        torch.testing.assert_close(getattr(theirs, "pooled", theirs), own, atol=1e-4, rtol=1e-4)


def test_timm_reads_the_folder_in_one_line(tmp_path: Path) -> None:
    import timm

    sent = outgoing(vit())
    write(tmp_path, TARGETS["timm"], sent)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images), sent.backbone(images).pooled, atol=1e-4, rtol=1e-4)
    assert model.pretrained_cfg["mean"] == [0.4, 0.5, 0.6]
    assert model.pretrained_cfg["crop_pct"] == 32 / 40


def test_what_timms_own_epsilon_changes_is_what_is_told(tmp_path: Path) -> None:
    """A Swin that timm loads in one line is another network by just that much."""
    import timm

    sent = outgoing(swin())
    exact, other = write(tmp_path, TARGETS["timm"], sent)
    assert exact.difference < 1e-10
    assert "own eps" in other.what
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).double().eval()
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(32 * 100003 + 32)).double()
    with torch.no_grad():
        ours, pooled = sent.backbone.double()(images), model(images)
        theirs = torch.cat([model.forward_features(images).flatten(1, 2), pooled[:, None]], 1)
        own = torch.cat([ours.regions, ours.pooled[:, None]], 1)
    assert float((own - theirs).abs().max() / own.square().mean().sqrt()) == pytest.approx(other.difference)
    assert "is off by what is told" in TARGETS["timm"].notes(sent)[0]


def test_a_swin_that_another_epsilon_changes_much_is_not_exported(tmp_path: Path) -> None:
    sent = outgoing(swin())
    with torch.no_grad():
        sent.backbone.patch_embed.proj.weight *= 1e-4
        sent.backbone.patch_embed.proj.bias.zero_()
    with pytest.raises(WeightsError, match="timm's own eps"):
        write(tmp_path, TARGETS["timm"], sent)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (vit_spec("deit_small"), "vit_small_patch16_224"),
        (vit_spec("deit_base_p8"), "vit_base_patch8_224"),
        (resnet_spec("resnet50"), "resnet50"),
        (swin_spec("swin_base"), "swin_base_patch4_window7_224"),
    ],
)
def test_published_networks_have_a_name_and_no_arguments(spec: BackboneSpec, name: str) -> None:
    assert architecture(card(spec, crop_px=32 if spec.name != "vit" else 40)) == (
        name,
        {} if spec.name != "vit" else {"img_size": 40},
    )


@pytest.mark.parametrize(
    ("target", "spec", "possible"),
    [
        ("timm", cvt(), "CvT, which can go to onnx, safetensors"),
        ("huggingface", swin(), "Swin, which can go to timm, onnx, safetensors"),
        ("timm", vit(patch_px=16, stem="conv"), "stem, which can go to onnx, published, safetensors"),
        ("torchvision", resnet_spec("resnet50w2"), "not wide_resnet50_2"),
        ("timm", resnet(stem="small"), "stem small"),
        ("torchvision", swin(), "which can go to timm"),
        ("huggingface", resnet(), "timm, torchvision, onnx, safetensors"),
    ],
)
def test_a_network_that_cannot_go_there_is_told_where_it_can(
    target: str, spec: BackboneSpec, possible: str
) -> None:
    with pytest.raises(UsageError, match=possible):
        fitting_target(target, card(spec))


@pytest.mark.parametrize(
    ("target", "spec"),
    [
        ("timm", vit(width=64, heads=1)),
        ("timm", resnet()),
        ("timm", swin()),
        ("torchvision", vit(width=64, heads=1)),
        ("torchvision", resnet()),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_what_came_from_there_goes_back_as_it_was(target: str, spec: BackboneSpec, tmp_path: Path) -> None:
    """Exported, imported, exported: the same tensors to the bit, under the same names."""
    first, again = tmp_path / "first", tmp_path / "again"
    for folder in (first, again):
        folder.mkdir()
    sent = outgoing(spec)
    write(first, TARGETS[target], sent)
    published = load_file(first / "model.safetensors")
    file = tmp_path / "published.pth"
    torch.save(published, file)
    imported = import_checkpoint(file, tmp_path / "weights", architecture=target)
    backbone, card = load(tmp_path / "weights")
    assert imported.system == target
    network = FeatureNetwork(backbone, card.features).eval()
    write(again, TARGETS[target], Outgoing(backbone, card, network, {}))
    returned = load_file(again / "model.safetensors")
    assert returned.keys() == published.keys()
    assert all(torch.equal(returned[name], tensor) for name, tensor in published.items())


def test_our_own_folder_keeps_the_heads(tmp_path: Path) -> None:
    sent = outgoing(cvt())
    heads = {"head.fc1.weight": torch.randn(3, 4), "prototypes": torch.randn(5, 3)}
    (found,) = write(tmp_path, TARGETS["safetensors"], sent.__class__(*_fields(sent, heads=heads)))
    assert found.difference == 0
    assert load(tmp_path).card.backbone == cvt()
    assert torch.equal(load_heads(tmp_path)["prototypes"], heads["prototypes"])


def test_a_network_that_gives_no_numbers_is_not_exported(tmp_path: Path) -> None:
    sent = outgoing(resnet())
    with torch.no_grad():
        sent.backbone.bn1.running_var.fill_(torch.nan)
    with pytest.raises(WeightsError, match="nan"):
        write(tmp_path, TARGETS["torchvision"], sent)


def _fields(sent: Any, **changes: Any) -> list[Any]:
    names = ("backbone", "card", "feature", "heads", "classifier")
    return [changes.get(name, getattr(sent, name)) for name in names]

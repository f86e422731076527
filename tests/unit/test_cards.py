"""Exported backbones: what is written is read back exactly, and anything that does not fit is refused."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

from belvedere.core import files
from belvedere.core.errors import WeightsError
from belvedere.nn.heads import ProjectionHead
from belvedere.nn.spec import FeatureSpec, HeadSpec, ViTSpec
from belvedere.nn.vit import ViT
from belvedere.zoo import cards
from belvedere.zoo.cards import Card, export
from belvedere.zoo.load import fill_, load, load_heads
from processes import exit_code_of

SPEC = ViTSpec(
    name="vit", width=12, depth=2, heads=3, patch_px=4, mlp_ratio=4, stem="patch", image_px=8, drop_path=0.1
)


def card(**changes: Any) -> Card:
    values = {
        "system": "msn",
        "backbone": SPEC,
        "features": FeatureSpec(
            source="cls", blocks=1, norm="none", resize_px=8, crop_px=8, interpolation="bilinear"
        ),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 1e-6),
        "source": "recipe tiny/msn",
        "step": 12500,
        "published": {"imagenet": 67.2, "note": "größer"},
        "data": {"images": 1347, "source": "digits"},
    }
    return Card(**(values | changes))


def vit(seed: int) -> ViT:
    network = ViT(SPEC)
    network.initialize_(torch.Generator().manual_seed(seed))
    return network


def assert_same(found: nn.Module, expected: nn.Module) -> None:
    state = expected.state_dict()
    assert sorted(found.state_dict()) == sorted(state)
    for name, tensor in found.state_dict().items():
        assert tensor.dtype == state[name].dtype, name
        assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_backbone_card_and_heads_come_back(tmp_path: Path, dtype: torch.dtype) -> None:
    network = vit(0).to(dtype)
    head = ProjectionHead(12, HeadSpec(hidden=5, out=3, batch_norm=True)).to(dtype)
    prototypes = torch.randn(4, 3)
    written = export(tmp_path, network, card(), heads={"head": head, "prototypes": prototypes.t()})
    assert sorted(os.listdir(tmp_path)) == ["backbone.safetensors", "card.yaml", "heads.safetensors"]
    backbone, found = load(tmp_path)
    assert_same(backbone, network)
    assert not backbone.training
    assert found == written
    assert written.weights_sha256 == files.sha256(tmp_path / "backbone.safetensors")
    assert found.model_copy(update={"weights_sha256": None, "heads_sha256": None}) == card()
    heads = load_heads(tmp_path)
    assert torch.equal(heads["prototypes"], prototypes.t())
    again = ProjectionHead(12, HeadSpec(hidden=5, out=3, batch_norm=True))
    fill_(
        again,
        {name.removeprefix("head."): tensor for name, tensor in heads.items() if name != "prototypes"},
        origin="heads",
    )
    assert_same(again, head)
    images = torch.randn(2, 3, 8, 8, dtype=dtype)
    assert torch.equal(backbone(images).pooled, network.eval()(images).pooled)


def test_a_run_directory_a_folder_and_a_file_are_the_same(tmp_path: Path) -> None:
    export(tmp_path / "backbone", vit(0), card())
    places = (tmp_path, tmp_path / "backbone", str(tmp_path / "backbone" / "backbone.safetensors"))
    for place in places:
        assert_same(load(place).backbone, vit(0))
    assert load_heads(tmp_path) == {}


def test_exporting_again_replaces_everything_and_cleans_up(tmp_path: Path) -> None:
    export(tmp_path, vit(0), card(), heads={"prototypes": torch.zeros(2, 2)})
    (tmp_path / ".backbone.safetensors.17.writing").touch()
    export(tmp_path, vit(1), card(step=2))
    assert sorted(os.listdir(tmp_path)) == ["backbone.safetensors", "card.yaml"]
    assert_same(load(tmp_path).backbone, vit(1))


def _die_before(directory: Path, name: str) -> None:
    replace = Path.replace

    def dying(self: Path, target: Path) -> Path:
        if Path(target).name == name:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    Path.replace = dying  # type: ignore[method-assign,assignment]
    export(directory, vit(1), card(step=2), heads={"prototypes": torch.ones(2, 2)})


@pytest.mark.parametrize("name", ["heads.safetensors", "backbone.safetensors", "card.yaml"])
def test_an_export_killed_between_its_files_is_noticed_and_mended(tmp_path: Path, name: str) -> None:
    export(tmp_path, vit(0), card(), heads={"prototypes": torch.zeros(2, 2)})
    assert exit_code_of(_die_before, tmp_path, name) == -signal.SIGKILL
    if name == "card.yaml":
        with pytest.raises(WeightsError, match="do not belong together"):
            load(tmp_path)
    else:
        assert_same(load(tmp_path).backbone, vit(0))
    if name != "heads.safetensors":
        with pytest.raises(WeightsError, match=r"heads\.safetensors and the card\.yaml"):
            load_heads(tmp_path)
    export(tmp_path, vit(1), card(step=2))
    assert_same(load(tmp_path).backbone, vit(1))
    assert sorted(os.listdir(tmp_path)) == ["backbone.safetensors", "card.yaml"]


def test_a_reader_whose_files_are_replaced_meanwhile_takes_the_new_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(tmp_path, vit(0), card())
    read_bytes = Path.read_bytes

    def late(self: Path) -> bytes:
        monkeypatch.undo()
        export(tmp_path, vit(1), card(step=2))
        return read_bytes(self)

    monkeypatch.setattr(Path, "read_bytes", late)
    loaded = load(tmp_path)
    assert loaded.card.step == 2
    assert_same(loaded.backbone, vit(1))


def _rewrite(directory: Path, change: Any) -> None:
    """Change the tensors and let the card agree with the file."""
    path = directory / "backbone.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    content = yaml.safe_load((directory / "card.yaml").read_text())
    content["weights_sha256"] = files.sha256(path)
    files.write_yaml(directory / "card.yaml", content)


def test_missing_unexpected_and_misshaped_tensors_are_listed_with_the_nearest(tmp_path: Path) -> None:
    export(tmp_path, vit(0), card())

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["blocks.1.mlp.fc3.bias"] = tensors.pop("blocks.1.mlp.fc1.bias")
        tensors["norm.bias"] = torch.zeros(13)

    _rewrite(tmp_path, change)
    with pytest.raises(WeightsError) as raised:
        load(tmp_path)
    told = str(raised.value)
    assert "missing (1): blocks.1.mlp.fc1.bias (nearest: blocks.1.mlp.fc3.bias)" in told
    assert "unexpected (1): blocks.1.mlp.fc3.bias (nearest: blocks.1.mlp.fc1.bias)" in told
    assert "mis-shaped (1): norm.bias is [13], must be [12]" in told


def test_altered_weights_are_refused(tmp_path: Path) -> None:
    export(tmp_path, vit(0), card())
    path = tmp_path / "backbone.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(WeightsError, match="do not belong together"):
        load(tmp_path)


def test_what_is_no_safetensors_file_is_refused(tmp_path: Path) -> None:
    export(tmp_path, vit(0), card())
    (tmp_path / "backbone.safetensors").write_bytes(b"nonsense")
    content = yaml.safe_load((tmp_path / "card.yaml").read_text())
    content["weights_sha256"] = files.sha256(tmp_path / "backbone.safetensors")
    files.write_yaml(tmp_path / "card.yaml", content)
    with pytest.raises(WeightsError, match=r"no valid \.safetensors file"):
        load(tmp_path)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "weights.pth.tar")
    with pytest.raises(WeightsError, match="belvedere import"):
        load(tmp_path / "weights.pth.tar")


def test_missing_places_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match="holds no backbone"):
        load(tmp_path)
    export(tmp_path, vit(0), card())
    (tmp_path / "card.yaml").unlink()
    with pytest.raises(WeightsError, match=r"card\.yaml is missing"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "valid dictionary|object"),
        ("[1, 2", "cannot be read"),
        ("system: msn\nbackbones: {}", "backbones: Extra inputs"),
        ("system: 3", "system: Input should be a valid string"),
        ("step: 2026-01-01", "cannot be read"),
        ("system: msn\nstep: .nan", "no valid card|cannot be read"),
        ("a: &a [x, x]\nb: [*a, *a]", "an alias"),
        ("data: " + "[" * 400 + "]" * 400, "no valid card|cannot be read"),
        ("data: " + "[" * 100_000, "cannot be read"),
        (f"step: {'9' * 5000}", "cannot be read"),
        ("system: [1, {2: 3}]\nmean: yes", "no valid card"),
    ],
)
def test_a_wrong_card_lists_its_mistakes(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "card.yaml").write_text(text)
    with pytest.raises(WeightsError, match=told):
        cards.read_card(tmp_path / "card.yaml")


def test_a_card_in_another_encoding_is_named(tmp_path: Path) -> None:
    export(tmp_path, vit(0), card())
    whole = (tmp_path / "card.yaml").read_text()
    (tmp_path / "card.yaml").write_text(whole, encoding="utf-8-sig")
    assert load(tmp_path).card.published["note"] == "größer"
    for encoding in ("utf-16", "latin-1"):
        (tmp_path / "card.yaml").write_text(whole, encoding=encoding)
        with pytest.raises(WeightsError, match=r"card\.yaml cannot be read"):
            load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"width": 64_000_000, "heads": 1}, r"a network of 9\.\d+e\+16 parameters .*this machine has"),
        ({"depth": 1_000_000_000}, r"1[\d,]+ layers.*this machine has"),
        ({"width": 10**400, "heads": 1}, "more than 1e300 parameters"),
        ({"mlp_ratio": 1e300}, "parameters .*this machine has"),
        ({"image_px": 4 * 10**9}, "parameters .*this machine has"),
        ({"depth": 40}, "has 30 tensors, its card describes 40 blocks"),
        ({"depth": 3}, r"missing \(12\): blocks.2"),
        ({"width": 24}, r"mis-shaped .*cls_token is \[1, 1, 12\], must be \[1, 1, 24\]"),
    ],
    ids=str,
)
def test_a_network_that_cannot_be_is_refused_before_it_is_built(
    tmp_path: Path, changes: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(tmp_path, vit(0), card())
    content = yaml.safe_load((tmp_path / "card.yaml").read_text())
    content["backbone"] |= changes
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(content))

    def built(spec: Any) -> None:
        raise AssertionError("it was built")

    monkeypatch.setattr(sys.modules["belvedere.zoo.load"], "build", built)
    with pytest.raises(WeightsError, match=told):
        load(tmp_path)


def test_images_that_no_memory_holds_are_refused(tmp_path: Path) -> None:
    px = 10**9
    large = FeatureSpec(
        source="cls", blocks=1, norm="none", resize_px=px, crop_px=px, interpolation="bilinear"
    )
    export(tmp_path, vit(0), card(features=large))
    with pytest.raises(WeightsError, match="this machine has"):
        load(tmp_path)


def test_a_weights_file_larger_than_memory_is_not_read(tmp_path: Path) -> None:
    export(tmp_path, vit(0), card())
    with (tmp_path / "backbone.safetensors").open("r+b") as file:
        file.truncate(1 << 43)
    with pytest.raises(WeightsError, match=r"has 8.0 TiB; this machine has a memory of"):
        load(tmp_path)


@pytest.mark.parametrize("target", [None, "/dev/zero"])
def test_a_card_that_is_no_regular_file_is_not_waited_for(tmp_path: Path, target: str | None) -> None:
    path = tmp_path / "card.yaml"
    if target is None:
        os.mkfifo(path)
    else:
        path.symlink_to(target)
    with pytest.raises(WeightsError, match="no regular file"):
        cards.read_card(path)

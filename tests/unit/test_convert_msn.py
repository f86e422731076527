"""MSN's published checkpoints: strict, safe, and for every architecture MSN names."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_files import Command, small_vit
from published_msn import published
from torch import Tensor

from belvedere.core import files
from belvedere.core.errors import WeightsError
from belvedere.nn.spec import ViTSpec
from belvedere.nn.spec.vit import VIT_NAMES, vit_spec
from belvedere.zoo.convert.vit import vit_spec_of
from belvedere.zoo.importing import import_checkpoint
from belvedere.zoo.load import load, load_heads, load_training


def saved(tmp_path: Path, content: Any, name: str = "vits16_800ep.pth.tar") -> Path:
    torch.save(content, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_every_tensor_arrives(tmp_path: Path, prefix: str, batch_norm: bool, stem: str) -> None:
    spec = small_vit() if stem == "patch" else small_vit(stem="conv", patch_px=16, image_px=48)
    content = published(spec, prefix=prefix, batch_norm=batch_norm)
    file = saved(tmp_path, content)
    card = import_checkpoint(file, tmp_path / "out")
    loaded = load(tmp_path / "out")
    assert loaded.card == card
    assert card.backbone == spec
    heads = load_heads(tmp_path / "out")
    arrived = {prefix + name: tensor for name, tensor in loaded.backbone.state_dict().items()}
    arrived |= {
        f"{prefix}fc.{name[5:]}": tensor for name, tensor in heads.items() if name.startswith("head.")
    }
    assert sorted(arrived) == sorted(content["target_encoder"])
    for name, tensor in content["target_encoder"].items():
        assert torch.equal(arrived[name], tensor), name
    assert torch.equal(heads["prototypes"], content["prototypes"])
    assert card.source_sha256 == files.sha256(file)
    assert sorted(card.dropped) == sorted(content.keys() - {"target_encoder", "encoder", "prototypes"})
    training = load_training(tmp_path / "out")
    assert len(training) == len(content["encoder"])
    for name, tensor in content["encoder"].items():
        bare = name.removeprefix(prefix)
        ours = f"head.{bare[3:]}" if bare.startswith("fc.") else f"backbone.{bare}"
        assert torch.equal(training[f"student.{ours}"], tensor), name
    assert card.data["epoch"] == 800
    assert card.data["loss"] == 2.5
    assert card.published == {}  # the name is that of a published file, the sizes are not
    assert card.licence is not None
    assert "CC-BY-NC-4.0" in card.licence
    assert (card.features.norm, card.features.blocks, card.std) == ("none", 1, (0.229, 0.224, 0.225))


def test_a_file_with_nothing_but_the_target_encoder(tmp_path: Path) -> None:
    content = {"target_encoder": published(small_vit(), head=False)["target_encoder"]}
    card = import_checkpoint(saved(tmp_path, content, "mine.pth"), tmp_path / "out")
    assert (card.dropped, card.published, card.heads_sha256) == ({}, {}, None)
    assert load_heads(tmp_path / "out") == {}


@pytest.mark.parametrize("name", VIT_NAMES)
def test_every_architecture_is_known_by_its_shapes(name: str) -> None:
    with torch.device("meta"):
        spec = vit_spec(name)
        shapes = _shapes_of(spec)
    assert vit_spec_of(shapes, origin="file") == spec
    assert vit_spec_of(shapes, origin="file", named=vit_spec(name)) == spec


def _shapes_of(spec: ViTSpec) -> dict[str, tuple[int, ...]]:
    """The entries that tell an architecture, without the memory of a huge network."""
    tokens = (spec.image_px // spec.patch_px) ** 2 + 1
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, spec.width),
        "pos_embed": (1, tokens, spec.width),
        "blocks.0.mlp.fc1.weight": (int(spec.width * spec.mlp_ratio), spec.width),
        f"blocks.{spec.depth - 1}.norm1.bias": (spec.width,),
    }
    if spec.stem == "conv":
        return shapes | {"patch_embed.stem.0.weight": (48, 3, 3, 3)}
    return shapes | {"patch_embed.proj.weight": (spec.width, 3, spec.patch_px, spec.patch_px)}


def test_a_width_that_leaves_the_heads_open_asks_for_the_architecture(tmp_path: Path) -> None:
    file = saved(tmp_path, published(small_vit(width=96, heads=2)))
    with pytest.raises(WeightsError, match="96 wide do not tell the number of attention heads"):
        import_checkpoint(file, tmp_path / "out")
    with pytest.raises(WeightsError, match="nearest: deit_small"):
        import_checkpoint(file, tmp_path / "out", architecture="deit_smal")
    with pytest.raises(WeightsError, match=r"mis-shaped .*cls_token is \[1, 1, 96\], must be \[1, 1, 192\]"):
        import_checkpoint(file, tmp_path / "out", architecture="deit_tiny")
    assert not (tmp_path / "out").exists()


def _rename(state: dict[str, Tensor], old: str, new: str) -> None:
    state[new] = state.pop(old)


def test_all_that_does_not_fit_is_listed_and_nothing_written(tmp_path: Path) -> None:
    content = published(small_vit())
    state = content["target_encoder"]
    _rename(state, "module.blocks.1.attn.qkv.bias", "module.blocks.1.attn.qkv_bias")
    _rename(state, "module.fc.fc2.bias", "module.fc.fc2.biases")
    state["module.norm.weight"] = torch.ones(127)
    content["prototypes"] = torch.zeros(6, 5)
    with pytest.raises(WeightsError) as raised:
        import_checkpoint(saved(tmp_path, content), tmp_path / "out")
    told = str(raised.value)
    assert "blocks.1.attn.qkv.bias (nearest: blocks.1.attn.qkv_bias)" in told
    assert "fc.fc2.biases (nearest: fc.fc2.bias)" in told
    assert "norm.weight is [127], must be [128]" in told
    assert "prototypes is [6, 5], must be [6, 4]" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c.update(epochs=1), r"do not have: epochs \(nearest: epoch\)"),
        (lambda c: c.update(prototypes=[1.0]), "prototypes is a list, must be a tensor"),
        (lambda c: c.update(prototypes=torch.tensor(1.0)), "prototypes is .*must have 2 dimensions"),
        (lambda c: c["target_encoder"].pop("module.cls_token"), "is missing cls_token"),
        (lambda c: c["target_encoder"].update({"cls_token": torch.zeros(1)}), "cls_token twice"),
        (lambda c: c["target_encoder"].update({"module.pos_embed": torch.zeros(1, 9, 128)}), "9 rows"),
        (lambda c: c["target_encoder"].update({"module.fc.fc1.weight": torch.zeros(0, 128)}), "fc1.weight"),
        (lambda c: c["target_encoder"].update({"module.norm.bias": torch.full((128,), torch.nan)}), "finite"),
        (lambda c: c["target_encoder"].update({"module.note": "text"}), "note is a str"),
    ],
)
def test_odd_entries_are_refused_by_name(tmp_path: Path, change: Any, told: str) -> None:
    content = published(small_vit())
    change(content)
    with pytest.raises(WeightsError, match=told):
        import_checkpoint(saved(tmp_path, content), tmp_path / "out")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path: Path, zipped: bool) -> None:
    content = published(small_vit()) | {"opt": Command(tmp_path / "ran")}
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"is refused: .*mkdir"):
        import_checkpoint(tmp_path / "evil.pth", tmp_path / "out")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Command(tmp_path / "ran")))
    with pytest.raises(WeightsError):
        import_checkpoint(tmp_path / "plain.pth", tmp_path / "out")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_arguments_and_numpy_numbers_are_plain_data(tmp_path: Path, module: str) -> None:
    content = published(small_vit())
    content["opt"] = {"args": argparse.Namespace(lr=np.float64(0.5)), "steps": np.int64(3)}
    torch.save(content, tmp_path / "file.pth", _use_new_zipfile_serialization=False)
    raw = (tmp_path / "file.pth").read_bytes()
    for written in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
        raw = raw.replace(written + b"\nscalar", module.encode() + b"\nscalar")
    (tmp_path / "file.pth").write_bytes(raw)
    assert module.encode() in raw
    assert import_checkpoint(tmp_path / "file.pth", tmp_path / "out").data["lr"] == 0.001


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, [1], {"target_encoder": torch.zeros(1)}])
def test_other_layouts_are_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(WeightsError, match="of no layout known here"):
        import_checkpoint(saved(tmp_path, content), tmp_path / "out")


def test_missing_empty_and_truncated_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not exist"):
        import_checkpoint(tmp_path / "nothing.pth", tmp_path / "out")
    (tmp_path / "empty.pth").touch()
    with pytest.raises(WeightsError):
        import_checkpoint(tmp_path / "empty.pth", tmp_path / "out")
    file = saved(tmp_path, published(small_vit()))
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(WeightsError):
        import_checkpoint(file, tmp_path / "out")
    with pytest.raises(WeightsError):
        import_checkpoint(tmp_path, tmp_path / "out")


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    content = published(small_vit(), head=False)
    del content["prototypes"]
    state = content["target_encoder"]
    content["target_encoder"] = {name: tensor.half() for name, tensor in state.items()}
    import_checkpoint(saved(tmp_path, content), tmp_path / "out")
    found = load(tmp_path / "out").backbone.state_dict()
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert torch.equal(found["cls_token"], state["module.cls_token"].half().float())

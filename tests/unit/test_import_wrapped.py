"""Files that training wraps, folders in several files, and what of them is claimed, counted or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from published_files import drawn, prefixed, same, small_resnet, small_swin, small_vit
from published_mugs import network
from safetensors.torch import save_file
from torch import Tensor

from belvedere import cli
from belvedere.core.errors import WeightsError
from belvedere.zoo.importing import import_checkpoint
from belvedere.zoo.load import load
from belvedere.zoo.write.huggingface import released_state

VIT = small_vit(width=64, heads=1)
LIGHTNING = {
    "epoch": 7,
    "global_step": 700,
    "pytorch-lightning_version": "2.5",
    "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}],
    "lr_schedulers": [],
    "loops": {},
    "callbacks": {},
    "hyper_parameters": {"lr": 0.1},
}
PREFIXES = [
    "backbone.",
    "encoder.",
    "model.",
    "base_encoder.",
    "module.base_encoder.",
    "module.backbone.",
    "_orig_mod.model.backbone.",
    "model._orig_mod.encoder.",
]


def saved(tmp_path: Path, content: Any, name: str = "last.ckpt") -> Path:
    torch.save(content, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("spec", [VIT, small_resnet(), small_swin()], ids=["vit", "resnet", "swin"])
def test_a_prefix_alone_tells_no_system(tmp_path: Path, spec: Any, prefix: str) -> None:
    file = saved(tmp_path, {"state_dict": prefixed(drawn(spec), prefix)} | LIGHTNING)
    with pytest.raises(WeightsError, match=r"names begin with .*do not tell whose it is: .*--as timm"):
        import_checkpoint(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    card = import_checkpoint(file, tmp_path / "out", architecture="timm")
    same(load(tmp_path / "out").backbone.state_dict(), drawn(spec))
    assert (card.system, card.licence, card.published) == ("timm", None, {})
    assert card.notes["names"] == f"begin with {prefix!r} in the file, which was taken off"
    assert card.data == {"epoch": 7, "global_step": 700}
    assert card.dropped["optimizer_states"] == "belongs to another training loop (1 tensor)"
    assert LIGHTNING.keys() <= card.dropped.keys()


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
def test_what_torch_wraps_is_taken_off_without_a_word_of_whose_it_is(tmp_path: Path, prefix: str) -> None:
    state = drawn(VIT)
    file = saved(tmp_path, {"model": prefixed(state, prefix)})
    with pytest.raises(WeightsError, match="could be of mugs or timm"):
        import_checkpoint(file, tmp_path / "out")
    classified = state | {"head.weight": torch.zeros(3, 64)}
    card = import_checkpoint(saved(tmp_path, prefixed(classified, prefix)), tmp_path / "out")
    assert (card.system, card.licence) == ("timm", None)


def test_what_stands_beside_a_network_is_counted_in_the_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {
        **prefixed(drawn(VIT), "module.base_encoder."),
        **prefixed(drawn(VIT, seed=2), "module.momentum_encoder."),
        "module.predictor.0.weight": torch.zeros(2),
        "queue": torch.zeros(2),
    }
    file = saved(tmp_path, {"state_dict": state, "arch": "vit", "extra": {"a": torch.zeros(1)}})
    argv = ["import", str(file), "--as", "timm", "--out", str(tmp_path / "out")]
    assert cli.main(argv) == 0
    told = " ".join(capsys.readouterr().err.split())
    number = len(drawn(VIT))
    assert f"module.momentum_encoder.* {number} tensors beside the network" in told
    assert "module.predictor.* 1 tensor beside the network" in told
    assert "queue* 1 tensor beside the network" in told
    assert "extra not read: no part of the network (1 tensor)" in told
    same(load(tmp_path / "out").backbone.state_dict(), drawn(VIT))
    card = import_checkpoint(file, tmp_path / "b", architecture="timm", prefix="module.momentum_encoder")
    same(load(tmp_path / "b").backbone.state_dict(), drawn(VIT, seed=2))
    assert f"{number} tensors beside the network" in card.dropped["module.base_encoder.*"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            {"state_dict": prefixed(drawn(VIT), "encoder.") | prefixed(drawn(VIT), "backbone.")},
            "holds 2 networks, .*'backbone.' and .*'encoder.'; choose one .*--prefix",
        ),
        ({"state_dict": drawn(VIT), "model": drawn(VIT)}, "holds 2 networks, under 'state_dict' and"),
        (prefixed(drawn(VIT), "student.net."), "no layout known here.*begin with 'student.net.'.*--prefix"),
        ({"ema": drawn(VIT)}, "no layout known here.*a network under 'ema'"),
    ],
    ids=["two prefixes", "two entries", "another prefix", "another entry"],
)
def test_two_networks_or_none_are_named(tmp_path: Path, content: Any, told: str) -> None:
    with pytest.raises(WeightsError, match=told):
        import_checkpoint(saved(tmp_path, content), tmp_path / "out", architecture="timm")


def test_a_prefix_that_is_not_there(tmp_path: Path) -> None:
    file = saved(tmp_path, prefixed(drawn(VIT), "student."))
    with pytest.raises(WeightsError, match=r"no network whose names begin with teacher.*'student.'"):
        import_checkpoint(file, tmp_path / "out", architecture="timm", prefix="teacher")


def test_mugs_is_claimed_by_what_mugs_alone_has(tmp_path: Path) -> None:
    state = {n: t for n, t in network(relation=True).items() if n.startswith("backbone.")}
    card = import_checkpoint(saved(tmp_path, {"state_dict": state}), tmp_path / "out")
    assert card.system == "mugs"
    for content in (
        {"teacher": prefixed(drawn(VIT), "backbone."), "student": {}},
        prefixed(drawn(VIT), "encoder."),
    ):
        with pytest.raises(WeightsError, match="do not tell whose it is: it could be of mugs or timm"):
            import_checkpoint(saved(tmp_path, content), tmp_path / "no")


def test_a_vitmsn_inside_a_wrapper_is_known_by_its_own_names(tmp_path: Path) -> None:
    state = prefixed(released_state(drawn(VIT)), "model.vit.")
    card = import_checkpoint(saved(tmp_path, {"state_dict": state}), tmp_path / "out")
    assert card.system == "huggingface"
    same(load(tmp_path / "out").backbone.state_dict(), drawn(VIT))


def test_a_name_cannot_announce_more_blocks_than_there_are_tensors(tmp_path: Path) -> None:
    state = drawn(VIT) | {"blocks.999999999.norm1.weight": torch.zeros(64), "head.weight": torch.zeros(1)}
    with pytest.raises(WeightsError, match="announce a network of 1000000000 blocks"):
        import_checkpoint(saved(tmp_path, state), tmp_path / "out")


def shards(tmp_path: Path, *, pickled: bool = False) -> tuple[Path, Path, dict[str, Tensor]]:
    """A folder of a ViTMSN in two files, its index, and the tensors."""
    state = {name: tensor.contiguous() for name, tensor in released_state(drawn(VIT)).items()}
    folder = tmp_path / "hf"
    folder.mkdir()
    stem, suffix = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    places: dict[str, str] = {}
    for number in (1, 2):
        part = {name: tensor for place, (name, tensor) in enumerate(state.items()) if place % 2 == number - 1}
        name = f"{stem}-0000{number}-of-00002.{suffix}"
        if pickled:
            torch.save(part, folder / name)
        else:
            save_file(part, folder / name)
        places |= dict.fromkeys(part, name)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    config = {"model_type": "vit_msn", "num_attention_heads": 4}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, index, state


@pytest.mark.parametrize("pickled", [False, True])
def test_a_folder_in_several_files_is_read_by_its_index(tmp_path: Path, pickled: bool) -> None:
    folder, index, _ = shards(tmp_path, pickled=pickled)
    card = import_checkpoint(folder, tmp_path / "out")
    same(load(tmp_path / "out").backbone.state_dict(), drawn(VIT))
    assert card.backbone == VIT.model_copy(update={"heads": 4})
    assert import_checkpoint(index, tmp_path / "two").source_sha256 == card.source_sha256
    assert cli.main(["import", str(folder), "--out", str(tmp_path / "out")]) == 0  # the same: replaced


def _altered(folder: Path, index: Path, what: str) -> None:
    first = folder / "model-00001-of-00002.safetensors"
    content = json.loads(index.read_text())
    places = content["weight_map"]
    if what == "missing":
        first.unlink()
    elif what == "lacking":
        places["embeddings.extra"] = first.name
    elif what == "not placed":
        del places[next(name for name, place in places.items() if place == first.name)]
    elif what == "moved":
        name = next(name for name, place in places.items() if place == first.name)
        places[name] = "model-00002-of-00002.safetensors"
    elif what == "single too":
        save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    elif what == "cut":
        first.write_bytes(first.read_bytes()[:100])
    else:
        places[next(iter(places))] = what
    index.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("missing", "lacks 1 of 2 files that .*: model-00001-of-00002.safetensors"),
        ("lacking", "lacks what model.safetensors.index.json places there: embeddings.extra"),
        ("not placed", "has what model.safetensors.index.json does not place there: embeddings.cls_token"),
        ("moved", "does not place there|lacks what"),
        (
            "single too",
            "model.safetensors and model.safetensors.index.json, which may hold different weights",
        ),
        ("cut", "is no valid safetensors file"),
        ("../model.safetensors", "must be the name of a file beside it"),
        ("/etc/passwd", "must be the name of a file beside it"),
        ("sub/model.safetensors", "must be the name of a file beside it"),
        ("..", "must be the name of a file beside it"),
        ("a\\b", "no file's name"),
        ("a" * 5000, "no file's name"),
        ("", "must be the name of a file beside it"),
    ],
)
def test_an_index_that_does_not_hold_is_named(tmp_path: Path, what: str, told: str) -> None:
    folder, index, _ = shards(tmp_path)
    _altered(folder, index, what)
    with pytest.raises(WeightsError, match=told):
        import_checkpoint(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', "[", "[1]"])
def test_an_index_of_another_kind_is_named(tmp_path: Path, text: str) -> None:
    folder, index, _ = shards(tmp_path)
    index.write_text(text)
    with pytest.raises(WeightsError, match=r"model.safetensors.index.json"):
        import_checkpoint(folder, tmp_path / "out")


def test_other_formats_beside_are_said(tmp_path: Path) -> None:
    folder, _, state = shards(tmp_path)
    torch.save(state, folder / "pytorch_model.bin")
    assert (
        import_checkpoint(folder, tmp_path / "out").notes["not read"].startswith("pytorch_model.bin beside")
    )


def test_a_folder_of_several_checkpoints_is_refused(tmp_path: Path) -> None:
    for name in ("a.pth", "b.pth"):
        torch.save(drawn(VIT), tmp_path / name)
    with pytest.raises(WeightsError, match=r"holds 2 checkpoints \(a.pth, b.pth\)"):
        import_checkpoint(tmp_path, tmp_path / "out")


def test_a_file_that_dinos_code_may_have_saved_claims_no_licence(tmp_path: Path) -> None:
    head = {
        "head.mlp.0.weight": (8, 64),
        "head.mlp.0.bias": (8,),
        "head.mlp.2.weight": (8, 8),
        "head.mlp.2.bias": (8,),
    }
    head |= {"head.mlp.4.weight": (4, 8), "head.mlp.4.bias": (4,)}
    head |= {"head.last_layer.weight_g": (6, 1), "head.last_layer.weight_v": (6, 4)}
    teacher = drawn(VIT) | {name: torch.ones(shape) for name, shape in head.items()}
    file = saved(tmp_path, {"teacher": teacher, "epoch": 3}, "checkpoint.pth")
    card = import_checkpoint(file, tmp_path / "out")
    assert (card.system, card.licence) == ("esvit", None)
    assert "DINO's files have these names too" in card.notes["system"]
    assert import_checkpoint(file, tmp_path / "said", architecture="esvit").licence is not None


@pytest.mark.parametrize("given", ["", "model.onnx"])
def test_an_onnx_graph_is_named(tmp_path: Path, given: str) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x0a")
    with pytest.raises(WeightsError, match="is an ONNX graph, which holds operations and no state dict"):
        import_checkpoint(tmp_path / given, tmp_path / "out")

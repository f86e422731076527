"""Hugging Face's ViTMSN: files and folders, both namings, with and without a classifier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from published_files import Command, drawn, same, small_vit
from safetensors.torch import save_file
from torch import Tensor

from belvedere.core.errors import WeightsError
from belvedere.zoo.convert.huggingface import MASK_TOKEN
from belvedere.zoo.importing import import_checkpoint
from belvedere.zoo.load import load, load_heads

RELEASED = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "q": "attention.attention.query",
    "k": "attention.attention.key",
    "v": "attention.attention.value",
    "layer": "encoder.layer.",
}
IN_MEMORY = RELEASED | {
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "q": "attention.q_proj",
    "k": "attention.k_proj",
    "v": "attention.v_proj",
    "layer": "layers.",
}
TOP = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}


def theirs(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """A ViT's tensors under Hugging Face's names."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not name.startswith("blocks."):
            part, _, kind = name.rpartition(".")
            found[TOP[name] if name in TOP else f"{TOP[part]}.{kind}"] = tensor
            continue
        _, number, rest = name.split(".", 2)
        part, _, kind = rest.rpartition(".")
        if part == "attn.qkv":
            for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                found[f"{names['layer']}{number}.{names[letter]}.{kind}"] = third.contiguous()
        else:
            found[f"{names['layer']}{number}.{names[part]}.{kind}"] = tensor
    return found


def config(**changes: Any) -> dict[str, Any]:
    values = {
        "model_type": "vit_msn",
        "num_attention_heads": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "qkv_bias": True,
    }
    return values | changes


def folder(tmp_path: Path, state: dict[str, Tensor], *, pickled: bool = False, **settings: Any) -> Path:
    where = tmp_path / "model"
    where.mkdir()
    if pickled:
        torch.save(state, where / "pytorch_model.bin")
    else:
        save_file(state, where / "model.safetensors", metadata={"format": "pt"})
    (where / "config.json").write_text(json.dumps(config(**settings)))
    return where


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("names", [RELEASED, IN_MEMORY], ids=["released", "in memory"])
def test_every_tensor_arrives(tmp_path: Path, names: dict[str, str], pickled: bool) -> None:
    state = drawn(small_vit())
    where = folder(tmp_path, theirs(state, names), pickled=pickled)
    card = import_checkpoint(where, tmp_path / "out")
    same(load(tmp_path / "out").backbone.state_dict(), state)
    assert (card.system, card.backbone, card.dropped) == ("huggingface", small_vit(), {})
    assert card.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize("whole", [True, False], ids=["released", "as 5.23 saves a new one"])
def test_a_classifier_comes_along(tmp_path: Path, whole: bool) -> None:
    state = drawn(small_vit())
    stored = {
        f"vit.{name}" if whole or not name.startswith("encoder.") else name: tensor
        for name, tensor in theirs(state, RELEASED).items()
    }
    classifier = {"classifier.weight": torch.randn(5, 128), "classifier.bias": torch.randn(5)}
    where = folder(tmp_path, stored | classifier, id2label={"0": "tench", "1": "goldfish"})
    card = import_checkpoint(where, tmp_path / "out")
    same(load(tmp_path / "out").backbone.state_dict() | load_heads(tmp_path / "out"), state | classifier)
    assert card.data == {"labels": {"0": "tench", "1": "goldfish"}}


def test_a_file_alone_needs_its_heads_named_only_where_the_width_does_not_tell(tmp_path: Path) -> None:
    save_file(theirs(drawn(small_vit()), RELEASED), tmp_path / "mine.safetensors")
    assert import_checkpoint(tmp_path / "mine.safetensors", tmp_path / "a").backbone == small_vit()
    spec = small_vit(width=96, heads=3)
    save_file(theirs(drawn(spec), RELEASED), tmp_path / "odd.safetensors")
    with pytest.raises(WeightsError, match="do not tell the number of attention heads"):
        import_checkpoint(tmp_path / "odd.safetensors", tmp_path / "b")


def test_settings_beside_are_read(tmp_path: Path) -> None:
    spec = small_vit(width=96, heads=3)
    where = folder(tmp_path, theirs(drawn(spec), RELEASED), num_attention_heads=3)
    (where / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3}))
    card = import_checkpoint(where, tmp_path / "out")
    assert (card.backbone, card.mean, card.std[0]) == (spec, (0.5, 0.5, 0.5), 0.229)


def test_a_mask_token_is_left_out_by_name(tmp_path: Path) -> None:
    state = drawn(small_vit())
    where = folder(tmp_path, theirs(state, RELEASED) | {MASK_TOKEN: torch.zeros(1, 1, 128)})
    assert list(import_checkpoint(where, tmp_path / "out").dropped) == [MASK_TOKEN]


def test_transformers_writes_what_is_read(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    settings = transformers.ViTMSNConfig(
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=192,
        image_size=18,
        patch_size=6,
    )
    torch.manual_seed(0)
    model = transformers.ViTMSNModel(settings).eval()
    model.save_pretrained(tmp_path / "model")
    import_checkpoint(tmp_path / "model", tmp_path / "out")
    images = torch.randn(2, 3, 18, 18)
    with torch.no_grad():
        expected = model(pixel_values=images).last_hidden_state[:, 0]
        torch.testing.assert_close(load(tmp_path / "out").backbone(images).pooled, expected)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.pop("encoder.layer.1.attention.attention.key.bias"), "missing key beside"),
        (lambda s: s.pop("encoder.layer.1.layernorm_after.bias"), "missing .*blocks.1.norm2.bias"),
        (lambda s: s.update({"pooler.dense.weight": torch.zeros(2, 2)}), "unexpected .*pooler.dense.weight"),
        (
            lambda s: s.update({"encoder.layer.0.attention.attention.key.weight": torch.zeros(2, 2)}),
            "must be of one shape",
        ),
        (lambda s: s.update({"classifier.weight": torch.zeros(3, 7)}), r"classifier.weight is \[3, 7\]"),
        (lambda s: s.update({"layers.0.mlp.fc1.bias": torch.zeros(192)}), "under two names"),
    ],
)
def test_odd_entries_are_refused_by_name(tmp_path: Path, change: Any, told: str) -> None:
    state = theirs(drawn(small_vit()), RELEASED)
    change(state)
    with pytest.raises(WeightsError, match=told):
        import_checkpoint(folder(tmp_path, state), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"a folder without model\.safetensors"):
        import_checkpoint(tmp_path / "empty", tmp_path / "out")
    where = folder(tmp_path, theirs(drawn(small_vit()), RELEASED))
    file = where / "model.safetensors"
    whole = file.read_bytes()
    for part in (whole[:5], whole[:200], whole[:-7]):
        file.write_bytes(part)
        with pytest.raises(WeightsError, match="no valid safetensors file"):
            import_checkpoint(where, tmp_path / "out")
    file.write_bytes(whole)
    (where / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json cannot be read"):
        import_checkpoint(where, tmp_path / "out")
    with pytest.raises(WeightsError, match="does not exist"):
        import_checkpoint(tmp_path / "none.safetensors", tmp_path / "out")


def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path: Path) -> None:
    state: dict[str, Any] = theirs(drawn(small_vit()), RELEASED)
    where = folder(tmp_path, state | {"odd": Command(tmp_path / "ran")}, pickled=True)
    with pytest.raises(WeightsError, match=r"is refused: .*mkdir"):
        import_checkpoint(where, tmp_path / "out")
    assert not (tmp_path / "ran").exists()

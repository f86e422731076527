"""Exports to transformers: what it reads is what belvedere computes, and a wrong file does not pass."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from export_networks import outgoing, vit
from safetensors.torch import load_file, save_file

from belvedere.core.errors import WeightsError
from belvedere.eval import logistic
from belvedere.zoo.write import TARGETS, write
from belvedere.zoo.write.huggingface import TARGET
from belvedere.zoo.write.huggingface_head import head_of


def test_the_other_library_computes_the_same(tmp_path: Path) -> None:
    found = write(tmp_path, TARGET, outgoing(vit()), real={"real": torch.randn(2, 3, 32, 32)})
    assert [one.images for one in found] == ["random 32x32", "random 40x48", "real"]
    assert all(0 < one.difference < 1e-10 for one in found)
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert config["size"] == {"height": 32, "width": 32}
    assert config["resample"] == 3
    assert config["image_mean"] == [0.4, 0.5, 0.6]


def test_a_classifier_goes_out_as_the_head_with_its_names(tmp_path: Path) -> None:
    from transformers import ViTMSNForImageClassification

    sent = outgoing(vit(), classes=("cat", "dog", "très petit"))
    assert sent.classifier is not None
    write(tmp_path, TARGET, sent)
    model = ViTMSNForImageClassification.from_pretrained(tmp_path).eval()
    assert model.config.id2label == {0: "cat", 1: "dog", 2: "très petit"}
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        feature = sent.backbone(images, blocks=1).blocks[-1].cls
        own = logistic.predict_proba(logistic.preprocess(feature), sent.classifier.weights)
        theirs = model(images).logits.softmax(1)
    assert own.std() > 0.05
    torch.testing.assert_close(theirs.double(), own, atol=1e-3, rtol=0)


def test_the_head_cannot_divide_by_a_scale_of_zero() -> None:
    sent = outgoing(vit(), classes=("a", "b"))
    assert sent.classifier is not None
    with torch.no_grad():
        sent.backbone.norm.weight[3] = 0
    with pytest.raises(WeightsError, match="onnx"):
        head_of(sent.classifier, sent.backbone.norm)  # type: ignore[arg-type]


def test_another_epsilon_is_found_out(tmp_path: Path) -> None:
    """Nothing but a comparison in float64 sees that one."""

    def write_other(folder: Path, sent: object) -> None:
        TARGET.write(folder, sent)  # type: ignore[arg-type]
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-5}))

    with pytest.raises(WeightsError, match="computes something else"):
        write(tmp_path, replace(TARGET, write=write_other), outgoing(vit()))


def test_a_tensor_left_out_is_found_out(tmp_path: Path) -> None:
    def write_less(folder: Path, sent: object) -> None:
        TARGET.write(folder, sent)  # type: ignore[arg-type]
        tensors = load_file(folder / "model.safetensors")
        del tensors["layernorm.bias"]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(WeightsError, match=r"layernorm\.bias"):
        write(tmp_path, replace(TARGET, write=write_less), outgoing(vit()))


def test_a_table_that_is_resized_otherwise_is_written_for_the_cards_size(tmp_path: Path) -> None:
    sent = outgoing(vit(position_margin=0.1), crop_px=40)
    assert all(one.difference < 1e-5 for one in write(tmp_path, TARGET, sent))
    assert json.loads((tmp_path / "config.json").read_text())["image_size"] == 40
    assert any("40 px" in note for note in TARGET.notes(sent))


def test_what_is_written_can_be_imported_again(tmp_path: Path) -> None:
    from belvedere.zoo import import_checkpoint, load

    sent = outgoing(vit(width=128, heads=2))
    write(tmp_path, TARGETS["huggingface"], sent)
    import_checkpoint(tmp_path, tmp_path / "imported", architecture="huggingface")
    back = load(tmp_path / "imported").backbone.state_dict()
    assert back.keys() == sent.backbone.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in sent.backbone.state_dict().items())

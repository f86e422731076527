"""ONNX graphs: any batch, any size where the network allows it, and probabilities."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime
import pytest
import torch
from export_networks import cvt, outgoing, resnet, swin, vil, vit

from belvedere.cli import main
from belvedere.eval.classifier import FeatureNetwork
from belvedere.nn.spec import BackboneSpec
from belvedere.zoo.cards import export
from belvedere.zoo.write import write
from belvedere.zoo.write.onnx import TARGET

pytestmark = pytest.mark.slow  # the exporter alone takes seconds to load


@pytest.mark.parametrize(
    "spec", [vit(depth=1, position_margin=0.1), resnet(width_per_group=8, stem="small")], ids=lambda s: s.name
)
def test_batch_and_size_are_open(spec: BackboneSpec, tmp_path: Path) -> None:
    sent, other = outgoing(spec), torch.randn(2, 3, 24, 40)
    with torch.no_grad():
        before = sent.feature(other)
    assert all(0 < one.difference < 1e-4 for one in write(tmp_path, TARGET, sent))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for shape in ((1, 3, 16, 64), (5, 3, 48, 24), (2, 3, 8, 8)):
        images = torch.randn(shape)
        (found,) = session.run(None, {"images": images.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), sent.feature(images), atol=1e-4, rtol=1e-4)
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["mean"]) == [0.4, 0.5, 0.6]
    with torch.no_grad():  # nothing of the trace is left in the network
        assert torch.equal(sent.feature(other), before)


def test_a_network_of_fixed_size_says_so_and_has_probabilities(tmp_path: Path) -> None:
    sent = outgoing(cvt(), classes=("left", "right", "up"))
    found = write(tmp_path, TARGET, sent, real={"real": torch.randn(5, 3, 32, 32)})
    assert {one.what for one in found} == {"features", "probabilities"}
    assert "32 x 32 px only" in TARGET.notes(sent)[0]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    probabilities = session.run(["probabilities"], {"images": torch.randn(4, 3, 32, 32).numpy()})[0]
    assert probabilities.shape == (4, 3)
    assert abs(probabilities.sum(1) - 1).max() < 1e-5
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == ["left", "right", "up"]


@pytest.mark.parametrize(
    ("spec", "source"),
    [(vil(), "cls_or_mean"), (cvt(), "mean"), (swin(), "mean")],
    ids=["vil", "cvt", "swin"],
)
def test_a_network_of_windows_goes_through_the_command(
    spec: BackboneSpec, source: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """With the feature that EsViT's linear evaluation reads, and batches that the trace has not seen."""
    sent = outgoing(spec)
    read = {"source": source, "norm": "last_stage", "blocks": 2 if spec.name == "vil" else 1}
    card = sent.card.model_copy(update={"features": sent.card.features.model_copy(update=read)})
    export(tmp_path / "weights", sent.backbone, card)
    words = ["export", str(tmp_path / "weights"), "--to", "onnx", "--out", str(tmp_path / "out")]
    assert main([*words, "--data", "digits"]) == 0
    assert "images of 32 x 32 px only" in capsys.readouterr().err
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    network = FeatureNetwork(sent.backbone, card.features).eval()
    for batch in (1, 5):
        images = torch.randn(batch, 3, 32, 32)
        (found,) = session.run(["features"], {"images": images.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), network(images), atol=1e-4, rtol=1e-4)

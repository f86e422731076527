"""`belvedere export`: the folder, whole or not at all; its model card; what is refused, and how."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from export_networks import cvt, outgoing, vit

from belvedere.cli import main
from belvedere.core.errors import UsageError
from belvedere.core.files import write_json
from belvedere.zoo.cards import export
from belvedere.zoo.write import TARGETS
from belvedere.zoo.write.folder import placing


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's directory, as far as the model card reads it."""
    folder = tmp_path / "run"
    sent = outgoing(vit(image_px=8, patch_px=4), crop_px=8)
    features = sent.card.features.model_copy(update={"resize_px": 8})
    card = sent.card.model_copy(update={"features": features, "step": 40, "data": {"images": 99}})
    export(folder / "backbone", sent.backbone, card)
    (folder / "recipe.yaml").write_text("name: small\nseed: 7\nrun:\n  dir: /secret/place\noptim: {lr: 1}\n")
    lines = [{"step": step, "loss": 3 - step / 40, "mean_entropy": 2.0} for step in range(40)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_json(folder / "plan.json", {"total_steps": 40, "batch": 16, "world_size": 1, "device": "cpu"})
    shots = {"1": {"mean": 0.756, "sd": 0.041, "values": [0.7, 0.8]}}
    report = {"data": {"images": 450}, "logistic": {"shots": shots}, "knn": {"k": 20, "accuracy": 0.98}}
    write_json(folder / "evaluation" / "digits" / "report.json", report)
    write_json(folder / "checkpoints" / "000000040" / "manifest.json", {"versions": {"torch": "2.12.0"}})
    return folder


def test_a_run_goes_out_with_its_model_card(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    words = ["export", str(run), "--to", "safetensors", "--out", str(out), "--data", "digits"]
    assert main(words) == 0
    text = (out / "README.md").read_text()
    for told in (
        "| 1 per class, 2 splits | 75.6 ± 4.1 |",
        "20-NN | 98.0",
        "torch 2.12.0",
        "seed: 7",
        "40 steps",
    ):
        assert told in text
    assert "secret" not in text
    assert "(0.4, 0.5, 0.6)" in text
    assert (out / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert "](curves.png)" in text
    said = capsys.readouterr().err
    assert "8 real images" in said
    assert "0.0e+00 (at most 1e-06, in float64)" in said
    assert main(words) == 0  # again, to the same place
    manifest = json.loads((out / "export.json").read_text())
    assert set(manifest["files"]) == {path.name for path in out.iterdir()} - {"export.json"}
    assert {path.stat().st_mode & 0o444 for path in out.iterdir()} == {0o444}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_classifier_is_fitted_on_the_labelled_images(run: Path, tmp_path: Path) -> None:
    from transformers import ViTMSNForImageClassification

    words = ["export", str(run), "--to", "huggingface", "--out", str(tmp_path / "out")]
    assert main([*words, "--data", "digits", "--split", "test", "--classifier", "--lambda", "0.01"]) == 0
    model = ViTMSNForImageClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {number: str(number) for number in range(10)}
    assert "450 labelled images" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--to", "huggingface", "--classifier"], "name them by --data"),
        (["--to", "huggingface", "--lambda", "1"], "--lambda has no effect"),
        (["--to", "huggingface", "--split", "test"], "--split has no effect"),
        (["--to", "timm", "--classifier", "--data", "digits"], "export --to huggingface, onnx"),
        (["--to", "csv"], "invalid choice"),
    ],
)
def test_what_makes_no_sense_is_refused(
    words: list[str], told: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["export", str(run), "--out", str(tmp_path / "out"), *words]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_links_that_lead_to_each_other_are_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "back")
    (tmp_path / "back").symlink_to(tmp_path / "loop")
    loop = str(tmp_path / "loop")
    for words, status, told in (
        (["export", str(run), "--to", "safetensors", "--out", loop], 2, "symbolic links lead to each other"),
        (["evaluate", str(run), "--data", loop], 1, "--data"),
        (
            ["evaluate", str(run), "--data", "digits", "--predict", loop, "--out", str(tmp_path / "e")],
            1,
            "--predict",
        ),
    ):
        assert main(words) == status
        assert told in capsys.readouterr().err
    assert (tmp_path / "loop").is_symlink()


@pytest.mark.parametrize(
    ("target", "package", "extra"),
    [
        ("huggingface", "transformers", "transformers"),
        ("timm", "timm", "timm"),
        ("torchvision", "torchvision", "torchvision"),
        ("onnx", "onnxruntime", "onnx"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    target: str,
    package: str,
    extra: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["export", str(run), "--to", target, "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert f"install it: `uv sync --extra {extra}` in a clone of belvedere, or `pip install '" in said
    assert "belvedere[" not in said
    assert not (tmp_path / "out").exists()


def test_every_format_can_be_asked_for() -> None:
    from belvedere.commands.export_weights import parser

    (choice,) = [action for action in parser()._actions if action.dest == "to"]
    assert set(choice.choices or ()) == set(TARGETS)


def test_a_network_that_cannot_go_there(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sent = outgoing(cvt())
    export(tmp_path / "weights", sent.backbone, sent.card)
    words = ["export", str(tmp_path / "weights"), "--to", "timm", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "can go to onnx, safetensors" in capsys.readouterr().err


def test_a_difference_leaves_nothing_behind(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def write_other(folder: Path, sent: object) -> None:
        other = outgoing(vit(image_px=8, patch_px=4, depth=3), crop_px=8)
        with torch.no_grad():
            other.backbone.cls_token += 0.01
        export(folder, other.backbone, other.card)

    monkeypatch.setitem(TARGETS, "safetensors", replace(TARGETS["safetensors"], write=write_other))
    before = sorted(tmp_path.iterdir())
    assert main(["export", str(run), "--to", "safetensors", "--out", str(tmp_path / "out")]) == 1
    assert "nothing was written" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_an_export_replaces_only_one_like_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for content in ("old", "new"):
        with placing(out, target="timm", source="a") as folder:
            (folder / "x").write_text(content)
    assert (out / "x").read_text() == "new"
    for target, source in (("onnx", "a"), ("timm", "b")):
        with (
            pytest.raises(UsageError, match="another backbone or format"),
            placing(out, target=target, source=source),
        ):
            pass
    (out / "mine.txt").write_text("a note")
    with pytest.raises(UsageError, match=r"mine\.txt"), placing(out, target="timm", source="a"):
        pass
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    with (
        pytest.raises(UsageError, match="no export"),
        placing(tmp_path / "photos", target="timm", source="a"),
    ):
        pass


def test_an_interrupted_export_leaves_the_old_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with placing(out, target="timm", source="a") as folder:
        (folder / "x").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        _write_and_raise(out, KeyboardInterrupt())
    assert (out / "x").read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


def test_what_a_killed_export_left_is_cleared_away(tmp_path: Path) -> None:
    out, dead = tmp_path / "out", 2**22 + 1  # beyond the kernel's largest process number
    with placing(out, target="timm", source="a") as folder:
        (folder / "x").write_text("old")
    out.replace(tmp_path / f".out.{dead}.replaced")  # killed between its two renames
    (tmp_path / f".out.{dead}.writing").mkdir()
    with pytest.raises(RuntimeError, match="later"):
        _write_and_raise(out, RuntimeError("later"))
    assert (out / "x").read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


def _write_and_raise(out: Path, error: BaseException) -> None:
    with placing(out, target="timm", source="a") as folder:
        (folder / "x").write_text("new")
        raise error

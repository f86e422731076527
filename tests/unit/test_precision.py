"""Which precision a run has on a device that lacks the one its recipe asks for."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest
import torch

from belvedere.engine import precision
from belvedere.engine.precision import multiplies_bf16_fast, settled
from belvedere.recipe.estimate import estimate
from belvedere.recipe.load import load_recipe
from belvedere.recipe.plan import plan
from belvedere.train.run import open_session, pretrain


@pytest.fixture
def old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card of compute capability 7.5."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))


def _no_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "multiplies_bf16_fast", lambda device: False)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


def test_a_card_without_bfloat16_takes_float32_and_says_what_it_costs(old_gpu: None) -> None:
    assert not multiplies_bf16_fast("cuda")
    made = plan(load_recipe("tiny/msn"), num_images=1347, device="cuda")
    assert made.precision == "float32"
    rows = dict(made.table())
    assert rows["device"] == "cuda, float32"
    assert "Tesla T4 (compute capability 7.5)" in rows["precision"]
    assert "twice the memory" in rows["precision"]
    assert json.loads(json.dumps(made.to_dict()))["precision"] == "float32"
    asked = plan(load_recipe("tiny/msn", ["train.precision=float32"]), num_images=1347, device="cuda")
    assert asked.on_precision is None
    assert estimate(made.recipe, made).activations == estimate(asked.recipe, asked).activations


@pytest.mark.parametrize("wanted", ["float32", "float64"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_other_precisions_are_what_they_are(old_gpu: None, wanted: str, device: str) -> None:
    assert settled(wanted, device) == (wanted, None)  # type: ignore[arg-type]


def test_a_cpu_without_bfloat16_keeps_it_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    _no_instructions(monkeypatch)
    made = plan(load_recipe("tiny/msn"), num_images=1347)
    assert made.precision == "bf16"
    assert made.warnings == ()
    assert "train.precision=float32 is usually faster here" in dict(made.table())["precision"]
    assert plan(load_recipe("tiny/msn"), num_images=1347, elsewhere=True).on_precision is None
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert plan(load_recipe("tiny/msn"), num_images=1347).on_precision is None


def test_a_session_has_the_precision_of_its_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("belvedere.recipe.plan.settled", lambda wanted, device: ("float32", "told"))
    session = open_session(load_recipe("tiny/msn", ["run.device=cpu"]), torch.device("cpu"))
    assert session.spread.precision == "float32"


def test_a_run_that_goes_on_in_another_precision_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train.epochs=2", "train.global_batch=336", "backbone.depth=1", "optim.lr.warmup_epochs=1"]
    recipe = load_recipe("tiny/msn", [*words, "run.workers=0", "run.device=cpu", f"run.dir={tmp_path}"])
    pretrain(recipe)
    assert json.loads((tmp_path / "plan.json").read_text())["precision"] == "bf16"
    capsys.readouterr()
    monkeypatch.setattr("belvedere.recipe.plan.settled", lambda wanted, device: ("float32", "told"))
    pretrain(recipe)
    assert "precision float32, was bf16" in capsys.readouterr().err

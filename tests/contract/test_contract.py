"""What every method promises. A new page under `methods/` is found and held to it without registration."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from drive import differing, drain, largest_difference, recipe, session, snapshot

from belvedere.methods.pages import method_names
from belvedere.recipe.load import dump, load_recipe, read_recipe

EXACT = 2e-9
"""Rounding of a few float64 steps: parameters without exact gradient (biases before a BatchNorm) move by
lr * 1e-15 / Adam's epsilon. A wrong factor or a lost row moves parameters by 1e-4 and more."""

pytestmark = pytest.mark.parametrize("method", method_names())


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# 1. Gradients


def test_gradients_reach_the_student_and_not_the_teacher(method: str, images: Path, tmp_path: Path) -> None:
    run = session(recipe(method, images, tmp_path, ["backbone.drop_path=0.0"]))
    before = {name: p.detach().clone() for name, p in run.method.teacher.named_parameters()}
    (report,) = drain(run, until=1)
    without = [name for name, norm in zip(report.names, report.norms, strict=True) if not norm > 0]
    # Biases in front of a BatchNorm, and the norm in front of one, have no gradient but rounding: not listed.
    assert without == [], "no gradient reached these student parameters"
    assert all(p.grad is None for p in run.method.teacher.parameters())
    moved = [n for n, p in run.method.teacher.named_parameters() if not torch.equal(p, before[n])]
    assert moved, "the teacher did not follow"


# 2. Resume


@pytest.mark.parametrize("stop", [2, 3, 4], ids=["before an epoch edge", "at it", "after it"])
def test_resume_is_bitwise(method: str, images: Path, tmp_path: Path, stop: int) -> None:
    whole = session(recipe(method, images, tmp_path / "whole"))
    drain(whole, until=6)
    first = session(recipe(method, images, tmp_path / "parts"))
    drain(first, until=stop)
    first.save()
    second = session(recipe(method, images, tmp_path / "parts"), resume=True)
    assert second.step == stop
    drain(second, until=6)
    assert differing(snapshot(whole), snapshot(second)) == []
    assert whole.replaced == second.replaced
    assert whole.replaced, "the unreadable image was never met"


# 3. Loader workers


def test_loader_workers_change_no_bit(method: str, images: Path, tmp_path: Path) -> None:
    runs = [session(recipe(method, images, tmp_path, [f"run.workers={n}"])) for n in (0, 2)]
    for run in runs:
        drain(run, until=4)
    assert differing(*(snapshot(run) for run in runs)) == []


# 4. Ranks


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", ["null", "3"])
def test_two_processes_equal_one(method: str, images: Path, tmp_path: Path, micro_batch: str) -> None:
    alone = session(recipe(method, images, tmp_path / "alone", ["train.precision=float64"]))
    drain(alone, until=5)
    overrides = ["train.precision=float64", f"run.micro_batch={micro_batch}"]
    two = Path(__file__).with_name("two_processes.py")
    out = tmp_path / "two.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(two)]
    done = subprocess.run(
        [*command, method, str(images), str(tmp_path / "two"), str(out), "5", *overrides],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    together = torch.load(out, weights_only=True)
    assert largest_difference(snapshot(alone), together) < EXACT


# 5. Accumulation


def test_micro_batches_equal_one_batch(method: str, images: Path, tmp_path: Path) -> None:
    overrides = ["train.precision=float64"]
    whole = session(recipe(method, images, tmp_path, overrides))
    parts = session(recipe(method, images, tmp_path, [*overrides, "run.micro_batch=3"]))
    for run in (whole, parts):
        drain(run, until=5)
    assert len(parts.spread.cuts(_rows(8))) == 3
    assert largest_difference(snapshot(whole), snapshot(parts)) < EXACT


def _rows(count: int):  # type: ignore[no-untyped-def]
    from belvedere.data.batch import Batch

    empty = torch.zeros(count)
    return Batch({}, empty, empty, range(count))


# 7. Learning


@pytest.mark.slow
def test_learns_and_does_not_collapse(method: str, tmp_path: Path) -> None:
    from belvedere.data.sources import open_source
    from belvedere.eval.knn import knn_predict

    run = session(load_recipe(f"tiny/{method}", [f"run.dir={tmp_path}", "run.workers=0", "run.device=cpu"]))
    train, test = (open_source("digits", split=split) for split in ("train", "test"))

    def score() -> float:
        backbone = run.method.export().backbone.eval()
        features = [_class_tokens(backbone, source.pixels, run.recipe) for source in (train, test)]
        run.method.train()
        labels = torch.from_numpy(train.labels)
        predicted = knn_predict(features[1], features[0], labels, num_classes=10).numpy()
        return float((predicted == test.labels).mean())

    untrained = score()
    reports = drain(run, until=400)
    assert score() > untrained + 0.05
    entropies = [float(report.losses.watch["mean_entropy"]) for report in reports[-20:]]
    assert min(entropies) > 0.5 * math.log(run.recipe.method.prototypes)  # type: ignore[attr-defined]


def _class_tokens(backbone, pixels, of):  # type: ignore[no-untyped-def]
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).expand(-1, 3, -1, -1).float() / 255
    images = (images - torch.tensor(of.data.mean).view(-1, 1, 1)) / torch.tensor(of.data.std).view(-1, 1, 1)
    with torch.no_grad():
        return backbone(images, blocks=1).blocks[-1].cls


# 8. Round trips


def test_recipe_round_trip(method: str) -> None:
    tiny = load_recipe(f"tiny/{method}")
    assert read_recipe(dump(tiny)) == tiny


def test_state_round_trip(method: str, images: Path, tmp_path: Path) -> None:
    run = session(recipe(method, images, tmp_path))
    drain(run, until=2)
    run.save()
    again = session(recipe(method, images, tmp_path), resume=True)
    assert differing(snapshot(run), snapshot(again)) == []


def test_backbone_round_trip(method: str, images: Path, tmp_path: Path) -> None:
    from belvedere.train.export import export_backbone
    from belvedere.zoo.load import load

    run = session(recipe(method, images, tmp_path))
    drain(run, until=2)
    export_backbone(run)
    loaded = load(tmp_path)
    own = run.method.export().backbone.eval()
    px = run.recipe.features.crop_px
    batch = torch.randn(4, 3, px, px, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(own(batch).pooled, loaded.backbone.eval()(batch).pooled)
    assert loaded.card.features == run.recipe.features

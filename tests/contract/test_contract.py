"""What every method promises. A new page under `methods/` is found and held to it without registration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drive import (
    EXACT,
    NO_OWN_STATE,
    SIGNED,
    UNFROZEN,
    base,
    changes,
    differing,
    drain,
    largest_difference,
    recipe,
    session,
    snapshot,
)
from two_processes import state_of

from belvedere.core.errors import CheckpointError
from belvedere.methods.pages import page
from belvedere.recipe.load import dump, load_recipe, read_recipe
from processes import answers_of

pytestmark = pytest.mark.parametrize("method", SIGNED)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# 1. Gradients


def test_gradients_reach_the_student_and_not_the_teacher(method: str, images: Path, tmp_path: Path) -> None:
    run = session(recipe(method, images, tmp_path, UNFROZEN.get(base(method), ()), drop_path=0.0))
    (report,) = drain(run, until=1)
    without = [name for name, norm in zip(report.names, report.norms, strict=True) if not norm > 0]
    # Biases in front of a BatchNorm, and the norm in front of one, have no gradient but rounding: not listed.
    assert without == [], "no gradient reached these student parameters"


def test_a_teacher_follows_without_gradient(method: str, images: Path, tmp_path: Path) -> None:
    run = session(recipe(method, images, tmp_path, drop_path=0.0))
    networks = run.method.networks()
    assert "student" in networks
    if "teacher" not in networks:
        assert not page(base(method)).build.teacher_roles, "views for a teacher that is not there"
        return
    before = {name: p.detach().clone() for name, p in networks["teacher"].named_parameters()}
    drain(run, until=1)
    assert all(p.grad is None for p in networks["teacher"].parameters())
    moved = [n for n, p in networks["teacher"].named_parameters() if not torch.equal(p, before[n])]
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
    overrides = ["train.precision=float64", *NO_OWN_STATE.get(method, ())]
    vit = micro_batch != "null"
    alone = session(recipe(method, images, tmp_path / "alone", overrides, vit=vit))
    drain(alone, until=5)
    overrides += [f"run.micro_batch={micro_batch}"]
    together = _two_processes(method, images, tmp_path / "two", overrides, vit=vit)
    assert largest_difference(_shared(snapshot(alone)), _shared(together)) < EXACT


def _shared(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What is the same on every process."""
    return {name: tensor for name, tensor in state.items() if not name.startswith("rank")}


@pytest.mark.slow
def test_what_each_process_has_to_itself_is_resumed(method: str, images: Path, tmp_path: Path) -> None:
    own = session(recipe(method, images, tmp_path / "any")).own_state()
    if not own:
        pytest.skip(f"{method} has no state that differs between processes")
    whole = _two_processes(method, images, tmp_path / "whole")
    parts = _two_processes(method, images, tmp_path / "parts", stop=4)
    assert differing(whole, parts) == []
    for name in own:
        ranks = [whole[f"rank{rank}/method/{name}"] for rank in (0, 1)]
        assert not torch.equal(*ranks), "both processes have the same"
    with pytest.raises(CheckpointError, match="written by 2 processes that have state of their own"):
        session(recipe(method, images, tmp_path / "parts"), resume=True)


def _two_processes(
    method: str, images: Path, directory: Path, overrides: Sequence[str] = (), **options: Any
) -> dict[str, torch.Tensor]:
    """The state after 5 steps on two processes. options: those of `two_processes.state_of`."""
    directory.mkdir()
    asked = partial(
        state_of, method=method, images=images, directory=directory, overrides=overrides, **options
    )
    together, _ = answers_of(asked, directory.parent)
    return {name: torch.from_numpy(array) for name, array in together.items()}


# 5. Accumulation


def test_micro_batches_equal_one_batch(method: str, images: Path, tmp_path: Path) -> None:
    overrides = ["train.precision=float64"]
    whole = session(recipe(method, images, tmp_path, overrides, vit=True))
    parts = session(recipe(method, images, tmp_path, [*overrides, "run.micro_batch=3"], vit=True))
    for run in (whole, parts):
        drain(run, until=5)
    assert len(parts.spread.cuts(_rows(8))) == 3
    assert largest_difference(snapshot(whole), snapshot(parts)) < EXACT


def _rows(count: int):  # type: ignore[no-untyped-def]
    from belvedere.data.batch import Batch

    empty = torch.zeros(count)
    return Batch({}, empty, empty, range(count))


# 7. Learning

STEPS_TO_LEARN = {
    "swav": 800,  # its learning rate has fallen only then
    # by then a third of the errors is left, half of what may be
    "deepcluster": 300,
    "msn": 300,
    "mugs": 250,
}


@pytest.mark.long
def test_learns_and_does_not_collapse(method: str, tmp_path: Path) -> None:
    from belvedere.data.sources import open_source
    from belvedere.eval.features import extract
    from belvedere.eval.knn import knn_predict
    from belvedere.train.export import card

    here = [f"run.dir={tmp_path}", "run.workers=0", "run.device=cpu"]
    run = session(load_recipe(f"tiny/{base(method)}", [*changes(method), *here]))
    train, test = (open_source("digits", split=split) for split in ("train", "test"))

    def score() -> float:
        backbone = run.method.export().backbone.eval()
        features = [extract(backbone, card(run), source).features for source in (train, test)]
        run.method.train()
        labels = torch.from_numpy(train.labels)
        predicted = knn_predict(features[1], features[0], labels, num_classes=10).numpy()
        return float((predicted == test.labels).mean())

    untrained = score()
    reports = drain(run, until=STEPS_TO_LEARN.get(method, 400))
    assert 1 - score() < 2 / 3 * (1 - untrained), "a third of the errors are gone"
    entropies = [float(report.losses.watch["mean_entropy"]) for report in reports[-20:]]
    prototypes = run.recipe.method.prototypes  # type: ignore[attr-defined]
    assert min(entropies) > 0.5 * math.log(np.mean(prototypes))


# 8. Round trips


def test_recipe_round_trip(method: str) -> None:
    tiny = load_recipe(f"tiny/{base(method)}", changes(method))
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

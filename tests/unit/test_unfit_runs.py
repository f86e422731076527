"""Runs that cannot be, or cannot be as asked: refused or told before anything is trained, by every method."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from belvedere.core import dist
from belvedere.core.errors import CheckpointError, RecipeError
from belvedere.recipe.load import load_recipe
from belvedere.train.run import open_session
from belvedere.train.session import Session

_IMAGES = 450  # of the digits' test split
_QUEUE = "method.queue={length: 300, start_epoch: 1}"  # of batches of 128
_METHODS = ["swav", "deepcluster", "sela"]


def _session(method: str, directory: Path, *overrides: str) -> Session:
    small = ["data.split=test", "train.epochs=3", "optim.lr.warmup_epochs=0.5", "run.device=cpu"]
    recipe = load_recipe(f"tiny/{method}", [*small, f"run.dir={directory}", *overrides])
    return open_session(recipe, torch.device("cpu"))


def _refusal(method: str, directory: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        _session(method, directory, *overrides)
    assert not directory.exists(), "something was written for a run that cannot be"
    return str(caught.value)


@pytest.mark.parametrize("method", _METHODS)
def test_an_epoch_without_a_whole_batch(method: str, tmp_path: Path) -> None:
    words = _refusal(method, tmp_path / "run", f"train.global_batch={_IMAGES + 1}")
    assert f"train.global_batch: {_IMAGES + 1} is more than the {_IMAGES} images found in digits" in words
    assert f"set it to at most {_IMAGES}" in words
    whole = _session(method, tmp_path / "run", f"train.global_batch={_IMAGES}")
    assert whole.plan.steps_per_epoch == 1


@pytest.mark.parametrize("method", ["deepcluster", "sela"])
@pytest.mark.parametrize("prototypes", [385, _IMAGES, 10**9])
def test_more_clusters_than_an_epoch_has_images(method: str, prototypes: int, tmp_path: Path) -> None:
    """450 images in batches of 128: the bank has 384 rows, fewer than there are images."""
    words = _refusal(method, tmp_path / "run", f"method.prototypes=[20, {prototypes}]")
    assert f"method.prototypes: {prototypes} prototypes cannot be shared out among the 384 images" in words
    assert "set each to at most 384" in words


def test_more_prototypes_than_samples_in_the_batch_and_queue(tmp_path: Path) -> None:
    """Sinkhorn of fewer samples than prototypes is allowed, and told."""
    alone = _session("swav", tmp_path, "method.prototypes=200").plan.warnings
    assert any("200 prototypes out among 128 samples (batch and queue)" in words for words in alone)
    queued = _session("swav", tmp_path, "method.prototypes=200", _QUEUE).plan.warnings
    assert not any("samples" in words for words in queued)


def test_a_queue_of_no_whole_number_of_batches(tmp_path: Path) -> None:
    run = _session("swav", tmp_path, _QUEUE)
    assert run.method.state_dict()["queue"].shape[1] == 256
    assert "256 embeddings (2 whole batches; 300 rounded down)" in dict(run.plan.table())["queue"]
    assert any("300 is no whole number of batches of 128" in words for words in run.plan.warnings)


@pytest.mark.parametrize(
    ("queue", "words"),
    [
        (
            "{length: 127, start_epoch: 0}",
            "method.queue.length: 127 is less than one batch, and whole batches are kept; set it to 128",
        ),
        (
            "{length: 256, start_epoch: 3}",
            "method.queue.start_epoch: 3 is never reached with train.epochs 3; give a smaller one",
        ),
    ],
)
def test_a_queue_that_can_never_be_used(queue: str, words: str, tmp_path: Path) -> None:
    assert words in _refusal("swav", tmp_path / "run", f"method.queue={queue}")


# What each process has to itself, taken up by another number of processes


@pytest.mark.parametrize(
    ("method", "name", "overrides"),
    [
        ("swav", "queue", [_QUEUE]),
        ("deepcluster", "bank.embeddings", []),
        ("sela", "bank.embeddings", []),
        ("sela", "assignments.snapshot.embeddings", ["method.targets=soft"]),
    ],
)
def test_more_processes_do_not_take_up_the_state_of_one(
    method: str, name: str, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer are in the contract tests, with two real processes."""
    run = _session(method, tmp_path, *overrides)
    run.save()
    again = _session(method, tmp_path, *overrides)
    before = {key: tensor.clone() for key, tensor in again.tensors().items()}
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    monkeypatch.setattr(dist, "gather_objects", lambda value: [value, value])
    with pytest.raises(CheckpointError) as caught:
        again.resume()
    words = str(caught.value)
    assert "was written by 1 processes that have state of their own (rank0/method/" in words
    assert name in run.own_state()
    assert "this run has 2; continue with 1 processes (torchrun --nproc-per-node=1" in words
    assert "or start a new run (another run.dir)" in words
    assert all(torch.equal(before[key], tensor) for key, tensor in again.tensors().items())


def test_a_run_without_a_queue_is_taken_up_by_any_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _session("swav", tmp_path).save()
    again = _session("swav", tmp_path)
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    monkeypatch.setattr(dist, "gather_objects", lambda value: [value, value])
    assert again.resume()
    assert any("2 processes, were 1" in note for note in again.notes)

"""The contract on an accelerator: bits that repeat, resume in the middle, micro-batches, and a renderer.

Left out by default (`-m gpu` runs them). $BELVEDERE_TEST_DEVICE says where, so that `cpu` tries the tests
themselves.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from drive import EXACT, differing, drain, largest_difference, recipe, session, snapshot

from belvedere.methods.pages import method_names
from belvedere.recipe.schema import Recipe
from belvedere.train.session import Session

DEVICE = torch.device(os.environ.get("BELVEDERE_TEST_DEVICE", "cuda"))

pytestmark = [pytest.mark.gpu, pytest.mark.parametrize("method", method_names())]


@pytest.fixture(autouse=True)
def needs_the_device() -> None:
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def _begun(of: Recipe, *, resume: bool = False) -> Session:
    return session(of, resume=resume, device=DEVICE)


def _recipe(method: str, images: Path, directory: Path, *overrides: str, vit: bool = False) -> Recipe:
    return recipe(method, images, directory, [f"run.device={DEVICE.type}", *overrides], vit=vit)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_two_runs_are_equal(method: str, images: Path, tmp_path: Path, precision: str) -> None:
    asked = _recipe(method, images, tmp_path, f"train.precision={precision}")
    runs = [_begun(asked) for _ in range(2)]
    for run in runs:
        drain(run)
    assert differing(*(snapshot(run) for run in runs)) == []


def test_resume_is_bitwise(method: str, images: Path, tmp_path: Path) -> None:
    whole = _begun(_recipe(method, images, tmp_path / "whole", "train.precision=bf16"))
    drain(whole, until=6)
    asked = _recipe(method, images, tmp_path / "parts", "train.precision=bf16")
    first = _begun(asked)
    drain(first, until=4)
    first.save()
    second = _begun(asked, resume=True)
    assert second.step == 4
    drain(second, until=6)
    assert differing(snapshot(whole), snapshot(second)) == []


def test_micro_batches_equal_one_batch(method: str, images: Path, tmp_path: Path) -> None:
    exact = "train.precision=float64"
    whole = _begun(_recipe(method, images, tmp_path, exact, vit=True))
    parts = _begun(_recipe(method, images, tmp_path, exact, "run.micro_batch=3", vit=True))
    for run in (whole, parts):
        drain(run, until=5)
    assert largest_difference(snapshot(whole), snapshot(parts)) < EXACT


def test_the_device_computes_what_the_cpu_does(method: str, images: Path, tmp_path: Path) -> None:
    """One step in float64: views from the device's renderer, loss, gradients and update."""
    runs = [
        session(
            recipe(method, images, tmp_path, [f"run.device={where.type}", "train.precision=float64"]),
            device=where,
        )
        for where in (torch.device("cpu"), DEVICE)
    ]
    for run in runs:
        drain(run, until=1)
    there = {name: tensor.cpu() for name, tensor in snapshot(runs[1]).items()}
    assert largest_difference(snapshot(runs[0]), there) < EXACT

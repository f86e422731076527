"""Small runs of any method through the real session, loader and loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from belvedere.recipe.load import load_recipe
from belvedere.recipe.schema import Recipe
from belvedere.train.loop import StepReport, steps
from belvedere.train.run import open_session
from belvedere.train.session import Session

SMALL = (
    "data.split=null",
    "data.max_bad_share=0.5",
    "train.global_batch=8",
    "train.epochs=3",
    "optim.lr.warmup_epochs=1",
    "backbone.drop_path=0.2",
    "run.workers=0",
    "run.device=cpu",
)


def recipe(method: str, images: Path, directory: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The method's tiny recipe cut down to three epochs of three steps, with randomness on."""
    own = (f"data.path={images}", f"run.dir={directory}")
    latest = {key: value for key, _, value in (line.partition("=") for line in (*SMALL, *own, *overrides))}
    return load_recipe(f"tiny/{method}", [f"{key}={value}" for key, value in latest.items()])


def session(of: Recipe, *, resume: bool = False) -> Session:
    """A run at its start, or where its newest checkpoint ends."""
    opened = open_session(of, torch.device("cpu"))
    if resume:
        assert opened.resume(), "there was nothing to resume"
    return opened


def drain(run: Session, *, until: int | None = None) -> list[StepReport]:
    """Train to the end, or until `until` steps are finished."""
    reports = []
    with run.loader() as loader:
        for report in steps(run.method, run.optimizer, loader, run.plan, run.spread, start_step=run.step):
            reports.append(report)
            run.step = report.at.step + 1
            run.replaced = dict(loader.replaced)
            if run.step == until:
                break
    return reports


def snapshot(run: Session) -> dict[str, Tensor]:
    """A copy of everything a checkpoint holds."""
    return {name: tensor.detach().clone() for name, tensor in run.tensors().items()}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names whose tensors are not bitwise equal."""
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest absolute difference over all tensors."""
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)

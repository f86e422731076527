"""Collapse as a person meets it: each kind is provoked, named, stopped, and cured by the change it names.

Left out, because no recipe was found that brings it about: one prototype that takes all, in SwAV. Its
options demand an iteration of Sinkhorn, which shares the prototypes out in every step. The nearest is a queue
of older embeddings at four times the published step: one of 8 prototypes had 0.8 of a batch for a while, and
then the loss was above ln K. In DeepCluster-v2 and SeLa-v2 one prototype that takes all and dead prototypes
come of embeddings that point one way: k-means begins at images, each of which keeps its cluster unless its
embedding is another's, and SeLa-v2 shares all images out equally. So that cause is provoked.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from belvedere.core.errors import BelvedereError, CollapseError, NonFiniteError
from belvedere.recipe.load import dump, load_recipe
from belvedere.recipe.schema import Recipe
from belvedere.train.run import pretrain

STEPS = 160
SMALL = (
    "train.epochs=16",  # 10 steps each
    "train.precision=float32",
    "run.device=cpu",
    "run.threads=1",
    "run.log_every_steps=2",
    "run.on_collapse=stop",
)
OF_METHOD = {
    "msn": ("optim.lr.warmup_epochs=4", "backbone.depth=1", "views.focal.count=1"),
    "swav": ("views.local.count=2",),
    "deepcluster": ("backbone.depth=1", "views.local.count=1"),
    "sela": ("backbone.depth=1", "views.local.count=1"),
}
NOTHING_BALANCES = ("method.memax_weight=0.0", "method.sinkhorn_iterations=0")
MARGIN = 0.3  # nats below ln K that a run which learns is by its end

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Provoked:
    """A recipe that fails in one way. method: whose tiny recipe it changes; change: the override that must be
    named."""

    kind: str
    method: str
    overrides: tuple[str, ...]
    change: str
    error: type[BelvedereError] = CollapseError


PROVOKED = {
    "targets are not balanced": Provoked(
        "one prototype takes all",
        "msn",
        ("method.sinkhorn_iterations=0",),
        "method.sinkhorn_iterations=3",
    ),
    "predictions are not balanced": Provoked(
        "dead prototypes", "msn", ("method.memax_weight=0.0",), "method.memax_weight=1"
    ),
    "no BatchNorm in the head": Provoked(
        "constant embedding", "msn", ("method.head.batch_norm=false",), "method.head.batch_norm=true"
    ),
    "steps far too large": Provoked(
        "constant embedding", "msn", ("optim.lr.peak=1.0",), "optim.lr.peak=0.01"
    ),
    "predictions too soft": Provoked(
        "uniform assignment", "msn", ("method.temperature=10.0",), "method.temperature=0.1"
    ),
    "targets too soft": Provoked(
        "uniform assignment",
        "msn",
        ("method.sharpen={start: 1.0, final: 1.0}",),
        "method.sharpen={start: 0.25, final: 0.25}",
    ),
    "steps far too small": Provoked(
        "uniform assignment",
        "msn",
        ("optim.lr.peak=1e-7", "optim.lr.start=0.0", "optim.lr.final=0.0"),
        "optim.lr.peak=0.005",
    ),
    "steps out of range": Provoked(
        "non-finite values", "msn", ("optim.lr.peak=1e20",), "optim.lr.peak=0.01", NonFiniteError
    ),
    "assignments too soft": Provoked(
        "uniform assignment", "swav", ("method.epsilon=1.0",), "method.epsilon=0.03"
    ),
    "views too small to have anything in common": Provoked(
        "uniform assignment", "swav", ("views.global.scale=[0.01, 0.05]",), "views.global.scale=[0.4, 1]"
    ),
    "predictions too soft for swapping": Provoked(
        "uniform assignment", "swav", ("method.temperature=10.0",), "method.temperature=0.1"
    ),
    "LARC's steps far too small": Provoked(
        "uniform assignment",
        "swav",
        ("optim.lr.peak=1e-4", "optim.lr.start=0.0", "optim.lr.final=0.0"),
        "optim.lr.peak=3",
    ),
    "LARC's steps far too large": Provoked(
        "uniform assignment", "swav", ("optim.lr.peak=200.0",), "optim.lr.peak=4.8"
    ),
    "decay far too strong": Provoked(
        "constant embedding",
        "swav",
        ("optim.weight_decay={start: 1.0, final: 1.0}",),
        "optim.weight_decay={start: 1e-06, final: 1e-06}",
    ),
    "assignments too soft, and no BatchNorm in the head": Provoked(
        "constant embedding",
        "swav",
        ("method.epsilon=1.0", "method.head.batch_norm=false"),
        "method.epsilon=0.03",
    ),
    "a queue from the start": Provoked(
        "dead prototypes",
        "swav",
        ("method.queue={length: 5120, start_epoch: 0}",),
        "method.queue.start_epoch=8",
    ),
    "LARC's steps out of range": Provoked(
        "non-finite values", "swav", ("optim.lr.peak=1e25",), "optim.lr.peak=4.8", NonFiniteError
    ),
    "a ViT's steps far too large for clusters": Provoked(
        "constant embedding", "deepcluster", ("optim.lr.peak=1.0",), "optim.lr.peak=0.01"
    ),
    "predictions too soft for clusters": Provoked(
        "uniform assignment", "deepcluster", ("method.temperature=10.0",), "method.temperature=0.1"
    ),
    "a ViT's steps far too large for balanced labels": Provoked(
        "constant embedding", "sela", ("optim.lr.peak=1.0",), "optim.lr.peak=0.01"
    ),
    "predictions too soft for balanced labels": Provoked(
        "uniform assignment", "sela", ("method.temperature=10.0",), "method.temperature=0.1"
    ),
}


def recipe(method: str, *overrides: str) -> Recipe:
    """A tiny recipe cut down; the last value given for a key counts."""
    latest = dict(line.split("=", 1) for line in (*SMALL, *OF_METHOD[method], *overrides))
    return load_recipe(f"tiny/{method}", [f"{key}={value}" for key, value in latest.items()])


def run(directory: Path, method: str, *overrides: str) -> list[dict[str, Any]]:
    """Pretrain, and what was recorded."""
    pretrain(recipe(method, *overrides, f"run.dir={directory}"))
    return record(directory)


_cured: dict[str, list[dict[str, Any]]] = {}


def cured_run(directory: Path, method: str, *overrides: str) -> list[dict[str, Any]]:
    """`run`, once for each recipe: many kinds are cured by one, which trains to the same bits every time."""
    key = dump(recipe(method, *overrides))
    if key not in _cured:
        _cured[key] = run(directory, method, *overrides)
    return _cured[key]


def record(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").open()]


def named_change(told: str) -> str:
    """The override in a message, as a shell would hand it to the command."""
    found = re.search(r"try first: (.+?) \(now ", told)
    assert found is not None, told
    (override,) = shlex.split(found.group(1))
    return override


@pytest.mark.parametrize("name", PROVOKED)
def test_the_kind_is_named_and_the_named_change_cures_it(name: str, tmp_path: Path) -> None:
    case = PROVOKED[name]
    with pytest.raises(case.error, match=case.kind) as told:
        run(tmp_path / "sick", case.method, *case.overrides)
    assert named_change(str(told.value)) == case.change
    cured = cured_run(tmp_path / "cured", case.method, *case.overrides, case.change)
    last = cured[-5:]
    assert last[-1]["step"] == STEPS - 1, "a finding would have stopped it"
    assert sum(each["ln_k"] - each["cross_entropy"] for each in last) / len(last) > MARGIN
    assert min(each["prediction_entropy"] for each in last) > 0.5
    assert sum(each["prototypes_in_use"] for each in last) / len(last) > math.exp(last[0]["ln_k"]) / 2


def test_two_mistakes_are_cured_by_one_named_change_after_the_other(tmp_path: Path) -> None:
    overrides, changes = [*NOTHING_BALANCES], []
    for attempt in range(3):
        try:
            cured = cured_run(tmp_path / str(attempt), "msn", *overrides)
            break
        except CollapseError as told:
            changes.append(named_change(str(told)))
            overrides.append(changes[-1])
    assert changes == ["method.sinkhorn_iterations=3", "method.memax_weight=1"]
    assert cured[-1]["ln_k"] - cured[-1]["cross_entropy"] > MARGIN


def test_a_collapsed_run_is_saved_and_goes_on_only_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CollapseError, match=r"run\.on_collapse=warn"):
        run(tmp_path, "msn", *NOTHING_BALANCES)
    stopped_at = record(tmp_path)[-1]["step"]
    assert stopped_at < STEPS / 2
    assert (tmp_path / "backbone" / "backbone.safetensors").exists()
    with pytest.raises(CollapseError, match="one prototype takes all"):
        run(tmp_path, "msn", *NOTHING_BALANCES)
    assert record(tmp_path)[-1]["step"] <= stopped_at + 2
    capsys.readouterr()
    lines = run(tmp_path, "msn", *NOTHING_BALANCES, "run.on_collapse=warn")
    assert lines[-1]["step"] == STEPS - 1
    told = capsys.readouterr().err
    assert 'run.on_collapse: "stop" -> "warn"' in told
    assert not re.search(r"(?<!_)collapse:", told), "it was told before it continued"


def test_a_warning_is_told_once_and_the_run_ends_as_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "msn", *PROVOKED["predictions too soft"].overrides, "run.on_collapse=warn")
    assert capsys.readouterr().err.count("collapse: uniform assignment") == 1


def test_two_processes_stop_together(tmp_path: Path) -> None:
    words = [*SMALL, *OF_METHOD["msn"], *NOTHING_BALANCES, f"run.dir={tmp_path}"]
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *("-m", "belvedere", "pretrain", "tiny/msn", *words),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "one prototype takes all" in done.stderr
    assert record(tmp_path)[-1]["step"] < STEPS / 2

"""Runs of one, two or three images: refused in words by dry run and run alike, or they run. No method ends in
the middle of a step."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from belvedere.core.errors import RecipeError
from belvedere.data.sources import open_source
from belvedere.recipe.load import load_recipe
from belvedere.recipe.plan import plan
from belvedere.train.dry import dry_run
from belvedere.train.run import pretrain

SMALL = (
    "data.split=null",
    "train.epochs=2",
    "train.precision=float32",
    "optim.lr.warmup_epochs=0",
    "optim.lr.start=0.01",
    "optim.lr.peak=0.01",
    "run.workers=0",
    "run.device=cpu",
    "run.log_every_steps=1",
)
SHORT = "teacher_temperature={start: 0.04, final: 0.07, warmup_epochs: 1}"
ONE = "backbone.depth=1"
OWN = {
    "msn": ("method.prototypes=2", ONE),
    "swav": ("method.prototypes=2",),
    "deepcluster": ("method.prototypes=[2]", "method.assign=[0]", ONE),
    "sela": ("method.prototypes=[2]", "method.assign=[0]", ONE),
    "esvit": (f"method.{SHORT}",),
    "mugs": (
        f"method.group.{SHORT}",
        "method.instance.queue=4",
        "method.local_group.queue=4",
        "method.local_group.memory=4",
        "method.local_group.neighbours=1",
        ONE,
    ),
}
SIZES = ((1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3))
"""Images, and how many of them are a batch."""

PLAIN_HEAD = "method.head={hidden: 8, out: 4, batch_norm: false}"
VIT = (f"backbone={load_recipe('tiny/msn').backbone.model_dump_json()}", "features.source=mean")
TOO_FEW = {(1, 1), (2, 1), (3, 1)}
CLUSTERED = {(1, 1)}
"""Fewer images than two clusters."""

CASES = [
    ("msn", (), TOO_FEW, "1 is too small for method.head.batch_norm"),
    ("msn", (PLAIN_HEAD, "method.prototypes=50", "views.focal.count=1"), set(), ""),
    ("swav", (), TOO_FEW, "1 is too small for the backbone's BatchNorm"),
    ("swav", VIT, set(), ""),
    ("swav", (*VIT, "method.queue={length: 2, start_epoch: 1}"), {(3, 3)}, "2 is less than one batch"),
    ("swav", (*VIT, "views.global.count=1", "views.local.count=1", "method.assign=[0]"), set(), ""),
    ("deepcluster", (), TOO_FEW, "1 is too small for method.head.batch_norm"),
    ("deepcluster", ("views.global.count=1",), TOO_FEW, "1 is too small for method.head.batch_norm"),
    ("deepcluster", (PLAIN_HEAD,), CLUSTERED, "2 prototypes for 1 image"),
    (
        "deepcluster",
        (PLAIN_HEAD, "method.prototypes=[3, 2]"),
        {(1, 1), (2, 1), (2, 2), (3, 2)},
        "3 prototypes",
    ),
    ("sela", (), TOO_FEW, "1 is too small for method.head.batch_norm"),
    ("sela", (PLAIN_HEAD, "method.targets=soft"), CLUSTERED, "2 prototypes for 1 image"),
    ("sela", (PLAIN_HEAD, "method.refresh_epochs=2"), CLUSTERED, "2 prototypes for 1 image"),
    ("esvit", (), set(), ""),
    ("esvit", ("method.region=true", "method.head.batch_norm=true", "views.local.count=1"), set(), ""),
    (
        "esvit",
        ("method.region=false", "method.mixup={alpha: 0.8, cutmix_alpha: 1.0, cutmix_p: 0.5, views: 2}"),
        TOO_FEW | {(3, 3)},
        "and mixup pairs them",
    ),
    ("mugs", (), set(), ""),
    (
        "mugs",
        tuple(f"method.{part}.head.batch_norm=true" for part in ("instance", "local_group", "group")),
        set(),
        "",
    ),
    ("mugs", ("method.instance.queue=1",), {(2, 2), (3, 2), (3, 3)}, "1 is less than one batch"),
    ("mugs", ("method.group.weight=0.0", "method.local_group.neighbours=4"), set(), ""),
]


@cache
def images(count: int) -> str:
    file = Path(tempfile.mkdtemp()) / "digits.npy"
    np.save(file, open_source("digits", split="test").pixels[:count])  # type: ignore[attr-defined]
    return str(file)


def words(method: str, overrides: tuple[str, ...]) -> list[str]:
    given = dict(line.split("=", 1) for line in (*SMALL, *OWN[method], *overrides))
    return [f"{key}={value}" for key, value in given.items()]


@pytest.mark.parametrize(("method", "overrides", "refused", "told"), CASES)
def test_what_is_accepted_runs(
    method: str, overrides: tuple[str, ...], refused: set[tuple[int, int]], told: str, tmp_path: Path
) -> None:
    for count, batch in SIZES:
        where = tmp_path / f"{count}-{batch}"
        own = (f"data.path={images(count)}", f"train.global_batch={batch}", f"run.dir={where}")
        given = words(method, (*overrides, *own))
        if (count, batch) in refused:
            for start in (dry_run, pretrain):
                with pytest.raises(RecipeError, match=told):
                    start(load_recipe(f"tiny/{method}", given))
            assert not where.exists()
            continue
        recipe = load_recipe(f"tiny/{method}", given)
        assert dry_run(recipe) is not None
        assert pretrain(recipe).step == 2 * (count // batch)


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("esvit", ("method.head.out=1",)),
        ("mugs", ("method.group.head.out=1",)),
        ("msn", ("method.prototypes=1",)),
    ],
)
def test_one_prototype_is_none(method: str, overrides: tuple[str, ...]) -> None:
    """ln 1 is 0, and there is nothing to predict."""
    with pytest.raises(RecipeError, match=r"(out|prototypes): 1 is not allowed.* 2"):
        load_recipe(f"tiny/{method}", words(method, overrides))


@pytest.mark.parametrize("method", ["msn", "deepcluster", "sela"])
def test_one_row_for_each_of_several_processes(method: str) -> None:
    """A head sees the rows of all of them together; of groups of one it would see one."""
    two = words(method, ("train.global_batch=2",))
    assert plan(load_recipe(f"tiny/{method}", two), num_images=4, world_size=2).batch == 1
    alone = load_recipe(f"tiny/{method}", [*two, "train.batch_norm_group=1"])
    with pytest.raises(RecipeError, match=r"train\.batch_norm_group: 1 leaves 1 image to each BatchNorm"):
        plan(alone, num_images=4, world_size=2)
    assert plan(alone, num_images=4, world_size=1).batch == 2

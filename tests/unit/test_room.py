"""Runs that no memory here holds: refused from the recipe alone, with numbers and what to change."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from belvedere.core import machine
from belvedere.core.errors import RecipeError
from belvedere.recipe.estimate import estimate, with_micro_batch
from belvedere.recipe.load import load_recipe
from belvedere.recipe.plan import Plan, plan
from belvedere.recipe.room import Memory, fitting_micro_batch, memory_here, refuse_too_large
from belvedere.recipe.shipped import recipe_names
from belvedere.train import session as session_module
from belvedere.train.dry import dry_run
from belvedere.train.run import open_session, pretrain
from belvedere.train.session import build_method

GIB = 1 << 30
IMAGENET = 1_281_167


def memory(total: float, free: float | None = None) -> Memory:
    return Memory(int(total * GIB), int((total if free is None else free) * GIB), "this machine")


def planned(name: str, *overrides: str, num_images: int = 1347) -> Plan:
    return plan(load_recipe(name, ["data.path=digits", *overrides]), num_images=num_images)


def refused(made: Plan, there: Memory) -> str:
    with pytest.raises(RecipeError) as caught:
        refuse_too_large(made.recipe, made, there)
    return str(caught.value)


VARIANTS = [
    ("tiny/msn",),
    ("tiny/swav",),
    ("tiny/swav", "method.queue={length: 512, start_epoch: 1}"),
    ("tiny/swav", "method.head={hidden: 0, out: 16, batch_norm: false}"),
    ("tiny/deepcluster",),
    ("tiny/sela",),
    ("tiny/sela", "method.targets=soft"),
    ("tiny/esvit",),
    ("tiny/esvit", "method.region=false", "method.head.layers=1", "method.head.batch_norm=false"),
    ("tiny/esvit", "method.head.norm_last_layer=false"),
    ("tiny/mugs",),
    ("tiny/mugs", "method.local_group.weight=0.0"),
    ("tiny/mugs", "method.instance.weight=0.0"),
    ("tiny/mugs", "method.group.weight=0.0"),
]


@pytest.mark.parametrize("words", VARIANTS, ids=" ".join)
def test_what_a_method_holds_is_counted_as_it_is_built(words: tuple[str, ...]) -> None:
    made = planned(*words)
    method = build_method(made.recipe)
    method.allocate(made.extent)
    needs, state = estimate(made.recipe, made), method.state_dict()
    trained = sum(p.nbytes for p in method.parameters() if p.requires_grad)
    teacher = sum(p.nbytes for p in method.networks().get("teacher", torch.nn.Module()).parameters())
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    whole = sum(tensor.nbytes for name, tensor in state.items() if not name.endswith(statistics))
    assert (needs.parameters, needs.teacher) == (trained, teacher)
    assert needs.own_state == whole - trained - teacher
    held = made.recipe.method.held(made.recipe.backbone, made.extent)
    assert sum(part.layers for part in held) == pytest.approx(len(list(method.modules())), rel=0.35)


HUGE = [
    (("tiny/msn", "backbone.width=64000000"), "backbone: ", "PiB|10\\^"),
    (("tiny/msn", "backbone.depth=1000000000"), "backbone: ", "TiB"),
    (("tiny/msn", "backbone.width=1", "backbone.heads=1", "backbone.depth=10000000"), "backbone: ", "GiB"),
    (("tiny/msn", "backbone.mlp_ratio=1e300"), "backbone: ", "10\\^"),
    (("tiny/msn", f"backbone.width={10**17}", "backbone.heads=1"), "backbone: ", "10\\^"),
    (("tiny/msn", "method.prototypes=1000000000000"), "method.prototypes: ", "TiB"),
    (("tiny/msn", "method.head.hidden=1000000000"), "method.head: ", "10\\^|TiB"),
    (("tiny/msn", "views.focal.px=1000000000", "backbone.patch_px=2"), "views.focal.px: ", "10\\^"),
    (("tiny/msn", "views.focal.count=1000000000"), "views.focal.px: ", "TiB"),
    (
        ("tiny/msn", "run.workers=1000", "train.global_batch=1280", "views.focal.count=2000"),
        "run.workers: ",
        "TiB",
    ),
    (("tiny/swav", "method.queue={length: 1000000000000, start_epoch: 1}"), "method.queue.length: ", "TiB"),
    (("tiny/swav", "backbone.widen=1000000"), "backbone: ", "TiB|10\\^"),
    (("tiny/swav", "backbone.blocks=[1, 1, 1, 1000000000]"), "backbone: ", "TiB"),
    (("tiny/deepcluster", "method.head.out=1000000000000"), "method.", "TiB|10\\^"),
    (("tiny/sela", "method.prototypes=[1000, 1000]", "method.head.out=10000000000"), "method.", "TiB"),
    (("tiny/esvit", "method.head.out=1000000000000"), "method.head: ", "TiB|10\\^"),
    (("tiny/esvit", "method.head.layers=1000000000"), "method.head: ", "TiB"),
    (("tiny/esvit", "backbone.window=100000", "backbone.image_px=400000"), "", "10\\^|TiB"),
    (("tiny/mugs", "method.instance.queue=1000000000000"), "method.instance.queue: ", "TiB"),
    (("tiny/mugs", "method.local_group.memory=1000000000000"), "method.local_group.memory: ", "TiB"),
    (("tiny/mugs", "method.group.head.bottleneck=1000000000000"), "method.group.head: ", "10\\^|TiB"),
]


@pytest.mark.parametrize(
    ("words", "key", "size"), HUGE, ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else ""
)
@pytest.mark.parametrize("start", [pretrain, dry_run])
def test_sizes_that_no_machine_has_are_refused_before_anything_is_built(
    words: tuple[str, ...], key: str, size: str, start: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    def built(*_: Any, **__: Any) -> None:
        pytest.fail("it was built")

    monkeypatch.setattr(session_module, "build_method", built)
    monkeypatch.setattr(machine, "memory_bytes", lambda: 23 * GIB)
    recipe = load_recipe(words[0], [*words[1:], f"run.dir={tmp_path / 'run'}", "run.device=cpu"])
    with pytest.raises(RecipeError, match=size) as caught:
        start(recipe)
    assert str(caught.value).startswith(key)
    assert "23.0 GiB" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_batch_that_is_too_large_names_the_micro_batch_that_fits() -> None:
    made = planned("msn/vits16", num_images=IMAGENET)
    made = planned("msn/vits16", "run.workers=0", num_images=IMAGENET)
    told = refused(made, memory(23))
    size = int(told.split("run.micro_batch=")[1].split(",")[0])
    assert told.startswith(f"run.micro_batch: set run.micro_batch={size}")
    assert "23.0 GiB of memory" in told
    smaller = planned("msn/vits16", f"run.micro_batch={size}", "run.workers=0", num_images=IMAGENET)
    assert refuse_too_large(smaller.recipe, smaller, memory(23)) == []
    assert with_micro_batch(made.recipe, made, size).memory <= 23 * GIB
    assert with_micro_batch(made.recipe, made, 4 * size).memory > 0.85 * 23 * GIB


def test_workers_whose_batches_take_too_much_are_part_of_the_advice() -> None:
    made = planned("msn/vits16", num_images=IMAGENET)
    told = refused(made, memory(16))
    assert told.startswith("run.micro_batch: set run.micro_batch=")
    overrides = told.partition(" set ")[2].partition(",")[0].split()
    assert overrides[1] in ("run.workers=1", "run.workers=0")
    smaller = planned("msn/vits16", *overrides, num_images=IMAGENET)
    assert refuse_too_large(smaller.recipe, smaller, memory(16)) == []


def test_only_what_clearly_exceeds_is_refused_and_the_rest_is_warned_of() -> None:
    made = planned("tiny/msn")
    needs = estimate(made.recipe, made)
    around = needs.memory / GIB
    assert refuse_too_large(made.recipe, made, memory(2 * around)) == []
    (warning,) = refuse_too_large(made.recipe, made, memory(2 * around, free=0.9 * around))
    assert "may be killed" in warning
    (warning,) = refuse_too_large(made.recipe, made, memory(0.9 * around))
    assert "may be killed" in warning
    assert "an estimate" in refused(made, memory(0.5 * around))
    assert refuse_too_large(made.recipe, made, Memory(None, None, "nowhere")) == []


def test_where_no_micro_batch_helps_the_batch_is_named() -> None:
    made = planned("tiny/msn", "method.prototypes=100000")
    told = refused(made, memory(1.2))
    assert told.startswith("train.global_batch: ")
    batch = told.partition("train.global_batch=")[2].partition(" ")[0]
    smaller = planned("tiny/msn", "method.prototypes=100000", f"train.global_batch={batch}")
    assert refuse_too_large(smaller.recipe, smaller, memory(1.2)) == []
    assert fitting_micro_batch(made.recipe, made, memory(1.2)) is None


def test_a_micro_batch_leaves_no_single_image_to_batch_norm() -> None:
    made = planned("swav/rn50-200ep", "train.global_batch=65", num_images=IMAGENET)
    for gib in (2, 3, 4, 6, 8):
        size = fitting_micro_batch(made.recipe, made, memory(gib))
        assert size is None or (size >= 2 and 65 % size != 1)


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_fits_accelerators_in_micro_batches(name: str) -> None:
    num_images = 1347 if name.startswith("tiny/") else IMAGENET
    batch = ["train.global_batch=64"] if name.startswith("tiny/") else ["train.global_batch=512"]
    recipe = load_recipe(name, ["data.path=digits", "run.micro_batch=8", *batch])
    made = plan(recipe, num_images=num_images, world_size=8, device="cuda")
    assert refuse_too_large(recipe, made, memory(141)) == []


def test_processes_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_bytes", lambda: 8 * GIB)
    monkeypatch.setattr(machine, "available_bytes", lambda: 4 * GIB)
    assert memory_here("cpu") == Memory(8 * GIB, 4 * GIB, "this machine")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory_here("cpu") == Memory(4 * GIB, 2 * GIB, "each of 2 processes on this machine")


def test_a_run_for_another_device_is_not_held_to_this_machines_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = planned("msn/vits16", num_images=IMAGENET)
    assert refuse_too_large(made.recipe, made, memory(23), elsewhere=True) == []
    monkeypatch.setattr(machine, "memory_bytes", lambda: GIB)
    assert open_session(load_recipe("tiny/msn", ["run.device=cuda"]), torch.device("cpu")).step == 0

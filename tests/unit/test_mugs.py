"""Mugs' page: what it refuses, supervisions that are off, what a step may change, and what is stored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from belvedere.core.errors import RecipeError
from belvedere.data.batch import Batch
from belvedere.methods.method import Clock, Extent, Losses
from belvedere.methods.mugs import Mugs, Options
from belvedere.nn.spec.vit import vit_spec
from belvedere.nn.vit import ViT
from belvedere.recipe.estimate import estimate
from belvedere.recipe.load import load_recipe
from belvedere.recipe.plan import plan
from belvedere.recipe.schema import Recipe

AT = Clock(1, 1, 100, 100)
HEAD = {
    "hidden": 8,
    "out": 4,
    "layers": 3,
    "predictor": 6,
    "batch_norm": False,
    "norm_before_predictor": True,
}


def _options(**changes: Any) -> Options:
    values: dict[str, Any] = {
        "name": "mugs",
        "instance": {"weight": 1.0, "temperature": 0.2, "queue": 16, "head": HEAD},
        "local_group": {
            "weight": 1.0,
            "temperature": 0.2,
            "queue": 16,
            "head": HEAD,
            "memory": 16,
            "neighbours": 3,
        },
        "group": {
            "weight": 1.0,
            "temperature": 0.1,
            "teacher_temperature": {"start": 0.04, "final": 0.07, "warmup_epochs": 3},
            "center_momentum": 0.9,
            "freeze_last_layer_epochs": 1,
            "head": {
                "hidden": 8,
                "bottleneck": 4,
                "out": 12,
                "layers": 3,
                "batch_norm": False,
                "norm_last_layer": False,
            },
        },
        "momentum": {"start": 0.9, "final": 1.0},
        "patch_embed_lr": 0.2,
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values[section] = values[section] | {name: value} if name else value
    return Options.model_validate(values)


def _method(**changes: Any) -> Mugs:
    shape = {"width": 8, "depth": 2, "heads": 2, "patch_px": 2, "mlp_ratio": 2.0, "image_px": 8}
    spec = vit_spec("deit_tiny").model_copy(update=shape | {"position_margin": 0.1})
    return Mugs(_options(**changes), ViT(spec), seed=0)


def _batch(*, images: int = 4, local: int = 2, weak: list[bool] | None = None) -> Batch:
    random = torch.Generator().manual_seed(0)
    sizes = {"target": (2, 8), "global": (2, 8), "local": (local, 4)}
    views = {
        role: torch.randn(count, images, 3, px, px, generator=random)
        for role, (count, px) in sizes.items()
        if count
    }
    flags = {} if weak is None else {"weak": torch.tensor(weak)}
    return Batch(views, torch.arange(images), torch.full((images,), -1), range(images), flags=flags)


def _losses(method: Mugs, batch: Batch) -> tuple[dict[str, Tensor], Losses]:
    encoded = method.encode_student(method.student, batch, AT)
    with torch.no_grad():
        target = method.encode_teacher(batch, AT)
    return encoded, method.loss(method.student, encoded, target, batch, AT)


def _state(method: Mugs) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in method.state_dict().items()}


# Weights


def test_weights_weigh_and_their_mean_is_the_published_one_at_ones() -> None:
    batch = _batch()
    terms = _losses(_method(), batch)[1].terms
    _, one = _losses(_method(), batch)
    assert float(one.total.detach()) == pytest.approx(
        sum(float(term) for term in terms.values()) / 3, rel=1e-6
    )
    _, heavy = _losses(_method(instance__weight=3.0, group__weight=0.5), batch)
    expected = 3 * terms["instance"] + terms["local_group"] + 0.5 * terms["group"]
    assert float(heavy.total.detach()) == pytest.approx(float(expected) / 4.5, rel=1e-6)


@pytest.mark.parametrize("off", ["instance", "local_group", "group"])
def test_what_is_off_does_not_exist_and_what_is_left_learns(off: str) -> None:
    whole, method = _method(), _method(**{f"{off}__weight": 0.0})
    gone = {n.split(".")[0] for n in whole.state_dict()} - {n.split(".")[0] for n in method.state_dict()}
    heads = {n.split(".")[1] for n in whole.state_dict() if n.startswith("student.")}
    left = {n.split(".")[1] for n in method.state_dict() if n.startswith("student.")}
    expected = {
        "instance": ({"instance_queue"}, {"instance_head"}),
        "local_group": (
            {"local_group_queue", "student_memory", "teacher_memory"},
            {"local_group_head", "relation_blocks"},
        ),
        "group": ({"center"}, {"group_head"}),
    }[off]
    assert (gone, heads - left) == expected

    encoded, losses = _losses(method, _batch(weak=[True] * 4))
    assert set(losses.terms) == {"instance", "local_group", "group"} - {off}
    losses.total.backward()
    without = [n for n, p in method.student.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    method.after_update(encoded, losses, AT)
    assert losses.health is not None
    assert "mean_entropy" in losses.watch


def test_local_groups_alone_need_no_class_token_of_the_final_norm() -> None:
    method = _method(instance__weight=0.0, group__weight=0.0)
    encoded, losses = _losses(method, _batch())
    assert not any(name.startswith("cls") for name in encoded)
    losses.total.backward()
    assert all(p.grad is not None for p in method.student.parameters())


def test_no_small_views_leave_the_large_ones() -> None:
    method = _method()
    _, losses = _losses(method, _batch(local=0))
    assert all(term.isfinite() for term in losses.terms.values())
    # The same as small views whose terms are left out: those of the large ones alone.
    whole = _losses(method, _batch(local=2))[1]
    assert not torch.equal(whole.total, losses.total)


# What a step changes


def test_a_loss_changes_no_state_and_an_update_stores_once() -> None:
    method = _method()
    before = _state(method)
    encoded, losses = _losses(method, _batch(weak=[True, False, True, True]))
    assert all(torch.equal(value, before[name]) for name, value in _state(method).items())
    method.after_update(encoded, losses, AT)
    after = _state(method)
    pointers = {name: int(value) for name, value in after.items() if name.endswith("queue_ptr")}
    assert pointers == {
        "instance_queue.queue_ptr": 8,  # two keys of each of four images
        "local_group_queue.queue_ptr": 8,
        "student_memory.queue_ptr": 6,  # three weak images, and as many slots jumped over
        "teacher_memory.queue_ptr": 8,
    }
    patches = encoded["patches_0"][0].detach()
    assert torch.equal(after["student_memory.queue_k"][:3], patches[[0, 2, 3]])
    assert torch.equal(after["student_memory.queue_q"][:3], patches[[0, 2, 3]])
    assert torch.equal(after["student_memory.queue_q"][3:], before["student_memory.queue_q"][3:])
    first, second = losses.kept["instance_keys"]
    assert torch.equal(after["instance_queue.queue"][:8], torch.cat([first, second]))


def test_no_weak_image_is_fine_and_nothing_is_stored() -> None:
    method = _method()
    before = _state(method)
    encoded, losses = _losses(method, _batch(weak=[False] * 4))
    method.after_update(encoded, losses, AT)
    after = _state(method)
    for name in ("queue_q", "queue_k", "queue_ptr"):
        assert torch.equal(after[f"student_memory.{name}"], before[f"student_memory.{name}"])
    assert int(after["teacher_memory.queue_ptr"]) == 8


def test_without_strong_views_every_image_is_stored() -> None:
    method = _method()
    encoded, losses = _losses(method, _batch())
    method.after_update(encoded, losses, AT)
    assert torch.equal(method.student_memory.queue_k[:4], encoded["patches_0"][0].detach())


def test_the_teacher_has_no_predictors_and_follows_everything_else() -> None:
    method = _method()
    of_teacher = {name for name, _ in method.teacher.named_parameters()}
    of_student = {name for name, _ in method.student.named_parameters()}
    assert of_student - of_teacher == {
        f"{head}_head.predictor.{layer}.weight" for head in ("instance", "local_group") for layer in (0, 2)
    }
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.add_(1.0)
    before = {name: p.detach().clone() for name, p in method.teacher.named_parameters()}
    encoded, losses = _losses(method, _batch())
    momentum = method.scheduled(AT)["momentum"]
    method.after_update(encoded, losses, AT)
    for name, parameter in method.teacher.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] + (1 - momentum))


def test_a_frozen_last_layer_has_no_gradient() -> None:
    method = _method()
    last = [p for name, p in method.student.named_parameters() if ".last_layer." in name]
    assert len(last) == 2
    for epoch, frozen in ((0, True), (1, False)):
        for parameter in last:
            parameter.grad = torch.ones_like(parameter)
        method.before_update(Clock(epoch, 1, 100, 100))
        assert all((parameter.grad is None) == frozen for parameter in last)


def test_networks_start_alike_and_memories_do_not() -> None:
    method, again = _method(), _method()
    student = method.student.state_dict()
    assert all(torch.equal(value, student[name]) for name, value in method.teacher.state_dict().items())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in method.state_dict().items())
    drawn = [
        queue
        for memory in (method.student_memory, method.teacher_memory)
        for queue in (memory.queue_q, memory.queue_k)
    ]
    assert all(not torch.equal(a, b) for n, a in enumerate(drawn) for b in drawn[n + 1 :])
    length = method.instance_queue.queue.norm(dim=1)
    torch.testing.assert_close(length, torch.ones(16))


def test_micro_batches_see_the_same_neighbours() -> None:
    """Look-ups are made once, of all rows, and read the memory as it was before the step."""
    method, batch = _method(), _batch()
    whole = method.encode_student(method.student, batch, AT)
    parts = [method.encode_student(method.student, batch.part(*cut), AT) for cut in ((0, 1), (1, 4))]
    for name, h in whole.items():
        torch.testing.assert_close(torch.cat([part[name] for part in parts], 1), h)


# What is refused


def _recipe(*overrides: str) -> Recipe:
    return load_recipe("tiny/mugs", list(overrides))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method.local_group.neighbours=2000", r"method.local_group.neighbours: 2000 is more than .* 1024"),
        ("views.target.count=3", r"views.target.count: 3 is not allowed; Mugs' teacher sees 2 large views"),
        ("views.global.count=1", r"views.global.count: 1 is not allowed; Mugs' student sees 2 large views"),
        ("views.global.strong.coin=view", r"views.global.strong.coin: view is not allowed"),
        ("backbone.position_margin=1.5", "backbone.position_margin"),
    ],
)
def test_what_a_recipe_cannot_have(override: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        _recipe(override)


def test_nothing_to_learn_is_refused() -> None:
    weights = [f"method.{name}.weight=0" for name in ("instance", "local_group", "group")]
    with pytest.raises(RecipeError, match=r"method.instance.weight: 0 leaves nothing to learn"):
        _recipe(*weights)
    assert _recipe(*weights[:2]).method.weights == {"group": 1.0}  # type: ignore[attr-defined]


def test_the_teachers_views_are_weak_ones() -> None:
    strong = _recipe().views["global"].strong
    assert strong is not None
    given = strong.model_dump(mode="json")
    line = (
        "{p: 0.5, coin: image, randaugment: {operations: 2, p: 0.5, magnitude: 9.0, magnitude_std: 0.5, "
        "fill: [0, 0, 0]}, erasing: null}"
    )
    assert set(given) == {"p", "coin", "randaugment", "erasing"}
    with pytest.raises(RecipeError, match=r"views.target.strong: is not allowed"):
        _recipe(f"views.target.strong={line}")


EXTENT = Extent(images=1347, epochs=2, steps_per_epoch=10, global_batch=128, world_size=1)


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"instance__queue": 64}, ["method.instance.queue"]),
        ({"instance__queue": 64, "instance__weight": 0.0}, []),
        (
            {"local_group__memory": 64, "local_group__queue": 127},
            ["method.local_group.memory", "method.local_group.queue"],
        ),
        ({}, []),
    ],
)
def test_queues_and_memory_hold_a_whole_batch(changes: dict[str, Any], keys: list[str]) -> None:
    roomy = {"instance__queue": 128, "local_group__queue": 128, "local_group__memory": 128}
    warm = {"group__teacher_temperature": {"start": 0.04, "final": 0.07, "warmup_epochs": 2}}
    options = _options(**roomy | warm | changes)
    assert [key for key, _ in options.misfits(EXTENT)] == keys


def test_a_warmup_longer_than_the_run_is_refused() -> None:
    recipe = _recipe("method.group.teacher_temperature.warmup_epochs=200")
    with pytest.raises(RecipeError, match=r"method.group.teacher_temperature.warmup_epochs: 200 is longer"):
        plan(recipe, num_images=1347)


def test_a_later_clip_takes_over_and_must_be_reached() -> None:
    clip = "{kind: per_tensor, norm: 3.0, from_epoch: 0, later: {norm: 0.3, from_epoch: %d}}"
    recipe = _recipe(f"optim.clip={clip % 5}")
    assert recipe.optim.clip is not None
    assert [recipe.optim.clip.at(epoch).norm for epoch in (0, 4, 5, 9)] == [3.0, 3.0, 0.3, 0.3]
    with pytest.raises(RecipeError, match=r"optim.clip.later.from_epoch: 5000 is never reached"):
        _recipe(f"optim.clip={clip % 5000}")
    with pytest.raises(RecipeError, match="is not after from_epoch"):
        _recipe("optim.clip={kind: total, norm: 3.0, from_epoch: 7, later: {norm: 0.3, from_epoch: 7}}")


def test_a_clip_and_a_vit_are_written_as_before_where_they_have_nothing_new() -> None:
    recipe = load_recipe("tiny/msn")
    assert "position_margin" not in recipe.backbone.model_dump()
    assert recipe.optim.clip is not None
    assert "later" not in recipe.optim.clip.model_dump()


def test_what_all_processes_hold_alike_is_in_a_checkpoint_once() -> None:
    recipe = _recipe()
    made = plan(recipe, num_images=1347, world_size=2)
    counts = {"trained": 1000, "teacher": 900, "backbone": 800}
    without, needs = (estimate(recipe, made, **counts, shared_bytes=bytes_) for bytes_ in (0, 500))
    assert needs.checkpoint - without.checkpoint == 500
    assert needs.memory - without.memory == 500

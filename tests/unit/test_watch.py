"""The watch for collapse: every number on tensors worked out by hand, every kind on made-up histories."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, multiprocessing
from torch import distributed as torch_dist

from belvedere.engine.diagnosis import Patience, Reading, diagnose, recovered
from belvedere.engine.health import (
    NAMES,
    Health,
    Measures,
    agreement,
    effective_rank,
    entropy,
    first_choices,
    measure,
    spread,
)
from belvedere.engine.remedy import (
    Remedy,
    first_change,
    smaller_steps,
    softer_crops,
    value_at,
    written,
)
from belvedere.engine.watch import Choices, Watch
from belvedere.methods.deepcluster import deepcluster_loss
from belvedere.methods.sela import soft_loss
from belvedere.methods.shared.clustered import health_of
from belvedere.ops.bank import UNSEEN

K = 32
LN_K = math.log(K)
HEALTHY = {
    "ln_k": LN_K,
    "cross_entropy": 2.0,
    "single_entropy": 0.6,
    "effective_rank": 9.0,
    "spread": 0.6,
    "agreement": 0.8,
    "prediction_entropy": 0.99,
    "target_entropy": 0.99,
    "top_share": 0.06,
    "top_target": 0.05,
    "prototypes_in_use": 30,
    "grad_norm": 0.5,
}
SICK: dict[str, dict[str, float]] = {
    "one prototype takes all": {"top_share": 0.99, "cross_entropy": 0.001, "prediction_entropy": 0.01},
    "constant embedding": {"spread": 0.001, "effective_rank": 1.1, "cross_entropy": LN_K},
    "uniform assignment": {"cross_entropy": LN_K - 0.001, "single_entropy": 0.999},
    "dead prototypes": {"share_in_use": 0.2, "prediction_entropy": 0.6},
}
PATIENCE = Patience(grace_steps=200, steps=100)


def history(of: Callable[[int], Mapping[str, float]], *, steps: int, every: int = 10) -> list[Reading]:
    """Readings of a run whose numbers at a step are the healthy ones with those of `of` in their place."""
    return [Reading(step, {**HEALTHY, **of(step)}) for step in range(every - 1, steps, every)]


# The numbers


@pytest.mark.parametrize(
    ("z", "rank"),
    [
        (torch.outer(torch.arange(1.0, 6.0), torch.tensor([1.0, -2.0, 3.0])), 1.0),
        (torch.ones(300, 4), 1.0),
        (torch.eye(5), 5.0),
        (torch.eye(3).repeat(4, 1), 3.0),
        (1e30 * torch.eye(3), 3.0),
        (1e-30 * torch.eye(3), 3.0),
        (torch.zeros(4, 3), 0.0),
        # singular values 3 and 1: shares 3/4 and 1/4, exp(entropy) = 4 / 3 ** (3/4)
        (torch.tensor([[3.0, 0.0], [0.0, 1.0]]), 4 / 3**0.75),
    ],
)
def test_effective_rank(z: Tensor, rank: float) -> None:
    assert effective_rank(z).item() == pytest.approx(rank, rel=1e-6)


def test_the_effective_rank_of_what_is_not_finite_is_not_a_number() -> None:
    assert math.isnan(effective_rank(torch.tensor([[1.0, math.nan], [0.0, 1.0]])).item())
    assert math.isnan(effective_rank(torch.tensor([[math.inf, 0.0], [0.0, 1.0]])).item())


def test_spread_is_0_for_one_direction_and_1_where_directions_cancel() -> None:
    assert spread(torch.tensor([[1.0, 1.0], [5.0, 5.0]])).item() == pytest.approx(0.0, abs=1e-6)
    assert spread(torch.tensor([[1.0, 0.0], [-2.0, 0.0]])).item() == pytest.approx(1.0)
    assert spread(torch.tensor([[1.0, 0.0], [0.0, 3.0]])).item() == pytest.approx(0.5)


def test_agreement_is_the_mean_cosine_of_pairs_of_views() -> None:
    z = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0))
    cosine = torch.nn.functional.cosine_similarity
    by_hand = torch.stack([cosine(z[a], z[b], dim=1).mean() for a, b in ((0, 1), (0, 2), (1, 2))]).mean()
    assert agreement(z).item() == pytest.approx(by_hand.item(), abs=1e-6)
    assert agreement(z[:1]).item() == 1.0


def test_entropy_and_first_choices() -> None:
    assert entropy(torch.tensor([0.25] * 4)).item() == pytest.approx(math.log(4))
    assert entropy(torch.tensor([0.0, 1.0])).item() == 0.0
    p = torch.tensor([[0.1, 0.8, 0.1], [0.2, 0.7, 0.1], [0.5, 0.3, 0.2], [0.6, 0.2, 0.2]])
    assert first_choices(p).tolist() == [0.5, 0.5, 0.0]


def a_step(rows: slice = slice(None)) -> Health:
    """Two views of four images, three prototypes; a prediction of exactly zero among them."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    log_p = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    log_p[0, 0, 2] = -math.inf
    q = torch.rand(4, 3, generator=generator, dtype=torch.float64).softmax(1)
    loss = torch.arange(4.0, dtype=torch.float64)[rows].mean()
    return Health(z=z[:, rows], log_p=log_p.log_softmax(2)[:, rows], q=q[rows], cross_entropy=loss)


def test_measure_tells_everything_by_name() -> None:
    health = a_step()
    measures = measure(health)
    p = health.log_p.exp().flatten(0, 1)
    numbers = measures.numbers
    assert set(numbers) == set(NAMES)
    assert numbers["ln_k"] == pytest.approx(math.log(3))
    assert numbers["cross_entropy"] == pytest.approx(1.5)
    assert numbers["top_share"] == pytest.approx(p.mean(0).max().item())
    assert numbers["prediction_entropy"] == pytest.approx(
        torch.distributions.Categorical(probs=p.mean(0)).entropy().item() / math.log(3)
    )
    assert 0 < numbers["single_entropy"] < numbers["prediction_entropy"], (
        "0 ln 0 is 0, and entropy is concave"
    )
    assert numbers["prototypes_in_use"] == len(p.argmax(1).unique())
    assert measures.images == 4
    assert measures.first_choices.sum().item() == pytest.approx(1.0)


def test_measure_without_targets_and_in_bfloat16() -> None:
    whole = a_step()
    half = Health(z=whole.z.bfloat16(), log_p=whole.log_p.bfloat16(), cross_entropy=whole.cross_entropy)
    numbers = measure(half).numbers
    assert "target_entropy" not in numbers
    assert numbers["spread"] == pytest.approx(measure(whole).numbers["spread"], abs=0.02)


def test_measure_looks_at_a_few_hundred_embeddings_of_a_large_batch() -> None:
    z = torch.zeros(2, 2000, 3)
    z[:, :256, 0], z[:, 256:, 1] = 1.0, 1.0
    log_p = torch.full((2, 2000, 4), -math.log(4))
    numbers = measure(Health(z=z, log_p=log_p, cross_entropy=torch.tensor(1.0))).numbers
    assert numbers["effective_rank"] == pytest.approx(1.0)
    assert numbers["spread"] == pytest.approx(0.0, abs=1e-6)


def test_the_first_of_several_heads_is_measured() -> None:
    generator = torch.Generator().manual_seed(2)
    scores = [torch.randn(6, k, generator=generator, requires_grad=True) for k in (4, 7)]  # 2 views, 3 images
    z = torch.randn(2, 3, 5, generator=generator)
    labels = torch.tensor([[1, 1, UNSEEN], [0, 6, 2]])
    hard = health_of(deepcluster_loss(scores, labels, temperature=0.1), z)
    first = (scores[0] / 0.1).detach().log_softmax(1)
    torch.testing.assert_close(hard.log_p, first.unflatten(0, (2, 3)))
    torch.testing.assert_close(hard.cross_entropy, -first[[0, 1, 3, 4], 1].mean())
    assert hard.q is not None
    assert hard.q.tolist() == [[0.0, 1.0, 0.0, 0.0]]
    assert measure(hard).numbers["top_target"] == 1.0
    shares = [torch.rand(3, k, generator=generator).softmax(1) for k in (4, 7)]
    soft = health_of(soft_loss(scores, shares, torch.tensor([True, False, True]), temperature=0.1), z)
    assert soft.q is not None
    torch.testing.assert_close(soft.q[0], (shares[0][0] + shares[0][2]) / 2)
    assert not any(each.requires_grad for each in (hard.log_p, hard.cross_entropy, soft.log_p, soft.q))


def test_measure_leaves_gradients_and_tensors_alone() -> None:
    health = a_step()
    before = health.z.clone()
    health.z.requires_grad_()
    measure(health)
    assert torch.equal(health.z.detach(), before)
    assert health.z.grad is None


def _measure_a_half(rank: int, place: str) -> None:
    torch_dist.init_process_group("gloo", init_method=f"file://{place}/met", rank=rank, world_size=2)
    measures = measure(a_step(slice(2 * rank, 2 * rank + 2)))
    told = {"numbers": measures.numbers, "chosen": measures.first_choices.tolist(), "images": measures.images}
    Path(place, f"{rank}.json").write_text(json.dumps(told))
    torch_dist.destroy_process_group()


def test_two_processes_tell_what_one_does(tmp_path: Path) -> None:
    multiprocessing.spawn(_measure_a_half, args=(str(tmp_path),), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    whole = measure(a_step())
    assert first["images"] == whole.images
    assert first["chosen"] == pytest.approx(whole.first_choices.tolist())
    by_process = {"effective_rank", "spread"}  # of each process's own rows
    for name in set(NAMES) - by_process:
        assert first["numbers"][name] == pytest.approx(whole.numbers[name]), name


def test_prototypes_are_counted_over_enough_images() -> None:
    choices = Choices()
    one, other = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([0.0, 0.5, 0.5, 0.0])
    assert choices.add(one, 10) is None
    assert choices.add(other, 10) == 0.75
    assert choices.add(one, 19) == 0.75, "the stretch before still counts"
    assert choices.add(one, 1) == 0.75
    assert choices.add(one, 20) == 0.25, "two stretches later it does not"


# The diagnosis


@pytest.mark.parametrize("kind", SICK)
def test_each_kind_is_found_with_its_first_step_and_its_numbers(kind: str) -> None:
    run = history(lambda step: SICK[kind] if step >= 300 else {}, steps=401)
    assert diagnose(run, PATIENCE) is None, "not yet for long enough"
    run = history(lambda step: SICK[kind] if step >= 300 else {}, steps=410)
    found = diagnose(run, PATIENCE)
    assert found is not None
    assert (found.kind, found.since, found.step) == (kind, 309, 409)
    assert any(character.isdigit() for character in found.evidence)


@pytest.mark.parametrize("kind", SICK)
def test_nothing_is_said_before_the_warm_up_has_ended(kind: str) -> None:
    assert diagnose(history(lambda step: SICK[kind], steps=200), PATIENCE) is None
    assert diagnose(history(lambda step: SICK[kind], steps=210), PATIENCE) is not None


def test_a_healthy_run_that_starts_at_ln_k_is_left_alone() -> None:
    def slow(step: int) -> dict[str, float]:
        return {
            "cross_entropy": LN_K - 0.0006 * step,  # below ln K - 0.05 after 84 steps
            "spread": 0.002 + 0.0005 * step,
            "top_share": max(0.06, 0.9 - 0.006 * step),
        }

    whole = history(slow, steps=2000)
    assert all(diagnose(whole[:end], PATIENCE) is None for end in range(len(whole) + 1))


def test_noise_around_a_threshold_neither_hides_a_collapse_nor_makes_one() -> None:
    stuck = history(lambda step: {"cross_entropy": LN_K - 0.09 * (step // 10 % 2)}, steps=400)
    found = [diagnose(stuck[:end], PATIENCE) for end in range(len(stuck) + 1)]
    assert any(each is not None and each.kind == "uniform assignment" for each in found)
    noisy = history(lambda step: {"cross_entropy": LN_K - 0.3 * (step // 10 % 2)}, steps=400)
    assert all(diagnose(noisy[:end], PATIENCE) is None for end in range(len(noisy) + 1))


def test_a_cause_is_named_before_what_it_brings_about() -> None:
    everything = {**SICK["dead prototypes"], **SICK["constant embedding"], **SICK["one prototype takes all"]}
    found = diagnose(history(lambda step: everything, steps=300), PATIENCE)
    assert found is not None
    assert found.kind == "one prototype takes all"
    later_cause = history(
        lambda step: SICK["dead prototypes"] | (SICK["one prototype takes all"] if step > 250 else {}),
        steps=300,
    )
    assert diagnose(later_cause, PATIENCE) is None, "the cause shows, but not yet for long"


def test_targets_that_one_prototype_has_are_a_collapse_whatever_the_predictions() -> None:
    found = diagnose(history(lambda step: {"top_target": 0.999}, steps=400), PATIENCE)
    assert found is not None
    assert found.kind == "one prototype takes all"
    assert "99.9%" in found.evidence


def test_a_run_that_is_slowly_leaving_ln_k_is_not_stuck() -> None:
    def falling(step: int) -> dict[str, float]:
        return {"cross_entropy": LN_K - 0.0002 * step}

    assert diagnose(history(falling, steps=210), PATIENCE) is None, "0.04 below, and 0.06 after as long again"
    found = diagnose(history(lambda step: {"cross_entropy": LN_K - 0.04}, steps=210), PATIENCE)
    assert found is not None


def test_few_prototypes_have_a_large_share_without_a_collapse() -> None:
    two = {"ln_k": math.log(2), "top_share": 0.6, "cross_entropy": 0.3}
    assert diagnose(history(lambda step: two, steps=400), PATIENCE) is None


def test_predictions_that_agree_on_one_prototype_against_their_targets_have_another_cause() -> None:
    silenced = {"top_share": 0.9, "cross_entropy": LN_K + 4, "spread": 0.01}
    found = diagnose(history(lambda step: silenced, steps=400), PATIENCE)
    assert found is not None
    assert found.kind == "constant embedding"


@pytest.mark.parametrize(
    ("loss", "single", "stuck"),
    [
        (LN_K - 0.04, 0.6, True),
        (LN_K - 0.08, 0.6, False),
        (LN_K - 0.08, 0.999, True),  # SwAV at temperature 10, which cannot get further below
        (LN_K - 0.29, 0.999, True),
        (LN_K - 0.31, 0.999, False),
    ],
)
def test_a_loss_near_ln_k_is_held_against_how_soft_predictions_are(
    loss: float, single: float, stuck: bool
) -> None:
    numbers = {"cross_entropy": loss, "single_entropy": single}
    found = diagnose(history(lambda step: numbers, steps=400), PATIENCE)
    assert (found is not None and found.kind == "uniform assignment") == stuck


def test_prototypes_that_have_their_mass_are_not_dead() -> None:
    soft = {"share_in_use": 0.35, "prediction_entropy": 0.897, "ln_k": math.log(20), "cross_entropy": 2.4}
    assert diagnose(history(lambda step: soft, steps=400), PATIENCE) is None, "SeLa-v2 after eight epochs"
    stale = {"share_in_use": 0.19, "prediction_entropy": 0.66}
    found = diagnose(history(lambda step: stale, steps=400), PATIENCE)
    assert found is not None
    assert found.kind == "dead prototypes"
    assert "19.0% of 32" in found.evidence
    assert "30.8%" in found.evidence, "32 ** (0.66 - 1)"


RECORDED = {
    "tiny/msn": (32, [(2.54, 0.78, 0.52, 0.06, 0.06, 0.99), (1.4, 0.5, 0.7, 0.084, 0.098, 0.97)]),
    "tiny/swav": (32, [(2.86, 0.811, 0.429, 0.069, 0.058, 0.99), (1.9, 0.6, 0.68, 0.05, 0.05, 0.98)]),
    "tiny/deepcluster": (20, [(2.8, 0.945, 0.1, 0.06, 0.12, 0.997), (0.8, 0.5, 0.5, 0.128, 0.169, 0.98)]),
    "tiny/sela": (20, [(2.79, 0.874, 0.195, 0.1, 0.122, 0.897), (2.0, 0.73, 0.38, 0.14, 0.14, 0.93)]),
}
"""K, and of healthy runs the worst loss, entropy of one prediction, spread, largest shares and entropy of the
mean prediction after the warm-up, and what they had later."""


@pytest.mark.parametrize("name", RECORDED)
def test_the_worst_numbers_of_healthy_runs_are_no_collapse_however_long_they_last(name: str) -> None:
    k, rows = RECORDED[name]
    names = ("cross_entropy", "single_entropy", "spread", "top_share", "top_target", "prediction_entropy")
    for row in rows:
        numbers = {**dict(zip(names, row, strict=True)), "ln_k": math.log(k), "share_in_use": 0.35}
        assert diagnose(history(lambda step, same=numbers: same, steps=1000), PATIENCE) is None  # type: ignore[misc]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_told_at_once(value: float) -> None:
    run = history(lambda step: {"agreement": value} if step == 49 else {}, steps=50)
    found = diagnose(run, PATIENCE)
    assert found is not None
    assert (found.kind, found.since) == ("non-finite values", 49)
    assert "agreement" in found.evidence


def test_exploding_gradients_are_told_before_they_are_not_finite() -> None:
    spike = history(lambda step: {"grad_norm": 80.0} if step == 199 else {}, steps=200)
    assert diagnose(spike, PATIENCE) is None, "clipping takes care of one"
    growing = history(lambda step: {"grad_norm": 0.5 * 10 ** max(0, (step - 130) // 10)}, steps=200)
    found = diagnose(growing, PATIENCE)
    assert found is not None
    assert found.kind == "non-finite values"
    assert found.evidence.startswith("about to")


@pytest.mark.parametrize("kind", SICK)
def test_recovery_takes_half_of_the_patience(kind: str) -> None:
    def run(steps: int) -> list[Reading]:
        return history(lambda step: SICK[kind] if step < 400 else {}, steps=steps)

    found = diagnose(run(400), PATIENCE)
    assert found is not None
    assert not recovered(run(400), found, PATIENCE)
    assert not recovered(run(450), found, PATIENCE)
    assert recovered(run(460), found, PATIENCE)


def test_nothing_follows_from_nothing() -> None:
    assert diagnose([], PATIENCE) is None


def test_patience_grows_with_the_run_and_its_warm_up() -> None:
    def of(total: int, epoch: int, warmup: int, every: int = 10) -> tuple[int, int]:
        found = Patience.of(
            total_steps=total, steps_per_epoch=epoch, warmup_steps=warmup, log_every_steps=every
        )
        return found.grace_steps, found.steps

    assert of(2200, 10, 100) == (110, 110)
    assert of(1_000_000, 1251, 18_765) == (18_765, 2502), "two epochs, after the warm-up"
    assert of(160, 10, 150) == (80, 50), "half of a short run"
    assert of(40, 10, 10) == (50, 50), "too short to tell"
    assert of(2200, 10, 100, 50) == (250, 250), "five readings"


# The remedy

REMEDIES = (
    Remedy("uniform assignment", "method.temperature", "lower", 0.1, "because"),
    Remedy("uniform assignment", "method.queue.length", "lower", 100, "because"),
    Remedy("uniform assignment", "method.sharpen", "lower", {"start": 0.25, "final": 0.25}, "because"),
    Remedy("uniform assignment", "optim.clip", "raise", 3.0, "because"),
    Remedy("uniform assignment", "method.bn", "set", False, "because"),
    Remedy("uniform assignment", "optim.lr", "scale", 0.5, "because"),
    Remedy("dead prototypes", "method.temperature", "raise", 0.2, "because"),
)


def test_the_first_remedy_that_would_change_the_recipe() -> None:
    method: dict[str, Any] = {
        "temperature": 0.5,
        "queue": None,
        "sharpen": {"start": 0.25, "final": 0.5},
        "bn": True,
    }
    optim: dict[str, Any] = {"lr": 0.01, "clip": None}
    settings = {"method": method, "optim": optim}

    def first() -> tuple[str, str]:
        change = first_change(REMEDIES, "uniform assignment", settings)
        assert change is not None
        return change.override, change.was

    assert first() == ("method.temperature=0.1", "0.5")
    method["temperature"] = 0.1
    assert first() == ("method.sharpen={start: 0.25, final: 0.25}", "{start: 0.25, final: 0.5}")
    method["sharpen"] = {"start": 0.2, "final": 0.25}
    assert first() == ("optim.clip=3", "null")
    optim["clip"] = 5.0
    assert first() == ("method.bn=false", "true")
    method["bn"] = False
    assert first() == ("optim.lr=0.005", "0.01")
    optim["lr"] = 0.0
    assert first_change(REMEDIES, "uniform assignment", settings) is None
    assert first_change(REMEDIES, "constant embedding", settings) is None


def test_a_remedy_for_one_optimizer_is_passed_over_with_another() -> None:
    lr = {"start": 0.0, "peak": 10.0, "final": 0.0, "warmup_epochs": 5.0}
    remedies = smaller_steps("uniform assignment", "because")
    for optimizer, peak in (("larc", "4.8"), ("adamw", "0.01")):
        change = first_change(remedies, "uniform assignment", {"optim": {"name": optimizer, "lr": lr}})
        assert change is not None
        assert change.override == f"optim.lr.peak={peak}"
    assert first_change(remedies, "uniform assignment", {"optim": {"name": "other", "lr": lr}}) is None


@pytest.mark.parametrize(
    ("start", "final", "warmup", "override"),
    [
        (0.3, 0.003, 10.0, "optim.lr.peak=4.8"),
        (6.0, 0.003, 10.0, "optim.lr={start: 4.8, peak: 4.8, final: 0.003, warmup_epochs: 10}"),
        (0.3, 5.0, 10.0, "optim.lr={start: 0.3, peak: 4.8, final: 4.8, warmup_epochs: 10}"),
        (9.0, 0.003, 0.0, "optim.lr={start: 4.8, peak: 4.8, final: 0.003, warmup_epochs: 0}"),
    ],
)
def test_a_peak_takes_what_a_recipe_would_refuse_beside_it_along(
    start: float, final: float, warmup: float, override: str
) -> None:
    lr = {"start": start, "peak": 9.0, "final": final, "warmup_epochs": warmup}
    change = first_change(
        smaller_steps("uniform assignment", "because"),
        "uniform assignment",
        {"optim": {"name": "larc", "lr": lr}},
    )
    assert change is not None
    assert change.override == override


def test_a_pair_is_raised_by_its_first_part() -> None:
    def first(scale: tuple[float, float]) -> str | None:
        settings = {"views": {"global": {"scale": scale}}}
        change = first_change(softer_crops("uniform assignment"), "uniform assignment", settings)
        return None if change is None else change.override

    assert first((0.01, 0.05)) == "views.global.scale=[0.4, 1]"
    assert first((0.4, 0.8)) == "views.global.scale=[0.4, 1]"
    assert first((0.4, 1.0)) is None
    assert first((0.6, 0.8)) is None


def test_values_are_written_as_a_recipe_reads_them() -> None:
    assert written((1, 2.5)) == "[1, 2.5]"
    assert written({"a": None, "b": True, "c": "text"}) == "{a: null, b: true, c: text}"
    assert value_at({"a": {"b": 3}}, "a.b") == 3


# The watch


def fed(step: int, numbers: Mapping[str, float]) -> tuple[int, Measures]:
    every = torch.full((K,), 1 / K)
    return step, Measures({**HEALTHY, **numbers}, every, images=1000)


def a_watch() -> Watch:
    settings = {"method": {"temperature": 10.0}, "optim": {"lr": 1.0}}
    return Watch(PATIENCE, REMEDIES, settings)


def test_the_watch_says_a_kind_once_and_that_it_recovered() -> None:
    watch, said = a_watch(), []
    for step in range(0, 1000, 10):
        step, measures = fed(step, SICK["uniform assignment"] if step < 500 else {})
        said += [(step, text) for text in watch.feed(step, measures, grad_norm=0.5)]
        assert (watch.finding is not None) == (200 <= step < 550)
    assert [step for step, _ in said] == [200, 550]
    assert "uniform assignment since step 0" in said[0][1]
    assert "method.temperature=0.1 (now 10)" in said[0][1]
    assert "because" in said[0][1]
    assert "recovered" in said[1][1]


def test_dead_prototypes_are_seen_over_many_steps() -> None:
    watch, said = a_watch(), []
    few = torch.zeros(K)
    few[:4] = 0.25
    uneven = {**HEALTHY, "prediction_entropy": 0.4}
    for step in range(0, 300, 10):
        said += watch.feed(step, Measures(uneven, few, images=100), grad_norm=0.5)
    (text,) = said
    assert "dead prototypes" in text
    assert "12.5% of 32" in text
    assert "method.temperature" not in text.split("try first")[-1], "0.2 would not raise it"


def test_a_continued_run_is_not_told_twice() -> None:
    whole, lines = a_watch(), []
    for step in range(0, 400, 10):
        numbers = {**HEALTHY, **SICK["uniform assignment"]}
        whole.feed(*fed(step, SICK["uniform assignment"]), grad_norm=0.5)
        lines.append({"step": step, "epoch": 1.0, "loss": 3.0, "momentum": None, **numbers})
    again = a_watch()
    again.replay(lines, until=300)
    assert again.finding is not None
    assert again.feed(*fed(300, SICK["uniform assignment"]), grad_norm=0.5) == []
    fresh = a_watch()
    fresh.replay([{"step": 0, "loss": 1.0}], until=10)  # the record of a method without a watch
    assert fresh.finding is None


def test_null_in_the_record_is_a_value_that_is_not_finite() -> None:
    watch = a_watch()
    watch.replay([{"step": 0, **HEALTHY}, {"step": 10, **HEALTHY, "agreement": None}], until=20)
    assert watch.finding is not None
    assert watch.finding.kind == "non-finite values"


def test_the_step_that_ends_a_run_is_explained() -> None:
    watch = a_watch()
    for step in range(0, 100, 10):
        watch.feed(*fed(step, {}), grad_norm=0.5 if step < 90 else 20.0)
    told = watch.not_finite(95)
    assert "non-finite values since step 95" in told
    assert "gradient norm was 20 at step 90, 0.5 in the median" in told
    assert "first logged step" in a_watch().not_finite(0)

"""SeLa-v2's page, and what it does as DeepCluster-v2's: the pass before epoch 0, the bank, the labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from belvedere.core.errors import CheckpointError, RecipeError
from belvedere.data.batch import Batch
from belvedere.methods.deepcluster import DeepCluster, deepcluster_loss
from belvedere.methods.method import Clock
from belvedere.methods.sela import HardAssignments, Options, SeLa, SoftAssignments, soft_loss
from belvedere.methods.shared.clustered import label_watch
from belvedere.nn.norm import GlobalBatchNorm
from belvedere.ops.bank import UNSEEN
from belvedere.ops.sinkhorn import sinkhorn
from belvedere.recipe.load import load_recipe
from belvedere.train.loop import StepReport, steps
from belvedere.train.run import StoppedInPassError, epoch_batches, open_session, pretrain
from belvedere.train.session import Session

_STEPS = 3  # of an epoch: 450 images in batches of 128, 66 left out


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _session(method: str, directory: Path, overrides: Sequence[str] = ()) -> Session:
    small = ("data.split=test", "train.epochs=3", "backbone.depth=1", "optim.lr.warmup_epochs=0.5")
    own = (*small, "train.precision=float32", f"run.dir={directory}", "run.device=cpu")
    latest = {key: value for key, _, value in (line.partition("=") for line in (*own, *overrides))}
    recipe = load_recipe(f"tiny/{method}", [f"{key}={value}" for key, value in latest.items()])
    return open_session(recipe, torch.device("cpu"))


def _reports(run: Session) -> Iterator[StepReport]:
    with run.loader() as loader:
        yield from steps(
            run.method,
            run.optimizer,
            loader,
            run.plan,
            run.spread,
            start_step=run.step,
            epoch_batches=epoch_batches(run),
        )


def _sela(run: Session) -> SeLa:
    assert isinstance(run.method, SeLa)
    return run.method


def _state(run: Session) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in run.tensors().items()}


# The pass before epoch 0


class _CaughtError(Exception):
    """Ends a run where its first epoch begins."""


def _embed_dataset(run: Session) -> Callable[..., Iterable[tuple[Batch, Tensor]]]:
    """What the loop hands to `start_epoch`."""
    given: list[Callable[..., Iterable[tuple[Batch, Tensor]]]] = []

    def catch(at: Clock, embed_dataset: Callable[..., Iterable[Any]]) -> None:
        given.append(embed_dataset)
        raise _CaughtError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.method, "start_epoch", catch)
        with pytest.raises(_CaughtError):
            next(_reports(run))
    return given[0]


@pytest.mark.parametrize("method", ["deepcluster", "sela"])
def test_the_pass_sees_the_views_of_the_epoch_and_moves_no_statistics(method: str, tmp_path: Path) -> None:
    run = _session(method, tmp_path)
    before = _state(run)

    def encode(student: nn.Module, batch: Batch) -> dict[str, Tensor]:
        assert run.method.training
        return {"h": student(batch.views["global"].flatten(0, 1), part="backbone").unflatten(0, (2, -1))}

    def head(student: nn.Module, encoded: dict[str, Tensor]) -> Tensor:
        assert not torch.is_grad_enabled()
        z: Tensor = student(encoded["h"].flatten(0, 1), part="head")
        return z

    seen = [batch for batch, _ in _embed_dataset(run)(encode, head)]
    assert len(seen) == _STEPS
    with run.loader() as loader:
        for batch, step_batch in zip(seen, loader, strict=False):
            assert torch.equal(batch.index, step_batch.index)
            assert all(torch.equal(batch.views[role], step_batch.views[role]) for role in batch.views)
    after = _state(run)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert all(not norm.pending for norm in run.method.modules() if isinstance(norm, GlobalBatchNorm))


@pytest.mark.parametrize("method", ["deepcluster", "sela"])
def test_an_epochs_start_that_is_repeated_is_the_same_to_the_bit(method: str, tmp_path: Path) -> None:
    states, passes = [], 0
    for _ in range(2):
        run = _session(method, tmp_path)
        embed_dataset = _embed_dataset(run)

        def counted(
            *given: Any, through: Callable[..., Iterable[Any]] = embed_dataset
        ) -> Iterator[tuple[Batch, Tensor]]:
            nonlocal passes
            passes += 1
            yield from through(*given)

        for _ in range(2):
            run.method.start_epoch(run.plan.clock(0), counted)
            states.append(_state(run))
    assert passes == 2, "a full bank is not filled again"
    for state in states[1:]:
        assert [name for name in state if not torch.equal(state[name], states[0][name])] == []


def test_a_micro_batch_changes_no_embedding_of_the_pass(tmp_path: Path) -> None:
    banks = []
    for micro_batch in ("null", "50"):
        run = _session("sela", tmp_path, ["train.precision=float64", f"run.micro_batch={micro_batch}"])
        reports = _reports(run)
        next(reports)
        reports.close()
        banks.append(_sela(run).bank)
    rows = slice(run.plan.batch, None)  # the first batch was overwritten by the step
    torch.testing.assert_close(banks[0].embeddings[:, rows], banks[1].embeddings[:, rows], rtol=0, atol=1e-12)
    assert torch.equal(banks[0].index, banks[1].index)
    torch.testing.assert_close(banks[0].embeddings.norm(dim=2).mean().item(), 1.0)


@pytest.mark.parametrize("method", ["deepcluster", "sela"])
def test_a_stop_during_the_pass_ends_the_run_with_nothing_lost(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _session(method, tmp_path)
    batches = epoch_batches(run, asked=lambda: True)(run.plan.clock(0))
    with pytest.raises(StoppedInPassError):
        next(batches)

    told: list[str] = []

    def asking(session: Session, **_: Any) -> Callable[[Clock], Iterator[Batch]]:
        return epoch_batches(session, asked=lambda: len(told) > 0, say=told.append)

    monkeypatch.setattr("belvedere.train.run.epoch_batches", asking)
    stopped = pretrain(run.recipe)
    assert (stopped.step, stopped.stopped) == (0, True)
    assert "batch 1 of 3" in told[0]
    monkeypatch.undo()
    whole = pretrain(run.recipe)
    assert (whole.step, whole.stopped) == (9, False)


# Labels


def test_hard_labels_are_the_largest_share_of_the_dense_plan(tmp_path: Path) -> None:
    run = _session("sela", tmp_path, ["train.precision=float64", "method.prototypes=[20, 15, 10]"])
    method = _sela(run)
    reports = _reports(run)
    list(zip(range(_STEPS), reports, strict=False))
    bank = method.bank.embeddings.clone()
    prototypes = [F.normalize(weight) for weight in method.prototypes.weights()]
    index = method.bank.index.clone()
    report = next(reports)  # the first step of epoch 1 assigns before it trains
    reports.close()
    assert isinstance(method.assignments, HardAssignments)
    for head, weight in enumerate(prototypes):
        q = sinkhorn(bank[head % 2] @ weight.T / 0.05, 10)
        assert torch.equal(method.assignments.labels[head, index].long(), q.argmax(1))
    unseen = method.assignments.labels == UNSEEN
    assert unseen.sum(1).tolist() == [450 - 384] * 3
    assert 0 < float(report.losses.watch["unseen"]) < 1


def test_soft_targets_are_the_rows_of_the_dense_plan(tmp_path: Path) -> None:
    run = _session("sela", tmp_path, ["train.precision=float64", "method.targets=soft"])
    method = _sela(run)
    reports = _reports(run)
    list(zip(range(_STEPS), reports, strict=False))
    bank, index = method.bank.embeddings.clone(), method.bank.index.clone()
    weights = [F.normalize(weight) for weight in method.prototypes.weights()]
    next(reports)
    reports.close()
    assert isinstance(method.assignments, SoftAssignments)
    scores = [torch.randn(6, 20, dtype=torch.float64) for _ in range(3)]
    missing = next(image for image in range(450) if image not in index)
    asked = torch.tensor([int(index[0]), missing, int(index[200])])
    losses = method.assignments.loss(scores, asked)
    total = 0.0
    for head, weight in enumerate(weights):
        q = sinkhorn(bank[head % 2] @ weight.T / 0.05, 10)[[0, 200]].repeat(2, 1)  # both views
        log_p = (scores[head][[0, 2, 3, 5]] / 0.1).log_softmax(1)
        total += float(-(q * log_p).sum(1).mean()) / 3
    torch.testing.assert_close(float(losses.total), total, rtol=1e-10, atol=0)
    assert losses.kept["targets"][:, 1].tolist() == [UNSEEN] * 3


@pytest.mark.parametrize("targets", ["hard", "soft"])
def test_resume_in_the_middle_of_an_interval_is_bitwise(targets: str, tmp_path: Path) -> None:
    overrides = [f"method.targets={targets}", "method.refresh_epochs=2"]
    whole = _session("sela", tmp_path / "whole", overrides)
    list(zip(range(8), _reports(whole), strict=False))
    first = _session("sela", tmp_path / "parts", overrides)
    for report in _reports(first):
        first.step = report.at.step + 1
        if first.step == 4:
            break
    first.save()
    second = _session("sela", tmp_path / "parts", overrides)
    assert second.resume()
    list(zip(range(4), _reports(second), strict=False))
    expected, found = _state(whole), _state(second)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    names = set(second.own_state())
    assert {"bank.embeddings", "bank.index"} <= names
    assert ("assignments.snapshot.row" in names) == (targets == "soft")


def test_assignments_are_refreshed_as_often_as_the_recipe_says(tmp_path: Path) -> None:
    run = _session("sela", tmp_path, ["method.refresh_epochs=2"])
    method, labels = _sela(run), []
    assert isinstance(method.assignments, HardAssignments)
    for report in _reports(run):
        if report.at.step % _STEPS == 0:
            labels.append(method.assignments.labels.clone())
    assert torch.equal(labels[0], labels[1])
    assert not torch.equal(labels[1], labels[2])


def test_prototypes_keep_their_direction_until_they_are_let_go(tmp_path: Path) -> None:
    run = _session("sela", tmp_path, ["method.freeze_prototypes_steps=2"])
    weight = _sela(run).prototypes.weights()[0]
    start = F.normalize(weight.detach().clone())
    reports = _reports(run)
    for _ in range(2):
        next(reports)
        torch.testing.assert_close(weight.detach(), start, rtol=0, atol=1e-6)
        assert weight.grad is None
    next(reports)
    reports.close()
    assert (weight.detach() - start).abs().max() > 1e-5


def test_deepclusters_prototypes_are_unit_centroids_that_no_step_moves(tmp_path: Path) -> None:
    run = _session("deepcluster", tmp_path)
    method = run.method
    assert isinstance(method, DeepCluster)
    at_start: list[Tensor] = []
    for report in _reports(run):
        now = torch.cat([weight.clone() for weight in method.prototypes.weights()])
        if report.at.step % _STEPS == 0:
            at_start.append(now)
        assert torch.equal(now, at_start[-1])
        if report.at.step == _STEPS:
            break
    torch.testing.assert_close(at_start[0].norm(dim=1), torch.ones(60))
    assert not torch.equal(at_start[0], at_start[1])


# Losses


def test_a_batch_that_nobody_has_seen_has_loss_zero_and_no_gradient() -> None:
    labels = torch.full((2, 3), UNSEEN)
    scores = [torch.randn(6, 4, requires_grad=True) for _ in range(2)]
    q = [torch.full((3, 4), 0.25)] * 2
    hard = deepcluster_loss(scores, labels, temperature=0.1)
    soft = soft_loss(scores, q, torch.zeros(3, dtype=torch.bool), temperature=0.1)
    for losses in (hard, soft):
        assert float(losses.total.detach()) == 0.0
        assert all((g == 0).all() for g in torch.autograd.grad(losses.total, scores))
        assert {name: float(value) for name, value in losses.watch.items()} == {
            "mean_entropy": 0.0,
            "prototypes_used": 0.0,
            "unseen": 1.0,
        }


def test_soft_loss_of_one_hot_shares_is_the_hard_loss() -> None:
    labels = torch.tensor([[2, UNSEEN, 0]])
    scores = [torch.randn(6, 4)]
    q = [torch.eye(4)[[2, 1, 0]]]
    hard = deepcluster_loss(scores, labels, temperature=0.1)
    soft = soft_loss(scores, q, torch.tensor([True, False, True]), temperature=0.1)
    torch.testing.assert_close(hard.total, soft.total)
    assert torch.equal(hard.kept["targets"], soft.kept["targets"])


def test_the_watch_tells_one_that_takes_all_from_equal_shares() -> None:
    labels = torch.tensor([[0, 1, 2, 3], [1, 1, 1, UNSEEN]])
    found = {name: float(value) for name, value in label_watch(labels, [4, 6]).items()}
    expected = {"mean_entropy": 0.5 * 1.3862944, "prototypes_used": 2.5, "unseen": 0.125}
    assert found == pytest.approx(expected)


# Bad input


@pytest.mark.parametrize("method", ["deepcluster", "sela"])
def test_more_prototypes_than_rows_are_refused_with_the_bound(method: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"method\.prototypes: 385 prototypes .* at most 384"):
        _session(method, tmp_path, ["method.prototypes=[20, 385]"])
    assert _session(method, tmp_path, ["method.prototypes=[20, 384]"]).plan.extent.images == 450


@pytest.mark.parametrize("method", ["deepcluster", "sela"])
def test_fewer_images_than_a_batch_are_refused(method: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train\.global_batch: 512 is more than the 450 images"):
        _session(method, tmp_path, ["train.global_batch=512"])


@pytest.mark.parametrize("method", ["deepcluster", "sela"])
@pytest.mark.parametrize(
    ("assign", "words"),
    [
        ("[0, 6]", "names a view that is not there; the 6 views are 0 to 5"),
        ("[1, 1]", "names a view twice"),
        ("[0, 1, 2, 3]", "4 views for 3 heads"),
    ],
)
def test_views_that_cannot_be_assigned_are_refused(
    method: str, assign: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=words):
        _session(method, tmp_path, [f"method.assign={assign}"])


@pytest.mark.parametrize("method", ["deepcluster", "sela"])
def test_another_data_set_on_resume_is_refused(method: str, tmp_path: Path) -> None:
    run = _session(method, tmp_path)
    run.save()
    with pytest.raises(CheckpointError, match=r"does not fit|other images"):
        _session(method, tmp_path, ["data.split=train"]).resume()


def test_a_run_that_cannot_learn_its_prototypes_is_doubted(tmp_path: Path) -> None:
    doubtful = ["method.freeze_prototypes_steps=9", "method.refresh_epochs=3"]
    warnings = " ".join(_session("sela", tmp_path, doubtful).plan.warnings)
    assert "never learn" in warnings
    assert "untrained network" in warnings
    short = ["method.freeze_prototypes_steps=3", "method.refresh_epochs=1"]
    warnings = " ".join(_session("sela", tmp_path, short).plan.warnings)
    assert "freeze" not in warnings
    assert "refresh" not in warnings


# Published runs


@pytest.mark.parametrize(
    ("name", "weights", "accuracy", "epochs", "global_", "local"),
    [
        ("deepcluster/rn50-800ep", "deepclusterv2_800ep", 75.2, 800, (2, 224, 0.14), (6, 96, 0.05)),
        ("deepcluster/rn50-400ep", "deepclusterv2_400ep", 74.3, 400, (2, 160, 0.08), (4, 96, 0.05)),
        ("deepcluster/rn50-400ep-2x224", "deepclusterv2_400ep_2x224", 70.2, 400, (2, 224, 0.08), None),
        ("sela/rn50-400ep", "selav2_400ep", 71.8, 400, (2, 160, 0.08), (4, 96, 0.05)),
        ("sela/rn50-400ep-2x224", "selav2_400ep_2x224", 67.2, 400, (2, 224, 0.08), None),
    ],
)
def test_published_runs(
    name: str,
    weights: str,
    accuracy: float,
    epochs: int,
    global_: tuple[int, int, float],
    local: tuple[int, int, float] | None,
) -> None:
    recipe = load_recipe(name)
    assert recipe.published is not None
    assert recipe.published.accuracy == {"linear": accuracy}
    assert recipe.published.weights == f"{weights}_pretrain.pth.tar"
    assert (recipe.train.epochs, recipe.train.global_batch) == (epochs, 4096)
    views = {role: (view.count, view.px, view.scale[0]) for role, view in recipe.views.items()}
    assert views == {"global": global_} | ({"local": local} if local else {})
    assert recipe.views["global"].scale[1] == 1.0
    assert not local or recipe.views["local"].scale[1] == 0.14
    assert recipe.method.prototypes == (3000, 3000, 3000)  # type: ignore[attr-defined]
    assert recipe.data.std == (0.228, 0.224, 0.225)
    lr = recipe.optim.lr
    assert (lr.start, lr.peak, lr.final, lr.warmup_epochs) == (0.3, 4.8, 0.0048, 10)
    assert bool(recipe.published.unknown) == name.startswith("sela")


def test_what_no_source_settles_of_sela_is_marked_unknown() -> None:
    published = load_recipe("sela/rn50-400ep").published
    assert published is not None
    of_small_runs = {"freeze_prototypes_epochs"}  # the other way to say the steps
    open_choices = set(Options.model_fields) - {"name", "head"} - of_small_runs
    assert {f"method.{key}" for key in open_choices} <= set(published.unknown)

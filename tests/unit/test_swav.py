"""SwAV's page: its loss by the paper's formula, the queue as a function of the step, frozen prototypes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.core.errors import RecipeError
from belvedere.methods.method import Clock, Extent, Losses
from belvedere.methods.swav import Options, SwAV, push_, swav_loss
from belvedere.nn.build import build
from belvedere.nn.norm import GlobalBatchNorm
from belvedere.recipe.load import load_recipe
from belvedere.recipe.plan import Plan, plan
from belvedere.train.export import export_backbone
from belvedere.train.loop import StepReport, steps
from belvedere.train.run import open_session
from belvedere.train.session import Session
from belvedere.zoo.load import load, load_heads

QUEUE = "method.queue={length: 300, start_epoch: 1}"


def _options(**changes: Any) -> Options:
    return load_recipe("tiny/swav").method.model_copy(update=changes)  # type: ignore[return-value]


def _planned(*overrides: str, num_images: int = 1347, world_size: int = 1) -> Plan:
    return plan(load_recipe("tiny/swav", overrides), num_images=num_images, world_size=world_size)


def _refused(*overrides: str, num_images: int = 1347, world_size: int = 1) -> str:
    with pytest.raises(RecipeError) as caught:
        _planned(*overrides, num_images=num_images, world_size=world_size)
    return str(caught.value)


# Loss


def _plain_targets(scores: Tensor, queued: Tensor | None, *, epsilon: float, iterations: int) -> Tensor:
    """Sinkhorn as the paper writes it: exponentials, rows and columns divided in turn."""
    samples = scores if queued is None else torch.cat([queued, scores])
    q = (samples / epsilon).exp().T
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(1, keepdim=True) * len(q)
        q /= q.sum(0, keepdim=True) * q.shape[1]
    return (q * q.shape[1]).T[-len(scores) :]


@pytest.mark.parametrize("assign", [(0, 1), (2,), (3, 0, 1)])
@pytest.mark.parametrize("queue_rows", [0, 12])
def test_the_loss_is_the_papers(assign: tuple[int, ...], queue_rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(4, 6, 10, generator=generator, dtype=torch.float64) * 2 - 1
    queued = torch.rand(len(assign), queue_rows, 10, generator=generator, dtype=torch.float64) * 2 - 1
    options = _options(assign=assign, epsilon=0.1, sinkhorn_iterations=2, temperature=0.3)
    total = 0.0
    for number, view in enumerate(assign):
        rows = queued[number] if queue_rows else None
        q = _plain_targets(scores[view], rows, epsilon=0.1, iterations=2)
        for other in set(range(4)) - {view}:
            log_p = (scores[other] / 0.3).log_softmax(1)
            total += -(q * log_p).sum(1).mean().item() / 3 / len(assign)
    losses = swav_loss(scores, queued if queue_rows else None, options=options)
    assert losses.total.item() == pytest.approx(total, rel=1e-12)
    assert not losses.kept["targets"].requires_grad


def test_targets_carry_no_gradient() -> None:
    """Only predictions do: an assigned view that nobody else is assigned to predict gets none."""
    scores = torch.randn(2, 4, 8, dtype=torch.float64, requires_grad=True)
    losses = swav_loss(scores, None, options=_options(assign=(0,)))
    (gradient,) = torch.autograd.grad(losses.total, scores)
    assert gradient[0].abs().max() == 0
    assert gradient[1].abs().max() > 0


@pytest.mark.parametrize("epsilon", [0.05, 0.03, 1e-3])
def test_no_epsilon_overflows(epsilon: float) -> None:
    scores = F.normalize(torch.randn(2, 16, 8), dim=2)
    losses = swav_loss(scores, None, options=_options(assign=(0, 1), epsilon=epsilon))
    assert losses.total.isfinite()
    torch.testing.assert_close(losses.kept["targets"].sum(2), torch.ones(2, 16))


# Queue


def test_the_newest_batch_comes_first_and_the_oldest_falls_out() -> None:
    queue = torch.zeros(2, 6, 3)
    batches = [torch.full((2, 2, 3), float(number)) for number in range(1, 5)]
    for batch in batches:
        push_(queue, batch)
    assert queue[:, :, 0].tolist() == [[4.0, 4.0, 3.0, 3.0, 2.0, 2.0]] * 2
    push_(queue[:, :2], batches[0])  # a queue of one batch
    assert queue[0, :, 0].tolist() == [1.0, 1.0, 3.0, 3.0, 2.0, 2.0]


def _method(extent: Extent, *overrides: str) -> SwAV:
    recipe = load_recipe("tiny/swav", [QUEUE, *overrides])
    method = SwAV(recipe.method, build(recipe.backbone), seed=0)  # type: ignore[arg-type]
    method.allocate(extent)
    return method


def test_each_process_has_its_share_of_a_queue_in_whole_batches() -> None:
    for world_size in (1, 2, 4):
        extent = Extent(1347, 100, 10, 128, world_size)
        queue = _method(extent).queue
        assert queue is not None
        assert queue.shape == (2, 256 // world_size, 64)
        assert queue.abs().max() == 0


def test_a_queue_is_used_once_as_many_batches_were_pushed_as_it_holds() -> None:
    extent = Extent(1347, 3, 10, 128, 1)
    method = _method(extent)
    used, filled = [], []
    for step in range(16):
        at = Clock(step, 10, 30, 30.0)
        used.append(method.full_queue(at, 128) is not None)
        z = F.normalize(torch.randn(6, 128, 64), dim=2)
        method.after_update({}, Losses(z.sum(), kept={"z": z}), at)
        assert method.queue is not None
        filled.append(int((method.queue != 0).any(2).sum()) // 2)
    assert used == [step >= 12 for step in range(16)]
    assert filled[9:13] == [0, 128, 256, 256]


def test_the_plan_says_what_became_of_the_queue() -> None:
    told = dict(_planned(QUEUE).table())
    assert told["queue"] == (
        "256 embeddings (2 whole batches; 300 rounded down) from epoch 1, used from step 12"
    )
    assert "queue" not in dict(_planned().table())


def test_a_queue_without_effect_is_refused() -> None:
    none = "method.queue.length: 127 is less than one batch, and whole batches are kept; set it to 128"
    assert _refused("method.queue={length: 127, start_epoch: 0}").startswith(none)
    late = _refused(
        "method.queue={length: 128, start_epoch: 5}", "train.epochs=5", "optim.lr.warmup_epochs=1"
    )
    assert late.startswith("method.queue.start_epoch: 5 is never reached with train.epochs 5")


def test_what_is_probably_not_meant() -> None:
    short = ("train.epochs=2", "optim.lr.warmup_epochs=1")
    never, *others = _planned("method.queue={length: 1280, start_epoch: 1}", *short).warnings
    measured, *durations = others
    assert measured.startswith("train.epochs: 80 epochs were 800 steps")
    assert all(" of this run of 20 steps" in words for words in durations)
    assert never.startswith(
        "method.queue.length: 1280 embeddings from epoch 1 on are not reached in 20 steps"
    )
    (many,) = _planned("method.prototypes=129").warnings
    assert many.startswith("method.prototypes: Sinkhorn shares 129 prototypes out among 128 samples")
    assert _planned("method.prototypes=256", "method.queue={length: 128, start_epoch: 0}").warnings == ()
    frozen, *_ = _planned("method.freeze_prototypes_steps=20", *short).warnings
    assert frozen.startswith("method.freeze_prototypes_steps: 20 steps of a run of 20")
    assert "which here is 10" in frozen


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "method.assign=[0, 6]",
            "method.assign: [0, 6] names a view that is not there; the 6 views are 0 to 5",
        ),
        ("method.assign=[1, 1]", "method.assign: [1, 1] names a view twice"),
        ("method.assign=[]", "method.assign: "),
        ("method.sinkhorn_iterations=0", "method.sinkhorn_iterations: 0 is not allowed"),
        ("method.epsilon=0", "method.epsilon: 0 is not allowed"),
    ],
)
def test_options_that_do_not_fit(override: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("tiny/swav", [override])
    assert words in str(caught.value)


def test_one_view_has_nothing_to_predict() -> None:
    local = load_recipe("swav/rn50-400ep-2x224", ["views.global.count=2", "method.assign=[1]"])
    assert "local" not in local.views
    with pytest.raises(RecipeError, match=r"views\.global\.count: one view has no other to predict"):
        load_recipe("swav/rn50-400ep-2x224", ["views.global.count=1", "method.assign=[0]"])


# Through the loop


def _session(directory: Path, *overrides: str) -> Session:
    values = ["train.epochs=2", "train.global_batch=16", "optim.lr.warmup_epochs=1", f"run.dir={directory}"]
    recipe = load_recipe("tiny/swav", [*values, "run.device=cpu", *overrides])
    return open_session(recipe, torch.device("cpu"))


def _drain(run: Session, until: int) -> list[StepReport]:
    reports = []
    with run.loader() as loader:
        for report in steps(run.method, run.optimizer, loader, run.plan, run.spread, start_step=run.step):
            reports.append(report)
            run.step = report.at.step + 1
            if run.step == until:
                return reports
    return reports


def test_frozen_prototypes_only_return_to_the_sphere(tmp_path: Path) -> None:
    run = _session(tmp_path, "method.freeze_prototypes_steps=2")
    weight = run.method.prototypes.weight  # type: ignore[union-attr]
    start = F.normalize(weight.detach(), dim=1)
    _drain(run, 2)
    torch.testing.assert_close(weight.detach(), start)
    assert not any("prototypes" in name for name in run.tensors() if name.startswith("optim/"))
    _drain(run, 3)
    assert (weight.detach() - start).abs().max() > 1e-5
    assert not torch.allclose(weight.detach().norm(dim=1), torch.ones(len(start)), atol=1e-7, rtol=0)


def test_a_checkpoint_names_whose_queue_it_holds(tmp_path: Path) -> None:
    run = _session(tmp_path, "method.queue={length: 32, start_epoch: 0}")
    _drain(run, 3)
    assert [name for name in run.tensors() if "queue" in name] == ["rank0/method/queue"]
    run.save()
    again = _session(tmp_path, "method.queue={length: 32, start_epoch: 0}")
    assert again.resume()
    assert torch.equal(run.method.queue, again.method.queue)  # type: ignore[arg-type]
    assert run.method.queue.abs().max() > 0  # type: ignore[union-attr,operator]


def test_backbone_and_heads_are_exported_under_their_published_names(tmp_path: Path) -> None:
    run = _session(tmp_path, "method.queue={length: 32, start_epoch: 0}")
    _drain(run, 1)
    export_backbone(run)
    loaded, heads = load(tmp_path), load_heads(tmp_path)
    assert loaded.card.backbone == run.recipe.backbone
    assert {"conv1.weight", "layer4.0.bn2.running_var"} <= set(loaded.backbone.state_dict())
    layers = {f"projection_head.{n}" for n in ("0.weight", "0.bias", "3.weight", "3.bias")}
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    norms = {f"projection_head.1.{n}" for n in norm}
    assert set(heads) == layers | norms | {"prototypes.weight"}
    assert torch.equal(heads["prototypes.weight"], run.method.prototypes.weight)  # type: ignore[union-attr]


def test_micro_batches_move_the_backbones_statistics_once_each(tmp_path: Path) -> None:
    """The pass without gradient does not count."""
    run = _session(tmp_path, "run.micro_batch=8")
    assert any(
        words.startswith("run.micro_batch: each of the 2 micro-batches") for words in run.plan.warnings
    )
    _drain(run, 1)
    (first,) = [m for n, m in run.method.named_modules() if n == "student.backbone.bn1"]
    (head,) = [m for n, m in run.method.named_modules() if n == "student.projection_head.1"]
    assert isinstance(first, GlobalBatchNorm)
    assert isinstance(head, GlobalBatchNorm)
    assert int(first.num_batches_tracked) == 2 * 2  # runs of equal sizes, micro-batches
    assert int(head.num_batches_tracked) == 1


def test_groups_of_batch_norm_reach_the_networks(tmp_path: Path) -> None:
    run = _session(tmp_path, "train.batch_norm_group=1")
    norms = [module for module in run.method.modules() if isinstance(module, GlobalBatchNorm)]
    assert {norm.group for norm in norms} == {1}


def test_all_parameters_are_decayed_and_the_peak_comes_twice(tmp_path: Path) -> None:
    run = _session(tmp_path)
    (group,) = run.method.groups()
    assert group.decay
    assert len(group.parameters) == len(list(run.method.parameters()))
    lr, warm = run.plan.lr, run.plan.warmup_steps
    assert (lr(0), lr(warm - 1), lr(warm)) == (lr.start, lr.peak, lr.peak)
    assert lr(warm + 1) < lr.peak

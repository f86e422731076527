from __future__ import annotations

import copy
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eval_fakes import FakeBackbone, FakeCard, clusters, coloured_source, feature_spec
from pydantic import ValidationError

from belvedere.core.errors import EvaluationError
from belvedere.core.rng import torch_generator
from belvedere.eval import linear_scores
from belvedere.eval.features import extract, feature_map, pool_map
from belvedere.eval.linear import LinearProbe, ProbeSettings, nesterov_, probe_steps, train_probe, train_steps
from belvedere.eval.linear_pooled import (
    EpochCosine,
    EpochSteps,
    PooledProbe,
    PooledProbeSettings,
    published_probe,
)
from belvedere.eval.linear_scores import EpochLog, ProbeStep, epoch_logs, score
from belvedere.nn.backbone import Features
from belvedere.nn.resnet import ResNet
from belvedere.nn.spec import ResNetSpec

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))

import handlers_swav_eval as handlers  # noqa: E402

Array = np.ndarray[Any, Any]


def _set(counts: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    features, labels = clusters(counts, 8, seed=seed)
    return features, torch.from_numpy(labels)


def test_the_velocity_holds_the_learning_rate() -> None:
    """The published rule by hand for two steps with a changing learning rate."""
    p = torch.nn.Parameter(torch.tensor([[2.0]]))
    bias = torch.nn.Parameter(torch.tensor([3.0]))
    velocity = [torch.zeros(1, 1), torch.zeros(1)]
    p.grad, bias.grad = torch.tensor([[1.0]]), torch.tensor([1.0])
    nesterov_([p, bias], velocity, lr=0.1, momentum=0.9, weight_decay=0.5)
    v1 = -0.1 * (1.0 + 0.5 * 2.0)
    p1 = 2.0 + v1 + 0.9 * v1
    assert p.item() == pytest.approx(p1)
    assert bias.item() == pytest.approx(3.0 - 0.1 - 0.09)  # no decay on a vector
    nesterov_([p, bias], velocity, lr=0.01, momentum=0.9, weight_decay=0.5)
    pull = 0.01 * (1.0 + 0.5 * p1)
    v2 = 0.9 * v1 - pull
    assert p.item() == pytest.approx(p1 - pull + 0.9 * v2)


def test_the_cosine_starts_at_lr_and_ends_above_zero() -> None:
    probe = LinearProbe(8, 2, normalize=True)
    batch = _set([3, 3])
    lrs = [step.lr for step in probe_steps(probe, [batch] * 4, lr=0.8, total_steps=4)]
    assert lrs == pytest.approx([0.4 * (1 + math.cos(math.pi * i / 4)) for i in range(4)])


def test_the_layernorm_is_trained() -> None:
    probe = LinearProbe(8, 2, normalize=False)
    probe.initialize_(torch_generator(0, "x"))
    before = {name: value.clone() for name, value in probe.state_dict().items()}
    list(probe_steps(probe, [_set([4, 4])] * 3, lr=0.5, total_steps=3))
    for name, value in probe.state_dict().items():
        assert not torch.equal(value, before[name]), name


def test_l2_normalization_is_optional() -> None:
    probe = LinearProbe(8, 2, normalize=True)
    torch.nn.init.zeros_(probe.linear.bias)
    with torch.no_grad():
        probe.norm.weight.mul_(100)
        scaled = probe(_set([3, 3])[0])
        probe.norm.weight.div_(100)
        torch.testing.assert_close(scaled, probe(_set([3, 3])[0]))
        plain = LinearProbe(8, 2, normalize=False)
        plain.load_state_dict(probe.state_dict())
        assert not torch.allclose(plain(_set([3, 3])[0]), scaled)


@pytest.mark.parametrize("batch", [4, 256])
def test_training_learns_and_repeats(batch: int) -> None:
    settings = ProbeSettings(epochs=20, min_steps=300, batch=batch)
    results = [
        train_probe(_set([20, 15, 10]), _set([10, 10, 10], seed=5), num_classes=3, settings=settings, seed=1)
        for _ in range(2)
    ]
    assert results[0].last > 0.8
    assert results[0].best >= results[0].last
    assert torch.equal(results[0].probe.linear.weight, results[1].probe.linear.weight)
    assert results[0].predictions.shape == (30,)
    other = train_probe(_set([20, 15, 10]), _set([10, 10, 10]), num_classes=3, settings=settings, seed=2)
    assert not torch.equal(results[0].probe.linear.weight, other.probe.linear.weight)


def test_empty_sets_and_an_exploding_rate_are_errors() -> None:
    empty = (torch.empty(0, 8), torch.empty(0, dtype=torch.int64))
    settings = ProbeSettings(epochs=3, normalize=False)
    with pytest.raises(EvaluationError, match="one set is empty"):
        train_probe(empty, _set([2, 2]), num_classes=2, settings=settings, seed=0)
    with pytest.raises(EvaluationError, match="one set is empty"):
        train_probe(_set([2, 2]), empty, num_classes=2, settings=settings, seed=0)
    wild = ProbeSettings(epochs=50, min_steps=1, lr=1e30, normalize=False)
    with pytest.raises(EvaluationError, match="lower its lr"):
        train_probe(_set([9, 9]), _set([2, 2]), num_classes=2, settings=wild, seed=0)


def test_msn_reads_no_maps() -> None:
    maps = (torch.rand(4, 3, 2, 2), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(EvaluationError, match="these are maps"):
        train_probe(maps, maps, num_classes=2, settings=ProbeSettings(), seed=0)


# SwAV's protocol


def _softmax(logits: Array) -> Array:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize(("nesterov", "momentum"), [(False, 0.9), (True, 0.6), (False, 0.0)])
def test_sgd_by_hand_with_decay_on_the_bias_too(nesterov: bool, momentum: float) -> None:
    """The rule in numpy float64 for epochs of two steps, from the gradient of softmax regression."""
    rng = np.random.RandomState(3)
    x, y = rng.standard_normal((6, 5, 4)), rng.randint(0, 3, (6, 5))
    settings = PooledProbeSettings(
        lr=0.4, epochs=3, weight_decay=0.05, momentum=momentum, nesterov=nesterov, batch=5
    )
    probe = settings.probe((4,), 3, generator=torch_generator(0, "x")).double()
    weight, bias = (p.detach().numpy().copy() for p in (probe.linear.weight, probe.linear.bias))
    rule = settings.rule(probe, batch=5, epoch_steps=2, epochs=3)
    batches = [(torch.from_numpy(a), torch.from_numpy(b)) for a, b in zip(x, y, strict=True)]
    losses = [float(step.loss) for step in train_steps(probe, batches, rule)]

    velocity = [np.zeros_like(weight), np.zeros_like(bias)]
    for step, (a, b) in enumerate(zip(x, y, strict=True)):
        p = _softmax(a @ weight.T + bias)
        assert losses[step] == pytest.approx(-np.log(p[np.arange(5), b]).mean(), rel=1e-12)
        delta = (p - np.eye(3)[b]) / 5
        lr = 0.4 * 0.5 * (1 + math.cos(math.pi * (step // 2) / 3))
        for i, (value, grad) in enumerate(((weight, delta.T @ a), (bias, delta.sum(0)))):
            grad = grad + 0.05 * value
            velocity[i] = momentum * velocity[i] + grad
            value -= lr * (grad + momentum * velocity[i] if nesterov else velocity[i])
    np.testing.assert_allclose(probe.linear.weight.detach().numpy(), weight, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(probe.linear.bias.detach().numpy(), bias, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("final_lr", [0.0, 0.05, 0.5])
def test_the_cosine_of_epochs_is_torchs(final_lr: float) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7, eta_min=final_lr)
    expected = _epochs_of(optimizer, schedule, 7)
    assert EpochCosine(final_lr=final_lr).rates(0.3, epochs=7, planned=7) == pytest.approx(expected)


@pytest.mark.parametrize("decay", [(), (2, 4), (4, 2), (3, 3), (1, 40), (0, 5)])
def test_the_steps_of_epochs_are_torchs(decay: tuple[int, ...]) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=list(decay), gamma=0.2)
    expected = _epochs_of(optimizer, schedule, 6)
    rates = EpochSteps(decay_epochs=decay, gamma=0.2).rates(0.3, epochs=6, planned=6)
    assert rates == pytest.approx(expected)


def _epochs_of(optimizer: torch.optim.Optimizer, schedule: Any, epochs: int) -> list[float]:
    lrs = []
    for _ in range(epochs):
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return lrs


def test_added_epochs_move_the_steps_in_proportion() -> None:
    rates = EpochSteps(decay_epochs=(60, 80)).rates(1.0, epochs=1000, planned=100)
    assert [i for i in range(1, 1000) if rates[i] != rates[i - 1]] == [600, 800]
    assert rates[-1] == pytest.approx(0.01)


def test_every_image_is_seen_and_means_weigh_the_smaller_batch() -> None:
    settings = PooledProbeSettings(epochs=2, min_steps=1, batch=4)
    train = (torch.eye(9), torch.arange(9) % 3)
    assert settings.epoch_steps(9) == 3
    assert settings.epoch_steps(8) == 2
    result = train_probe(train, train, num_classes=3, settings=settings, seed=0)
    assert len(result.log) == 2
    probe = settings.probe((9,), 3, generator=torch_generator(0, "x"))
    batches = [(train[0][:6], train[1][:6]), (train[0][6:], train[1][6:])]
    steps = list(train_steps(probe, batches, settings.rule(probe, batch=6, epoch_steps=2, epochs=1)))
    (log,) = epoch_logs(steps, 2)
    assert log.loss == pytest.approx((6 * float(steps[0].loss) + 3 * float(steps[1].loss)) / 9)
    assert log.top5 == 1.0  # fewer than five classes
    # an epoch cut short is logged with what it has
    assert [one.epoch for one in epoch_logs(steps, 1)] == [0, 1]
    assert len(list(epoch_logs([*steps, steps[0]], 2))) == 2


def test_logged_shares_by_hand() -> None:
    logits = torch.tensor([[6.0, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], [6, 5, 4, 3, 2, 1]])
    labels = torch.tensor([0, 0, 4, 5])
    step = ProbeStep(torch.tensor(2.0), logits, 0.1, labels)
    assert list(epoch_logs([step], 1)) == [EpochLog(0, 2.0, 0.25, 0.5)]


def test_scoring_is_in_evaluation_mode_and_gives_the_modes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = PooledProbe((3, 2, 2), 7, batch_norm=True)
    probe.initialize_(torch_generator(0, "x"))
    before = copy.deepcopy(probe.state_dict())
    x, y = torch.rand(11, 3, 2, 2, generator=torch_generator(1, "x")), torch.arange(11) % 7
    whole = score(probe, x, y)
    assert probe.training
    assert probe.bn is not None
    assert probe.bn.training
    assert all(torch.equal(value, before[name]) for name, value in probe.state_dict().items())
    monkeypatch.setattr(linear_scores, "_SCORED_VALUES", 4 * 12)  # four images at a time
    parts = score(probe, x, y)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert parts[1:3] == whole[1:3]
    assert torch.equal(parts.predictions, whole.predictions)


def test_windows_of_a_map() -> None:
    cells = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)
    windows = pool_map(cells, 3)
    assert windows.shape == (2, 3, 2, 3)
    assert windows[1, 2, 1, 2].item() == pytest.approx(cells[1, 2, 1:4, 2:5].mean().item())
    torch.testing.assert_close(pool_map(cells, None), cells.mean((2, 3)))
    for window in (0, 5):
        with pytest.raises(EvaluationError, match="does not fit the last map of 4 x 5; use 1 to 4"):
            pool_map(cells, window)


def test_a_resnets_map_lies_as_it_was_and_its_mean_is_pooled() -> None:
    network = _small_resnet().eval()
    images = torch.rand(2, 3, 32, 48, generator=torch_generator(0, "images"))
    with torch.no_grad():
        output = network(images)
        x = network.bn1(network.conv1(images)).relu()
        for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
            x = layer(x)
    torch.testing.assert_close(feature_map(output), x)
    torch.testing.assert_close(pool_map(feature_map(output), None), output.pooled)
    with pytest.raises(EvaluationError, match="no map"):
        feature_map(Features(output.pooled, None, None, output.grid, ()))


def test_windows_are_extracted_in_place_of_the_feature() -> None:
    source = coloured_source({"ant": 3, "bee": 2}, broken=frozenset({1}))
    card, backbone = FakeCard(feature_spec()), FakeBackbone()
    found = extract(backbone, card, source, window=1, batch_size=2)
    assert found.features.shape == (4, 12, 2, 2)
    assert found.index.tolist() == [0, 2, 3, 4]
    mean = extract(backbone, FakeCard(feature_spec(source="pooled")), source, batch_size=2).features
    torch.testing.assert_close(found.features.mean((2, 3)), mean)
    with pytest.raises(EvaluationError, match="does not fit"):
        extract(backbone, card, source, window=3)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_windows_of_images_learn_and_repeat(batch_norm: bool) -> None:
    network = _small_resnet()
    card = FakeCard(feature_spec(source="pooled", resize_px=16, crop_px=16))
    sets = []
    for seed, count in ((0, 17), (1, 10)):
        source = coloured_source({"ant": count, "bee": count}, seed=seed)
        features = extract(network, card, source, window=1).features
        sets.append((features, torch.from_numpy(source.labels)))
    settings = PooledProbeSettings(
        lr=0.05, epochs=10, min_steps=1, batch=8, window=1, batch_norm=batch_norm, schedule=EpochSteps()
    )
    first, second = (train_probe(*sets, num_classes=2, settings=settings, seed=4) for _ in range(2))
    assert first.last > 0.85
    assert first.best >= first.last
    assert first.log == second.log
    assert len(first.log) == 10
    assert first.log[-1].loss < first.log[0].loss
    state, again = first.probe.state_dict(), second.probe.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in state.items())
    if batch_norm:
        assert state["bn.num_batches_tracked"] == 10 * math.ceil(34 / 8)


def test_small_data_gets_more_epochs_and_an_unscaled_rate() -> None:
    settings = PooledProbeSettings(epochs=3, min_steps=40)
    train = _set([5, 5])
    result = train_probe(train, train, num_classes=2, settings=settings, seed=0)
    assert len(result.log) == 40
    probe = settings.probe((8,), 2, generator=torch_generator(0, "x"))
    assert settings.rule(probe, batch=10, epoch_steps=1, epochs=40).lr(0) == 0.3
    assert ProbeSettings().rule(LinearProbe(8, 2, normalize=True), batch=64, epoch_steps=1, epochs=9).lr(
        0
    ) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"batch_norm": True}, "set window"),
        ({"nesterov": True, "momentum": 0.0}, "no effect with momentum 0"),
        ({"window": 0}, "greater than or equal to 1"),
        ({"schedule": {"name": "line"}}, "'cosine', 'step'"),
        ({"protocol": "msn"}, "'swav'"),
    ],
)
def test_settings_that_contradict_each_other(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        PooledProbeSettings.model_validate(values)


def test_features_of_another_kind_are_refused() -> None:
    rows, maps = torch.rand(4, 3), torch.rand(4, 3, 2, 2)
    labels = torch.tensor([0, 1, 0, 1])
    for settings, features in ((PooledProbeSettings(), maps), (PooledProbeSettings(window=6), rows)):
        with pytest.raises(EvaluationError, match="extract the features with the same window"):
            train_probe((features, labels), (features, labels), num_classes=2, settings=settings, seed=0)


def test_a_single_image_and_window_has_no_variance() -> None:
    settings = PooledProbeSettings(window=6, batch_norm=True, batch=2, epochs=1, min_steps=1)
    for num_images, side in ((3, 2), (4, 1)):  # more windows, or no image left over
        data = (torch.rand(num_images, 5, side, side), torch.arange(num_images) % 2)
        train_probe(data, data, num_classes=2, settings=settings, seed=0)
    lone = (torch.rand(3, 5, 1, 1), torch.arange(3) % 2)
    with pytest.raises(EvaluationError, match="no variance"):
        train_probe(lone, lone, num_classes=2, settings=settings, seed=0)


def test_the_published_protocol_of_a_backbone() -> None:
    pooled = feature_spec(source="pooled")
    assert published_probe(_small_resnet(), pooled) == PooledProbeSettings()
    assert published_probe(_small_resnet(), feature_spec(source="mean")) == ProbeSettings()
    assert published_probe(FakeBackbone(), pooled) == ProbeSettings()
    swav = PooledProbeSettings()
    assert (swav.lr, swav.epochs, swav.batch, swav.weight_decay, swav.momentum) == (0.3, 100, 256, 1e-6, 0.9)
    assert not swav.nesterov
    assert swav.schedule == EpochCosine(final_lr=0.0)


def _small_resnet() -> ResNet:
    values = {"name": "resnet", "block": "basic", "blocks": (1, 1, 1, 1), "widen": 1, "width_per_group": 4}
    network = ResNet(ResNetSpec.model_validate(values | {"stem": "small"}))
    network.initialize_(torch_generator(0, "resnet"))
    return network


# SwAV's golden cases


def _load(name: str) -> tuple[dict[str, Any], dict[str, Array]]:
    folder = GOLDEN / "cases/swav" / name
    return json.loads((folder / "case.json").read_text()), dict(np.load(folder / "arrays.npz"))


@pytest.mark.parametrize("name", ["swav_reglog_avg", "swav_reglog_bn"])
def test_a_changed_result_of_a_case_fails(name: str) -> None:
    """The handler can fail: each result array, moved by far more than its tolerance, is noticed."""
    case, arrays = _load(name)
    handlers.check_linear(case, arrays)
    for result in sorted(arrays.keys() - {"labels", "val_labels"}):
        with pytest.raises(AssertionError):
            handlers.check_linear(case, arrays | {result: arrays[result] * 1.01 + 0.01})


@pytest.mark.parametrize(
    ("global_avg", "use_bn", "scheduler", "shape"),
    [
        (True, True, "step", [5, 11, 3, 4]),
        (False, False, "cosine", [7, 6, 8, 6]),
        (False, True, "cosine", [4, 9, 7, 7]),
    ],
)
def test_cases_of_other_sizes(global_avg: bool, use_bn: bool, scheduler: str, shape: list[int]) -> None:
    """For errors of shape and of schedule: the rates and the features are stated a second time, in torch."""
    case, _ = _load("swav_reglog_bn")
    args, epochs, per_epoch, classes, num_val = case["args"], 4, 3, 8, 9
    args |= {
        "input_shape": shape,
        "scheduler": scheduler,
        "epochs": epochs,
        "iterations_per_epoch": per_epoch,
    }
    args["reglog"] |= {"num_labels": classes, "global_avg": global_avg, "use_bn": use_bn}
    args["optimizer"] |= {"lr": 0.5, "final_lr": 0.02, "decay_epochs": [1, 3], "gamma": 0.3}
    width = shape[1] if global_avg else shape[1] * (shape[2] - 5) * (shape[3] - 5)
    args |= {"linear_in": width, "bn_is_none": global_avg or not use_bn}
    shapes = {"linear.weight": [classes, width], "linear.bias": [classes]}
    if not args["bn_is_none"]:
        names = ("weight", "bias", "running_mean", "running_var")
        shapes |= {f"bn.{name}": [shape[1]] for name in names} | {"bn.num_batches_tracked": []}
    case["weights"]["shapes"] = shapes
    rng = np.random.RandomState(1)
    labels = rng.randint(0, classes, (epochs * per_epoch, shape[0]))
    handlers.check_linear(case, _made(case, labels, rng.randint(0, classes, num_val)))


def _made(case: dict[str, Any], labels: Array, val_labels: Array) -> dict[str, Array]:
    args, per_epoch = case["args"], case["args"]["iterations_per_epoch"]
    settings = handlers.probe_settings(args)
    probe = handlers._probe(case, settings)
    pool = torch.nn.AdaptiveAvgPool2d(1) if args["reglog"]["global_avg"] else torch.nn.AvgPool2d(6, stride=1)

    def batch(offset: int, rows: int) -> torch.Tensor:
        shape = (rows, *args["input_shape"][1:])
        values = np.random.RandomState(args["features"]["seed"] + offset).standard_normal(shape)
        pooled = pool(torch.from_numpy(np.abs(values.astype(np.float32)) * np.float32(0.05)))
        return pooled.flatten(1) if args["reglog"]["global_avg"] else pooled

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args["optimizer"]["lr"])
    schedule: Any
    if args["scheduler"] == "cosine":
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, args["epochs"], eta_min=args["optimizer"]["final_lr"]
        )
    else:
        milestones = args["optimizer"]["decay_epochs"]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, args["optimizer"]["gamma"])
    lrs = np.repeat(_epochs_of(optimizer, schedule, args["epochs"]), per_epoch)
    batches = [(batch(i, len(row)), torch.from_numpy(row)) for i, row in enumerate(labels)]
    rule = settings.rule(probe, batch=len(labels[0]), epoch_steps=per_epoch, epochs=args["epochs"])
    steps = list(train_steps(probe, batches, rule))

    with torch.no_grad():
        val = probe.eval()(batch(900, len(val_labels)))
    val_loss = -torch.log_softmax(val, 1)[torch.arange(len(val)), torch.from_numpy(val_labels)].mean()
    loss = np.array([float(s.loss) for s in steps])
    logits = torch.cat([s.logits for s in steps])
    hits = np.stack([_hits(logits, labels.reshape(-1), k) for k in (1, 5)], 1)  # [images, 2]
    epoch_hits = hits.reshape(args["epochs"], -1, 2).mean(1)
    epoch_loss = loss.reshape(-1, per_epoch).mean(1)
    weight = probe.linear.weight.detach().double()
    return {
        "loss": loss,
        "lr": lrs,
        "labels": labels,
        "logits_step0": steps[0].logits.numpy(),
        "logits_last": steps[-1].logits.numpy(),
        "val_logits": val.numpy(),
        "val_labels": val_labels,
        "val": np.array([val_loss, *(100 * _hits(val, val_labels, k).mean() for k in (1, 5))]),
        "epochs": np.column_stack([np.arange(args["epochs"]), epoch_loss, 100 * epoch_hits]),
        "weight_stats": np.array([weight.mean(), weight.std(correction=0), weight.norm()]),
        **{
            f"final:{name}": value.numpy()
            for name, value in probe.state_dict().items()
            if name != "bn.num_batches_tracked"
        },
    }


def _hits(logits: torch.Tensor, labels: Array, k: int) -> Array:
    """Whether each row's label is among its k best."""
    best = np.argsort(-logits.numpy(), axis=1, kind="stable")[:, :k]
    return (best == labels[:, None]).any(1)

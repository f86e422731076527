from __future__ import annotations

import math

import pytest
import torch
from eval_fakes import clusters

from belvedere.core.errors import EvaluationError
from belvedere.core.rng import torch_generator
from belvedere.eval.linear import LinearProbe, ProbeSettings, nesterov_, probe_steps, train_probe


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

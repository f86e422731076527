"""MSN's evaluation cases: the low-shot logistic regression and the linear probe."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import weight_recipe
from numpy.typing import NDArray

from belvedere.eval import logistic
from belvedere.eval.linear import LinearProbe, ProbeStep, probe_steps

Case = dict[str, Any]
Arrays = dict[str, NDArray[Any]]

MARGIN = 1e-3  # below it the case's own solvers disagree about a prediction


def check_logistic(case: Case, arrays: Arrays) -> None:
    """The preprocessing, and the minimizer with everything that follows from it."""
    args, tolerance = case["args"], _tolerance(case)
    train, test = (
        logistic.preprocess(torch.from_numpy(arrays[f"{part}_embs"])) for part in ("train", "test")
    )
    _close_corner(train.numpy(), arrays["train_pre"], **tolerance)
    _close_corner(test.numpy(), arrays["test_pre"], **tolerance)

    labels = torch.from_numpy(arrays["train_labels"])
    lambd = float(args["lambd"])
    assert lambd == _approx(args["lambda_effective"] * len(labels))
    weights = logistic.fit(train, labels, lambd, num_classes=args["num_classes"])
    value = logistic.objective(train, labels, weights, lambd) / len(labels)

    _close_corner(weights.numpy(), arrays["W_exact"], **tolerance)
    np.testing.assert_allclose(float(weights.norm()), arrays["W_exact_norm"], **tolerance)
    np.testing.assert_allclose(value, arrays["objective_exact"], rtol=case["rtol"], atol=0)
    # the published solver stops at this relative duality gap, always above the minimum
    stopped = float(arrays["objective_cyanure"])
    assert value * (1 - 1e-9) <= stopped <= value * (1 + args["tol"]) + 1e-12
    np.testing.assert_allclose((test @ weights).numpy(), arrays["test_logits_exact"], **tolerance)
    _check_predictions(train, test, weights, arrays)


def _check_predictions(
    train: torch.Tensor, test: torch.Tensor, weights: torch.Tensor, arrays: Arrays
) -> None:
    predictions = logistic.predict(test, weights).numpy()
    clear = arrays["test_margin"] >= MARGIN
    assert clear.any()
    for name in ("pred_exact", "pred_cyanure"):
        np.testing.assert_array_equal(predictions[clear], arrays[name][clear])
    proba = logistic.predict_proba(test, weights).numpy()
    np.testing.assert_allclose(proba.sum(1), 1.0, rtol=1e-12)
    np.testing.assert_array_equal(proba.argmax(1), predictions)

    doubtful = (~clear).mean() + 1e-12
    test_accuracy = (predictions == arrays["test_labels"]).mean()
    train_accuracy = (logistic.predict(train, weights).numpy() == arrays["train_labels"]).mean()
    assert abs(test_accuracy - arrays["test_acc_exact"]) <= doubtful
    assert abs(test_accuracy - arrays["test_acc_cyanure"]) <= doubtful
    np.testing.assert_allclose(train_accuracy, arrays["train_acc"], rtol=1e-12)


def check_linear(case: Case, arrays: Arrays) -> None:
    """Loss and learning rate of every step, the final classifier, and the accuracies."""
    args, cfg, tolerance = case["args"], case["args"]["cfg"], _tolerance(case)
    probe = _probe(case)
    steps = _train(probe, case, arrays)

    assert len(steps) == len(arrays["loss"])
    np.testing.assert_allclose([float(s.loss) for s in steps], arrays["loss"], rtol=case["rtol"], atol=0)
    np.testing.assert_allclose([s.lr for s in steps], arrays["lr"], rtol=case["rtol"], atol=0)
    _close_corner(steps[0].logits.numpy(), arrays["logits_step0"], **tolerance)
    for name, tensor in probe.state_dict().items():
        _close_corner(tensor.numpy(), arrays[f"final:{name}"], **tolerance)
    assert args["group_wd"] == [cfg["weight_decay"], 0]  # by dimension: matrices, then vectors

    val_labels = arrays["val_labels"]
    with torch.no_grad():
        val_logits = probe(_features(args["features"]["seed"] + 900, len(val_labels), args["dim"])).numpy()
    _close_corner(val_logits, arrays["val_logits"], **tolerance)
    _close_percent(val_logits, val_labels, arrays["val_top1"])
    last_epoch = steps[-args["ipe"] :]
    logits = np.concatenate([s.logits.numpy() for s in last_epoch])
    _close_percent(logits, arrays["labels"][-args["ipe"] :].reshape(-1), arrays["train_top1"])


def _probe(case: Case) -> LinearProbe:
    args, weights = case["args"], case["weights"]
    probe = LinearProbe(args["dim"], args["num_classes"], normalize=args["cfg"]["normalize"])
    values = weight_recipe.recipe_state_dict(weights["shapes"], weights["seed"])
    probe.load_state_dict({name: torch.from_numpy(value) for name, value in values.items()}, strict=True)
    return probe


def _train(probe: LinearProbe, case: Case, arrays: Arrays) -> list[ProbeStep]:
    args, cfg = case["args"], case["args"]["cfg"]
    assert args["nesterov"]
    batches = [
        (_features(args["features"]["seed"] + i, args["batch"], args["dim"]), torch.from_numpy(labels))
        for i, labels in enumerate(arrays["labels"])
    ]
    assert len(batches) == cfg["epochs"] * args["ipe"]
    steps = probe_steps(
        probe,
        batches,
        lr=cfg["lr"],
        total_steps=cfg["epochs"] * args["ipe"],
        momentum=args["momentum"],
        weight_decay=cfg["weight_decay"],
    )
    return list(steps)


def _features(seed: int, rows: int, width: int) -> torch.Tensor:
    values = np.random.RandomState(seed).standard_normal((rows, width)).astype(np.float32)
    return torch.from_numpy(3 * values + np.float32(0.5))


def _close_percent(logits: NDArray[Any], labels: NDArray[Any], percent: NDArray[Any]) -> None:
    """Top-1 in percent, but for rows whose two best logits are closer than MARGIN."""
    best = np.sort(logits, axis=1)[:, ::-1]
    doubtful = 100.0 * (best[:, 0] - best[:, 1] < MARGIN).mean() if logits.shape[1] > 1 else 0.0
    got = 100.0 * (logits.argmax(1) == labels).mean()
    assert abs(got - float(percent)) <= doubtful + 1e-4, f"top-1 {got}, recorded {float(percent)}"


def _close_corner(got: NDArray[Any], recorded: NDArray[Any], *, rtol: float, atol: float) -> None:
    """A stored array smaller than ours is its leading corner; one of size 0 has nothing to compare."""
    assert got.ndim == recorded.ndim
    corner = got[tuple(slice(n) for n in recorded.shape)]
    np.testing.assert_allclose(corner, recorded, rtol=rtol, atol=atol)


def _tolerance(case: Case) -> dict[str, float]:
    return {"rtol": case["rtol"], "atol": case["atol"]}


def _approx(value: float) -> Any:
    import pytest

    return pytest.approx(value, rel=1e-9)


HANDLERS = {("msn", "logistic"): check_logistic, ("msn", "eval_linear"): check_linear}

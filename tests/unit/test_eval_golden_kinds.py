"""MSN's evaluation kinds on made cases in which every size differs, for errors of shape; numbers come from
the recorded cases."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))

import handlers_msn_eval as handlers  # noqa: E402

from belvedere.eval import logistic  # noqa: E402
from belvedere.eval.linear import probe_steps  # noqa: E402

CASES = ("msn_logistic", "msn_logistic_reg", "msn_linear_eval", "msn_linear_eval_nonorm")


def _load(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    folder = GOLDEN / "cases/msn" / name
    return json.loads((folder / "case.json").read_text()), dict(np.load(folder / "arrays.npz"))


@pytest.mark.parametrize("name", CASES)
def test_recorded(name: str) -> None:
    case, arrays = _load(name)
    handlers.HANDLERS["msn", case["kind"]](case, arrays)


@pytest.mark.parametrize("name", CASES)
def test_a_changed_result_fails(name: str) -> None:
    """The handlers can fail: each result array, moved by far more than its tolerance, is noticed."""
    case, arrays = _load(name)
    inputs = {"train_embs", "test_embs", "train_labels", "labels", "val_labels", "test_labels", "test_margin"}
    for result in set(arrays) - inputs:
        changed = dict(arrays)
        changed[result] = arrays[result] + (1 if arrays[result].dtype.kind == "i" else 20.0)
        with pytest.raises(AssertionError):
            handlers.HANDLERS["msn", case["kind"]](case, changed)


def _made_logistic(
    rows: int, classes: int, width: int, lambd: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    rng = np.random.RandomState(5)
    arrays: dict[str, Any] = {
        "train_embs": rng.standard_normal((rows, width)).astype(np.float32),
        "test_embs": rng.standard_normal((31, width)).astype(np.float32),
        "train_labels": np.arange(rows) % classes,
        "test_labels": rng.randint(0, classes, 31),
    }
    train, test = (logistic.preprocess(torch.from_numpy(arrays[f"{p}_embs"])) for p in ("train", "test"))
    labels = torch.from_numpy(arrays["train_labels"])
    weights = logistic.fit(train, labels, lambd, num_classes=classes)
    logits = (test @ weights).numpy()
    best = np.sort(logits, 1)
    objective = logistic.objective(train, labels, weights, lambd) / rows
    arrays |= {
        "train_pre": train[:, :5].numpy(),
        "test_pre": test[:, :5].numpy(),
        "W_exact": weights[:9].numpy(),
        "W_exact_norm": float(weights.norm()),
        "objective_exact": objective,
        "objective_cyanure": objective * 1.0005,
        "test_logits_exact": logits,
        "test_margin": best[:, -1] - best[:, -2],
        "pred_exact": logits.argmax(1),
        "pred_cyanure": logits.argmax(1),
        "train_acc": float((logistic.predict(train, weights) == labels).double().mean()),
        "test_acc_exact": float((logits.argmax(1) == arrays["test_labels"]).mean()),
        "test_acc_cyanure": float((logits.argmax(1) == arrays["test_labels"]).mean()),
    }
    case, _ = _load("msn_logistic")
    case["args"] |= {"lambd": lambd, "lambda_effective": lambd / rows, "n": rows, "num_classes": classes}
    return case, {name: np.asarray(value) for name, value in arrays.items()}


@pytest.mark.parametrize(
    ("rows", "classes", "width", "lambd"), [(21, 3, 17, 0.01), (14, 7, 50, 2.0), (2, 2, 9, 1e-3)]
)
def test_logistic_of_other_sizes(rows: int, classes: int, width: int, lambd: float) -> None:
    handlers.check_logistic(*_made_logistic(rows, classes, width, lambd))


@pytest.mark.parametrize("normalize", [True, False])
def test_linear_of_other_sizes(normalize: bool) -> None:
    case, _ = _load("msn_linear_eval")
    case = copy.deepcopy(case)
    epochs, ipe, batch, width, classes, num_val = 3, 2, 7, 13, 4, 11
    case["args"] |= {"num_classes": classes, "batch": batch, "ipe": ipe, "dim": width, "group_wd": [0.01, 0]}
    case["args"]["cfg"] |= {"epochs": epochs, "lr": 0.3, "weight_decay": 0.01, "normalize": normalize}
    case["weights"]["shapes"] = {
        "norm.weight": [width],
        "norm.bias": [width],
        "linear.weight": [classes, width],
        "linear.bias": [classes],
    }
    rng = np.random.RandomState(1)
    labels = rng.randint(0, classes, (epochs * ipe, batch))
    val_labels = rng.randint(0, classes, num_val)
    handlers.check_linear(case, _made_linear(case, labels, val_labels))


def _made_linear(case: dict[str, Any], labels: np.ndarray[Any, Any], val_labels: np.ndarray[Any, Any]) -> Any:
    """The arrays of a case, by the same rule stated a second time on torch's own cosine."""
    args, cfg = case["args"], case["args"]["cfg"]
    seed, width = args["features"]["seed"], args["dim"]
    probe = handlers._probe(case)
    batches = [
        (handlers._features(seed + i, args["batch"], width), torch.from_numpy(row))
        for i, row in enumerate(labels)
    ]
    steps = list(
        probe_steps(probe, batches, lr=cfg["lr"], total_steps=len(batches), weight_decay=cfg["weight_decay"])
    )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=cfg["lr"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=len(batches))
    lrs = []
    for _ in batches:
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        val = probe(handlers._features(seed + 900, len(val_labels), width)).numpy()
    last = np.concatenate([s.logits.numpy() for s in steps[-args["ipe"] :]])
    return {
        "loss": np.array([float(s.loss) for s in steps]),
        "lr": np.array(lrs),
        "logits_step0": steps[0].logits.numpy(),
        "labels": labels,
        "val_labels": val_labels,
        "val_logits": val,
        "val_top1": np.asarray(100 * (val.argmax(1) == val_labels).mean()),
        "train_top1": np.asarray(100 * (last.argmax(1) == labels[-args["ipe"] :].reshape(-1)).mean()),
        **{f"final:{name}": value.numpy() for name, value in probe.state_dict().items()},
    }

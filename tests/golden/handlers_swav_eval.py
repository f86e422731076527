"""SwAV's linear evaluation: pooling, BatchNorm, the rates of the epochs, and the logged means."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from belvedere.eval.features import pool_map
from belvedere.eval.linear import train_steps
from belvedere.eval.linear_pooled import (
    WINDOW,
    EpochCosine,
    EpochSteps,
    PooledProbe,
    PooledProbeSettings,
)
from belvedere.eval.linear_scores import EpochLog, ProbeStep, epoch_logs, score
from golden import compare, fill_, normal, stats, weights

Case = dict[str, Any]
Arrays = dict[str, np.ndarray]

MARGIN = 1e-4  # of logits: below it rounding may decide which class comes first


def check_linear(case: Case, arrays: Arrays) -> None:
    """Every step's loss and rate, the trained probe, the epochs' logs and the scores of the validation
    batch."""
    args, labels = case["args"], arrays["labels"]
    settings = probe_settings(args)
    probe = _probe(case, settings)
    steps = _train(probe, settings, args, labels)

    compare(case, "loss", np.array([float(s.loss) for s in steps]), arrays["loss"], relative=True)
    compare(case, "lr", np.array([s.lr for s in steps]), arrays["lr"], relative=True)
    compare(case, "logits_step0", steps[0].logits, arrays["logits_step0"])
    compare(case, "logits_last", steps[-1].logits, arrays["logits_last"])
    _check_epochs(case, arrays, steps, args["iterations_per_epoch"])
    _check_val(case, arrays, probe, settings)
    _check_final(case, arrays, probe)


def probe_settings(args: dict[str, Any]) -> PooledProbeSettings:
    """A case's arguments as settings; BatchNorm is ignored with global pooling, as its authors do."""
    reglog, optimizer = args["reglog"], args["optimizer"]
    schedule: EpochCosine | EpochSteps
    if args["scheduler"] == "cosine":
        schedule = EpochCosine(final_lr=float(optimizer.get("final_lr", 0.0)))
    else:
        assert args["scheduler"] == "step", args["scheduler"]
        schedule = EpochSteps(decay_epochs=tuple(optimizer["decay_epochs"]), gamma=float(optimizer["gamma"]))
    return PooledProbeSettings(
        lr=float(optimizer["lr"]),
        epochs=args["epochs"],
        min_steps=1,
        batch=args["input_shape"][0],
        weight_decay=float(optimizer["wd"]),
        momentum=float(optimizer["momentum"]),
        nesterov=optimizer["nesterov"],
        window=None if reglog["global_avg"] else WINDOW,
        batch_norm=reglog["use_bn"] and not reglog["global_avg"],
        schedule=schedule,
    )


def features(args: dict[str, Any], offset: int, rows: int, settings: PooledProbeSettings) -> Tensor:
    """The pooled features of a case's batch: |x| * 0.05 of a described input."""
    maps = normal(args["features"]["seed"] + offset, [rows, *args["input_shape"][1:]]).abs() * 0.05
    return pool_map(maps, settings.window)


def _probe(case: Case, settings: PooledProbeSettings) -> PooledProbe:
    args = case["args"]
    shape = features(args, 0, 1, settings).shape[1:]
    probe = settings.probe(shape, args["reglog"]["num_labels"], generator=torch.Generator())
    fill_(probe, weights(case))
    assert probe.linear.in_features == args["linear_in"]
    assert (probe.bn is None) == args["bn_is_none"]
    return probe


def _train(
    probe: PooledProbe, settings: PooledProbeSettings, args: dict[str, Any], labels: np.ndarray
) -> list[ProbeStep]:
    batch, epoch_steps = args["input_shape"][0], args["iterations_per_epoch"]
    assert len(labels) == args["epochs"] * epoch_steps
    assert settings.epoch_steps(batch * epoch_steps) == epoch_steps
    batches = (
        (features(args, i, batch, settings), torch.from_numpy(row).long()) for i, row in enumerate(labels)
    )
    rule = settings.rule(probe, batch=batch, epoch_steps=epoch_steps, epochs=args["epochs"])
    return list(train_steps(probe, batches, rule))


def _check_epochs(case: Case, arrays: Arrays, steps: list[ProbeStep], epoch_steps: int) -> None:
    logs = list(epoch_logs(steps, epoch_steps))
    expected = arrays["epochs"]
    assert len(logs) == len(expected)
    assert [log.epoch for log in logs] == expected[:, 0].tolist()
    compare(case, "epochs", np.array([log.loss for log in logs]), expected[:, 1], relative=True)
    for log, row in zip(logs, expected, strict=True):
        part = steps[log.epoch * epoch_steps : (log.epoch + 1) * epoch_steps]
        logits, labels = torch.cat([s.logits for s in part]), torch.cat([s.labels for s in part])
        _close_percents(log, row[2:], logits, labels)


def _check_val(case: Case, arrays: Arrays, probe: PooledProbe, settings: PooledProbeSettings) -> None:
    labels = torch.from_numpy(arrays["val_labels"]).long()
    x = features(case["args"], 900, len(labels), settings)
    with torch.no_grad():
        logits = probe.eval()(x)
    compare(case, "val_logits", logits, arrays["val_logits"])
    scores = score(probe.train(), x, labels)
    assert probe.training
    compare(case, "val", np.array([scores.loss]), arrays["val"][:1], relative=True)
    _close_percents(EpochLog(0, *scores[:3]), arrays["val"][1:], logits, labels)


def _check_final(case: Case, arrays: Arrays, probe: PooledProbe) -> None:
    state = probe.state_dict()
    checked = set()
    for name, expected in arrays.items():
        if name.startswith("final:"):
            entry = name.removeprefix("final:").split("[")[0]
            compare(case, name, state[entry], expected)
            checked.add(entry)
    assert checked == set(state) - {"bn.num_batches_tracked"}
    compare(case, "weight_stats", stats(state["linear.weight"]), arrays["weight_stats"])


def _close_percents(got: EpochLog, recorded: np.ndarray, logits: Tensor, labels: Tensor) -> None:
    """Top-1 and top-5 in percent, but for rows where the label's logit is within MARGIN of another's."""
    gaps = (logits - logits.gather(1, labels[:, None])).abs().scatter(1, labels[:, None], torch.inf)
    doubtful = 100.0 * float((gaps.amin(1) < MARGIN).double().mean())
    for name, share, percent in zip(("top1", "top5"), (got.top1, got.top5), recorded, strict=True):
        assert abs(100.0 * share - percent) <= doubtful + 1e-4, f"{name} {100 * share}, recorded {percent}"


HANDLERS = {("swav", "eval_linear"): check_linear}

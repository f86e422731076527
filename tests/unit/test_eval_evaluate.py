from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from eval_fakes import FakeBackbone, FakeCard, coloured_source, feature_spec

from belvedere.core.errors import EvaluationError
from belvedere.core.rng import torch_generator
from belvedere.data.sources.source import subset
from belvedere.eval import protocols
from belvedere.eval.evaluate import Evaluation, Options, evaluate
from belvedere.eval.features import extract
from belvedere.eval.labelled import Labelled
from belvedere.eval.linear import ProbeSettings
from belvedere.eval.linear_pooled import PooledProbeSettings
from belvedere.eval.predict import predict
from belvedere.nn.resnet import ResNet
from belvedere.nn.spec import ResNetSpec

CARD = FakeCard(feature_spec(blocks=2))
OPTIONS = Options(shots=(1, 3), splits=3, k=5, probe=ProbeSettings(epochs=2, min_steps=30), batch_size=8)


def _evaluate(**changes: object) -> Evaluation:
    source = coloured_source({"ant": 10, "bee": 8, "cow": 2})
    return evaluate(FakeBackbone(), CARD, source, options=OPTIONS, **changes)  # type: ignore[arg-type]


def test_one_labelled_folder() -> None:
    report = _evaluate().report
    assert report["training"] == {"images": 20, "classes": {"ant": 10, "bee": 8, "cow": 2}}
    assert report["knn"]["scored"] == report["knn"]["bank"] == 20
    assert set(report["knn"]["by_k"]) == {"5", "10", "20", "100", "200"}
    shots = report["logistic"]["shots"]
    assert set(shots) == {"1", "3"}
    assert shots["1"]["short_classes"] == {}
    assert shots["3"]["short_classes"] == {"cow": 2}
    assert shots["3"]["per_class"]["cow"] != shots["3"]["per_class"]["cow"]  # NaN: both are always trained on
    assert 0.4 < shots["3"]["mean"] <= 1.0
    assert report["linear"]["trained"] + report["linear"]["scored"] == 20
    assert report["linear"]["trained"] == 5 + 4 + 1


def test_a_scored_set_of_its_own_is_all_that_is_scored() -> None:
    # another order of classes, and one class missing: labels are matched by name
    val = coloured_source({"ant": 4, "bee": 5}, seed=1)
    order = np.argsort([1] * 4 + [0] * 5, kind="stable")
    val = subset(val, order)
    report = _evaluate(val=val).report
    assert report["scored"] == 9
    assert report["knn"]["scored"] == report["linear"]["scored"] == 9
    assert report["knn"]["bank"] == report["linear"]["trained"] == 20
    assert report["logistic"]["scored_on"] == "the scored set"
    assert report["knn"]["accuracy"] > 0.8


def test_classes_are_matched_by_name_not_by_number() -> None:
    train = coloured_source({"ant": 6, "bee": 6})
    same = coloured_source({"ant": 6, "bee": 6}, seed=1)
    swapped = type(same)(
        "swapped",
        same.pixels,
        labels=1 - same.labels,
        classes=("bee", "ant"),
        keys=[str(i) for i in range(12)],
    )
    options = OPTIONS.model_copy(update={"protocols": ("knn",)})
    scores = [
        evaluate(FakeBackbone(), CARD, train, val=val, options=options).report["knn"]["accuracy"]
        for val in (same, swapped)
    ]
    assert scores[0] == scores[1] > 0.9


def test_unknown_classes_of_the_scored_set_are_named() -> None:
    with pytest.raises(
        EvaluationError, match=r"\(--val\) has classes that no training image has.*: dog \(2\)"
    ):
        _evaluate(val=coloured_source({"ant": 2, "dog": 2}))


def test_a_fixed_list_has_the_published_and_a_chosen_regularization() -> None:
    result = _evaluate(val=coloured_source({"ant": 4, "bee": 5, "cow": 4}, seed=1), list_name="2imgs.txt")
    logistic = result.report["logistic"]
    assert result.splits is None
    assert set(logistic["fits"]) == {"published", "chosen"}
    assert logistic["fits"]["published"]["lambda"] == 0.0025
    assert logistic["images_per_class"] == {"min": 2, "max": 10}
    assert logistic["folds"] == 2
    assert result.report["list"] == "2imgs.txt"
    with pytest.raises(EvaluationError, match="--subset"):
        _evaluate(list_name="2imgs.txt")


def test_a_given_lambda_takes_the_place_of_both() -> None:
    options = OPTIONS.model_copy(update={"lambd": 0.5, "protocols": ("logistic",)})
    source = coloured_source({"ant": 9, "bee": 8})
    report = evaluate(FakeBackbone(), CARD, source, options=options).report
    assert report["logistic"]["shots"]["3"]["lambda"] == [0.5] * 3
    assert report["logistic"]["shots"]["3"]["lambda_chosen_by"] == "fixed"
    assert "knn" not in report
    val = coloured_source({"ant": 9, "bee": 8}, seed=1)
    listed = evaluate(FakeBackbone(), CARD, source, val=val, list_name="x", options=options).report
    assert set(listed["logistic"]["fits"]) == {"given", "chosen"}


def test_the_same_command_writes_the_same_bytes(tmp_path: Path) -> None:
    names = {}
    for run in ("a", "b"):
        result = _evaluate(unlabelled=coloured_source({"x": 5, "y": 4}, seed=2))
        names[run] = [path.name for path in result.save(tmp_path / run)]
    assert names["a"] == ["splits.json", "predictions.csv", "report.json"]
    for name in names["a"]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    splits = json.loads((tmp_path / "a" / "splits.json").read_text())
    assert report["logistic"]["splits_sha256"] == splits["splits_sha256"]
    assert report["logistic"]["shots"]["3"]["per_class"]["cow"] is None


def test_predictions_name_every_file(tmp_path: Path) -> None:
    unlabelled = coloured_source({"x": 6, "y": 6, "z": 6}, seed=4, broken=frozenset({2}))
    result = _evaluate(unlabelled=unlabelled)
    result.save(tmp_path)
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [unlabelled.key(i) for i in range(18) if i != 2]
    truth = ["ant"] * 5 + ["bee"] * 6 + ["cow"] * 6
    assert np.mean([row["label"] == t for row, t in zip(rows, truth, strict=True)]) > 0.8
    assert all(1 / 3 <= float(row["probability"]) <= 1 for row in rows)
    assert result.report["predict"]["images"] == 17
    assert result.report["unreadable"] == {"predict": {"0002.png": "truncated"}}


def test_file_names_with_commas_and_odd_bytes_survive(tmp_path: Path) -> None:
    train = Labelled(torch.eye(2), np.array([0, 1]), ("a,b", 'c"d'))
    predictions = predict(train, torch.eye(2))
    assert predictions.folds == 0
    keys = ["x,y.png", "odd\udcff.png"]
    Evaluation({}, predicted=(keys, predictions), classes=train.classes).save(tmp_path)
    with (tmp_path / "predictions.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.reader(file))
    assert [row[:2] for row in rows] == [["file", "label"], ["x,y.png", "a,b"], ["odd\udcff.png", 'c"d']]
    assert [row[5:] for row in rows] == [["label_3", "probability_3", "predicted"], *[["", "", "yes"]] * 2]


def test_unreadable_and_unlabelled_images_have_no_part() -> None:
    source = coloured_source({"ant": 6, "bee": 6}, unlabelled=7, broken=frozenset({0, 15}))
    seen: list[tuple[str, int, int]] = []
    result = evaluate(FakeBackbone(), CARD, source, options=OPTIONS, progress=lambda *at: seen.append(at))
    assert result.report["training"]["images"] == 11
    assert result.report["unreadable"] == {"data": {"0000.png": "truncated"}}
    assert seen[-1] == ("data", 12, 12)


@pytest.mark.parametrize("leave_out", [False, True])
def test_equal_images_on_both_halves_of_the_linear_probe_are_counted(leave_out: bool) -> None:
    source = coloured_source({"ant": 6, "bee": 6})
    doubled = subset(source, [*range(12), *range(12)])
    options = OPTIONS.model_copy(update={"protocols": ("linear",), "leave_out_copies": leave_out})
    part = evaluate(FakeBackbone(), CARD, doubled, options=options).report
    assert part["copies"]["left_out"] == (12 if leave_out else 0)
    if leave_out:
        assert (part["linear"]["trained"] + part["linear"]["scored"], part["linear"]["copies"]) == (12, 0)
    else:
        assert 0 < part["linear"]["copies"] <= 12


def test_a_class_of_which_every_training_image_is_unreadable_is_not_scored() -> None:
    source = coloured_source({"ant": 6, "bee": 6, "cow": 2}, broken=frozenset({12, 13}))
    val = coloured_source({"ant": 2, "bee": 2, "cow": 2}, seed=1)
    with pytest.raises(EvaluationError, match=r"no training image has.*: cow \(2\)"):
        evaluate(FakeBackbone(), CARD, source, val=val, options=OPTIONS)


def test_reprs_are_short_and_hold_no_numbers() -> None:
    result = _evaluate(unlabelled=coloured_source({"x": 5}, seed=2))
    assert repr(result) == "Evaluation(knn, logistic, linear, predict; report: 15 keys)"
    assert result.predicted is not None
    assert repr(result.predicted[1]).startswith("Predictions(images=5, best=3, lambd=")
    extracted = extract(FakeBackbone(), CARD, coloured_source({"ant": 3}))
    assert repr(extracted) == "Extracted(features=[3, 24] float32 cpu, unreadable=0 images)"
    labelled = Labelled(extracted.features, np.zeros(3, np.int64), ("ant",))
    assert repr(labelled) == "Labelled(features=[3, 24] float32 cpu, classes=1)"
    output = FakeBackbone().eval()(torch.zeros(2, 3, 8, 8), blocks=1)
    assert repr(output) == (
        "Features(pooled=[2, 12] float32 cpu, cls=[2, 12] float32 cpu, regions=[2, 4, 12] float32 cpu, "
        "grid=(2, 2), blocks=(Block(tokens=[2, 4, 12] float32 cpu, cls=[2, 12] float32 cpu, grid=(2, 2), "
        "width=12, stage=1),))"
    )
    pooled_only = output._replace(regions=None, grid=None, blocks=())
    assert "regions=None, grid=None, blocks=()" in repr(pooled_only)


def test_nothing_to_tell_apart_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="at least two classes; found 'ant' only"):
        evaluate(FakeBackbone(), CARD, coloured_source({"ant": 5}), options=OPTIONS)
    with pytest.raises(EvaluationError, match="no labelled image"):
        evaluate(
            FakeBackbone(), CARD, subset(coloured_source({"ant": 1}, unlabelled=2), [1, 2]), options=OPTIONS
        )


def test_no_image_is_scored_by_a_classifier_that_saw_it() -> None:
    """Labels that follow nothing: whoever scores its own training images stands out far above chance."""
    rng = np.random.RandomState(0)
    noise = Labelled(
        torch.from_numpy(rng.standard_normal((200, 150))).float(), rng.randint(0, 2, 200), ("a", "b")
    )
    from belvedere.eval.splits import draw_splits

    splits = draw_splits(noise.labels, (20,), splits=5, seed=0)
    assert protocols.logistic_shots(noise, None, splits, lambd=None)["shots"]["20"]["mean"] < 0.65
    assert protocols.knn(noise, None, k=1)["accuracy"] < 0.65
    settings = ProbeSettings(epochs=1, min_steps=300)
    assert protocols.linear(noise, None, settings=settings, seed=0, device=None)["accuracy"] < 0.65


def test_leave_one_out_equals_a_loop() -> None:
    source = coloured_source({"ant": 7, "bee": 7})
    features = extract(FakeBackbone(), CARD, source).features
    train = Labelled(features, source.labels, source.classes)
    right = 0
    for i in range(14):
        rest = np.delete(np.arange(14), i)
        part = protocols.knn(train.take(rest), train.take(np.array([i])), k=3)
        right += part["accuracy"]
    assert protocols.knn(train, None, k=3)["accuracy"] == pytest.approx(right / 14)


def test_linear_with_one_image_per_class_says_so() -> None:
    train = Labelled(torch.eye(3), np.arange(3), ("a", "b", "c"))
    with pytest.raises(EvaluationError, match="every class has one labelled image"):
        protocols.linear(train, None, settings=ProbeSettings(), seed=0, device=None)


def _resnet() -> ResNet:
    values = {"name": "resnet", "block": "basic", "blocks": (1, 1, 1, 1), "widen": 1, "width_per_group": 4}
    network = ResNet(ResNetSpec.model_validate(values | {"stem": "small"}))
    network.initialize_(torch_generator(0, "resnet"))
    return network


def test_a_pooled_resnet_gets_swavs_linear_protocol_and_others_msns() -> None:
    source, card = coloured_source({"ant": 10, "bee": 10}), FakeCard(feature_spec(source="pooled"))
    options = Options(protocols=("linear",))
    part = evaluate(_resnet(), card, source, options=options).report["linear"]
    assert part["settings"] == PooledProbeSettings().model_dump()
    assert part["accuracy"] > 0.6
    part = evaluate(FakeBackbone(), card, source, options=options).report["linear"]
    assert part["settings"] == ProbeSettings().model_dump()


@pytest.mark.parametrize("with_val", [False, True])
def test_the_linear_protocol_on_windows(with_val: bool, tmp_path: Path) -> None:
    card = FakeCard(feature_spec(source="pooled", resize_px=16, crop_px=16))
    source = coloured_source({"ant": 10, "bee": 10}, broken=frozenset({3}))
    # another order of classes: labels are matched by name in maps as well
    val = subset(coloured_source({"ant": 4, "bee": 5}, seed=1), np.argsort([1] * 4 + [0] * 5, kind="stable"))
    probe = PooledProbeSettings(lr=0.05, epochs=10, min_steps=1, batch=4, window=2, batch_norm=True)
    options = Options(protocols=("knn", "linear"), k=3, probe=probe)
    found = evaluate(_resnet(), card, source, val=val if with_val else None, options=options)
    part = found.report["linear"]
    assert part["settings"]["window"] == 2
    assert part["trained"] == (19 if with_val else 10)
    assert part["scored"] == 9
    assert part["accuracy"] > 0.8
    assert list(found.report["unreadable"]) == ["data"]
    found.save(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["linear"]["settings"]["batch_norm"] is True

"""EsViT's checkpoints: every backbone, with and without the region task, whole files and single networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from published_esvit import SPECS, groups, network, published, with_tables
from published_files import (
    Command,
    moved,
    optimizer_state,
    prefixed,
    same,
    trained,
)
from torch import Tensor

from belvedere.core.errors import WeightsError
from belvedere.nn.spec.cvt import cvt_spec
from belvedere.nn.spec.swin import SWIN_NAMES, swin_spec
from belvedere.nn.spec.vil import vil_spec
from belvedere.zoo.convert.checkpoint import Asked
from belvedere.zoo.convert.cvt import cvt_spec_of
from belvedere.zoo.convert.esvit import SYSTEMS, _features
from belvedere.zoo.convert.networks import backbone_shapes
from belvedere.zoo.convert.swin import swin_spec_of
from belvedere.zoo.convert.vil import vil_spec_of
from belvedere.zoo.importing import import_checkpoint
from belvedere.zoo.load import load, load_heads, load_training

CASES = Path(__file__).parents[1] / "golden" / "cases" / "esvit"


def saved(tmp_path: Path, content: Any, name: str = "checkpoint.pth") -> Path:
    torch.save(content, tmp_path / name)
    return tmp_path / name


def bare(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("backbone.backbone."): tensor for name, tensor in state.items()}


def ours(name: str) -> str:
    name = name.removeprefix("backbone.backbone.")
    return f"student.{name}" if name.startswith("head") else f"student.backbone.{name}"


@pytest.mark.parametrize("region", [False, True])
@pytest.mark.parametrize("kind", list(SPECS))
def test_every_tensor_arrives(tmp_path: Path, kind: str, region: bool) -> None:
    content = published(kind, region=region, wrapped=kind in ("resnet", "cvt"))
    card = import_checkpoint(saved(tmp_path, content), tmp_path / "out")
    loaded, heads = load(tmp_path / "out"), load_heads(tmp_path / "out")
    teacher = network(kind, region=region)
    same(loaded.backbone.state_dict() | heads, bare(teacher) | content["dino_loss"])
    assert (card.system, card.backbone) == ("esvit", SPECS[kind])
    assert {"args", "epoch", "fp16_scaler"} <= card.dropped.keys()
    assert "optimizer" not in card.dropped
    assert card.data == {"epoch": 300}
    is_dinos_too = kind in ("vit", "resnet") and not region
    assert ("MIT" in (card.licence or "")) == (not is_dinos_too)
    training = load_training(tmp_path / "out")
    student = moved(teacher)
    expected = {ours(name): tensor for name, tensor in student.items()}
    same({name: t for name, t in training.items() if not name.startswith("optim/")}, expected)


@pytest.mark.parametrize("kind", ["swin", "vil", "resnet"])
def test_moments_come_to_their_parameters(tmp_path: Path, kind: str) -> None:
    content = published(kind)
    import_checkpoint(saved(tmp_path, content), tmp_path / "out")
    training = load_training(tmp_path / "out")
    student = trained(moved(network(kind)))
    plain = {name for name, tensor in student.items() if tensor.ndim == 1 or name.endswith(".bias")}
    order = [name for name in student if name not in plain] + [name for name in student if name in plain]
    for number, name in enumerate(order):
        moment = training[f"optim/{ours(name)}/exp_avg_sq"]
        assert torch.equal(moment, torch.full_like(student[name], number + 0.5)), name
    assert sum(name.startswith("optim/") for name in training) == 3 * len(student)


def test_moments_without_the_lengths_that_norm_last_layer_keeps(tmp_path: Path) -> None:
    content = published("swin")
    student = {n: t for n, t in moved(network("swin")).items() if not n.endswith("weight_g")}
    content["optimizer"] = optimizer_state(groups(student))
    card = import_checkpoint(saved(tmp_path, content), tmp_path / "out")
    assert "optimizer" not in card.dropped
    assert not any("weight_g/" in name for name in load_training(tmp_path / "out"))


def test_groups_are_those_of_the_authors_code() -> None:
    """The numbers of the golden run's optimizer, by the rule that the import has."""
    from belvedere.zoo.convert.moments import vectors_apart

    case = json.loads((CASES / "train_trajectory_view_region" / "case.json").read_text())
    shapes = case["weights"]["shapes"]
    parameters = {name: torch.empty(shapes[name]) for name in case["args"]["param_names"]}
    listed = [[name.removeprefix("module.") for name in group] for group in case["args"]["param_groups"]]
    assert vectors_apart(parameters) == listed


@pytest.mark.parametrize("kind", list(SPECS))
@pytest.mark.parametrize("wrapper", [None, "state_dict", "teacher"])
def test_a_network_alone(tmp_path: Path, kind: str, wrapper: str | None) -> None:
    state = prefixed(with_tables(kind, network(kind, region=False)), "module.")
    content: Any = {wrapper: state} if wrapper else state
    card = import_checkpoint(saved(tmp_path, content), tmp_path / "out")
    same(
        load(tmp_path / "out").backbone.state_dict() | load_heads(tmp_path / "out"),
        bare(network(kind, region=False)),
    )
    assert card.training_sha256 is None


@pytest.mark.parametrize("changes", [{"batch_norm": True}, {"layers": 1}, {"layers": 2}])
def test_other_heads(tmp_path: Path, changes: dict[str, Any]) -> None:
    content = published("swin", region=False, **changes)
    import_checkpoint(saved(tmp_path, content), tmp_path / "out")
    heads = load_heads(tmp_path / "out")
    del heads["center"]
    teacher = network("swin", region=False, **changes)
    same(heads, {name: tensor for name, tensor in teacher.items() if name.startswith("head.")})


def test_newer_names_of_weight_norm(tmp_path: Path) -> None:
    content = published("swin", region=False)
    for which in ("student", "teacher"):
        content[which] = {
            name.replace("last_layer.weight_g", "last_layer.parametrizations.weight.original0").replace(
                "last_layer.weight_v", "last_layer.parametrizations.weight.original1"
            ): tensor
            for name, tensor in content[which].items()
        }
    import_checkpoint(saved(tmp_path, content), tmp_path / "out")
    assert "head.last_layer.weight_g" in load_heads(tmp_path / "out")


@pytest.mark.parametrize("window", [7, 14])
@pytest.mark.parametrize("name", SWIN_NAMES)
def test_every_swin_is_known_by_its_shapes(name: str, window: int) -> None:
    spec = swin_spec(name, window=window, drop_path=0.0)
    assert swin_spec_of(backbone_shapes(spec), origin="x") == spec


def test_cvt_and_vil_are_known_by_their_shapes() -> None:
    cvt, vil = cvt_spec("cvt_tiny", drop_path=0.0), vil_spec("vil_2262", mode=0)
    assert cvt_spec_of(backbone_shapes(cvt), origin="x") == cvt
    assert vil_spec_of(backbone_shapes(vil), origin="x") == vil


def test_features_are_those_of_the_recipes() -> None:
    from belvedere.zoo.catalogue import entries

    for entry in entries():
        if entry.system in SYSTEMS:
            assert _features(entry.backbone) == entry.features, entry.name


def test_a_recipes_name_brings_what_is_published(tmp_path: Path) -> None:
    from belvedere.zoo.convert.asked import asked_for

    asked = asked_for("esvit/swin-tiny-w7")
    assert (asked.system, asked.recipe) == ("esvit", "esvit/swin-tiny-w7")
    assert isinstance(asked, Asked)
    with pytest.raises(WeightsError, match="missing"):
        import_checkpoint(
            saved(tmp_path, published("swin")), tmp_path / "out", architecture="esvit/swin-tiny-w7"
        )
    with pytest.raises(WeightsError, match="is a Swin; --as esvit/cvt-w7 says a CvT"):
        import_checkpoint(saved(tmp_path, published("swin")), tmp_path / "out", architecture="esvit/cvt-w7")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c.update(epochs=3), r"do not have: epochs \(nearest: epoch\)"),
        (lambda c: c.pop("teacher"), "has no teacher"),
        (lambda c: c["dino_loss"].update(center=torch.zeros(1, 5)), r"center is \[1, 5\], must be \[1, 16\]"),
        (lambda c: c["dino_loss"].pop("center_grid"), "missing .*center_grid"),
        (lambda c: c.update(dino_loss=3), "dino_loss is a int"),
        (lambda c: c["student"].pop("module.norm.weight"), "student, as the teacher is.*\n.*norm.weight"),
        (lambda c: c["teacher"].pop("head.mlp.2.bias"), "missing .*head.mlp.2.bias"),
        (lambda c: c["teacher"].pop("head.last_layer.weight_v"), "missing .*head.last_layer.weight_v"),
        (
            lambda c: c["teacher"].update({"head.last_layer.weight_v": torch.ones(1, 16)}),
            r"weight_v is \[1, 16\], must be \[2, ",
        ),
        (lambda c: c["teacher"].update({"head_dense.odd": torch.zeros(1)}), "unexpected .*head_dense.odd"),
        (lambda c: c["teacher"].update({"norm.bias": torch.full((24,), torch.inf)}), "not finite"),
    ],
)
def test_odd_entries_are_refused_by_name(tmp_path: Path, change: Any, told: str) -> None:
    content = published("swin")
    change(content)
    with pytest.raises(WeightsError, match=told):
        import_checkpoint(saved(tmp_path, content), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_teacher_without_the_heads_of_its_centers_is_refused(tmp_path: Path) -> None:
    content = published("swin")
    content["teacher"] = {n: t for n, t in content["teacher"].items() if not n.startswith("head")}
    with pytest.raises(WeightsError, match=r"centers of its heads\)\n.*unexpected .*center"):
        import_checkpoint(saved(tmp_path, content), tmp_path / "out", architecture="esvit")


def test_projections_that_are_not_shared_are_another_network(tmp_path: Path) -> None:
    content = published("vil")
    content["teacher"]["layer1.1.attn.query_global.weight"] = torch.zeros(12, 12)
    with pytest.raises(WeightsError, match="SHARE_W"):
        import_checkpoint(saved(tmp_path, content), tmp_path / "out")


def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path: Path) -> None:
    content = published("swin") | {"args": Command(tmp_path / "ran")}
    with pytest.raises(WeightsError, match=r"is refused: .*mkdir"):
        import_checkpoint(saved(tmp_path, content), tmp_path / "out")
    assert not (tmp_path / "ran").exists()

"""Mugs' checkpoints: whole training files, and backbones in every form its scripts write and read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from published_files import Command, prefixed, same, small_vit
from published_mugs import WIDTH, network, published

from belvedere.core.errors import WeightsError
from belvedere.zoo.catalogue import entries
from belvedere.zoo.convert.mugs import _features, _groups
from belvedere.zoo.importing import import_checkpoint
from belvedere.zoo.load import load, load_heads, load_training

CASES = Path(__file__).parents[1] / "golden" / "cases" / "mugs"


def ours(name: str) -> str:
    """A published name in an imported folder."""
    name = name.replace("group_head.projector.", "group_head.mlp.") if name.startswith("group_head") else name
    return name.removeprefix("backbone.")


def saved(tmp_path: Path, content: Any, name: str = "checkpoint.pth") -> Path:
    torch.save(content, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("batch_norm", [False, True])
def test_every_tensor_of_a_whole_file_arrives(tmp_path: Path, batch_norm: bool) -> None:
    content = published(batch_norm=batch_norm)
    card = import_checkpoint(saved(tmp_path, content), tmp_path / "out")
    loaded, heads = load(tmp_path / "out"), load_heads(tmp_path / "out")
    teacher = {ours(name): tensor for name, tensor in network(batch_norm=batch_norm).items()}
    same(loaded.backbone.state_dict() | heads, teacher | content["group-sup."])
    assert (card.system, card.backbone) == ("mugs", small_vit(position_margin=0.1))
    assert sorted(card.dropped) == ["args", "epoch", "student_mem.queue_v", "teacher_mem.queue_v"]
    training = load_training(tmp_path / "out")
    for which in ("student", "teacher"):
        for part in ("queue_q", "queue_k", "queue_ptr"):
            stored = content[f"{which}_mem"][f"block.{part}"]
            assert torch.equal(training[f"{which}_memory.{part}"], stored)
    assert torch.equal(training["instance_queue.queue"], content["instance-sup."]["queue"].T)
    assert torch.equal(training["local_group_queue.queue_ptr"], torch.tensor([2]))
    for name, tensor in network(student=True, batch_norm=batch_norm).items():
        part = ours(name)
        beside = part.startswith(("relation", "instance", "local", "group"))
        assert torch.equal(training[f"student.{part if beside else f'backbone.{part}'}"], tensor), name
    assert torch.equal(training["optim/student.backbone.cls_token/exp_avg"], torch.full((1, 1, WIDTH), 0.5))


def test_groups_are_those_of_the_authors_code() -> None:
    case = json.loads((CASES / "param_groups_and_clipping" / "case.json").read_text())
    listed = {group["name"]: group["params"] for group in case["args"]["groups"]}
    shapes = case["weights"]["shapes"]
    trained_ones = {name for group in listed.values() for name in group}
    names = [name for name in case["args"]["param_order"] if name in trained_ones]
    found = _groups({name: torch.empty(shapes.get(name, [2, 2])) for name in names})
    assert found == [listed[n] for n in ("normal_params", "patch_embed", "no_wd", "patch_embed_no_wd")]


@pytest.mark.parametrize("relation", [False, True])
@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone.", "encoder."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "teacher"])
def test_a_backbone_alone(tmp_path: Path, wrapper: str | None, prefix: str, relation: bool) -> None:
    state = {
        name.removeprefix("backbone."): tensor
        for name, tensor in network(relation=relation).items()
        if name.startswith("backbone.")
    }
    content: Any = prefixed(state, prefix)
    path = saved(tmp_path, {wrapper: content} if wrapper else content)
    if not relation and not prefix and wrapper != "teacher":
        with pytest.raises(WeightsError, match=r"could be of mugs or timm.*--as mugs or --as timm"):
            import_checkpoint(path, tmp_path / "out")
    card = import_checkpoint(path, tmp_path / "out", architecture="mugs")
    assert card.backbone == small_vit(position_margin=0.1)
    same(load(tmp_path / "out").backbone.state_dict() | load_heads(tmp_path / "out"), state)


def test_features_are_those_of_the_recipes() -> None:
    found = [entry for entry in entries() if entry.system == "mugs"]
    assert found
    for entry in found:
        assert _features(entry.backbone) == entry.features, entry.name  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c.update(mem=3), "do not have: mem"),
        (lambda c: c["teacher"].pop("backbone.blocks.1.norm1.bias"), "missing .*blocks.1.norm1.bias"),
        (lambda c: c["student"].pop("module.backbone.norm.bias"), "student, as the teacher is"),
        (lambda c: c["teacher"].pop("backbone.relation_blocks.0.norm1.bias"), "relation_blocks.0.norm1.bias"),
        (lambda c: c["teacher"].pop("group_head.last_layer.weight_g"), "missing .*last_layer.weight_g"),
        (lambda c: c["group-sup."].update(center=torch.zeros(1, 3)), r"center is \[1, 3\]"),
        (lambda c: c["student_mem"].pop("block.queue_k"), "student_mem.*\n.*missing .*queue_k"),
        (lambda c: c["instance-sup."].update(queue=torch.zeros(5, 9)), r"queue is \[9, 5\]"),
        (lambda c: c["instance-sup."].update(queue=torch.zeros(5)), r"queue is \[5\]"),
        (lambda c: c.pop("teacher"), "has no teacher"),
    ],
)
def test_odd_entries_are_refused_by_name(tmp_path: Path, change: Any, told: str) -> None:
    content = published()
    change(content)
    with pytest.raises(WeightsError, match=told):
        import_checkpoint(saved(tmp_path, content), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path: Path) -> None:
    content = published() | {"args": Command(tmp_path / "ran")}
    with pytest.raises(WeightsError, match=r"is refused: .*mkdir"):
        import_checkpoint(saved(tmp_path, content), tmp_path / "out")
    assert not (tmp_path / "ran").exists()

"""A run that begins with imported weights: published layout, import, `init.from`, the method's state."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from published_files import optimizer_state, prefixed, trained
from torch import Tensor

from belvedere.core.errors import CheckpointError, RecipeError, WeightsError
from belvedere.recipe.load import load_recipe
from belvedere.train.run import open_session, pretrain
from belvedere.train.session import Session
from belvedere.train.takeover import take_over
from belvedere.zoo.convert.moments import vectors_apart
from belvedere.zoo.convert.mugs import STORES
from belvedere.zoo.importing import import_checkpoint

METHODS = ("msn", "swav", "deepcluster", "sela", "esvit", "mugs")
State = dict[str, Tensor]


_BACKBONE = load_recipe("tiny/swav").backbone.model_dump_json()
_OF_A_RESNET = (f"backbone={_BACKBONE}", "features.source=pooled", "features.norm=none")
RESNET = {"deepcluster": _OF_A_RESNET, "sela": _OF_A_RESNET}
"""Published files of these have one; their tiny recipes have a ViT."""


def session(method: str, *overrides: str) -> Session:
    recipe = load_recipe(f"tiny/{method}", ["run.device=cpu", *RESNET.get(method, ()), *overrides])
    return open_session(recipe, torch.device("cpu"))


def strange(state: State) -> State:
    """Other values for every tensor, each its own."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(t.shape, generator=generator) if t.is_floating_point() else t + 1
        for name, t in state.items()
    }


def under(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}


def msn(state: State) -> dict[str, Any]:
    found: dict[str, Any] = {"prototypes": state["prototypes"], "epoch": 5}
    for key, network in (("encoder", "student."), ("target_encoder", "teacher.")):
        parts = under(state, network)
        found[key] = prefixed(under(parts, "backbone.") | prefixed(under(parts, "head."), "fc."), "module.")
    return found


def swav(state: State) -> dict[str, Any]:
    student = under(state, "student.")
    head = {name: t for name, t in student.items() if name.startswith("projection_head.")}
    prototypes = {name: t for name, t in state.items() if name.startswith("prototypes.")}
    return prefixed(under(student, "backbone.") | head | prototypes, "module.")


def esvit(state: State) -> dict[str, Any]:
    networks = {
        network: {name.removeprefix("backbone."): t for name, t in under(state, f"{network}.").items()}
        for network in ("student", "teacher")
    }
    student = trained(networks["student"])
    student = {name: t for name, t in student.items() if not name.endswith("weight_g")}  # norm_last_layer
    optimizer = optimizer_state([[student[name] for name in group] for group in vectors_apart(student)])
    return {
        "student": prefixed(networks["student"], "module."),
        "teacher": networks["teacher"],
        "dino_loss": {name: t for name, t in state.items() if name.startswith("center")},
        "optimizer": optimizer,
        "args": argparse.Namespace(),
    }


def mugs(state: State) -> dict[str, Any]:
    def network(name: str) -> State:
        return {
            ours.replace("group_head.mlp.", "group_head.projector.").replace(
                "relation_blocks.", "backbone.relation_blocks."
            ): t
            for ours, t in under(state, f"{name}.").items()
        }

    found: dict[str, Any] = {
        "student": prefixed(network("student"), "module."),
        "teacher": network("teacher"),
    }
    for key, ours in STORES.items():
        store = under(state, f"{ours}.")
        if key.endswith("_mem"):
            found[key] = prefixed(store | {"queue_v": store["queue_q"]}, "block.")
        else:
            found[key] = {name: t.T if name == "queue" else t for name, t in store.items()}
    return found | {"group-sup.": {"center": state["center"]}}


LAYOUTS: dict[str, Callable[[State], dict[str, Any]]] = {
    "msn": msn,
    "swav": swav,
    "deepcluster": swav,
    "sela": swav,
    "esvit": esvit,
    "mugs": mugs,
}
ANEW = {"deepcluster": ("bank", "assignments"), "sela": ("bank", "assignments")}


def imported(method: str, tmp_path: Path) -> tuple[State, Path]:
    """A state of this method's tiny recipe, and the folder it was imported to from its published layout."""
    state = strange(session(method).method.state_dict())
    torch.save(LAYOUTS[method](state), tmp_path / "published.pth")
    name = method if method in RESNET else f"tiny/{method}"
    import_checkpoint(tmp_path / "published.pth", tmp_path / method, architecture=name)
    return state, tmp_path / method


@pytest.mark.parametrize("method", METHODS)
def test_all_that_a_file_has_is_taken(method: str, tmp_path: Path) -> None:
    state, folder = imported(method, tmp_path)
    begun = session(method, f"init.from={folder}")
    before = {name: t.clone() for name, t in begun.method.state_dict().items()}
    take_over(begun)
    now = begun.method.state_dict()
    for name, tensor in now.items():
        expected = before[name] if name.startswith(ANEW.get(method, ("nothing",))) else state[name]
        assert torch.equal(tensor, expected), name
    assert begun.step == 0
    assert not begun.optimizer.state
    told = begun.notes[-1]
    assert "the optimizer begins anew" in told
    for part in ANEW.get(method, ()):
        assert part in told


def test_a_run_goes_on_with_its_moments(tmp_path: Path) -> None:
    _, folder = imported("esvit", tmp_path)
    begun = session("esvit", f"init.from={folder}", "init.start_epoch=2")
    take_over(begun)
    assert begun.step == 2 * begun.plan.steps_per_epoch
    names = {p: name for name, p in begun.method.named_parameters()}
    found = {names[p]: moments for p, moments in begun.optimizer.state.items()}
    student = [name for name, p in begun.method.student.named_parameters() if p.requires_grad]
    assert sorted(found) == sorted(f"student.{name}" for name in student)
    assert all(float(moments["step"]) == 7 for moments in found.values())
    assert "the optimizer goes on with the moments of" in begun.notes[-1]
    other = session(
        "esvit",
        f"init.from={folder}",
        "init.start_epoch=2",
        "optim={name: sgd, momentum: 0.9, "
        "lr: {start: 0.1, peak: 0.1, final: 0.0, warmup_epochs: 0}, weight_decay: {start: 0.0, final: 0.0}, "
        "clip: null, stretch: 1.0}",
    )
    take_over(other)
    assert "begins anew, since sgd has other moments" in other.notes[-1]


@pytest.mark.parametrize("method", ["msn", "esvit"])
def test_a_run_trains_from_an_import(method: str, tmp_path: Path) -> None:
    _, folder = imported(method, tmp_path)
    lines = [f"init.from={folder}", "run.device=cpu", "run.workers=0", f"run.dir={tmp_path / 'run'}"]
    recipe = load_recipe(f"tiny/{method}", [*lines, "train.epochs=1", "optim.lr.warmup_epochs=1"])
    outcome = pretrain(recipe)
    assert outcome.step == outcome.total_steps
    for file in folder.iterdir():
        file.unlink()
    assert pretrain(recipe).step == outcome.step, "a finished run needs the import no more"


def test_a_teacher_alone_is_the_student_too(tmp_path: Path) -> None:
    state = strange(session("msn").method.state_dict())
    content = msn(state)
    del content["encoder"], content["prototypes"]
    torch.save(content, tmp_path / "file.pth")
    import_checkpoint(tmp_path / "file.pth", tmp_path / "out", architecture="tiny/msn")
    begun = session("msn", f"init.from={tmp_path / 'out'}")
    before = begun.method.state_dict()["prototypes"].clone()
    take_over(begun)
    now = begun.method.state_dict()
    for name, tensor in under(state, "teacher.").items():
        assert torch.equal(now[f"teacher.{name}"], tensor)
        assert torch.equal(now[f"student.{name}"], tensor)
    assert torch.equal(now["prototypes"], before)
    assert "beginning anew: prototypes (not there)\n" in begun.notes[-1]


def test_another_methods_file_gives_its_backbone(tmp_path: Path) -> None:
    state, folder = imported("mugs", tmp_path)
    begun = session("msn", f"init.from={folder}")
    take_over(begun)
    now = begun.method.state_dict()
    for name, tensor in under(state, "teacher.backbone.").items():
        assert torch.equal(now[f"teacher.backbone.{name}"], tensor)
        assert torch.equal(now[f"student.backbone.{name}"], tensor)
    told = begun.notes[-1]
    assert "prototypes (not there), student.head (not there), teacher.head (not there)" in told
    assert "not taken: heads.safetensors (" in told
    assert "training.safetensors (" in told.partition("not taken")[2]


def test_heads_of_other_sizes_begin_anew_or_are_left(tmp_path: Path) -> None:
    """But not in a run that goes on at an epoch."""
    state, folder = imported("swav", tmp_path)
    overrides = [f"init.from={folder}", "method.prototypes=17"]
    with pytest.raises(CheckpointError, match=r"(?s)init.take=backbone .*prototypes.weight is \["):
        take_over(session("swav", *overrides, "init.start_epoch=1"))
    begun = session("swav", *overrides)
    take_over(begun)
    assert "beginning anew: prototypes (mis-shaped (1): prototypes.weight is [" in begun.notes[-1]
    assert "not taken: prototypes (1 tensor)" in begun.notes[-1]
    name = next(name for name in state if name.startswith("student.projection_head."))
    assert torch.equal(begun.method.state_dict()[name], state[name])
    begun = session("swav", *overrides, "init.take=backbone")
    take_over(begun)
    name = next(name for name in state if name.startswith("student.backbone."))
    assert torch.equal(begun.method.state_dict()[name], state[name])


def test_a_network_that_computes_otherwise_is_refused(tmp_path: Path) -> None:
    _, folder = imported("msn", tmp_path)
    with pytest.raises(CheckpointError, match=r"backbone\.heads: 8, in the file 4"):
        take_over(session("msn", f"init.from={folder}", "backbone.heads=8"))


def test_a_queue_that_is_not_there_is_not_taken_as_full(tmp_path: Path) -> None:
    _, folder = imported("swav", tmp_path)
    queue = "method.queue={length: 1280, start_epoch: 0}"
    take_over(session("swav", f"init.from={folder}", queue))
    with pytest.raises(CheckpointError, match="has no queue"):
        take_over(session("swav", f"init.from={folder}", "init.start_epoch=1", queue))


@pytest.mark.parametrize(
    ("epoch", "nearest"),
    [(1, "the nearest is 3"), (4, "the nearest are 3 and 6"), (8, "the nearest is 6")],
)
def test_assignments_that_are_not_made_in_this_epoch_are_not_gone_without(epoch: int, nearest: str) -> None:
    words = ("train.epochs=9", "method.refresh_epochs=3", "init.from=weights")
    with pytest.raises(RecipeError) as caught:
        session("sela", *words, f"init.start_epoch={epoch}")
    told = " ".join(str(caught.value).split())
    assert f"init.start_epoch: {epoch} is no multiple of method.refresh_epochs, 3" in told
    assert nearest in told
    for fitting in ("init.start_epoch=3", "init.start_epoch=null"):
        session("sela", *words, fitting)
    session("sela", *words[:1], words[2], f"init.start_epoch={epoch}")  # assigned anew in every epoch


def test_no_epoch_to_go_on_at_is_told() -> None:
    words = ("train.epochs=3", "optim.lr.warmup_epochs=0.5", "method.refresh_epochs=3", "init.from=weights")
    with pytest.raises(RecipeError, match=r"no epoch of this run is; leave init\.start_epoch out"):
        session("sela", *words, "init.start_epoch=2")


def test_what_is_no_import_is_refused(tmp_path: Path) -> None:
    for method in METHODS:
        with pytest.raises(CheckpointError, match=r"init\.from: .* is no run with checkpoints, nor a folder"):
            take_over(session(method, f"init.from={tmp_path}"))
    _, folder = imported("swav", tmp_path)
    (folder / "heads.safetensors").write_bytes(b"cut")
    with pytest.raises(WeightsError, match="do not belong together"):
        take_over(session("swav", f"init.from={folder}"))

"""Exports to the authors' layouts: what was imported goes back as it was, what was trained comes back."""

from __future__ import annotations

import gc
import json
import resource
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import published_esvit
import published_msn
import published_mugs
import published_swav
import pytest
import torch
from export_networks import card, cvt, outgoing, resnet, swin, vit
from published_files import drawn, prefixed, same, small_resnet, small_vit
from torch import Tensor

from belvedere.cli import main
from belvedere.core.errors import UsageError, WeightsError
from belvedere.eval.classifier import FeatureNetwork
from belvedere.methods.method import Kept
from belvedere.nn.build import build
from belvedere.nn.granular import ContrastiveHead
from belvedere.nn.heads import WeightNormHead
from belvedere.nn.spec import BackboneSpec, ContrastiveHeadSpec, ViTSpec, WeightNormHeadSpec
from belvedere.nn.spec.vit import vit_spec
from belvedere.nn.vit import Block
from belvedere.recipe.load import load_recipe
from belvedere.train.session import build_method
from belvedere.zoo.cards import Card, export
from belvedere.zoo.convert.checkpoint import Converted
from belvedere.zoo.convert.names import to_published, unchanged
from belvedere.zoo.importing import import_checkpoint
from belvedere.zoo.load import load, load_heads, load_training
from belvedere.zoo.write import Outgoing, fitting_target, write
from belvedere.zoo.write.layouts import mugs_file
from belvedere.zoo.write.published import TARGET, file_name

CASES = Path(__file__).parents[1] / "golden" / "cases"
DROPPED = ("optimizer", "opt", "args", "fp16_scaler", "amp")
"""Entries of whole files that an import does not keep as they are."""
TABLES = ("attn_mask", "queue_v")


@pytest.fixture(scope="module", autouse=True)
def young_heap() -> Iterator[None]:
    """Exports collect garbage, which takes long among all that a test session holds."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def imported(tmp_path: Path, content: Any, name: str, said: str | None = None) -> Outgoing:
    """A published file, through the import, ready to go out."""
    torch.save(content, tmp_path / name)
    import_checkpoint(tmp_path / name, tmp_path / "weights", architecture=said)
    return from_folder(tmp_path / "weights")


def from_folder(folder: Path) -> Outgoing:
    backbone, found = load(folder)
    px = found.backbone.image_px if isinstance(found.backbone, ViTSpec) else 56
    features = found.features.model_copy(update={"resize_px": px, "crop_px": px})
    found = found.model_copy(update={"features": features})
    network = FeatureNetwork(backbone, found.features).eval()
    return Outgoing(backbone, found, network, load_heads(folder), None, load_training(folder))


def written(tmp_path: Path, sent: Outgoing) -> dict[str, Any]:
    """What the exported file holds; it was compared on the way."""
    folder = tmp_path / "out"
    folder.mkdir()
    (found,) = write(folder, fitting_target("published", sent.card), sent)
    assert found.difference == 0
    content = torch.load(folder / file_name(sent.card.system), weights_only=True)
    assert isinstance(content, dict)
    return content


def leaves(content: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{before}{name}/")
        else:
            yield before + name, value


def same_file(found: Mapping[str, Any], content: Mapping[str, Any], *, tables: tuple[str, ...] = ()) -> None:
    """Assert that all an import keeps is there, equal and under its name, and nothing else."""
    kept = {name: value for name, value in content.items() if name not in DROPPED}
    expected = {
        name: value for name, value in leaves(kept) if name.rpartition(".")[2] not in (*TABLES, *tables)
    }
    here = dict(leaves(found))
    assert sorted(here) == sorted(expected)
    for name, value in expected.items():
        if isinstance(value, Tensor):
            assert here[name].dtype == value.dtype, name
            assert torch.equal(here[name], value), name
        else:
            assert here[name] == value, name


@pytest.mark.parametrize("stem", ["patch", "conv"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_msn_goes_back_as_it_was(tmp_path: Path, batch_norm: bool, stem: str) -> None:
    spec = small_vit() if stem == "patch" else small_vit(stem="conv", patch_px=16, image_px=48)
    content = published_msn.published(spec, batch_norm=batch_norm)
    same_file(written(tmp_path, imported(tmp_path, content, "mine.pth")), content)


@pytest.mark.parametrize("head", list(published_swav.HEADS))
def test_swav_goes_back_as_it_was(tmp_path: Path, head: str) -> None:
    content = prefixed(published_swav.published(head=head), "module.")
    same_file(written(tmp_path, imported(tmp_path, content, "mine.pth")), content)


def test_wide_swav_goes_back_as_it_was(tmp_path: Path) -> None:
    spec = small_resnet(block="bottleneck", width_per_group=8, widen=5)
    content = prefixed(published_swav.published(spec, head="w5"), "module.")
    same_file(written(tmp_path, imported(tmp_path, content, "mine.pth")), content)


@pytest.mark.parametrize(("system", "counts"), [("deepcluster", (5, 6)), ("sela", (5, 5, 5)), ("sela", (5,))])
def test_several_sets_of_prototypes_go_back_as_they_were(
    tmp_path: Path, system: str, counts: tuple[int, ...]
) -> None:
    content = prefixed(published_swav.published(counts=counts), "module.")
    found = written(tmp_path, imported(tmp_path, content, "mine.pth", system))
    same_file(found, content)
    file = tmp_path / "out" / file_name(system)
    assert import_checkpoint(file, tmp_path / "again").system == system  # without being told


@pytest.mark.parametrize("region", [False, True])
@pytest.mark.parametrize("kind", list(published_esvit.SPECS))
def test_esvit_goes_back_as_it_was(tmp_path: Path, kind: str, region: bool) -> None:
    content = published_esvit.published(kind, region=region, wrapped=kind in ("resnet", "cvt"))
    tables = ("relative_position_index",) if kind == "vil" else ()
    sent = imported(tmp_path, content, "checkpoint.pth")
    same_file(written(tmp_path, sent), content, tables=tables)
    if kind == "vil":
        assert any("relative_position_index" in note for note in TARGET.notes(sent))


def test_esvits_heads_with_batch_norm_have_a_wrapped_teacher(tmp_path: Path) -> None:
    content = published_esvit.published("swin", region=False, batch_norm=True, wrapped=True)
    same_file(written(tmp_path, imported(tmp_path, content, "checkpoint.pth")), content)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_mugs_goes_back_as_it_was(tmp_path: Path, batch_norm: bool) -> None:
    content = published_mugs.published(batch_norm=batch_norm)
    same_file(written(tmp_path, imported(tmp_path, content, "checkpoint.pth")), content)


def test_a_backbone_of_mugs_alone_is_a_teacher(tmp_path: Path) -> None:
    teacher = {n: t for n, t in published_mugs.network().items() if n.startswith("backbone.")}
    sent = imported(tmp_path, {"state_dict": teacher}, "mine.pth", "mugs")
    same_file(written(tmp_path, sent), {"teacher": teacher})


def test_what_published_files_have_and_these_weights_do_not_is_told(tmp_path: Path) -> None:
    sent = imported(tmp_path, published_esvit.published("swin"), "checkpoint.pth")
    told = " ".join(TARGET.notes(sent))
    assert "these weights do not: optimizer, args, fp16_scaler" in told
    assert "moments stay behind" in told
    alone = Outgoing(sent.backbone, sent.card.model_copy(update={"data": {}}), sent.feature, sent.heads)
    assert "these weights do not: student, optimizer, epoch, args" in " ".join(TARGET.notes(alone))
    bare = Outgoing(build(small_resnet()), card(small_resnet(), system="swav"), sent.feature, {})
    assert "these weights do not: projection_head, prototypes" in " ".join(TARGET.notes(bare))
    backbone = build(small_vit())
    headless = Outgoing(backbone, card(small_vit()), sent.feature, {})
    assert "encoder, prototypes, opt, epoch" in " ".join(TARGET.notes(headless))
    assert "the head (fc)" in " ".join(TARGET.notes(headless))


def trained(method: str, *overrides: str) -> tuple[Card, Kept]:
    """What a run of a tiny recipe keeps at its start, with other values in every tensor."""
    recipe = load_recipe(f"tiny/{method}", overrides)
    found = build_method(recipe)
    found.load_state_dict(drawn(found))
    features = {name: getattr(recipe, name) for name in ("backbone", "features")}
    seen = {"mean": recipe.data.mean, "std": recipe.data.std, "data": {"images": 9, "source": "digits"}}
    return Card(system=method, source=f"recipe {recipe.name}", step=3, **features, **seen), found.export()


_RESNET = (
    f"backbone={load_recipe('tiny/swav').backbone.model_dump_json()}",
    "features.source=pooled",
    "features.norm=none",
)


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("msn", ()),
        ("swav", ()),
        ("deepcluster", _RESNET),
        ("sela", _RESNET),
        ("esvit", ()),
        ("esvit", ("method.region=false",)),
        ("mugs", ()),
    ],
)
def test_what_was_trained_here_is_read_as_a_published_file(
    tmp_path: Path, method: str, overrides: tuple[str, ...], capsys: pytest.CaptureFixture
) -> None:
    found, kept = trained(method, *overrides)
    export(tmp_path / "run" / "backbone", kept.backbone, found, heads=kept.heads)
    words = ["export", str(tmp_path / "run"), "--to", "published", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "belvedere reads it" in said
    assert "equal bit by bit" in said
    if method in ("msn", "esvit", "mugs"):
        assert "published files also have, and these weights do not: " in said
    file = tmp_path / "out" / file_name(method)
    import_checkpoint(file, tmp_path / "weights", architecture=None if overrides[:2] else f"tiny/{method}")
    same(load(tmp_path / "weights").backbone.state_dict(), load(tmp_path / "run").backbone.state_dict())
    same(load_heads(tmp_path / "weights"), load_heads(tmp_path / "run"))
    readme = (tmp_path / "out" / "README.md").read_text()
    assert file.name in readme
    manifest = json.loads((tmp_path / "out" / "export.json").read_text())
    assert file.name in manifest["files"]
    if method == "msn":
        assert main(words) == 0  # again, to the same place


def test_the_shown_python_reads_the_evaluated_network(tmp_path: Path) -> None:
    content = published_msn.published(small_vit())
    sent = imported(tmp_path, content, "mine.pth")
    written(tmp_path, sent)
    found: dict[str, Any] = {}
    exec(TARGET.loading(sent).replace("DIR", str(tmp_path / "out")), found)
    backbone = {name: t for name, t in found["state"].items() if not name.startswith("fc.")}
    same(backbone, sent.backbone.state_dict())


# Golden: the names in files that the authors' code wrote


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("train_trajectory_view", "swin"),
        ("train_trajectory_view_region", "swin"),
        ("train_trajectory_resnet", "resnet"),
    ],
)
def test_names_are_those_of_the_authors_code(tmp_path: Path, case: str, kind: str) -> None:
    listed = json.loads((CASES / "esvit" / case / "case.json").read_text())["args"]["checkpoint"]
    region = "center_grid" in listed["dino_loss"]
    shapes = json.loads((CASES / "esvit" / case / "case.json").read_text())["weights"]["shapes"]
    stored = [name for name in listed["teacher"] if not name.endswith("relative_position_index")]
    teacher = {name: torch.rand(_shape(name, shapes)) for name in stored}
    columns = len(teacher["head.last_layer.weight_v"])
    centers = {name: torch.zeros(1, columns) for name in ("center", "center_grid")[: 1 + region]}
    content = {"student": prefixed(teacher, "module."), "teacher": teacher, "dino_loss": centers}
    found = written(tmp_path, imported(tmp_path, content, "checkpoint.pth"))
    assert sorted(found["student"]) == sorted(listed["student"])
    assert sorted(found["dino_loss"]) == sorted(listed["dino_loss"])
    # One process: nothing was wrapped, as on several processes a network with BatchNorm is.
    bare = [name.removeprefix("module.") for name in found["teacher"]]
    assert sorted(bare) == sorted(listed["teacher"])
    assert (kind == "resnet") == (bare != list(found["teacher"]))


def _shape(name: str, shapes: Mapping[str, list[int]]) -> list[int]:
    part, _, kind = name.rpartition(".")
    if kind == "num_batches_tracked":
        return []
    return shapes[f"{part}.weight"] if kind.startswith("running_") else shapes[name]


def test_mugs_layout_is_that_of_the_authors_code() -> None:
    layout = json.loads((CASES / "mugs" / "checkpoint_layout_vit_small" / "case.json").read_text())["args"]
    found = mugs_file(_mugs_vit_small(layout["run"]))
    for entry, listed in layout["layout"].items():
        if entry in ("student", "teacher", "student_mem", "teacher_mem", "instance-sup.", "local-group-sup."):
            expected = {n: s for n, s in listed.items() if not n.endswith("queue_v")}
            assert {name: list(tensor.shape) for name, tensor in found[entry].items()} == expected, entry
    assert set(found) <= set(layout["layout"])


def _mugs_vit_small(run: Mapping[str, Any]) -> Converted:
    """Everything that an import keeps of Mugs' ViT-S, without its numbers."""
    spec, out = vit_spec("deit_small"), run["instance_out_dim"]
    contrast = ContrastiveHeadSpec(
        hidden=2048, out=out, layers=3, predictor=4096, batch_norm=False, norm_before_predictor=True
    )
    group = WeightNormHeadSpec(
        hidden=2048,
        bottleneck=run["group_bottleneck_dim"],
        out=run["group_out_dim"],
        layers=3,
        batch_norm=False,
        norm_last_layer=False,
    )
    slots = run["local_group_queue_size"]
    with torch.device("meta"):
        backbone = build(spec).state_dict()
        beside = prefixed(Block(spec, 0.0).state_dict(), "relation_blocks.0.")
        for head in ("instance_head.", "local_group_head."):
            beside |= prefixed(ContrastiveHead(spec.width, contrast).state_dict(), head)
        beside |= prefixed(WeightNormHead(spec.width, group).state_dict(), "group_head.")
        training = prefixed(prefixed(backbone, "backbone.") | beside, "student.")
        for name in ("student_memory.", "teacher_memory."):
            rows = {part: torch.empty(slots, spec.width) for part in ("queue_q", "queue_k")}
            training |= prefixed(rows | {"queue_ptr": torch.empty(1)}, name)
        for name in ("instance_queue.", "local_group_queue."):
            stored = {"queue": torch.empty(slots, out), "queue_ptr": torch.empty(1)}
            training |= prefixed(stored, name)
        center = {"center": torch.empty(1, run["group_out_dim"])}
    heads = {name: tensor for name, tensor in beside.items() if ".predictor." not in name}
    return Converted(backbone, heads | center, card(spec, system="mugs"), training)


# Refusals


@pytest.mark.parametrize(
    ("system", "spec", "told"),
    [
        ("timm", vit(), "these weights are of timm; the layouts are those of msn, swav, .*esvit, mugs"),
        ("torchvision", resnet(), "of torchvision; .*ResNet, which can go to timm, torchvision, onnx"),
        ("huggingface", vit(), "of huggingface; .*ViT, which can go to huggingface, timm"),
        ("swav", vit(), "the authors of swav have no ViT of this kind"),
        ("sela", vit(), "the authors of sela have no ViT"),
        ("deepcluster", swin(), "the authors of deepcluster have no Swin"),
        ("msn", cvt(), "the authors of msn have no CvT"),
        ("mugs", resnet(), "the authors of mugs have no ResNet"),
        ("mugs", vit(patch_px=16, stem="conv"), "the authors of mugs have no ViT with a convolutional stem"),
        ("esvit", vit(patch_px=16, stem="conv"), "the authors of esvit have no ViT with a convolutional"),
        (
            "msn",
            vit(qkv_bias=False),
            "the ViTs of msn's authors have a bias of queries, keys and values .here: no",
        ),
        (
            "mugs",
            vit(norm_eps=1e-5),
            "the ViTs of mugs's authors have norms with an epsilon of 1e-06 .here: 1e-05",
        ),
        ("swav", resnet(), "the files of swav are known by their heads, and these weights have none"),
        ("esvit", swin(), "the files of esvit are known by their heads"),
    ],
)
def test_what_has_no_layout_is_refused(system: str, spec: BackboneSpec, told: str) -> None:
    with pytest.raises(UsageError, match=f"--to published: .*{told}"):
        fitting_target("published", card(spec, system=system))


def test_the_command_refuses_it_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sent = outgoing(vit())
    export(tmp_path / "w", sent.backbone, sent.card.model_copy(update={"system": "timm"}))
    assert main(["export", str(tmp_path / "w"), "--to", "published", "--out", str(tmp_path / "out")]) == 2
    assert "can go to huggingface, timm, torchvision, onnx, safetensors" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"head.more": torch.zeros(2)}, "unexpected .*more"),
        ({"queue": torch.zeros(2)}, "do not have: queue"),
        ({"prototypes": torch.zeros(6, 4).half()}, "not what they were.*prototypes"),
        ({"prototypes": torch.full((6, 4), torch.nan)}, "not finite"),
    ],
)
def test_what_does_not_come_back_as_it_was_is_an_error(
    tmp_path: Path, change: dict[str, Tensor], told: str
) -> None:
    sent = imported(tmp_path, published_msn.published(small_vit()), "mine.pth")
    changed = Outgoing(sent.backbone, sent.card, sent.feature, {**sent.heads, **change})
    with pytest.raises(WeightsError, match=told):
        written(tmp_path, changed)


def test_a_part_that_a_layout_has_no_place_for_is_an_error() -> None:
    with pytest.raises(WeightsError, match=r"fc\.bias has no place in this layout, which has head"):
        to_published("fc.bias", unchanged("head."))


@pytest.fixture
def no_space() -> Iterator[None]:
    """A file may be 50 kB large, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_and_leaves_nothing(
    tmp_path: Path, no_space: None, capsys: pytest.CaptureFixture
) -> None:
    sent = imported_before_the_disk_is_full(tmp_path)
    assert main(["export", str(sent), "--to", "published", "--out", str(tmp_path / "out")]) == 1
    assert "File too large" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def imported_before_the_disk_is_full(tmp_path: Path) -> Path:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits[1], limits[1]))
    network = build(small_vit())
    export(tmp_path / "weights", network, card(small_vit()))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return tmp_path / "weights"

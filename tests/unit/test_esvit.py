"""EsViT: what its recipe may say, a step's order, mixup, and a run that adds the region task to another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from belvedere.core.errors import CheckpointError, RecipeError
from belvedere.data.batch import Batch
from belvedere.methods.esvit import EsViT, Options
from belvedere.methods.method import Clock, Extent
from belvedere.methods.options.centered import TeacherTemperature
from belvedere.nn.backbone import Features
from belvedere.nn.build import build
from belvedere.nn.heads import TaskHeads, WeightNormHead
from belvedere.nn.spec import BackboneSpec, ResNetSpec, ViTSpec, WeightNormHeadSpec
from belvedere.ops.mixup import Blend, blended, draw_blend, shares
from belvedere.recipe.load import load_recipe
from belvedere.recipe.plan import plan
from belvedere.recipe.schema import Recipe
from belvedere.train.dry import dry_run
from belvedere.train.run import pretrain

HEAD = {"hidden": 8, "bottleneck": 4, "out": 6, "layers": 3, "batch_norm": False, "norm_last_layer": False}
TINY_RESNET = "{name: resnet, block: basic, blocks: [1, 1, 1, 1], widen: 1, width_per_group: 8, stem: small}"
AT = Clock(0, 2, 8, 8)


def _options(**changed: Any) -> Options:
    values = {
        "name": "esvit",
        "region": True,
        "temperature": 0.1,
        "teacher_temperature": {"start": 0.04, "final": 0.07, "warmup_epochs": 2},
        "center_momentum": 0.9,
        "momentum": {"start": 0.9, "final": 1.0},
        "freeze_last_layer_epochs": 1,
        "mixup": None,
        "head": HEAD,
    }
    return Options.model_validate(values | changed)


def _vit(**changed: Any) -> ViTSpec:
    values = {
        "name": "vit",
        "width": 8,
        "depth": 2,
        "heads": 2,
        "patch_px": 4,
        "mlp_ratio": 2.0,
        "stem": "patch",
        "image_px": 8,
        "drop_path": 0.0,
    }
    return ViTSpec.model_validate(values | changed)


RESNET = ResNetSpec(
    name="resnet", block="basic", blocks=(1, 1, 1, 1), widen=1, width_per_group=4, stem="small"
)


def _method(spec: BackboneSpec | None = None, **changed: Any) -> EsViT:
    return EsViT(_options(**changed), build(spec or _vit()), seed=0)


def _batch(sizes: dict[str, tuple[int, int]], num_images: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(0)
    views = {
        role: torch.randn(count, num_images, 3, px, px, generator=generator)
        for role, (count, px) in sizes.items()
    }
    return Batch(views, torch.arange(num_images), torch.zeros(num_images), range(num_images))


def _losses(method: EsViT, batch: Batch):  # type: ignore[no-untyped-def]
    encoded = method.encode_student(method.student, batch, AT)
    with torch.no_grad():
        target = method.encode_teacher(batch, AT)
    return encoded, method.loss(method.student, encoded, target, batch, AT)


# What a recipe may say


def _mistakes(*overrides: str) -> str:
    with pytest.raises(RecipeError) as refused:
        load_recipe("tiny/esvit", overrides)
    return str(refused.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("views.global.count=3", r"views.global.count: 3 is not allowed; EsViT's teacher sees 2 views"),
        (
            "method.mixup={alpha: 0.8, cutmix_alpha: 1.0, cutmix_p: 0.5, views: 10}",
            "method.mixup: has no targets",
        ),
        (
            "views.local.px=7",
            "views.local.px: 7 has no whole patches of 2 px; the nearest that it can take are 6",
        ),
        ("views.global.px=2", "views.global.px: leaves a single region"),
        ("init={from: x, start_epoch: 1000}", "init.start_epoch: 1000 is the end of the run"),
        ("init={fro: x, start_epoch: 1}", "init.fro: unknown key; did you mean from?"),
        ("optim.lr.warmup_epochs=9999", "optim.lr.warmup_epochs: 9999 is longer than the schedule"),
    ],
)
def test_a_mistake_names_the_key_to_change(override: str, words: str) -> None:
    assert words in _mistakes(override)


def test_large_views_of_two_roles_have_the_same_regions() -> None:
    both = [
        "views.global.count=1",
        "views.global_2={count: 1, px: 12, scale: [0.5, 1.0], aspect: [1.0, 1.0], ",
    ]
    both[1] += (
        "interpolation: bicubic, photometry: {flip: 0.0, jitter: null, gray: 0.0, blur: null, solarize: 0.0}}"
    )
    assert "views.global_2.px: gives" in _mistakes(*both)
    load_recipe("tiny/esvit", [*both, "views.global_2.px=8"])
    load_recipe("tiny/esvit", [*both, "method.region=false"])


def test_a_temperature_cannot_warm_up_for_longer_than_the_run() -> None:
    recipe = load_recipe("tiny/esvit", ["method.teacher_temperature.warmup_epochs=500"])
    with pytest.raises(RecipeError, match=r"method\.teacher_temperature\.warmup_epochs: 500 is longer"):
        plan(recipe, num_images=1347)


def test_mixup_needs_pairs_of_images_on_each_process() -> None:
    mixup = {"alpha": 0.8, "cutmix_alpha": 1.0, "cutmix_p": 0.5, "views": 10}
    options = _options(region=False, mixup=mixup)
    extent = Extent(images=100, epochs=10, steps_per_epoch=10, global_batch=6, world_size=2)
    ((key, words),) = options.misfits(extent)
    assert key == "train.global_batch"
    assert "a multiple of 4" in words
    assert options.misfits(Extent(100, 10, 10, 8, 2)) == []


def test_a_backbone_without_regions_is_refused() -> None:
    class Blind(nn.Module):
        width = 4

        def forward(self, images: Tensor, *, regions: bool) -> Features:
            return Features(images.mean((2, 3)), None, None, None, ())

    heads = TaskHeads(Blind(), 4, WeightNormHeadSpec.model_validate(HEAD), regions=True)
    with pytest.raises(RecipeError, match=r"method\.region"):
        heads(torch.zeros(1, 4, 2, 2), part="backbone")


def test_doubts_about_last_layers_that_never_learn() -> None:
    extent = Extent(100, 3, 10, 8, 1)
    assert _options().doubts(extent) == []
    assert "never learn" in _options(freeze_last_layer_epochs=3).doubts(extent)[0]


# Schedules and groups


def test_the_temperature_of_the_targets_is_that_of_the_epoch() -> None:
    course = TeacherTemperature(start=0.04, final=0.07, warmup_epochs=3)
    assert [course(epoch) for epoch in range(5)] == pytest.approx([0.04, 0.055, 0.07, 0.07, 0.07])
    assert TeacherTemperature(start=0.04, final=0.07, warmup_epochs=1)(0) == 0.04
    assert TeacherTemperature(start=0.04, final=0.07, warmup_epochs=0)(0) == 0.07


def test_tables_and_lengths_are_decayed_and_vectors_are_not() -> None:
    method = _method()
    names = {id(p): name for name, p in method.student.named_parameters()}
    decayed, rest = ({names[id(p)] for p in group.parameters} for group in method.groups())
    assert {"head.last_layer.weight_g", "head_dense.last_layer.weight_v", "backbone.pos_embed"} <= decayed
    assert {"backbone.norm.weight", "head.mlp.0.bias"} <= rest
    assert decayed | rest == set(names.values())
    held = _method(head=HEAD | {"norm_last_layer": True})
    trained = {id(p) for group in held.groups() for p in group.parameters}
    assert id(held.student.head.last_layer.weight_g) not in trained


def test_the_teacher_drops_no_paths() -> None:
    method = _method(_vit(drop_path=0.5))
    rates = [
        [module.rate for module in network.modules() if hasattr(module, "rate")]
        for network in (method.student, method.teacher)
    ]
    assert max(rates[0]) == 0.5
    assert max(rates[1]) == 0.0


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_head_gives_scaled_cosines(layers: int) -> None:
    head = WeightNormHead(5, WeightNormHeadSpec.model_validate(HEAD | {"layers": layers}))
    head.initialize_(torch.Generator().manual_seed(0))
    with torch.no_grad():
        head.last_layer.weight_g.copy_(torch.arange(1.0, 7.0)[:, None])
    h = torch.randn(3, 5)
    directions = nn.functional.normalize(head.last_layer.weight_v, dim=1)
    torch.testing.assert_close(head(h), (head.embed(h) @ directions.T) * torch.arange(1.0, 7.0))
    torch.testing.assert_close(head.embed(h).norm(dim=1), torch.ones(3))


# A step


@pytest.mark.parametrize("spec", [None, RESNET], ids=["vit", "resnet"])
@pytest.mark.parametrize("region", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [
        {"global": (2, 8)},
        {"global": (1, 8), "global_2": (1, 8)},
        {"global": (2, 8), "local": (2, 4), "local_2": (1, 8)},
        {"global": (2, 8), "local": (3, 8)},
    ],
    ids=["2+0", "two roles", "two small sizes", "small ones as large"],
)
def test_any_crops_give_a_loss_and_gradients(
    spec: BackboneSpec | None, region: bool, sizes: dict[str, tuple[int, int]]
) -> None:
    method = _method(spec, region=region)
    _, losses = _losses(method, _batch(sizes))
    losses.total.backward()
    without = [n for n, p in method.student.named_parameters() if p.grad is None]
    assert without == []
    assert all(p.grad is None for p in method.teacher.parameters())
    assert set(losses.terms) == ({"view", "region"} if region else {"view"})
    expected = sum(losses.terms.values()) / len(losses.terms)
    torch.testing.assert_close(losses.total.detach(), expected)
    assert losses.health is not None
    assert losses.health.z.shape == (2, 4, 4)
    assert losses.health.log_p.shape == (2, 4, 6)


def test_two_large_roles_are_two_views_of_one() -> None:
    batch = _batch({"global": (2, 8), "local": (1, 4)})
    large = batch.views["global"]
    parted = Batch(
        {"global": large[:1], "global_2": large[1:], "local": batch.views["local"]},
        batch.index,
        batch.label,
        batch.rows,
    )
    method = _method()
    totals = [float(_losses(method, each)[1].total.detach()) for each in (batch, parted)]
    assert totals[0] == totals[1]


def test_last_layers_have_no_gradient_while_they_are_frozen() -> None:
    method = _method()
    for epoch, frozen in ((0, True), (1, False)):
        _losses(method, _batch({"global": (2, 8)}))[1].total.backward()
        method.before_update(Clock(2 * epoch, 2, 8, 8))
        absent = {name for name, p in method.student.named_parameters() if p.grad is None}
        layers = {name for name, _ in method.student.named_parameters() if ".last_layer." in name}
        assert absent == (layers if frozen else set())
        method.zero_grad()


def test_a_loss_changes_nothing_and_the_update_moves_parameters_and_centers_alone() -> None:
    method = _method(RESNET).train()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    batch = _batch({"global": (2, 8)})
    with torch.no_grad():
        method.student.head.mlp[0].bias.add_(1.0)  # type: ignore[union-attr,operator]
    encoded, losses = _losses(method, batch)
    assert torch.equal(method.center, before["center"])
    method.after_update(encoded, losses, AT)
    after = method.state_dict()
    moved = {name for name in after if not torch.allclose(after[name], before[name], atol=1e-7)}
    buffers = {name for name, _ in method.named_buffers() if name.startswith("teacher")}
    expected = {"center", "center_grid", "student.head.mlp.0.bias", "teacher.head.mlp.0.bias"}
    assert moved - {name for name in moved if "running" in name or "num_batches" in name} == expected
    assert torch.allclose(after["teacher.head.mlp.0.bias"], torch.full((8,), 0.1))
    assert buffers, "the teacher has statistics of its own"
    mean = losses.kept["center"]
    torch.testing.assert_close(after["center"], 0.1 * mean)


def test_a_fresh_region_head_is_the_same_in_both_networks() -> None:
    method = _method()
    for name, value in method.student.state_dict().items():
        assert torch.equal(value, method.teacher.state_dict()[name])


# Mixup


def test_pixels_are_mixed_with_those_of_the_neighbour() -> None:
    images = torch.arange(3.0)[:, None, None, None].expand(3, 3, 4, 4)
    mixed = blended(images, Blend(0.75, None))
    assert mixed[:, 0, 0, 0].tolist() == [0.25, 0.75, 2.0]
    cut = blended(images, Blend(1 - 2 / 16, (0, 2, 1, 2)))
    assert (cut[0] == 1.0).sum() == 3 * 2
    assert images[0].sum() == 0, "the images themselves are not changed"


def test_shares_sum_to_one_and_are_those_of_the_pixels() -> None:
    for view in range(50):
        blend = draw_blend(3, view, 16, alpha=0.8, cutmix_alpha=1.0, cutmix_p=0.5)
        images = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)])
        matrix = shares(blend, images, 2)
        torch.testing.assert_close(matrix.sum(0), torch.ones(2))
        of_first = 1 - float(blended(images, blend)[0].mean())
        assert float(matrix[0, 0]) == pytest.approx(of_first, abs=1e-6)


def test_both_kinds_of_mixing_are_drawn_at_their_rates() -> None:
    drawn = [draw_blend(0, v, 32, alpha=0.8, cutmix_alpha=1.0, cutmix_p=0.3) for v in range(400)]
    cut = np.mean([blend.box is not None for blend in drawn])
    assert 0.22 < cut < 0.38
    averaged = [blend.share for blend in drawn if blend.box is None]
    assert abs(np.mean(averaged) - 0.5) < 0.06


def test_mixed_crops_are_the_same_for_micro_batches() -> None:
    mixup = {"alpha": 0.8, "cutmix_alpha": 1.0, "cutmix_p": 0.5, "views": 3}
    method = _method(region=False, mixup=mixup)
    batch = _batch({"global": (2, 8), "local": (2, 4)})
    batch.draws = method.draws(torch.Generator().manual_seed(0), batch)
    assert batch.draws["shares"].shape == (4, 4, 4)
    assert torch.equal(batch.draws["shares"][3], torch.eye(4)), "the fourth crop is not mixed"
    assert torch.equal(batch.draws["mixed_local"][1], batch.views["local"][1])
    whole = method.encode_student(method.student, batch, AT)
    for start, stop in ((0, 1), (1, 4)):
        part = method.encode_student(method.student, batch.part(start, stop), AT)
        for name, h in part.items():
            torch.testing.assert_close(h, whole[name][:, start:stop])
    encoded, losses = _losses(method, batch)
    assert losses.total.isfinite()
    plain = _losses(method, _batch({"global": (2, 8), "local": (2, 4)}))[0]
    assert not torch.equal(plain["pooled_0"], encoded["pooled_0"])
    teacher = method.encode_teacher(batch, AT)["pooled_0"]
    torch.testing.assert_close(teacher, plain["pooled_0"])  # the teacher sees images as they are


# Adding the region task to a run


def _recipe(images: Path, directory: Path, *overrides: str) -> Recipe:
    """Two steps an epoch, with a BatchNorm backbone."""
    lines = [
        f"data.path={images}",
        "data.split=null",
        f"run.dir={directory}",
        "run.device=cpu",
        "run.milestone_epochs=1",
        "train.global_batch=3",
        "train.epochs=3",
        "optim.lr.warmup_epochs=1",
        "method.head.hidden=8",
        "method.head.bottleneck=4",
        "method.head.out=8",
        f"backbone={TINY_RESNET}",
        "features.source=pooled",
        "features.norm=none",
        "views.global.px=16",
        "views.local.px=8",
        *overrides,
    ]
    latest = {key: value for key, _, value in (line.partition("=") for line in lines)}
    return load_recipe("tiny/esvit", [f"{key}={value}" for key, value in latest.items()])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    random = np.random.RandomState(0)
    for number in range(6):
        pixels = random.randint(0, 256, size=(16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def view_run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with the view task alone, of three epochs of two steps."""
    directory = tmp_path_factory.mktemp("view")
    pretrain(_recipe(images, directory, "method.region=false"))
    return directory


def test_the_region_task_is_added_to_a_run(
    images: Path,
    view_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from belvedere.train import run

    begun: dict[str, Any] = {}

    def look(session: Any, **how: Any) -> bool:
        begun["state"] = {name: value.clone() for name, value in session.method.state_dict().items()}
        begun["step"], begun["optimizer"] = session.step, dict(session.optimizer.state)
        begun["lr"] = session.plan.lr(session.step)
        return train(session, **how)

    train = run._train
    monkeypatch.setattr(run, "_train", look)
    start = f"init={{from: {view_run}, start_epoch: 2}}"
    outcome = pretrain(_recipe(images, tmp_path, "method.region=true", start))
    assert (begun["step"], outcome.step) == (4, 6)
    assert begun["optimizer"] == {}
    assert 0 < begun["lr"] < 3e-3, "schedules go on"
    state = begun["state"]
    heads = {n.removeprefix("student."): v for n, v in state.items() if n.startswith("student.head_dense.")}
    assert heads
    assert all(torch.equal(value, state[f"teacher.{name}"]) for name, value in heads.items())
    assert not state["center_grid"].any()
    assert state["center"].any()
    told = " ".join(capsys.readouterr().err.split())
    assert "center_grid, student.head_dense, teacher.head_dense and the optimizer begin anew" in told
    assert "epoch 2 of 3 (step 4 of 6)" in told


def test_everything_else_is_taken_over_bitwise(images: Path, view_run: Path, tmp_path: Path) -> None:
    from belvedere.train.run import open_session
    from belvedere.train.takeover import take_over

    start = f"init={{from: {view_run}, start_epoch: 3}}"
    session = open_session(_recipe(images, tmp_path, "train.epochs=5", start), torch.device("cpu"))
    take_over(session)
    before = open_session(_recipe(images, view_run, "method.region=false"), torch.device("cpu"))
    assert before.resume()
    now = session.method.state_dict()
    for name, value in before.method.state_dict().items():
        assert torch.equal(value, now[name]), name
    assert any("running_mean" in name for name in now)


def test_a_run_that_was_started_so_is_resumed_and_not_started_again(
    images: Path, view_run: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(view_run)
    start = f"init={{from: {moved}, start_epoch: 1}}"
    whole = pretrain(_recipe(images, tmp_path / "run", start))
    moved.unlink()
    again = pretrain(_recipe(images, tmp_path / "run", start))
    assert (whole.step, again.step) == (6, 6)


@pytest.mark.parametrize(
    ("start", "overrides", "words"),
    [
        (
            2,
            ["method.head.hidden=9"],
            r"mis-shaped \(.*student.head.mlp.0.weight is \[8, 64\], must be \[9, 64\]",
        ),
        (2, ["method.head.layers=2"], r"unexpected \(.*student.head.mlp.4.weight"),
        (4, ["train.epochs=9"], "init.start_epoch: .* has no checkpoint of epoch 4; it has those of 1, 2, 3"),
    ],
)
def test_what_does_not_fit_is_listed_by_name(
    images: Path, view_run: Path, tmp_path: Path, start: int, overrides: list[str], words: str
) -> None:
    line = f"init={{from: {view_run}, start_epoch: {start}}}"
    with pytest.raises(CheckpointError, match=words):
        pretrain(_recipe(images, tmp_path, line, *overrides))
    assert not (tmp_path / "checkpoints").exists()


def test_a_dry_run_tries_the_start_too(
    images: Path, view_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dry_run(_recipe(images, tmp_path / "run", f"init={{from: {view_run}, start_epoch: 2}}"))
    assert "epoch 2 of 3 (step 4 of 6)" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()
    line = f"init={{from: {view_run}, start_epoch: 4}}"
    recipe = _recipe(images, tmp_path / "run", line, "train.epochs=9")
    with pytest.raises(CheckpointError, match="no checkpoint of epoch 4"):
        dry_run(recipe)


def test_a_directory_without_checkpoints_is_no_run(images: Path, tmp_path: Path) -> None:
    line = f"init={{from: {tmp_path / 'nothing'}, start_epoch: 1}}"
    with pytest.raises(CheckpointError, match=r"init\.from: .*nothing is no run with checkpoints"):
        pretrain(_recipe(images, tmp_path / "run", line))


def test_a_run_with_regions_does_not_fit_one_without(images: Path, view_run: Path, tmp_path: Path) -> None:
    line = f"init={{from: {view_run}, start_epoch: 2}}"
    pretrain(_recipe(images, tmp_path / "regions", line))
    other = f"init={{from: {tmp_path / 'regions'}, start_epoch: 3}}"
    with pytest.raises(CheckpointError, match=r"unexpected \(.*center_grid"):
        pretrain(_recipe(images, tmp_path / "view", other, "method.region=false", "train.epochs=4"))

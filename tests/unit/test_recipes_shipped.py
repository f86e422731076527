"""The shipped recipes: what they are, and that what they say of themselves is so."""

from __future__ import annotations

from pathlib import Path

import pytest

import belvedere
from belvedere.core.errors import RecipeError
from belvedere.methods import esvit, mugs, swav
from belvedere.methods.pages import method_names
from belvedere.nn.spec import ResNetSpec, SwinSpec, ViTSpec
from belvedere.nn.spec.swin import swin_spec
from belvedere.recipe.load import load_recipe
from belvedere.recipe.schema import Published
from belvedere.recipe.shipped import recipe_names, recipe_text

# Assran et al. 2022: low-shot accuracy with 1, 2, 5 images per class and 1 % of ImageNet's labels, and linear
PAPER = {
    "msn/vits16": (47.1, 55.8, 62.8, 66.4, 76.9),
    "msn/vits16-no-sinkhorn": (None, None, None, 67.2, None),
    "msn/vitb16": (49.8, 58.9, 65.5, 69.5, None),
    "msn/vitb8": (55.1, 64.9, 71.6, None, None),
    "msn/vitb4": (54.3, 64.6, 72.4, 75.7, None),
    "msn/vitl16": (None, None, None, 70.1, None),
    "msn/vitl7": (57.1, 66.4, 72.1, 75.1, 80.7),
}
# Caron et al. 2020, models of their README: linear evaluation, published file, epochs, batch, queue
SWAV: dict[str, tuple[float, str | None, int, int, tuple[int, int] | None]] = {
    "swav/rn50-800ep": (75.3, "swav_800ep", 800, 4096, None),
    "swav/rn50-400ep": (74.6, "swav_400ep", 400, 4096, None),
    "swav/rn50-200ep": (73.9, "swav_200ep", 200, 4096, None),
    "swav/rn50-100ep": (72.1, "swav_100ep", 100, 4096, None),
    "swav/rn50-200ep-b256": (72.7, "swav_200ep_bs256", 200, 256, (3840, 15)),
    "swav/rn50-400ep-b256": (74.3, "swav_400ep_bs256", 400, 256, (3840, 15)),
    "swav/rn50-400ep-2x224": (70.1, "swav_400ep_2x224", 400, 4096, None),
    "swav/rn50w2-400ep": (77.3, "swav_RN50w2_400ep", 400, 4096, None),
    "swav/rn50w4-400ep": (77.9, "swav_RN50w4_400ep", 400, 2560, (2560, 0)),
    "swav/rn50w5-400ep": (78.5, None, 400, 2560, (2560, 0)),
}
_CARON = "arXiv 2006.09882"
ARXIV = {
    "msn": "arXiv 2204.07141",
    "swav": _CARON,
    "deepcluster": _CARON,
    "sela": _CARON,
    "esvit": "arXiv 2106.09785",
    "mugs": "arXiv 2203.14415",
}
# Li et al. 2022, models of their README: linear evaluation, k-NN, images a step, the epoch that the region
# task begins at (0: from the start; None: never)
ESVIT: dict[str, tuple[float, float, int, int | None]] = {
    "esvit/rn50": (75.0, 69.1, 1024, None),
    "esvit/rn50-region": (75.7, 71.3, 1024, 200),
    "esvit/swin-tiny-w7": (77.0, 74.2, 512, None),
    "esvit/swin-small-w7": (79.2, 76.9, 512, None),
    "esvit/swin-base-w7": (79.6, 77.7, 512, None),
    "esvit/swin-tiny-w7-region": (78.0, 75.7, 512, 0),
    "esvit/swin-small-w7-region": (79.5, 77.7, 512, 0),
    "esvit/swin-base-w7-region": (80.4, 78.9, 512, 200),
    "esvit/swin-tiny-w14-region": (78.7, 77.0, 512, 200),
    "esvit/swin-small-w14-region": (80.8, 79.1, 512, 180),
    "esvit/swin-base-w14-region": (81.3, 79.3, 512, 200),
    "esvit/vil-w7": (77.3, 73.9, 512, None),
    "esvit/vil-w7-region": (77.5, 74.5, 1024, 200),
    "esvit/cvt-w7": (77.6, 74.8, 1024, None),
    "esvit/cvt-w7-region": (78.5, 76.7, 1024, 200),
    "esvit/swin-tiny-w7-b1024": (77.1, 73.7, 1024, None),
    "esvit/swin-tiny-w7-webvision": (75.4, 69.4, 1024, None),
    "esvit/swin-tiny-w7-openimages": (69.6, 60.3, 1024, None),
    "esvit/swin-tiny-w7-imagenet22k": (73.5, 66.1, 1024, None),
}
# Zhou et al. 2022, README of their code and its commands: linear evaluation, k-NN, epochs, images a step,
# peak and final learning rate, width
MUGS: dict[str, tuple[float, float, int, int, float, float, int]] = {
    "mugs/vits16-100ep": (76.4, 72.3, 100, 512, 1.6e-3, 1e-6, 384),
    "mugs/vits16-300ep": (78.2, 74.8, 300, 1024, 3.2e-3, 1e-6, 384),
    "mugs/vits16-800ep": (78.9, 75.6, 800, 1024, 3.2e-3, 1e-6, 384),
    "mugs/vitb16-400ep": (80.6, 78.0, 400, 1008, 3.15e-3, 2e-6, 768),
    "mugs/vitl16-250ep": (82.1, 80.3, 250, 640, 3.75e-3, 1.5e-4, 1024),
}
PROTOCOLS = ("1 image per class", "2 images per class", "5 images per class", "1% of labels", "linear")


def test_every_recipe_file_is_found_and_sits_in_its_methods_folder() -> None:
    folder = Path(belvedere.__file__).parent / "recipes"
    files = {str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.y*ml")}
    assert files == set(recipe_names())
    for name in recipe_names():
        assert name.split("/")[0] in ("tiny", load_recipe(name).method.name)


def test_every_method_has_a_tiny_recipe() -> None:
    assert {f"tiny/{method}" for method in method_names()} <= set(recipe_names())


def _published(name: str) -> Published:
    return load_recipe(name).published or Published(source="")


def _opening_comment(name: str) -> str:
    lines = recipe_text(name).splitlines()
    first_key = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#").strip() for line in lines[:first_key])


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_opens_with_what_it_reaches_and_how_to_run_it(name: str) -> None:
    comment, accuracies = _opening_comment(name), _published(name).accuracy
    assert f"belvedere pretrain {name}" in comment
    for accuracy in accuracies.values():
        assert str(accuracy) in comment
    assert (ARXIV[load_recipe(name).method.name] if accuracies else "No paper has this run") in comment


@pytest.mark.parametrize("name", recipe_names())
def test_what_the_authors_never_stated_is_marked_at_the_value_too(name: str) -> None:
    marked = {
        line.split(":")[0].strip() for line in recipe_text(name).splitlines() if "# unknown, see" in line
    }
    unknown = _published(name).unknown
    assert marked == {key.split(".")[-1] for key in unknown}
    assert all(len(reason) > 40 for reason in unknown.values())


@pytest.mark.parametrize("name", PAPER)
def test_published_accuracy(name: str) -> None:
    expected = {
        protocol: value for protocol, value in zip(PROTOCOLS, PAPER[name], strict=True) if value is not None
    }
    assert _published(name).accuracy == expected


def test_published_settings_of_the_released_files() -> None:
    small = load_recipe("msn/vits16")
    other = load_recipe("msn/vits16-no-sinkhorn")
    assert (small.method.sinkhorn_iterations, small.method.memax_weight) == (3, 1.0)  # type: ignore[attr-defined]
    assert (other.method.sinkhorn_iterations, other.method.memax_weight) == (0, 5.0)  # type: ignore[attr-defined]
    patch_4 = load_recipe("msn/vitb4")
    assert (patch_4.train.epochs, patch_4.train.global_batch) == (300, 1152)
    assert patch_4.method.patch_drop == 0.7  # type: ignore[attr-defined]
    shapes = {
        "vits16": (384, 12, 6, 16),
        "vitb16": (768, 12, 12, 16),
        "vitb8": (768, 12, 12, 8),
        "vitb4": (768, 12, 12, 4),
        "vitl16": (1024, 24, 16, 16),
        "vitl7": (1024, 24, 16, 7),
    }
    for name, shape in shapes.items():
        spec = load_recipe(f"msn/{name}").backbone
        assert (spec.width, spec.depth, spec.heads, spec.patch_px) == shape


@pytest.mark.parametrize("name", SWAV)
def test_published_runs_of_swav(name: str) -> None:
    accuracy, file, epochs, batch, queue = SWAV[name]
    recipe, published = load_recipe(name), _published(name)
    method, widened = recipe.method, name.startswith("swav/rn50w")
    assert isinstance(method, swav.Options)
    assert isinstance(recipe.backbone, ResNetSpec)
    assert published.accuracy == {"linear": accuracy}
    assert published.weights == (f"{file}_pretrain.pth.tar" if file else None)
    assert (recipe.train.epochs, recipe.train.global_batch) == (epochs, batch)
    assert (method.queue and (method.queue.length, method.queue.start_epoch)) == queue
    assert (method.prototypes, method.head.out, method.head.hidden) == (3000, 128, 8192 if widened else 2048)
    assert recipe.backbone.widen == (int(name[10]) if widened else 1)
    small_batch = batch == 256
    assert method.freeze_prototypes_steps == (5005 if small_batch else 313)
    lr = recipe.optim.lr
    assert (lr.peak, lr.final) == ((0.6, 6e-4) if small_batch else (4.8, 4.8e-3))
    assert (lr.start, lr.warmup_epochs) == ((0.6, 0) if small_batch else (0.3, 10))
    views = {role: (view.count, view.px, view.scale) for role, view in recipe.views.items()}
    two, four = name.endswith("2x224"), name in ("swav/rn50w4-400ep", "swav/rn50w5-400ep")
    assert views.pop("global") == (2, 224, (0.08 if two or four else 0.14, 1.0))
    local = (4 if widened else 6, 96, (0.08 if four else 0.05, 0.14))
    assert views == ({} if two else {"local": local})
    assert recipe.data.std == (0.228, 0.224, 0.225)
    assert bool(published.unknown) == (file is None)


@pytest.mark.parametrize("name", ESVIT)
def test_published_runs_of_esvit(name: str) -> None:
    linear, knn, batch, joined = ESVIT[name]
    recipe, published = load_recipe(name), _published(name)
    method, backbone = recipe.method, recipe.backbone
    assert isinstance(method, esvit.Options)
    assert published.accuracy == {"linear": linear, "k-NN": knn}
    assert recipe.train.global_batch == batch
    assert recipe.train.epochs == (150 if name.endswith(("webvision", "openimages")) else 300)
    assert recipe.optim.lr.peak == pytest.approx(5e-4 * batch / 256)
    assert method.region == (joined is not None)
    assert (recipe.init and recipe.init.start_epoch) == (joined or None)
    assert method.head.out == 65536
    assert method.head.norm_last_layer == (name == "esvit/swin-base-w14-region")
    if isinstance(backbone, SwinSpec):
        _, size, window = name.removesuffix("-region").split("-")[:3]
        assert backbone == swin_spec(f"swin_{size}", window=int(window[1:]))
    views = {role: (view.count, view.px) for role, view in recipe.views.items()}
    assert views == {"global": (1, 224), "global_2": (1, 224), "local": (8, 96)}
    blurs = [view.photometry.blur and view.photometry.blur.p for view in recipe.views.values()]
    assert blurs == [1.0, 0.1, 0.5]
    assert [view.photometry.solarize for view in recipe.views.values()] == [0.0, 0.2, 0.0]


@pytest.mark.parametrize("name", [name for name in ESVIT if ESVIT[name][3]])
def test_a_run_with_regions_continues_a_shipped_one_that_keeps_its_epoch(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.init is not None
    before = load_recipe(str(recipe.init.directory).removeprefix("runs/"))
    assert isinstance(before.method, esvit.Options)
    assert not before.method.region
    assert before.backbone == recipe.backbone
    assert before.run.milestone_epochs
    assert recipe.init.start_epoch % before.run.milestone_epochs == 0
    assert recipe.init.start_epoch < before.train.epochs


@pytest.mark.parametrize("name", MUGS)
def test_published_runs_of_mugs(name: str) -> None:
    linear, knn, epochs, batch, peak, final, width = MUGS[name]
    recipe, published = load_recipe(name), _published(name)
    method, large = recipe.method, width == 1024
    assert isinstance(method, mugs.Options)
    assert isinstance(recipe.backbone, ViTSpec)
    assert published.accuracy == {"linear": linear, "k-NN": knn}
    assert (recipe.train.epochs, recipe.train.global_batch) == (epochs, batch)
    lr, clip = recipe.optim.lr, recipe.optim.clip
    assert (lr.start, lr.peak, lr.final, lr.warmup_epochs) == (0.0, peak, final, 10)
    assert clip is not None
    assert (clip.kind, clip.at(100).norm, clip.at(101).norm) == ("per_tensor", 3.0, 0.3 if large else 3.0)
    assert method.weights == {"instance": 1.0, "local_group": 1.0, "group": 1.0}
    local = method.local_group
    assert (method.instance.queue, local.queue, local.memory, local.neighbours) == (65536, 65536, 65536, 8)
    group = method.group
    assert (group.head.out, group.head.norm_last_layer) == (65536, large)
    warmup = {100: 0, 300: 30, 800: 30}.get(epochs, 50)
    assert group.teacher_temperature.warmup_epochs == warmup
    assert group.teacher_temperature.final == (0.07 if warmup else 0.04)
    assert group.freeze_last_layer_epochs == (1 if width == 384 else 3)
    assert (recipe.backbone.width, recipe.backbone.position_margin) == (width, 0.1)
    assert recipe.backbone.drop_path == (0.3 if large else 0.1)
    views = {role: (view.count, view.px, view.scale) for role, view in recipe.views.items()}
    globals_ = dict.fromkeys(("target", "target_2", "global", "global_2"), (1, 224, (0.25, 1.0)))
    assert views == globals_ | {"local": (10, 96, (0.05, 0.25))}
    coins = [view.strong and (view.strong.p, view.strong.coin) for view in recipe.views.values()]
    assert coins == [None, None, (0.5, "image"), (0.5, "image"), (0.5, "view")]


def test_the_large_model_keeps_clear_of_masks_it_diverged_with() -> None:
    assert load_recipe("msn/vitl16").method.patch_drop >= 0.5  # type: ignore[attr-defined]


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"did you mean msn/vitb16\?"):
        load_recipe("msn/vitb61")

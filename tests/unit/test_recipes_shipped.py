"""The shipped recipes: what they are, and that what they say of themselves is so."""

from __future__ import annotations

from pathlib import Path

import pytest

import belvedere
from belvedere.core.errors import RecipeError
from belvedere.methods import swav
from belvedere.methods.pages import method_names
from belvedere.nn.spec import ResNetSpec
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
ARXIV = {"msn": "arXiv 2204.07141", "swav": _CARON, "deepcluster": _CARON, "sela": _CARON}
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


def test_the_large_model_keeps_clear_of_masks_it_diverged_with() -> None:
    assert load_recipe("msn/vitl16").method.patch_drop >= 0.5  # type: ignore[attr-defined]


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"did you mean msn/vitb16\?"):
        load_recipe("msn/vitb61")

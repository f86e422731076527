"""Recipes from files and names, with overrides; every mistake at once, in words."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from belvedere.core.errors import RecipeError
from belvedere.data.spec import DataSpec
from belvedere.recipe.load import difference, dump, load_recipe, read_recipe, recipe_hash
from belvedere.recipe.shipped import recipe_names, recipe_text

SMALL = Path(__file__).parent / "small_recipe.yaml"


def message(name: str | Path = "msn/vits16", *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(name, overrides)
    return str(caught.value)


def file_with(tmp_path: Path, *changes: tuple[str, str]) -> Path:
    """The small recipe in another file, with these texts replaced."""
    text = SMALL.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def line_of(file: Path, start: str) -> int:
    return next(
        number
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if line.strip().startswith(start)
    )


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_survives_a_round_trip(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    again = read_recipe(dump(recipe))
    assert again == recipe
    assert type(again.method) is type(recipe.method)
    assert dump(again) == dump(recipe)
    assert recipe_hash(again) == recipe_hash(recipe)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("msn/vits16", "78772349993b58bc"),
        ("swav/rn50-800ep", "9d682671227c0702"),
        ("deepcluster/rn50-800ep", "d3a0837fab4b3791"),
        ("sela/rn50-400ep", "9f6a55465de9d210"),
        ("esvit/swin-tiny-w7", "ef13b9154a56c4b7"),
        ("mugs/vits16-100ep", "85c41024cf6a708e"),
        ("msn/fashion", "f439c041dcf6bd19"),
        ("tiny/msn", "0d1eeaa74d9f24bc"),
    ],
)
def test_the_name_of_a_recipe_stays_whatever_keys_are_added(name: str, value: str) -> None:
    """Runs record it; a key that a recipe does not use changes nothing."""
    assert recipe_hash(load_recipe(name)) == value


def test_a_file_loads_as_a_name_does(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(recipe_text("tiny/msn"), encoding="utf-8")
    assert load_recipe(file) == load_recipe("tiny/msn") == load_recipe(str(file))
    without_suffix = file.rename(tmp_path / "mine")
    assert load_recipe(without_suffix) == load_recipe("tiny/msn")


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + recipe_text("tiny/msn").replace("\n", "\r\n").encode())
    assert load_recipe(file) == load_recipe("tiny/msn")


def test_overrides() -> None:
    recipe = load_recipe(
        "msn/vits16",
        [
            "data.path=/x=y z#1",
            "optim.lr.peak=2e-3",
            "optim.betas=[0.8, 0.95]",
            "optim.clip=null",
            "train.epochs=20",
        ],
    )
    assert recipe.data.path == "/x=y z#1"
    assert recipe.optim.lr.peak == 2e-3
    assert recipe.optim.betas == (0.8, 0.95)
    assert recipe.optim.clip is None
    assert recipe.train.epochs == 20


def test_an_override_changes_one_view_of_those_that_share_a_section() -> None:
    recipe = load_recipe("msn/vits16", ["views.focal.photometry.gray=0.5"])
    assert [view.photometry.gray for view in recipe.views.values()] == [0.2, 0.2, 0.5]


def test_an_optional_section_can_be_filled_key_by_key() -> None:
    recipe = load_recipe(
        SMALL, ["views.focal.photometry.blur.p=0.5", "views.focal.photometry.blur.radius=[0.1, 1]"]
    )
    assert recipe.views["focal"].photometry.blur is not None
    assert recipe.views["anchor"].photometry.blur is None


def test_the_roles_a_method_can_do_without_may_be_absent(tmp_path: Path) -> None:
    text = SMALL.read_text()
    start = text.index("  focal:")
    file = tmp_path / "mine.yaml"
    file.write_text(text[:start] + text[text.index("data:\n") :])
    assert set(load_recipe(file).views) == {"target", "anchor"}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epochs=0", "train.epochs: 0 is not allowed; it must be a whole number from 1 to 999999"),
        ("train.epochs=1.5", "1.5 is not allowed; it must be a whole number from 1 to 999999"),
        ("train.epochs=true", "true is not allowed; it must be a whole number"),
        ("train.epochs=ten", "the text 'ten' is not allowed; it must be a whole number"),
        ("train.epochs=", "null is not allowed; it must be a whole number"),
        ("train.precision=fp16", "it must be one of bf16, float32, float64; did you mean bf16?"),
        ("train.precision=Float32", "did you mean float32?"),
        ("method.patch_drop=1", "1 is not allowed; it must be a number of at least 0 and below 1"),
        ("method.temperature=0", "it must be a number above 0"),
        ("method.temperature=.inf", "inf is not allowed; it must be a number above 0"),
        ("method.sharpen.start=.nan", "nan is not allowed; it must be a number"),
        ("method.name=msm", "method.name: the text 'msm' is no method; it must be one of "),
        ("method=null", "method: null is not allowed; it must be a section"),
        (
            "data.path=2024",
            "it must be text that is not empty or a list, each item a section with the keys path, split, "
            "weight, label, image or null",
        ),
        ("data.path=''", "the text '' is not allowed; it must be text that is not empty"),
        ("data.std=[1, 2]", "the list [1, 2] is not allowed; it must be a list of 3, each a number above 0"),
        ("data.std=[1, 2, 3, 4]", "it must be a list of 3"),
        ("data.std=[1, 2, x]", "data.std[2]: the text 'x' is not allowed"),
        ("data.mean=[0, 0, 2]", "each a number from 0 to 1"),
        ("optim.clip.norm=-1", "it must be a number above 0"),
        ("optim=[1]", "it must be a section with the keys name, betas"),
        ("views=3", "it must be a section, each value a section with the keys count, px"),
        ("views.anchor=null", "views.anchor: null is not allowed; it must be a section with the keys count"),
        ("run.sinks=[tensorboard, x]", "it must be a list, each item one of tensorboard, wandb"),
        ("run.sinks=wandb", "did you mean [wandb]?"),
        ("run.sinks=[wand]", "did you mean wandb?"),
        ("run.save_every_minutes=0", "it must be a number above 0 or null"),
        ("name=../x", "name: '../x' is not allowed; use letters"),
        ("seed=-1", "it must be a whole number of at least 0"),
        ("optim.lr.peek=1", "optim.lr.peek: unknown key; did you mean peak? (keys here: start, peak"),
        ("epochs=5", "epochs: unknown key; did you mean train.epochs?"),
        ("px=5", "did you mean views.target.px or views.anchor.px or views.focal.px?"),
        ("method.patch_dro=0", "did you mean patch_drop?"),
        ("zzz=1", "zzz: unknown key (keys here: name, seed, method"),
        ("seed.x=3", "seed.x: seed is 0, no section"),
        ("x", "'x' is no override; write key.path=value"),
        ("=3", "is no override"),
        ("a..b=3", "is no override"),
        ("optim.betas=[0.9", "optim.betas: '[0.9' cannot be read"),
        ("published.accuracy.linear=many", "it must be a number from 0 to 100"),
        ("published.unknown={optim.lr.paek: x}", "is no key of this recipe; did you mean optim.lr.peak?"),
    ],
)
def test_one_mistake_in_an_override(override: str, words: str) -> None:
    text = message("msn/vits16", override)
    assert text.startswith("override: ")
    assert "\n" not in text
    assert words in text


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("backbone.heads=5", "backbone: width 384 is no multiple of heads 5"),
        ("views.fokal={}", "views.fokal: msn has no view of this name; did you mean focal?"),
        ("views.focal.px=97", "97 is no multiple of backbone.patch_px, 16; the nearest are 96 or 112"),
        ("views.focal.px=8", "the nearest are 16"),
        ("views.target.count=2", "views.target.count: 2 is not allowed"),
        ("method.patch_drop=0.999", "method.patch_drop: 0.999 leaves nothing of an anchor's 196 patches"),
        (
            "method.momentum.final=1.1",
            "method.momentum.final: 1.1 is not allowed; it must be a number from 0 to 1",
        ),
        ("method.sharpen.final=0", "method.sharpen.final: 0 is not allowed"),
        ("features.crop_px=250", "no multiple of backbone.patch_px"),
        ("features.blocks=13", "13 blocks of a backbone with depth 12"),
        ("optim.lr.peak=1e-5", "optim.lr.start: 0.0002 is more than optim.lr.peak, 1e-05"),
        ("optim.lr.warmup_epochs=1001", "longer than the schedule: optim.stretch * train.epochs = 1000"),
        ("run.milestone_epochs=801", "never reached with train.epochs 800"),
        ("train.global_batch=1", "too small for method.head.batch_norm"),
        ("optim.weight_decay.start=-1", "it must be a number of at least 0"),
    ],
)
def test_settings_that_contradict_each_other(override: str, words: str) -> None:
    assert words in message("msn/vits16", override)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("views.focal.photometry.jitter.p=0", "write jitter: null"),
        (
            "views.focal.photometry.jitter={p: 1, brightness: 0, contrast: 0, saturation: 0, hue: 0}",
            "changes nothing with every strength 0",
        ),
        ("views.focal.photometry.blur.p=0", "leaves blur.radius without effect; write blur: null"),
        ("optim.lr.warmup_epochs=0", "optim.lr.start: 0.0002 has no effect with warmup_epochs 0"),
        ("optim.clip.from_epoch=800", "nothing is clipped"),
        ("features={source: pooled, blocks: 2, norm: none, resize_px: 8, crop_px: 8, interpolation: bicubic}",
         "source pooled is one output"),
        ("optim.lr={start: 0, peak: 0, final: 0, warmup_epochs: 1}", "0 trains nothing"),
    ],
)  # fmt: skip
def test_a_setting_without_effect_is_refused(override: str, words: str) -> None:
    assert words in message("msn/vits16", override)


def test_all_mistakes_of_a_file_at_once_each_with_its_line(tmp_path: Path) -> None:
    file = file_with(
        tmp_path,
        ("seed: 0", "sead: 0"),
        ("temperature: 0.1", "temperature: warm"),
        ("patch_px: 2", "patch_px: 3"),
        ("  focal:", "  fokal:"),
        ("  std:", "  extra: 1\n  std:"),
        ("global_batch: 128", "global_batch: 128\n  global_batch: 64"),
    )
    target, anchor = line_of(file, "target:"), line_of(file, "anchor:")
    no_patches = "8 is no multiple of backbone.patch_px, 3; the nearest are 6 or 9"
    text = message(file, "optim.stretch=0.5", "run.workers=-1")
    assert text.splitlines() == [
        f"12 mistakes in {file}:",
        f"  {file}:1: seed: is missing; it must be a whole number of at least 0",
        f"  {file}:{line_of(file, 'sead:')}: sead: unknown key; did you mean seed? (keys here: name, seed, "
        "method, backbone, views, data, optim, train, features, init, run, published, measured)",
        f"  {file}:{line_of(file, 'temperature:')}: method.temperature: the text 'warm' is not allowed; "
        "it must be a number above 0",
        f"  {file}:{line_of(file, 'name: vit') - 1}: backbone: image_px 8 is no multiple of patch_px 3",
        f"  {file}:{target + 2}: views.target.px: {no_patches}",
        f"  {file}:{anchor + 2}: views.anchor.px: {no_patches}",
        f"  {file}:{line_of(file, 'fokal:')}: views.fokal: msn has no view of this name; did you mean focal? "
        "(its views: target, anchor, focal)",
        f"  {file}:{line_of(file, 'extra:')}: data.extra: unknown key (keys here: "
        f"{', '.join(DataSpec.model_fields)})",
        f"  {file}:{line_of(file, 'global_batch: 64')}: train.global_batch: given twice, in lines "
        f"{line_of(file, 'global_batch: 128')} and {line_of(file, 'global_batch: 64')}",
        f"  {file}:{line_of(file, 'crop_px:')}: features.crop_px: {no_patches}",
        "  override: optim.stretch: 0.5 is not allowed; it must be a number of at least 1",
        "  override: run.workers: -1 is not allowed; it must be a whole number from 0 to 1024",
    ]


def test_a_missing_section_and_a_missing_key(tmp_path: Path) -> None:
    file = file_with(tmp_path, ("features:", "run:"), ("  epochs: 150", "  # epochs: 150"))
    text = message(file)
    assert "features: is missing; it must be a section with the keys source, blocks" in text
    assert f"{file}:{line_of(file, 'train:')}: train.epochs: is missing; it must be a whole number" in text


def test_an_override_given_twice() -> None:
    assert "seed: given twice" in message(SMALL, "seed=1", "seed=2")
    assert "optim.clip: given twice (before it: optim.clip.norm)" in message(
        SMALL, "optim.clip.norm=1", "optim.clip=null"
    )


def test_an_unknown_name() -> None:
    text = message("msn/vits61")
    assert "there is no recipe 'msn/vits61'; did you mean msn/vits16?" in text
    assert all(name in text for name in recipe_names())


def test_files_that_cannot_be_recipes(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in message(tmp_path / "none.yaml")
    (tmp_path / "folder.yaml").mkdir()
    assert "cannot be read" in message(tmp_path / "folder.yaml")
    picture = tmp_path / "picture.yaml"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    assert "not a text file in UTF-8" in message(picture)
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    assert message(empty) == f"{empty}:1: holds nothing; a recipe is `key: value` lines"
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: x\nviews: [1, 2\nseed: 0\n")
    assert message(broken).startswith(f"{broken}:3: not YAML")


def test_a_cut_off_recipe_never_passes(tmp_path: Path) -> None:
    """Truncated at any line before the last section is complete, a recipe is refused and nothing crashes."""
    lines = SMALL.read_text().splitlines(keepends=True)
    file = tmp_path / "mine.yaml"
    for length in range(0, len(lines) - 1, 5):
        file.write_text("".join(lines[:length]))
        assert message(file)


def test_any_key_may_hold_anything_without_a_crash() -> None:
    """Every key, given each wrong kind of value, ends in a recipe or in a RecipeError that names a key."""
    keys = [
        "method",
        "method.head",
        "method.prototypes",
        "backbone",
        "views",
        "views.anchor",
        "views.anchor.scale",
        "views.anchor.photometry",
        "data",
        "data.mean",
        "optim",
        "optim.lr",
        "train.precision",
        "run",
        "run.sinks",
        "features.source",
        "published",
        "published.unknown",
        "published.accuracy",
        "name",
    ]
    for key, value in itertools.product(
        keys, ("null", "3", "-1.5", "x", "[]", "[1, [2]]", "{}", "{a: {b: 1}}", "true")
    ):
        try:
            load_recipe("msn/vits16", [f"{key}={value}"])
        except RecipeError as error:
            assert key.split(".")[0] in str(error)  # noqa: PT017


def test_difference_names_what_changed_outside_run() -> None:
    old = load_recipe(SMALL)
    new = load_recipe(SMALL, ["optim.lr.peak=1e-3", "optim.clip=null", "run.workers=0", "run.device=cpu"])
    assert difference(old, new) == [
        "optim.clip: (absent) -> null",
        "optim.clip.from_epoch: 0 -> (absent)",
        'optim.clip.kind: "total" -> (absent)',
        "optim.clip.norm: 3.0 -> (absent)",
        "optim.lr.peak: 0.002 -> 0.001",
    ]
    only_run = load_recipe(SMALL, ["run.workers=0", "run.dir=/x", "run.micro_batch=4"])
    assert difference(old, only_run) == []


@pytest.mark.parametrize(
    "override", ["seed=1", "optim.clip=null", "views.focal.scale=[0.2, 0.6]", "name=mine"]
)
def test_the_hash_differs_exactly_where_a_difference_is_found(override: str) -> None:
    old, new = load_recipe(SMALL), load_recipe(SMALL, [override])
    assert difference(old, new)
    assert recipe_hash(old) != recipe_hash(new)
    same = load_recipe(SMALL, ["run.workers=0"])
    assert recipe_hash(old) == recipe_hash(same)

"""Every mistake of a recipe at once, none twice, whatever hides it; and files that are no recipe at all."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

import pytest

from belvedere.core.errors import EXIT_USAGE, RecipeError
from belvedere.recipe.load import load_recipe, read_recipe_file
from belvedere.recipe.shipped import recipe_text


def mistakes(name: str | Path, *overrides: str) -> list[str]:
    """The message's lines, without the heading and where they are."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(name, overrides)
    lines = str(caught.value).splitlines()
    listed = lines[1:] if len(lines) > 1 else lines
    assert len(listed) == len(set(listed))
    return [line.strip() for line in listed]


def keys(lines: list[str]) -> list[str]:
    """The key that each line is about."""
    return sorted(line.partition(": ")[2].partition(": ")[0] for line in lines)


HIDDEN: list[tuple[str, dict[str, str]]] = [
    ("tiny/msn", {"method.momentum.start": "2", "method.sinkhorn_iterations": "-4"}),
    ("tiny/msn", {"method.momentum.start": "2", "method.sharpen.final": "0", "method.temperature": "x"}),
    ("tiny/msn", {"method.temperature": "0", "views.target.count": "2", "seed": "-1"}),
    ("tiny/msn", {"backbone.heads": "5", "backbone.mlp_ratio": "-1", "features.blocks": "99"}),
    ("tiny/msn", {"optim.lr.start": "1", "optim.betas": "[2, 0]"}),
    ("tiny/msn", {"optim.lr.warmup_epochs": "9999", "train.precision": "fp16", "optim.clip.norm": "0"}),
    ("tiny/msn", {"optim.name": "adamm", "optim.stretch": "0", "optim.lr.peak": "-1"}),
    ("tiny/msn", {"backbone.name": "vitt", "backbone.drop_path": "2", "features.resize_px": "0"}),
    ("tiny/msn", {"method.name": "msm", "method.zzz": "1", "train.epochs": "0"}),
    ("tiny/msn", {"data.path": "[{path: a, weight: -1}, {path: '', split: x}]", "data.mean": "[2, 0, -1]"}),
    ("tiny/mugs", {"method.local_group.neighbours": "9999", "method.group.temperature": "0"}),
    ("tiny/swav", {"method.assign": "[0, 0]", "method.epsilon": "0", "views.global.scale": "[0.9, 0.1]"}),
    ("tiny/esvit", {"method.momentum.start": "x", "views.global.count": "3", "method.head.out": "0"}),
    ("tiny/esvit", {"backbone.blocks": "[0, 2]", "backbone.window": "0"}),
    ("tiny/esvit", {"run.milestone_epochs": "900", "run.workers": "-1"}),
]
_TOLD_AT = {  # what does not fit in a section is told of the section; an item of a list by its number
    "backbone.heads": "backbone",
    "views.global.scale": "views.global",
    "data.path": "data.path[0].weight data.path[1].path data.path[1].split",
    "data.mean": "data.mean[0] data.mean[2]",
    "backbone.blocks": "backbone.blocks[0]",
    "optim.betas": "optim.betas[0]",
}


@pytest.mark.parametrize(("name", "overrides"), HIDDEN)
def test_mistakes_do_not_hide_each_other(name: str, overrides: dict[str, str]) -> None:
    found = mistakes(name, *(f"{key}={value}" for key, value in overrides.items()))
    expected = [part for key in overrides for part in _TOLD_AT.get(key, key).split()]
    assert keys(found) == sorted(expected)


def test_a_section_shows_all_that_does_not_fit_in_it() -> None:
    found = mistakes("tiny/msn", "backbone.heads=5", "backbone.image_px=9", "backbone.stem=conv")
    assert [line.partition(": ")[2] for line in found][:3] == [
        "backbone: width 64 is no multiple of heads 5",
        "backbone: image_px 9 is no multiple of patch_px 2",
        "backbone: stem conv has patches of 16 px; set patch_px to 16",
    ]


def test_what_depends_on_a_wrong_key_waits_for_it() -> None:
    assert keys(mistakes("tiny/msn", "optim.lr.peak=-1")) == ["optim.lr.peak"]
    assert keys(mistakes("tiny/msn", "train.epochs=0")) == ["train.epochs"]
    assert keys(mistakes("tiny/msn", "backbone.patch_px=x")) == ["backbone.patch_px"]
    assert keys(mistakes("tiny/msn", "method.name=x")) == ["method.name"]
    assert keys(mistakes("tiny/msn", "views.target=null")) == ["views.target"]
    assert keys(mistakes("tiny/msn", "train=null", "method=3")) == ["method", "train"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("seed: 0", "seed: !!python/object:os.system [ls]"),
        ("seed: 0", "seed: !!binary aGk="),
        ("seed: 0", "seed: !mine 3"),
        ("seed: 0", "seed: !!int x"),
        ("seed: 0", "seed: !!set {a, b}"),
        ("seed: 0", f"seed: {'9' * 5000}"),
        ("seed: 0", "seed: &loop [*loop]"),
        ("precision: bf16", "precision: !!python/name:os.system bf16"),
        ("betas: [0.9, 0.999]", "betas: [!mine 0.9, 0.999]"),
        ("  head: {", "  head: !mine {"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_read_is_one_mistake(tmp_path: Path, old: str, new: str) -> None:
    text = recipe_text("tiny/msn")
    assert old in text
    file = tmp_path / "mine.yaml"
    file.write_text(text.replace(old, new, 1))
    found = mistakes(file)
    assert len(found) == 1
    assert (
        "is not allowed" in found[0] or "not allowed in a recipe" in found[0] or "contains itself" in found[0]
    )
    assert len(found[0]) < 400


def _bomb() -> str:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    return text + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))


def _chain() -> str:
    """Aliases that nest 400 deep in lines that do not."""
    return "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 400))


HOSTILE = {
    "empty": (b"", "holds nothing"),
    "UTF-16": (codecs.BOM_UTF16_LE + "name: x".encode("utf-16-le"), "UTF-16; save it in UTF-8"),
    "UTF-16, big-endian": (codecs.BOM_UTF16_BE + "name: x".encode("utf-16-be"), "UTF-16; save it in UTF-8"),
    "Latin-1": ("name: caf\xe9".encode("latin-1"), "not a text file in UTF-8"),
    "zero bytes": (b"\x00" * 64, "special characters"),
    "a bomb of aliases": (_bomb().encode(), "more than 10,000 values"),
    "a chain of aliases": (_chain().encode(), "nested more than 32 levels"),
    "an endless line": (b"name: " + b"x" * 600_000, "600,006 characters"),
    "a huge file": (b"#" * 3_000_000, "more than 2,000,000 bytes"),
    "a huge scalar": (b"name: " + b"x" * 400_000, "400,000 characters are not allowed"),
    "two documents": (b"a: 1\n---\nb: 2\n", "another document"),
    "an unknown alias": (b"a: *b\n", "undefined alias"),
    "a tag on everything": (b"!!python/object:os.system {name: x}", "tags (!!python/object:os.system)"),
    "a tag on a key": (b"!!binary bmFtZQ==: x", "without a tag"),
    **{f"nested {n}, flow": (b"a: " + b"[" * n + b"]" * n, "nested more than 32") for n in (33, 480, 9999)},
    **{f"nested {n}, blocks": ("".join(f"{' ' * i}a:\n" for i in range(n)).encode(), "nested more than 32")
       for n in (40, 360, 480)},
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_that_is_no_recipe_is_one_message(tmp_path: Path, kind: str) -> None:
    data, words = HOSTILE[kind]
    file = tmp_path / "recipe.yaml"
    file.write_bytes(data)
    for read in (load_recipe, read_recipe_file):
        with pytest.raises(RecipeError) as caught:
            read(file)
        assert words in str(caught.value)
        assert str(file) in str(caught.value)
        assert len(max(str(caught.value).splitlines(), key=len)) < 600
        assert caught.value.exit_code == EXIT_USAGE


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    pipe, folder = tmp_path / "pipe.yaml", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    for path, words in (
        (pipe, "no regular file"),
        (folder, "cannot be read"),
        (Path("/dev/null"), "no regular"),
    ):
        with pytest.raises(RecipeError, match=words):
            load_recipe(path)


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 5000 + ".yaml", "a\0b", "a\0b.yaml", "x/" * 2500, ""])
def test_a_name_that_no_file_can_have(name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(name)
    assert len(max(str(caught.value).splitlines(), key=len)) < 1500


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("run.threads=9999999999", "9999999999 is not allowed; it must be a whole number from 1 to 1024"),
        ("run.workers=2000", "it must be a whole number from 0 to 1024"),
        ("run.workers=1" + "0" * 30, "a whole number has at most 18 digits"),
        ("train.epochs=" + "9" * 400, "a whole number has at most 18 digits"),
        ("seed=" + "9" * 5000, "a whole number has at most 18 digits"),
        ("name=" + "x" * 5000, "5,000 characters are not allowed; use at most 200"),
        ("optim.name={a: 1}", "optim.name: a section is not allowed"),
        ("backbone.name=[1]", "backbone.name: the list [1] is not allowed"),
        ("views.²=3", "views.²: msn has no view of this name"),
        ("x" * 5000 + "=1", "unknown key"),
        ("data.path.0.weight=2", "data.path is the text 'digits', no section"),
        ("a.b c.d=a.b c.d", "a: unknown key"),
        ("\x1b[31m=1", "unknown key"),
        ("data.split", "'data.split' is no override"),
    ],
)  # fmt: skip
def test_odd_values_and_keys(override: str, words: str) -> None:
    found = mistakes("tiny/msn", override)
    assert len(found) == 1
    assert words in found[0]
    assert len(found[0]) < 700


@pytest.mark.parametrize(
    ("recipe", "key"),
    [
        ("tiny/msn", "sinkhorn_iterations"),
        ("tiny/swav", "sinkhorn_iterations"),
        ("tiny/sela", "sinkhorn_iterations"),
        ("tiny/deepcluster", "kmeans_iterations"),
    ],
)
def test_iterations_that_would_never_end_are_refused(recipe: str, key: str) -> None:
    with pytest.raises(RecipeError, match=rf"{key}: 1000000000 is not allowed; .* to 10000"):
        load_recipe(recipe, [f"method.{key}=1000000000"])

"""The command line: help, exit statuses, messages, and the commands from end to end."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import belvedere
from belvedere.cli import main
from belvedere.commands import COMMANDS
from belvedere.commands.options import count, counts
from belvedere.commands.pretrain import command_line
from belvedere.core.errors import DataError, NonFiniteError, UsageError
from belvedere.core.files import sha256, write_yaml
from belvedere.methods.pages import method_names
from belvedere.nn.build import build
from belvedere.recipe.checks import flat
from belvedere.recipe.keys import all_keys
from belvedere.recipe.load import load_recipe
from belvedere.recipe.shipped import recipe_names, recipe_text
from belvedere.zoo.cards import CARD_NAME, Card

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def one_process(monkeypatch: Patch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def replaced(monkeypatch: Patch, module: str, **names: Any) -> None:
    """Put a module with these names in the place of one that a command imports."""
    fake = ModuleType(module)
    for name, value in names.items():
        setattr(fake, name, value)
    monkeypatch.setitem(sys.modules, module, fake)


# Help


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("words", [[], *([command] for command in COMMANDS)])
def test_help_is_filled_to_the_screen(
    words: list[str], columns: int, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main([*words, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= max(80, min(columns, 120)) for line in lines)
    for line in lines:  # what is wider than the screen is written so: a table, an example, a choice
        assert len(line) <= columns or line.startswith("  ")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, capsys: Capture) -> None:
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"usage: belvedere {command}" in out
    assert f"\n  belvedere {command}" in out.partition("examples:")[2]
    assert all(len(line) <= 120 for line in out.splitlines())


def test_help_lists_every_command_and_exit_status(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name} " in out
        assert command.summary in out
    assert "75 stopped" in out


def test_no_command_is_a_usage_error_with_the_help(capsys: Capture) -> None:
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["pretrain", "--help"], ["recipes"], ["evaluate", "-h"]]
)
def test_quick_answers_need_no_torch(words: list[str]) -> None:
    code = (
        "import sys; from belvedere.cli import main; status = main(sys.argv[1:]); "
        "slow = {'torch', 'sklearn', 'pydantic', 'numpy'} & set(sys.modules); assert not slow, slow; "
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


def test_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"belvedere {belvedere.__version__}\n"


def test_python_dash_m_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "belvedere", "pretrian"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pretrian" in done.stderr
    assert "'pretrain'" in done.stderr


# Exit statuses and messages


def outcome(**changes: Any) -> SimpleNamespace:
    values = {"directory": Path("runs/x"), "step": 20, "total_steps": 20, "stopped": False, "seconds": 65.0}
    return SimpleNamespace(**values | changes)


def pretraining(monkeypatch: Patch, result: Callable[[Any], Any]) -> list[Any]:
    """Replace the training itself; returns the recipes it was called with."""
    recipes: list[Any] = []

    def pretrain(recipe: Any, *, ends_process: bool) -> Any:
        assert ends_process, "a command may end its own process"
        recipes.append(recipe)
        return result(recipe)

    replaced(monkeypatch, "belvedere.train.run", pretrain=pretrain)
    return recipes


def raising(error: BaseException) -> Callable[[Any], Any]:
    def result(recipe: Any) -> Any:
        raise error

    return result


def test_pretrain_done_says_where_the_backbone_is_and_what_comes_next(
    monkeypatch: Patch, capsys: Capture
) -> None:
    recipes = pretraining(monkeypatch, lambda recipe: outcome())
    assert main(["pretrain", "tiny/msn", "run.workers=1", "seed=5"]) == 0
    assert (recipes[0].name, recipes[0].run.workers, recipes[0].seed) == ("tiny/msn", 1, 5)
    said = capsys.readouterr()
    assert said.out == ""
    assert "done: 20 of 20 steps, 0:01:05 this time; the backbone is in runs/x/backbone" in said.err
    assert "evaluate runs/x --data DIR" in said.err


def test_pretrain_stopped_exits_75_with_the_command_that_continues(
    monkeypatch: Patch, capsys: Capture
) -> None:
    pretraining(monkeypatch, lambda recipe: outcome(step=7, stopped=True))
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/belvedere"])
    words = ["pretrain", "tiny/msn", "run.dir=runs/my run", "seed=5"]
    assert main(words) == 75
    said = capsys.readouterr().err
    assert "stopped after 7 of 20 steps" in said
    again = said.rpartition("continue with: ")[2].strip()
    assert shlex.split(again) == ["belvedere", *words]


@pytest.mark.parametrize("place", [2, 3, 4])
def test_dry_run_anywhere_on_the_line(monkeypatch: Patch, place: int) -> None:
    seen: list[Any] = []
    replaced(monkeypatch, "belvedere.train.dry", dry_run=seen.append)
    recipes = pretraining(monkeypatch, lambda recipe: outcome())
    words = ["pretrain", "tiny/msn", "run.workers=1", "seed=5"]
    words.insert(place, "--dry-run")
    assert main(words) == 0
    assert [(recipe.run.workers, recipe.seed) for recipe in seen] == [(1, 5)]
    assert recipes == []


def test_a_dry_run_ends_with_the_whole_command(monkeypatch: Patch, capsys: Capture) -> None:
    replaced(monkeypatch, "belvedere.train.dry", dry_run=lambda recipe: None)
    monkeypatch.setattr("sys.argv", ["belvedere"])
    words = ["pretrain", "tiny/msn", "run.dir=my runs/it's", "optim.lr={start: 0.0, peak: 0.1, final: 0.0, "
             "warmup_epochs: 1}", "--dry-run"]  # fmt: skip
    assert main(words) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("start with: belvedere pretrain tiny/msn ")
    given = shlex.split(last.removeprefix("start with: belvedere pretrain "))
    assert given == words[1:4]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(words) == 0
    assert "start with: torchrun --nproc-per-node=2 -m belvedere pretrain" in capsys.readouterr().err


@pytest.mark.parametrize("status", [0, 75])
def test_demo_writes_where_it_is_told_and_passes_on_the_status(
    monkeypatch: Patch, tmp_path: Path, status: int
) -> None:
    asked: list[Path] = []

    def run(out: Path) -> SimpleNamespace:
        asked.append(out)
        return SimpleNamespace(exit_code=status)

    replaced(monkeypatch, "belvedere.demo", run=run)
    assert main(["demo", "--out", str(tmp_path)]) == status
    assert main(["demo"]) == status
    assert asked == [tmp_path, Path("belvedere-demo")]


def test_an_error_is_one_message_without_a_traceback(monkeypatch: Patch, capsys: Capture) -> None:
    pretraining(
        monkeypatch, raising(NonFiniteError("step 3 is not finite: [loss]\n  try a smaller optim.lr.peak"))
    )
    assert main(["pretrain", "tiny/msn"]) == 1
    said = capsys.readouterr()
    assert said.err == "error: step 3 is not finite: [loss]\n  try a smaller optim.lr.peak\n"
    assert said.out == ""


def test_debug_shows_the_traceback_and_the_message(monkeypatch: Patch, capsys: Capture) -> None:
    pretraining(monkeypatch, raising(DataError("no images")))
    assert main(["pretrain", "tiny/msn", "--debug"]) == 1
    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said
    assert "in result" in said
    assert said.endswith("error: no images\n")


def test_every_mistake_of_a_recipe_is_told_and_exits_2(capsys: Capture) -> None:
    assert main(["pretrain", "tiny/msn", "train.epoch=3", "optim.lr.peak=-1", "nonsense"]) == 2
    said = capsys.readouterr().err
    for mistake in ("train.epoch", "optim.lr.peak", "'nonsense' is no override"):
        assert mistake in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pretrain"], "name a recipe"),
        (["pretrain", "tiny/msm"], "tiny/msn"),
        (["pretrain", "tiny/msn", "--epochs", "3"], "--epochs"),
        (["evaluate"], "RUN_OR_WEIGHTS"),
        (["evaluate", "runs/x"], "--data"),
        (
            ["evaluate", "x", "--data", "d", "--protocols", "knn,svm"],
            "'svm'; choose from knn, logistic, linear",
        ),
        (["evaluate", "x", "--data", "d", "--shots", "1,two"], "whole numbers"),
        (["evaluate", "x", "--data", "d", "--lambda", "0"], "above 0"),
        (["evaluate", "x", "--data", "d", "--seed", "-1"], "--seed"),
        (["evaluate", "x", "--data", "d", "--protocols", "linear", "--k", "5"], "--k has no effect here"),
        (
            ["evaluate", "x", "--data", "d", "--protocols", "knn", "--shots", "1"],
            "--shots has no effect here",
        ),
        (["evaluate", "x", "--data", "d", "--subset", "f", "--splits", "3"], "--splits has no effect here"),
        (["evaluate", "x", "--data", "d", "--val-split", "test"], "--val-split has no effect here"),
        (["embed", "x", "--data", "d"], "--out"),
        (["embed", "x", "--data", "d", "--out", "f.txt"], ".npz or .parquet"),
        (["recipes", "msn/vit16"], "nearest: msn/vits16"),
        (["recipes", "msn"], "`belvedere recipes` lists all, among them\n  msn/fashion\n  msn/vitb16"),
        (["recipes", "x/y"], "there is no recipe x/y; `belvedere recipes` lists all\n"),
        (["recipes", "--keys", "foo"], "they begin with name, seed, method"),
        (["pretrain", "tiny/msn", "--epochs", "3"], "are given as key.path=value, such as data.path=DIR"),
        (["pretrain", "tiny/msn", "a/photos"], "write key.path=value, for images 'data.path=a/photos'"),
    ],
)
def test_wrong_command_lines_exit_2_and_name_the_mistake(
    words: list[str], expected: str, capsys: Capture
) -> None:
    assert main(words) == 2
    said = capsys.readouterr()
    assert expected in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


def test_ctrl_c_exits_130(monkeypatch: Patch, capsys: Capture) -> None:
    pretraining(monkeypatch, raising(KeyboardInterrupt()))
    assert main(["pretrain", "tiny/msn"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_full_disk_is_a_message_a_bug_is_a_traceback(monkeypatch: Patch, capsys: Capture) -> None:
    pretraining(monkeypatch, raising(OSError(28, "No space left on device", "runs/x/state")))
    assert main(["pretrain", "tiny/msn"]) == 1
    assert "No space left on device: 'runs/x/state'" in capsys.readouterr().err
    pretraining(monkeypatch, raising(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError):
        main(["pretrain", "tiny/msn"])


def test_too_little_device_memory_names_the_key(monkeypatch: Patch, capsys: Capture) -> None:
    pretraining(monkeypatch, raising(torch.OutOfMemoryError("CUDA out of memory. Tried 3 GiB\nmore")))
    assert main(["pretrain", "tiny/msn"]) == 1
    assert "run.micro_batch" in capsys.readouterr().err


def test_a_reader_who_leaves_is_no_error() -> None:
    done = subprocess.run(
        f"{shlex.quote(sys.executable)} -m belvedere recipes msn/vits16 | true; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.returncode in (0, 1)  # 0 where everything was written before the reader left


# Under torchrun


def test_only_the_first_process_talks(monkeypatch: Patch, capsys: Capture) -> None:
    pretraining(monkeypatch, lambda recipe: outcome(stopped=True))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["pretrain", "tiny/msn"]) == 75
    assert main(["pretrain", "tiny/msn", "seed=-1"]) == 2
    assert main(["pretrain", "tiny/msn", "--bad"]) == 2
    assert main(["--help"]) == 0
    assert capsys.readouterr() == ("", "")


def test_an_error_of_another_process_is_not_lost(monkeypatch: Patch, capsys: Capture) -> None:
    pretraining(monkeypatch, raising(DataError("this node has no photos")))
    monkeypatch.setenv("RANK", "3")
    assert main(["pretrain", "tiny/msn"]) == 1
    assert capsys.readouterr().err == "error (process 3): this node has no photos\n"


@pytest.mark.parametrize("command", ["demo", "embed", "evaluate"])
def test_commands_of_one_process_refuse_torchrun(command: str, monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = {"demo": [], "embed": ["x", "--data", "d", "--out", "f.npz"], "evaluate": ["x", "--data", "d"]}
    assert main([command, *words[command]]) == 2
    assert "without torchrun" in capsys.readouterr().err


def test_the_line_that_continues() -> None:
    words = ["pretrain", "a b", "k=[1, 2]"]
    assert (
        command_line(words, program="/x/belvedere", environment={}) == "belvedere pretrain 'a b' 'k=[1, 2]'"
    )
    by_module = command_line(words, program="/x/belvedere/__main__.py", environment={})
    assert shlex.split(by_module)[1:3] == ["-m", "belvedere"]
    two = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    started = command_line(words, program="/x/belvedere/__main__.py", environment=two)
    assert shlex.split(started) == ["torchrun", "--nproc-per-node=2", "-m", "belvedere", *words]
    alone = command_line(["evaluate"], program="/x/belvedere", environment=two, alone=True)
    assert alone == "belvedere evaluate"
    nodes = {"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}
    assert "on every machine" in command_line(words, program="/x/belvedere", environment=nodes)


def test_lists_of_numbers() -> None:
    assert counts("5,1,2,1") == (1, 2, 5)
    assert count("7") == 7
    for text in ("", "1,", "0", "-1", "1.5"):
        with pytest.raises(Exception, match=r"give whole numbers|at least 1"):
            counts(text)


# Recipes


def listed(capsys: Capture, *words: str) -> list[list[str]]:
    """The cells of `belvedere recipes ...`, without the header."""
    assert main(["recipes", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    return [line.split() for line in lines[1:]]


def test_recipes_lists_each_on_a_line_of_80_columns(capsys: Capture) -> None:
    rows = listed(capsys)
    assert [row[0] for row in rows] == list(recipe_names())
    for row in rows:
        recipe = load_recipe(row[0])
        assert f"{recipe.train.epochs} {recipe.train.global_batch}" in " ".join(row)
        for score in list((recipe.published.accuracy if recipe.published else {}).values())[:1]:
            assert f"{score:.1f}" in row


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("--method msn --size base", {"msn/vitb16", "msn/vitb4", "msn/vitb8"}),
        ("--method swav --data small", {"swav/fashion", "tiny/swav"}),
        ("--data webvision", {"esvit/swin-tiny-w7-webvision"}),
        ("--data imagenet-22k", {"esvit/swin-tiny-w7-imagenet22k"}),
        ("--data open-images", {"esvit/swin-tiny-w7-openimages"}),
        ("--backbone cvt", {"esvit/cvt-w7", "esvit/cvt-w7-region"}),
        ("--data fashion-mnist --backbone vit", {"msn/fashion", "mugs/fashion"}),
        ("--size large --method msn", {"msn/vitl16", "msn/vitl7"}),
        ("--data digits", {f"tiny/{method}" for method in method_names()}),
    ],
)
def test_the_list_of_recipes_is_narrowed(words: str, names: set[str], capsys: Capture) -> None:
    assert {row[0] for row in listed(capsys, *words.split())} == names
    assert main(["recipes", *words.split(), "--json"]) == 0
    assert {one["name"] for one in json.loads(capsys.readouterr().out)} == names


def test_sizes_and_data_share_out_all_recipes(capsys: Capture) -> None:
    for option, values in (("--size", "tiny small base large"), ("--data", "imagenet small webvision "
                           "open-images imagenet-22k"), ("--method", " ".join(method_names()))):  # fmt: skip
        parts = [{row[0] for row in listed(capsys, option, value)} for value in values.split()]
        assert sum(map(len, parts)) == len(recipe_names())
        assert set().union(*parts) == set(recipe_names())


def test_every_key_says_what_it_means(capsys: Capture) -> None:
    keys = all_keys()
    assert [key.key for key in keys if len(key.about) < 10 or not key.allowed] == []
    there = {path for name in recipe_names() for path, _ in flat(load_recipe(name).model_dump())}
    told = {key.key for key in keys}
    for path in there:
        named = [*path]
        if path[0] == "views":
            named[1] = "ROLE"
        if path[:2] in (("published", "accuracy"), ("published", "unknown")):
            named = named[:2]
        assert ".".join(named) in told
    assert {"data.path[i].weight", "init.from", "run.sinks", "run.keep_last"} <= told


def test_keys_are_printed_in_80_columns(capsys: Capture) -> None:
    assert main(["recipes", "--keys"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert len([line for line in lines if not line.startswith(" ")]) == len(all_keys())
    for prefix in ("run.sinks", "sinks"):
        assert main(["recipes", "--keys", prefix]) == 0
        assert capsys.readouterr().out == (
            "run.sinks\n    Where metrics go beside metrics.jsonl; each needs its package.\n"
            "    a list, each item one of tensorboard, wandb; default: []\n"
        )
    assert main(["recipes", "--keys", "views.global.px", "--json"]) == 0
    (px,) = json.loads(capsys.readouterr().out)
    assert (px["key"], px["default"], px["of"]) == ("views.ROLE.px", None, [])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--keys zzz", "no key of a recipe begins with"),
        ("--keys run --size tiny", "--size has no effect beside --keys"),
        ("msn/vits16 --json", "--json has no effect beside NAME"),
        ("msn/vits16 --keys", "NAME has no effect beside --keys"),
        ("--method msn --backbone swin", "no shipped recipe has --method msn --backbone swin"),
        ("--data cifar", "invalid choice"),
    ],
)
def test_what_cannot_be_listed_is_refused(words: str, told: str, capsys: Capture) -> None:
    assert main(["recipes", *words.split()]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["", ".yaml"])
def test_recipes_shows_one_as_it_is_shipped(suffix: str, capsys: Capture) -> None:
    assert main(["recipes", f"tiny/msn{suffix}"]) == 0
    assert capsys.readouterr().out == recipe_text("tiny/msn")


# Evaluate and embed, with an untrained backbone in place of a file


@pytest.fixture
def untrained(monkeypatch: Patch) -> None:
    torch.manual_seed(0)
    recipe = load_recipe("tiny/msn")
    backbone = build(recipe.backbone)
    card = SimpleNamespace(features=recipe.features, mean=recipe.data.mean, std=recipe.data.std)
    replaced(monkeypatch, "belvedere.zoo.load", load=lambda path: (backbone, card))


def photos(
    folder: Path, *, count: int = 6, classes: tuple[str, ...] = ("blue", "red"), seed: int = 0
) -> Path:
    """Noisy one-colored images, a folder per class; with another seed none of them is a copy."""
    generator = np.random.default_rng(seed)
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 60, (9, 12, 3), dtype=np.uint8)
            pixels[..., 2 - 2 * label] += 190
            Image.fromarray(pixels).save(folder / name / f"{name}_{number}.png")
    return folder


@pytest.mark.usefixtures("untrained")
def test_evaluate_writes_the_same_bytes_twice_and_prints_a_table(tmp_path: Path, capsys: Capture) -> None:
    data = photos(tmp_path / "photos")
    (data / "loose").mkdir()
    words = ["evaluate", str(tmp_path), "--data", str(data), "--protocols", "knn,logistic", "--k", "3"]
    words += ["--shots", "1,2", "--splits", "3", "--predict", str(data)]
    Image.fromarray(np.full((9, 9, 3), (10, 10, 240), np.uint8)).save(data / "unnamed.png")
    assert main(words) == 0
    said = capsys.readouterr()
    out = tmp_path / "evaluation" / "photos"
    assert sorted(file.name for file in out.iterdir()) == ["predictions.csv", "report.json", "splits.json"]
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    report = json.loads(before["report.json"])
    assert f"{100 * report['knn']['accuracy']:.1f} %" in said.out
    assert "1 label per class, 3 splits" in said.out
    assert "±" in said.out
    assert "features of data step=12/12" in said.err
    assert before["predictions.csv"].decode().splitlines()[1].startswith("unnamed.png,")
    assert len(before["predictions.csv"].splitlines()) == 2
    assert main(words) == 0
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


@pytest.mark.usefixtures("untrained")
def test_evaluate_a_few_names_in_a_csv_and_a_scored_set(tmp_path: Path, capsys: Capture) -> None:
    data = photos(tmp_path / "photos")
    val = photos(tmp_path / "val", count=2, classes=("cold", "warm"), seed=1)
    names = tmp_path / "names.csv"
    rows = [f"blue/blue_{n}.png,cold" for n in range(3)] + [f"red/red_{n}.png,warm" for n in range(5)]
    names.write_text("file,label\n" + "\n".join(rows) + "\n")
    words = ["evaluate", "weights", "--data", str(data), "--labels", str(names), "--val", str(val)]
    words += ["--protocols", "logistic", "--shots", "1,5", "--splits", "2", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["training"]["images"], report["scored"]) == (8, 4)
    said = " ".join(capsys.readouterr().out.split())
    assert "classes with fewer than 5 labelled images, used with what they have: cold (3)" in said


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("divided", [False, True])
def test_evaluate_a_fixed_list(tmp_path: Path, capsys: Capture, divided: bool) -> None:
    data = tmp_path / "photos"
    photos(data / "train" if divided else data)
    if divided:
        photos(data / "val", count=2, seed=1)
    listed = tmp_path / "2imgs_class.txt"
    listed.write_text("blue_0.png\nblue_1.png\nred_0.png\nred_3.png\n")
    words = [
        "evaluate",
        "weights",
        "--data",
        str(data),
        "--subset",
        str(listed),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*words, "--protocols", "logistic"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["training"]["images"], report["scored"]) == (4, 4 if divided else 8)
    assert report["list"] == "2imgs_class.txt"
    assert set(report["logistic"]["fits"]) == {"published", "chosen"}
    assert "listed images, published lambda" in capsys.readouterr().out


@pytest.mark.usefixtures("untrained")
def test_nothing_left_to_score_or_to_predict_is_said(tmp_path: Path, capsys: Capture) -> None:
    data = photos(tmp_path / "photos", count=1)
    listed = tmp_path / "all.txt"
    listed.write_text("blue_0.png\nred_0.png\n")
    assert main(["evaluate", "weights", "--data", str(data), "--subset", str(listed)]) == 2
    assert "--val" in capsys.readouterr().err
    assert main(["evaluate", "weights", "--data", str(data), "--predict", str(data)]) == 2
    assert "has a label already" in capsys.readouterr().err


@pytest.mark.usefixtures("untrained")
def test_embed_writes_features_and_says_what_could_not_be_read(tmp_path: Path, capsys: Capture) -> None:
    data = photos(tmp_path / "photos", count=2)
    for number in range(6):
        (data / "red" / f"broken_{number}.png").write_bytes(b"")
    out = tmp_path / "photos.npz"
    assert main(["embed", "weights", "--data", str(data), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}: 4 images, 64 features each\n"
    assert "warning: red/broken_0.png cannot be read" in said.err
    assert "warning: and 1 more" in said.err
    assert np.load(out)["features"].shape == (4, 64)


@pytest.mark.usefixtures("untrained")
def test_evaluate_a_path_that_is_not_there(tmp_path: Path, capsys: Capture) -> None:
    assert main(["evaluate", str(tmp_path), "--data", str(tmp_path / "nothing")]) == 1
    assert "does not exist" in capsys.readouterr().err


# Import


def imported(monkeypatch: Patch, calls: list[Any]) -> None:
    """Replace the conversion by one that writes a card only."""

    def import_checkpoint(file: Path, out: Path, *, architecture: str | None, **others: object) -> Card:
        recipe = load_recipe("tiny/msn")
        card = Card(
            system="msn",
            backbone=recipe.backbone,
            features=recipe.features,
            mean=recipe.data.mean,
            std=recipe.data.std,
            source=file.name,
            source_sha256=sha256(file),
            licence="CC-BY-NC-4.0",
            dropped={"opt": "the optimizer's state"},
        )
        calls.append((file, out, architecture))
        write_yaml(out / CARD_NAME, card.model_dump(mode="json"))
        return card

    replaced(monkeypatch, "belvedere.zoo.importing", import_checkpoint=import_checkpoint)


def test_import_says_what_it_is_and_what_was_left_out(
    tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    file, out = tmp_path / "published.pth.tar", tmp_path / "weights"
    file.write_bytes(b"content")
    calls: list[Any] = []
    imported(monkeypatch, calls)
    assert main(["import", str(file), "--as", "deit_small", "--out", str(out)]) == 0
    assert calls == [(file, out, "deit_small")]
    said = capsys.readouterr().err
    for expected in (
        "ViT, width 64, depth 3, 4 heads, patches of 2 px",
        "CC-BY-NC-4.0",
        "left out: opt",
        f"evaluate {out}",
    ):
        assert expected in said
    assert main(["import", str(file), "--out", str(out)]) == 0  # the same file again
    assert len(calls) == 2


def test_import_replaces_no_other_backbone(tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    files, out = [tmp_path / "a.pth", tmp_path / "b.pth"], tmp_path / "weights"
    for file in files:
        file.write_bytes(file.name.encode())
    calls: list[Any] = []
    imported(monkeypatch, calls)
    assert main(["import", str(files[0]), "--out", str(out)]) == 0
    assert main(["import", str(files[1]), "--out", str(out)]) == 2
    assert "holds another backbone (a.pth)" in capsys.readouterr().err
    assert main(["import", str(files[1]), "--out", str(files[0])]) == 2
    assert len(calls) == 1


def test_import_of_a_file_that_is_no_checkpoint(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("hello")
    assert main(["import", str(file), "--out", str(tmp_path / "out")]) == 1
    assert main(["import", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.count("error: ") == 2
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


# From Python


def test_the_public_names_are_there_and_lazy() -> None:
    code = "import sys, belvedere; assert 'torch' not in sys.modules; print(*dir(belvedere))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(belvedere.__all__) <= set(done.stdout.split())
    assert belvedere.load_recipe is load_recipe
    assert issubclass(belvedere.UsageError, belvedere.BelvedereError)
    assert belvedere.UsageError is UsageError
    with pytest.raises(AttributeError, match="no attribute 'train_it'"):
        belvedere.train_it  # noqa: B018


@pytest.mark.parametrize("name", ["", ".zoo", ".zoo.write", ".nn.spec", ".data.sources"])
def test_dir_has_what_is_public_only(name: str) -> None:
    package = import_module(f"belvedere{name}")
    assert dir(package) == sorted(package.__all__)
    assert all(getattr(package, each) is not None for each in dir(package))


def test_every_public_name_resolves() -> None:
    assert all(getattr(belvedere, name) is not None for name in belvedere.__all__)


# Everything real


_SMALL = [
    "train.epochs=1",
    "train.global_batch=64",
    "run.workers=0",
    "run.log_every_steps=5",
    "run.threads=1",
]
_SMALL += ["optim.lr.warmup_epochs=1", "train.precision=float32"]


def test_pretrain_evaluate_and_embed_for_real(tmp_path: Path, capsys: Capture) -> None:
    run = tmp_path / "run"
    words = ["pretrain", "tiny/msn", *_SMALL, f"run.dir={run}"]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "tiny/msn step=21/21" in said
    assert "done: 21 of 21 steps" in said
    logged = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert logged == [4, 9, 14, 19, 20]
    words = ["evaluate", str(run), "--data", "digits", "--split", "test", "--protocols", "knn"]
    assert main(words) == 0
    assert (
        json.loads((run / "evaluation" / "digits-test" / "report.json").read_text())["knn"]["scored"] == 450
    )
    assert (
        main(["embed", str(run), "--data", "digits", "--split", "test", "--out", str(tmp_path / "d.npz")])
        == 0
    )
    assert np.load(tmp_path / "d.npz")["features"].shape == (450, 64)

"""A run that begins with another run's weights, or is continued as a new one, by every method."""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from belvedere.commands import pretrain as command
from belvedere.core.errors import CheckpointError, RecipeError
from belvedere.core.files import LOCK_NAME
from belvedere.data.sources import open_source
from belvedere.engine.state import find
from belvedere.methods.pages import method_names
from belvedere.recipe.load import load_recipe
from belvedere.train.directory import ChangedRecipeError
from belvedere.train.dry import dry_run
from belvedere.train.run import begin, open_session, pretrain
from belvedere.train.session import Session

SMALL = (
    "data.split=null",
    "train.epochs=1",
    "train.global_batch=20",
    "optim.lr.warmup_epochs=0.5",
    "run.workers=0",
    "run.device=cpu",
    "run.log_every_steps=1",
)
OWN = {
    "swav": ("method.queue={length: 40, start_epoch: 0}", "method.prototypes=20"),
    "deepcluster": ("method.prototypes=[20, 20]",),
    "sela": ("method.prototypes=[20, 20]",),
    "esvit": ("method.teacher_temperature={start: 0.04, final: 0.07, warmup_epochs: 1}",),
    "mugs": ("method.group.teacher_temperature={start: 0.04, final: 0.07, warmup_epochs: 1}",),
}
PARTS = {
    "msn": ["student.backbone", "student.head", "teacher.backbone", "teacher.head", "prototypes"],
    "swav": ["student.backbone", "student.projection_head", "prototypes", "queue"],
    "deepcluster": ["student.backbone", "student.projection_head", "prototypes", "bank", "assignments"],
    "sela": ["student.backbone", "student.projection_head", "prototypes", "bank", "assignments"],
    "esvit": ["student.backbone", "student.head", "teacher.backbone", "teacher.head", "center"],
    "mugs": ["student.backbone", "teacher.backbone", "instance_queue", "student_memory", "center"],
}


@cache
def images(first: int = 0) -> str:
    """Sixty digits, from this one on."""
    file = Path(tempfile.mkdtemp()) / "digits.npy"
    np.save(file, open_source("digits", split="test").pixels[first : first + 60])  # type: ignore[attr-defined]
    return str(file)


def words(method: str, overrides: tuple[str, ...]) -> list[str]:
    given = {"data.path": images()}
    given |= dict(line.split("=", 1) for line in (*SMALL, *OWN.get(method, ()), *overrides))
    return [f"{key}={value}" for key, value in given.items()]


def begun(method: str, *overrides: str) -> Session:
    session = open_session(load_recipe(f"tiny/{method}", words(method, overrides)), torch.device("cpu"))
    begin(session)
    return session


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each method, of three steps."""
    folder = tmp_path_factory.mktemp("runs")
    for method in method_names():
        pretrain(load_recipe(f"tiny/{method}", words(method, (f"run.dir={folder / method}",))))
    return {method: folder / method for method in method_names()}


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and path.name != LOCK_NAME
    }


@pytest.mark.parametrize("method", method_names())
def test_a_run_begins_with_all_of_another_ones_state(
    method: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    before = contents(runs[method])
    trained = begun(method, f"run.dir={runs[method]}").method.state_dict()
    session = begun(method, f"init.from={runs[method]}", f"run.dir={tmp_path}", "train.epochs=4")
    now = session.method.state_dict()
    assert all(torch.equal(tensor, now[name]) for name, tensor in trained.items())
    assert (session.step, len(session.optimizer.state)) == (0, 0)
    told = session.notes[-1]
    for part in PARTS[method]:
        count = sum(name == part or name.startswith(f"{part}.") for name in trained)
        assert f"{part} ({count} tensor" in told.splitlines()[1]
    assert "all of the method's state is in it" in told
    held = find(runs[method])
    assert held is not None
    moments = sum(name.startswith("optim/") for name in held.manifest["tensors"])
    assert f"not taken: moments of the optimizer ({moments} tensors)" in told
    assert "the optimizer begins anew" in told
    assert "laid out anew, from epoch 0 of 4 (step 0 of 12)" in told
    assert contents(runs[method]) == before, "the other run is only read"


@pytest.mark.parametrize("method", method_names())
def test_every_place_that_has_weights_will_do(method: str, runs: dict[str, Path], tmp_path: Path) -> None:
    run = runs[method]
    exported = begun(method, f"run.dir={run}").method.export().backbone.state_dict()
    moved = shutil.copytree(run, tmp_path / "moved")
    shutil.rmtree(moved / "checkpoints")
    for place in (run / "backbone", run / "backbone" / "backbone.safetensors", moved):
        session = begun(method, f"init.from={place}", f"run.dir={tmp_path / 'new'}")
        now = session.method.state_dict()
        assert all(torch.equal(now[f"student.backbone.{name}"], t) for name, t in exported.items())
        assert "student.backbone (" in session.notes[-1]


@pytest.mark.parametrize("method", [name for name in method_names() if name != "msn"])
def test_another_methods_run_gives_its_backbone(method: str, runs: dict[str, Path], tmp_path: Path) -> None:
    """All tiny recipes have a ViT of the same tensors but SwAV's (a ResNet) and EsViT's (a Swin)."""
    start = (f"init.from={runs['msn']}", f"run.dir={tmp_path}")
    if method in ("swav", "esvit"):
        with pytest.raises(CheckpointError, match=r"init\.from: .*has another network") as refused:
            begun(method, *start)
        assert "its backbone.name is vit, the recipe's" in str(refused.value)
        assert "None" not in str(refused.value)
        return
    session = begun(method, *start)
    teacher = begun("msn", f"run.dir={runs['msn']}").method.state_dict()
    now = session.method.state_dict()
    networks = [name for name in ("student", "teacher") if f"{name}.backbone.norm.weight" in now]
    for network in networks:
        name = f"{network}.backbone.norm.weight"
        assert torch.equal(now[name], teacher["teacher.backbone.norm.weight"])
    left = session.notes[-1].partition("not taken")[2]
    assert "student.backbone (" in left
    assert "prototypes (1 tensor)" in left


def test_a_backbone_alone_is_taken_from_a_run(runs: dict[str, Path], tmp_path: Path) -> None:
    session = begun("msn", f"init.from={runs['msn']}", "init.take=backbone", f"run.dir={tmp_path}")
    told = session.notes[-1]
    assert told.splitlines()[1].count("tensors") == 2, "student.backbone and teacher.backbone"
    assert "prototypes (not there)" in told


@pytest.mark.parametrize(
    ("method", "overrides", "anew", "taken"),
    [
        ("msn", ["method.prototypes=17"], "prototypes (mis-shaped (1): prototypes is [", "student.head"),
        ("msn", ["method.head={hidden: 9, out: 5, batch_norm: false}"], "student.head (", "student.backbone"),
        ("swav", ["method.queue={length: 20, start_epoch: 0}"], "queue (mis-shaped", "prototypes"),
        ("swav", ["method.queue=null"], "all of the method's state", "prototypes"),
        ("deepcluster", ["method.prototypes=[17, 18]"], "prototypes (mis-shaped (2)", "bank"),
        ("deepcluster", [f"data.path={images(100)}"], "bank (it is of other images)", "prototypes"),
        ("sela", ["train.global_batch=30"], "all of the method's state", "bank"),
        ("sela", ["train.global_batch=25"], "bank (mis-shaped", "assignments"),
        ("mugs", ["method.instance.queue=60"], "instance_queue (mis-shaped", "student_memory"),
        ("esvit", ["method.head.out=33"], "teacher.head (mis-shaped", "student.backbone"),
        ("esvit", ["views.local.count=3", "optim.lr.peak=0.001"], "all of the method's state", "center"),
    ],
)
def test_heads_that_do_not_fit_begin_anew_and_are_named(
    method: str, overrides: list[str], anew: str, taken: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    told = begun(method, f"init.from={runs[method]}", f"run.dir={tmp_path}", *overrides).notes[-1]
    assert anew in told
    assert f"{taken} (" in told.splitlines()[1]
    begins_anew = [line for line in told.splitlines() if line.startswith("  beginning anew")]
    for line in begins_anew:  # what was there and could not be taken is counted too
        assert line.strip().split(" ")[2] in told.partition("not taken: ")[2]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["backbone.width=32"], r"backbone\.width: 32, in the file"),
        (["backbone.depth=2"], r"backbone\.depth: 2, in the file"),
        (["backbone.heads=2"], r"backbone\.heads: 2, in the file"),
    ],
)
def test_a_backbone_that_does_not_fit_is_refused(
    overrides: list[str], told: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=told):
        begun("msn", f"init.from={runs['msn']}", f"run.dir={tmp_path / 'new'}", *overrides)
    assert not (tmp_path / "new").exists()


def test_what_is_nothing_to_begin_with_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.pth").write_bytes(b"weights")
    checkpoint = next((runs["msn"] / "checkpoints").iterdir())
    for place, told in [
        (tmp_path / "nowhere", "no run with checkpoints"),
        (tmp_path / "empty", "no run with checkpoints"),
        (tmp_path / "file.pth", "belvedere import .*file.pth --out DIR"),
        (checkpoint, f"is one checkpoint of a run; give the run's directory, {runs['msn']}"),
        (tmp_path / "new", "is this run's own directory.*run.dir=NEW"),
        (tmp_path / "new" / "backbone", "is this run's own directory.*run.dir=NEW"),
    ]:
        with pytest.raises(CheckpointError, match=rf"(?s)init\.from: .*{told}"):
            begun("msn", f"init.from={place}", f"run.dir={tmp_path / 'new'}")


def test_a_run_with_no_sound_checkpoint_or_recipe_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    other = shutil.copytree(runs["msn"], tmp_path / "other")
    start = (f"init.from={other}", f"run.dir={tmp_path / 'new'}")
    (other / "recipe.yaml").write_bytes(b"\xff\xfename: msn")
    with pytest.raises(CheckpointError, match=r"recipe\.yaml cannot be read"):
        begun("msn", *start)
    (other / "recipe.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"recipe\.yaml is missing"):
        begun("msn", *start)
    for manifest in other.glob("checkpoints/*/manifest.json"):
        manifest.write_text("{}")
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* can be used"):
        begun("msn", *start)


def test_a_run_goes_on_at_an_epoch_of_another_one(runs: dict[str, Path], tmp_path: Path) -> None:
    """As EsViT's published runs do; here the others."""
    for method in ("msn", "swav", "deepcluster", "sela", "mugs"):
        longer = (f"init={{from: {runs[method]}, start_epoch: 1}}", "train.epochs=3", f"run.dir={tmp_path}")
        session = begun(method, *longer)
        trained = begun(method, f"run.dir={runs[method]}").method.state_dict()
        now = session.method.state_dict()
        assert all(torch.equal(tensor, now[name]) for name, tensor in trained.items())
        assert session.step == 3
        assert "epoch 1 of 3 (step 3 of 9)" in session.notes[-1]
        with pytest.raises(RecipeError, match=r"init\.take: backbone has no effect"):
            begun(method, *longer[1:], longer[0].replace("}", ", take: backbone}"))


def test_the_dry_run_takes_the_first_step_with_these_weights(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def loss(*overrides: str) -> float:
        recipe = load_recipe("tiny/msn", words("msn", (f"run.dir={tmp_path / 'new'}", *overrides)))
        report = dry_run(recipe)
        assert report is not None
        return float(report.losses.total)

    weights = f"init.from={runs['msn']}"
    fresh, started = loss(), loss(weights)
    assert fresh != started
    assert "starting from the weights of the run in" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert dry_run(load_recipe("tiny/msn", words("msn", (f"run.dir={runs['msn']}",)))) is None
    before = contents(runs["msn"])
    with pytest.raises(ChangedRecipeError):
        loss(f"run.dir={runs['msn']}", "train.epochs=2")
    assert contents(runs["msn"]) == before


# The same directory, another recipe


def refused_command(recipe: str, overrides: list[str]) -> str:
    parser = command.parser()
    with pytest.raises(CheckpointError) as refused:
        command.run(parser.parse_intermixed_args([recipe, *overrides]))
    return str(refused.value)


def test_a_finished_run_is_lengthened_by_the_command_that_is_told(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    run = shutil.copytree(runs["msn"], tmp_path / "a run")
    before = contents(run)
    told = refused_command("tiny/msn", words("msn", ("train.epochs=2", f"run.dir={run}")))
    assert "train.epochs: 1 -> 2" in told
    line = told.splitlines()[-1]
    given = shlex.split(line)
    given = given[given.index("tiny/msn") :]
    assert f"init.from={run}" in given
    assert f"run.dir={run}-2" in given
    assert "train.epochs=2" in given
    parser = command.parser()
    assert command.run(parser.parse_intermixed_args(given)) == 0
    assert json.loads((tmp_path / "a run-2" / "plan.json").read_text())["total_steps"] == 6
    assert contents(run) == before
    again = refused_command("tiny/msn", words("msn", ("train.epochs=3", f"run.dir={run}")))
    assert f"run.dir={run}-3" in again
    of_new = refused_command("tiny/msn", [*given[1:], "optim.lr.peak=0.5"])
    assert "optim.lr.peak: " in of_new
    assert f"init.from={run}-2" in of_new.splitlines()[-1].replace("'", "")


def test_another_methods_directory_is_refused_in_a_line(runs: dict[str, Path]) -> None:
    told = refused_command("tiny/swav", words("swav", (f"run.dir={runs['msn']}",)))
    assert told == (
        f"{runs['msn']} holds a run of tiny/msn (msn), and this is tiny/swav (swav); choose another "
        "directory with run.dir=NEW"
    )


def test_changes_under_run_are_told(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(runs["msn"], tmp_path / "run")
    line = ("run.keep_last=7", "run.micro_batch=10", f"run.dir={run}")
    pretrain(load_recipe("tiny/msn", words("msn", line)))
    told = capsys.readouterr().err
    assert "changed since the last start: run.dir: " in told
    assert "run.keep_last: 2 -> 7; run.micro_batch: null -> 10" in told
    pretrain(load_recipe("tiny/msn", words("msn", line)))
    assert "changed since" not in capsys.readouterr().err


def killed_before_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    class Killed(BaseException):
        pass

    def kill(*_: object, **__: object) -> None:
        raise Killed

    monkeypatch.setattr("belvedere.train.loop.clip_", kill)
    monkeypatch.setattr(Session, "save", kill)
    with pytest.raises(Killed):
        pretrain(load_recipe("tiny/msn", words("msn", (f"run.dir={tmp_path}",))))
    monkeypatch.undo()
    assert (tmp_path / "recipe.yaml").exists()
    return tmp_path


def test_a_kill_before_the_first_checkpoint_blocks_no_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = killed_before_a_checkpoint(tmp_path / "run", monkeypatch)
    half = run / "checkpoints" / ".writing-000000001"
    half.mkdir(parents=True)
    (half / "tensors-0.safetensors").write_bytes(b"half")
    outcome = pretrain(load_recipe("tiny/msn", words("msn", (f"run.dir={run}", "optim.lr.peak=0.001"))))
    assert outcome.step == 3
    assert "nothing has been trained in" in capsys.readouterr().err
    assert not half.exists()
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").open()] == [0, 1, 2]


def test_a_recipe_that_is_gone_or_damaged_is_not_guessed(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(runs["msn"], tmp_path / "run")
    (run / "recipe.yaml").write_text("name: [")
    with pytest.raises(CheckpointError, match=r"recipe\.yaml cannot be read"):
        pretrain(load_recipe("tiny/msn", words("msn", (f"run.dir={run}",))))
    (run / "recipe.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"was trained by a recipe of hash .* is missing"):
        pretrain(load_recipe("tiny/msn", words("msn", (f"run.dir={run}", "train.epochs=2"))))
    pretrain(load_recipe("tiny/msn", words("msn", (f"run.dir={run}",))))
    assert "was missing and is written again" in capsys.readouterr().err


# The same directory, other images


@pytest.mark.parametrize("method", ["msn", "deepcluster"])
def test_other_images_are_told_with_counts(method: str, tmp_path: Path) -> None:
    from PIL import Image

    images, run = tmp_path / "images", tmp_path / "run"
    images.mkdir()
    for number in range(12):
        Image.new("RGB", (10 + number, 10), (number, 0, 0)).save(images / f"{number:02}.png")
    clusters = {"msn": (), "deepcluster": ("method.prototypes=[4, 4]",)}[method]
    own = (f"data.path={images}", "data.split=null", "train.global_batch=4", f"run.dir={run}", *clusters)
    recipe = load_recipe(f"tiny/{method}", words(method, own))
    pretrain(recipe)
    for number in range(4):  # a whole batch, so that a bank would have other sizes
        Image.new("RGB", (10, 10)).save(images / f"new{number}.png")
    (images / "03.png").unlink()
    Image.new("RGB", (300, 200)).save(images / "05.png")
    with pytest.raises(CheckpointError) as refused:
        pretrain(recipe)
    told = str(refused.value)
    assert "other images than data.path now holds: 12 then, 15 now; 4 new: new0.png, new1.png" in told
    assert "1 gone: 03.png" in told
    assert "1 of another size or label: 05.png" in told
    assert f"init.from={run} run.dir={run}-2" in told

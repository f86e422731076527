"""A run directory that someone altered: nothing in any of its files runs, and what is wrong is named."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from belvedere.commands.run_files import read_run
from belvedere.core.errors import BelvedereError, CheckpointError, WriteError
from belvedere.core.files import sha256
from belvedere.engine.manifest import MANIFEST_NAME, seal
from belvedere.recipe.load import load_recipe
from belvedere.recipe.schema import Recipe
from belvedere.train.directory import compare_recipe, write_recipe
from belvedere.train.record import METRICS_NAME, Metrics, read_metrics
from belvedere.train.roster import as_begun
from belvedere.train.run import open_session, pretrain
from belvedere.train.session import Session
from belvedere.train.sinks import _kept_id
from belvedere.train.takeover import take_over
from belvedere.zoo.load import load, load_heads


def _recipe(images: Path, run: Path, *overrides: str, epochs: int = 1) -> Recipe:
    small = [
        "data.split=null",
        "train.global_batch=8",
        f"train.epochs={epochs}",
        "optim.lr.warmup_epochs=0.5",
    ]
    small += [
        "train.precision=float32",
        "method.temperature=0.1",
        "method.teacher_temperature.warmup_epochs=1",
    ]
    own = ["run.workers=0", "run.device=cpu", f"run.dir={run}", f"data.path={images}"]
    return load_recipe("tiny/esvit", [*small, *own, "run.milestone_epochs=1", *overrides])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of images and a run of two steps on them."""
    folder = tmp_path_factory.mktemp("safety")
    rng = np.random.default_rng(0)
    for number in range(16):
        path = folder / "images" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)
    pretrain(_recipe(folder / "images", folder / "run"))
    return folder / "images", folder / "run"


@pytest.fixture
def altered(made: tuple[Path, Path]) -> tuple[Path, Path]:
    """The images, and a fresh copy of the run to alter, always at the same place."""
    place = made[1].with_name("altered")
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(made[1], place)
    return made[0], place


@pytest.fixture(scope="module")
def going_on(made: tuple[Path, Path]) -> Session:
    """A session to continue the copy with."""
    return open_session(_recipe(made[0], made[1].with_name("altered")), torch.device("cpu"))


@pytest.fixture(scope="module")
def starting(made: tuple[Path, Path]) -> Session:
    """A session to start from the copy."""
    init = f"init={{from: {made[1].with_name('altered')}, start_epoch: 1}}"
    return open_session(_recipe(made[0], made[1].with_name("new"), init, epochs=2), torch.device("cpu"))


class _Payload:
    def __init__(self, where: Path) -> None:
        self.where = where

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.mkdir, (self.where,))


def _reseal(run: Path) -> None:
    """Renew every checksum, as whoever altered the files would."""
    for path in run.glob(f"checkpoints/*/{MANIFEST_NAME}"):
        try:
            content = json.loads(path.read_text())
        except ValueError:
            continue
        content.pop("sha256")
        for name, file in content["files"].items():
            file.update(bytes=(path.parent / name).stat().st_size, sha256=sha256(path.parent / name))
        path.write_text(json.dumps(seal(content)))
    card = run / "backbone" / "card.yaml"
    try:
        content = yaml.safe_load(card.read_text())
    except (ValueError, yaml.YAMLError):
        return
    if not isinstance(content, dict):
        return
    for key, name in (("weights_sha256", "backbone.safetensors"), ("heads_sha256", "heads.safetensors")):
        if (run / "backbone" / name).exists():
            content[key] = sha256(run / "backbone" / name)
    card.write_text(yaml.safe_dump(content))


_FILES = [
    "recipe.yaml",
    "plan.json",
    "metrics.jsonl",
    "data_report.json",
    "images.index",
    "checkpoints/000000002/manifest.json",
    "checkpoints/000000002/tensors-0.safetensors",
    "backbone/card.yaml",
    "backbone/backbone.safetensors",
    "backbone/heads.safetensors",
]


def test_a_run_as_it_was_made_is_read(
    altered: tuple[Path, Path], going_on: Session, starting: Session
) -> None:
    """Or the tests below would show nothing."""
    _reseal(altered[1])
    assert all(read() is not False for read in _readers(altered[1], going_on, starting))
    assert (going_on.step, starting.step) == (2, 2)


def test_these_are_all_files_of_a_run(made: tuple[Path, Path]) -> None:
    there = {path.relative_to(made[1]).as_posix() for path in made[1].rglob("*") if path.is_file()}
    assert there == {*_FILES, ".lock"}


def _readers(run: Path, going_on: Session, starting: Session) -> list[Callable[[], object]]:
    """Whatever reads a run: going on, starting from it, its backbone, its files."""
    return [
        going_on.resume,
        lambda: take_over(starting),
        lambda: as_begun(going_on.source, run),
        lambda: compare_recipe(going_on.recipe, run),
        lambda: load(run),
        lambda: load_heads(run),
        lambda: read_run(run),
        lambda: read_metrics(run / "metrics.jsonl"),
    ]


_YAML = "!!python/object/apply:os.mkdir ['{where}']"


@pytest.mark.parametrize("name", _FILES)
def test_a_payload_in_any_file_never_runs(
    altered: tuple[Path, Path], tmp_path: Path, name: str, going_on: Session, starting: Session
) -> None:
    _, run = altered
    where = tmp_path / "ran"
    assert (run / name).exists()
    contents = [pickle.dumps(_Payload(where), protocol=protocol) for protocol in (0, 2, 4)]
    contents += [_YAML.format(where=where).encode(), f"system: {_YAML.format(where=where)}\n".encode()]
    for content in contents:
        (run / name).write_bytes(content)
        _reseal(run)
        for read in _readers(run, going_on, starting):
            with suppress(BelvedereError):
                read()
            assert not where.exists()
    pickle.loads(contents[1])
    assert where.exists(), "the payload would have worked"


# The recipe that a run keeps


@pytest.mark.parametrize(
    "content",
    [
        "name: Grüße\n".encode("utf-16"),
        "name: Grüße\n".encode("latin-1"),
        b"\x00\x01\x02",
        b"name: tiny/msn\n",
        b"- a\n- b\n",
        b"a: [1, 2\n",
        b"a: " + b"[" * 400 + b"]" * 400,
        b"",
        None,
    ],
)
def test_a_recipe_that_cannot_be_read_is_named_with_what_to_do(
    altered: tuple[Path, Path], content: bytes | None
) -> None:
    images, run = altered
    file = run / "recipe.yaml"
    file.unlink()
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    with pytest.raises(CheckpointError) as told:
        compare_recipe(_recipe(images, run), run)
    assert str(file) in str(told.value)
    assert "restore it" in str(told.value)
    assert "run.dir=NEW" in str(told.value)
    assert content is None or file.read_bytes() == content


def test_a_recipe_with_a_byte_order_mark_is_read(altered: tuple[Path, Path]) -> None:
    images, run = altered
    text = (run / "recipe.yaml").read_bytes()
    (run / "recipe.yaml").write_bytes(b"\xef\xbb\xbf" + text)
    recipe = _recipe(images, run)
    compare_recipe(recipe, run)
    write_recipe(recipe, run)
    assert (run / "recipe.yaml").read_bytes().startswith(b"name: ")


# What a manifest tells of the run, sealed again


_META: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no data": lambda meta: meta.pop("data"),
    "data a number": lambda meta: meta.update(data=7),
    "no replaced": lambda meta: meta.pop("replaced"),
    "replaced a list": lambda meta: meta.update(replaced=[1]),
    "replaced by a word": lambda meta: meta.update(replaced={"3": "four"}),
    "a word replaced": lambda meta: meta.update(replaced={"three": 4}),
    "replaced out of reach": lambda meta: meta.update(replaced={"3": 99}),
    "replaced below zero": lambda meta: meta.update(replaced={"-3": 1}),
    "report a list": lambda meta: meta.update(report=[1]),
    "report empty": lambda meta: meta.update(report={}),
    "report of other images": lambda meta: meta["report"].update(reasons={"99": "x"}),
    "report in no base 85": lambda meta: meta["report"].update(codes="ü"),
    "report of no zlib": lambda meta: meta["report"].update(codes="abcde"),
    "report of codes unknown": lambda meta: meta["report"].update(kinds=[]),
    "device a number": lambda meta: meta.update(device=1),
    "no recipe_hash": lambda meta: meta.pop("recipe_hash"),
    "images a word": lambda meta: meta.update(images="16"),
    "micro_batch a word": lambda meta: meta.update(micro_batch="8"),
}


@pytest.mark.parametrize("kind", _META)
def test_what_a_manifest_tells_of_the_run_is_checked(
    altered: tuple[Path, Path], kind: str, going_on: Session
) -> None:
    _, run = altered
    path = run / "checkpoints" / "000000002" / MANIFEST_NAME
    content = json.loads(path.read_text())
    _META[kind](content["meta"])
    path.write_text(json.dumps(content))
    _reseal(run)
    with pytest.raises(CheckpointError) as told:
        going_on.resume()
    assert f"{path} is altered (meta: " in str(told.value)
    assert f"or delete {path.parent} to continue from the checkpoint before" in str(told.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"steps_per_epoch": 0}', b'{"steps_per_epoch": "2"}', b"\xff\xfe{", b"[" * 9999],
)
def test_a_plan_that_cannot_be_read_is_named(
    altered: tuple[Path, Path], content: bytes, starting: Session
) -> None:
    _, run = altered
    (run / "plan.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"plan\.json"):
        take_over(starting)


@pytest.mark.parametrize(
    "line",
    [
        b"[1]",
        b"{}",
        b'{"step": "1"}',
        b'{"step": true, "loss": 1}',
        b'{"step": 1, "ln_k": "x"}',
        b'{"step": 1, "ln_k": [1]}',
        b"[" * 9999,
        b"\xff\xfe",
        b'{"step": ' + b"9" * 5000 + b"}",
    ],
)
def test_lines_that_are_no_records_are_left_out(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0, "loss": 1.0}\n' + line + b'\n{"step": 2, "loss": null}\n')
    assert [record["step"] for record in read_metrics(path)] == [0, 2]


@pytest.mark.parametrize("content", [b"", b"../../x", b"a b", b"\xff\xff", b"x" * 100])
def test_an_id_of_a_sink_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "wandb-id.txt").write_bytes(content)
    with pytest.raises(BelvedereError, match=r"wandb-id\.txt holds no id"):
        _kept_id(tmp_path / "wandb-id.txt")


def test_a_record_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / METRICS_NAME)
    with pytest.raises(WriteError, match="no regular file"):
        Metrics(tmp_path / METRICS_NAME).cut_back(3)
    with pytest.raises(WriteError, match="no regular file"):
        Metrics(tmp_path / METRICS_NAME).write(0, {"loss": 1.0})

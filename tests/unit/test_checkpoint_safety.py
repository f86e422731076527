"""Run directories from someone else: nothing in them runs, and old ones are still read."""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import belvedere
from belvedere.core.errors import BelvedereError, CheckpointError
from belvedere.core.files import sha256
from belvedere.engine import format_1, manifest, storage
from belvedere.engine.manifest import MANIFEST_NAME, UnsoundError, seal, verify
from belvedere.engine.state import load, save

OLD = Path(__file__).with_name("checkpoints") / "format_1.tar.xz"
"""What two processes with torch 2.15 saved at step 5, in the last version that wrote format 1."""


def old_tensors(rank: int) -> dict[str, Tensor]:
    matrix = torch.arange(6, dtype=torch.float32).reshape(2, 3) / 7
    return {
        "method/transposed": matrix.t(),
        "method/channels_last": torch.arange(16.0).reshape(1, 2, 2, 4).to(memory_format=torch.channels_last),
        "method/half": torch.tensor([1.0, -0.0, float("nan"), 3e38]).bfloat16(),
        "method/double": torch.tensor([[0.1]], dtype=torch.float64),
        "method/counts": torch.tensor([2**62, -1]),
        "method/flags": torch.tensor([True, False, True]),
        "method/bytes": torch.tensor([0, 255], dtype=torch.uint8),
        "method/empty": torch.empty(0, 3),
        "optim/weight/step": torch.tensor(5.0),
        f"rank{rank}/method/queue": torch.full((2, 2), rank + 0.5),
    }


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert _bytes(found[name]) == _bytes(tensor), name


def _targets(content: dict[str, Any]) -> dict[str, Tensor]:
    return {
        name: torch.empty(entry["shape"], dtype=getattr(torch, entry["dtype"]))
        for name, entry in content["tensors"].items()
    }


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with tarfile.open(OLD) as tar:
        tar.extractall(tmp_path / "run" / "checkpoints", filter="data")
    return tmp_path / "run" / "checkpoints" / "000000005"


def test_a_checkpoint_of_the_first_format_is_read_bitwise(old: Path) -> None:
    content = verify(old)
    assert (content["format"], content["world_size"]) == (1, 2)
    found = _targets(content)
    storage.read_tensors(old, found)
    _same(found, {**old_tensors(0), **old_tensors(1)})
    with pytest.raises(CheckpointError, match="was written by 2 processes"):
        load(old.parents[1])


def save_as_before(directory: Path, step: int, tensors: dict[str, Any], meta: dict[str, Any]) -> Path:
    """A checkpoint of format 1, by torch's own writer, which the former versions used."""
    from torch.distributed.checkpoint import save as save_state
    from torch.distributed.checkpoint.filesystem import FileSystemWriter

    folder = directory / "checkpoints" / f"{step:09d}"
    writer = FileSystemWriter(folder, single_file_per_rank=True, sync_files=True, thread_count=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_state(
            {name: _detached(value) for name, value in tensors.items()}, storage_writer=writer, no_dist=True
        )
    _reseal(folder, {**_content(step, meta), "tensors": _described(tensors)})
    return folder


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _described(tensors: dict[str, Any]) -> dict[str, Any]:
    return manifest.describe({name: value for name, value in tensors.items() if isinstance(value, Tensor)})


def _content(step: int, meta: dict[str, Any]) -> dict[str, Any]:
    versions = {"belvedere": "0", "torch": torch.__version__, "python": "3"}
    return {
        "format": 1,
        "step": step,
        "milestone": False,
        "world_size": 1,
        "threads": torch.get_num_threads(),
        "versions": versions,
        "meta": meta,
    }


def _reseal(folder: Path, content: dict[str, Any] | None = None) -> None:
    """Make the manifest fit the files, as whoever altered them would."""
    path = folder / MANIFEST_NAME
    content = json.loads(path.read_text()) if content is None else content
    content.pop("sha256", None)
    there = [one for one in folder.iterdir() if one.name != MANIFEST_NAME]
    files = {one.name: {"bytes": one.stat().st_size, "sha256": sha256(one)} for one in there}
    path.write_text(json.dumps(seal({**content, "files": files})))


def test_both_formats_give_the_same_state_on_every_torch(tmp_path: Path) -> None:
    expected = old_tensors(0)
    expected = {name.removeprefix("rank0/"): tensor for name, tensor in expected.items()}
    expected["method/parameter"] = torch.nn.Parameter(torch.randn(4, 3)).t()
    expected["method/part"] = torch.arange(40.0)[10:30:2]
    save_as_before(tmp_path / "old", 3, expected, {"a": 1})
    save(tmp_path / "new", 3, expected, {"a": 1}, keep_last=1, milestone=False)
    for directory in ("old", "new"):
        found = load(tmp_path / directory, like=expected)
        assert found is not None
        assert (found.step, found.meta) == (3, {"a": 1})
        _same(found.tensors, expected)


# Payloads


class _Payload:
    """What makes the folder `where` when it is unpickled."""

    def __init__(self, where: Path) -> None:
        self.where = where

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (_run_payload, (str(self.where),))


def _run_payload(where: str) -> None:
    Path(where).mkdir(exist_ok=True)


def _pickled(where: Path, protocol: int) -> bytes:
    return pickle.dumps({"state_dict_metadata": {}, "storage_data": _Payload(where)}, protocol=protocol)


def test_the_payload_of_these_tests_works(tmp_path: Path) -> None:
    pickle.loads(_pickled(tmp_path / "ran", 4))
    assert (tmp_path / "ran").is_dir()


def _index_is_a_payload(folder: Path, where: Path, protocol: int) -> None:
    (folder / ".metadata").write_bytes(_pickled(where, protocol))


def _payload_beside_the_index(folder: Path, where: Path, protocol: int) -> None:
    """A sound index whose pickle does more."""
    index = pickle.loads((folder / ".metadata").read_bytes())
    index.planner_data = _Payload(where)
    (folder / ".metadata").write_bytes(pickle.dumps(index, protocol=protocol))


def _payload_before_a_tensor(folder: Path, where: Path, protocol: int) -> None:
    """In the pickle of every tensor's own archive."""
    index = pickle.loads((folder / ".metadata").read_bytes())
    content = b""
    for place in index.storage_data.values():
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as zipped:
            zipped.writestr("archive/data.pkl", _pickled(where, protocol))
            zipped.writestr("archive/data/0", b"\0" * 24)
        place.offset, place.length = len(content), archive.tell()
        content += archive.getvalue()
    (folder / "__0_0.distcp").write_bytes(content)
    (folder / ".metadata").write_bytes(pickle.dumps(index, protocol=protocol))


def _tensors_are_pickles(folder: Path, where: Path, protocol: int) -> None:
    (folder / "__0_0.distcp").write_bytes(_pickled(where, protocol))


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize(
    "plant", [_index_is_a_payload, _payload_beside_the_index, _payload_before_a_tensor, _tensors_are_pickles]
)
def test_a_payload_in_the_first_format_never_runs(
    tmp_path: Path, plant: Callable[[Path, Path, int], None], protocol: int
) -> None:
    tensors = {"method/a": torch.ones(2, 3)}
    folder = save_as_before(tmp_path, 3, tensors, {})
    plant(folder, tmp_path / "ran", protocol)
    _reseal(folder)
    with pytest.raises(CheckpointError, match=f"{re.escape(str(folder))}.* cannot be read"):
        load(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_an_entry_marked_as_bytes_is_never_unpickled(tmp_path: Path) -> None:
    """torch's own loader unpickles what is no tensor, whatever the index is read with."""
    where = tmp_path / "ran"
    folder = save_as_before(tmp_path, 3, {"method/a": torch.ones(2), "method/b": _Payload(where)}, {})
    content = json.loads((folder / MANIFEST_NAME).read_text())
    content["tensors"]["method/b"] = content["tensors"]["method/a"]
    _reseal(folder, content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(tmp_path)
    assert not where.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", ["tensors-0.safetensors", MANIFEST_NAME, ".metadata", "__0_0.distcp"])
def test_a_payload_in_todays_format_never_runs(tmp_path: Path, name: str, protocol: int) -> None:
    tensors = {"method/a": torch.ones(2, 3)}
    folder = save(tmp_path, 3, tensors, {}, keep_last=1, milestone=False)
    (folder / name).write_bytes(_pickled(tmp_path / "ran", protocol))
    if name != MANIFEST_NAME:
        _reseal(folder)
    if name in (".metadata", "__0_0.distcp"):  # files that nobody reads
        load(tmp_path)
    else:
        with pytest.raises(CheckpointError):
            load(tmp_path)
    assert not (tmp_path / "ran").exists()


# What the reader of old pickles takes and refuses


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04",
        b"\x80\x04.",
        b"cposix\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"\x80\x02]q\x00(K\x01K\x02e",
        b"\x80\x02e.",
        b"\x80\x02a.",
        b"\x80\x02}K\x01s.",
        b"\x80\x02h\x07.",
        b"\x80\x02K\x01K\x02R.",
        b"\x80\x02}}b.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93.",
        b"\x80\x04\x82\x01.",
        b"\x80\x02" + b"(" * 5000 + b"t" * 4999 + b".",
        b"\x80\x02}(]K\x01u.",
        b"\xff" * 50,
    ],
)
def test_pickles_that_are_none_of_ours_are_refused(content: bytes) -> None:
    try:
        found = format_1.plain(content)
    except format_1.UnreadableError:
        return
    assert found == () or isinstance(found, tuple), found  # plain data, and nothing has run


def test_plain_data_comes_out_of_a_pickle_as_it_went_in() -> None:
    shared = [1]
    value = {"a": (1, 2, 3, 4), "b": [shared, shared, 2**40, -1, 2**70], "c": {"d": None, "e": (True, ())}}
    for protocol in (2, 3, 4, 5):
        assert format_1.plain(pickle.dumps(value, protocol=protocol)) == value


# Files of today's format that do not say what the manifest says


def _header(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    text = json.dumps(change(header) or header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


_WRONG_HEADERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "gone": lambda header: header.pop("a"),
    "type": lambda header: header["a"].update(dtype="I32"),
    "shape": lambda header: header["a"].update(shape=[3, 2]),
    "negative": lambda header: header["a"].update(data_offsets=[-24, 0]),
    "behind": lambda header: header["a"].update(data_offsets=[10**15, 10**15 + 24]),
    "short": lambda header: header["a"].update(data_offsets=[0, 20]),
    "words": lambda header: header["a"].update(data_offsets="ab"),
    "list": lambda header: [1, 2],
    "entry": lambda header: {"a": 7},
    "nested": lambda header: {"a": {"dtype": {}, "shape": {}, "data_offsets": [[], []]}},
}


@pytest.mark.parametrize("kind", _WRONG_HEADERS)
def test_a_file_that_is_not_what_the_manifest_says_is_refused(tmp_path: Path, kind: str) -> None:
    folder = save(tmp_path, 3, {"a": torch.ones(2, 3)}, {}, keep_last=1, milestone=False)

    def change(header: dict[str, Any]) -> Any:
        changed = _WRONG_HEADERS[kind](header)
        return changed if kind in ("list", "entry", "nested") else None

    _header(folder / "tensors-0.safetensors", change)
    _reseal(folder)
    with pytest.raises(CheckpointError, match=re.escape(str(folder / "tensors-0.safetensors"))):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 8, b"\x08" + b"\0" * 7 + b"{" * 8, b"\0" * 64])
def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = save(tmp_path, 3, {"a": torch.empty(0)}, {}, keep_last=1, milestone=False)
    (folder / "tensors-0.safetensors").write_bytes(content)
    _reseal(folder)
    with pytest.raises(CheckpointError, match=r"tensors-0\.safetensors"):
        load(tmp_path)


def test_a_truth_value_that_is_none_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, 3, {"a": torch.tensor([True, False])}, {}, keep_last=1, milestone=False)
    file = folder / "tensors-0.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    _reseal(folder)
    with pytest.raises(CheckpointError, match="neither 0 nor 1"):
        load(tmp_path)


# Manifests altered by hand, and sealed again


def _deep(content: dict[str, Any]) -> str:
    return '{"format": ' + "[" * 100_000 + "]" * 100_000 + "}"


def _huge(content: dict[str, Any]) -> str:
    return json.dumps(content).replace('"step": 3', f'"step": {"9" * 5000}')


_MANIFESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "shape of the earth": lambda c: c["tensors"]["a"].update(shape=[40_000_000, 1_000_000]),
    "shape 2^64": lambda c: c["tensors"]["a"].update(shape=[2**64]),
    "shape that overflows": lambda c: c["tensors"]["a"].update(shape=[2**40, 2**40]),
    "negative shape": lambda c: c["tensors"]["a"].update(shape=[-2, 3]),
    "shape of halves": lambda c: c["tensors"]["a"].update(shape=[2.0, 3]),
    "shape of truths": lambda c: c["tensors"]["a"].update(shape=[True, 3]),
    "shape a word": lambda c: c["tensors"]["a"].update(shape="23"),
    "no shape": lambda c: c["tensors"]["a"].pop("shape"),
    "entry a list": lambda c: c["tensors"].update(a=[2, 3]),
    "type of torch's that is none": lambda c: c["tensors"]["a"].update(dtype="nn"),
    "type load": lambda c: c["tensors"]["a"].update(dtype="load"),
    "type a list": lambda c: c["tensors"]["a"].update(dtype=["float32"]),
    "complex": lambda c: c["tensors"]["a"].update(dtype="complex64"),
    "file elsewhere": lambda c: c["tensors"]["a"].update(file="../../secret"),
    "file not listed": lambda c: c["tensors"]["a"].update(file="tensors-7.safetensors"),
    "tensors a list": lambda c: c.update(tensors=[]),
    "files climb": lambda c: c["files"].update({"../../recipe.yaml": {"bytes": 1, "sha256": "0" * 64}}),
    "files absolute": lambda c: c["files"].update({"/etc/passwd": {"bytes": 1, "sha256": "0" * 64}}),
    "file's bytes negative": lambda c: c["files"]["tensors-0.safetensors"].update(bytes=-1),
    "file's bytes a word": lambda c: c["files"]["tensors-0.safetensors"].update(bytes="88"),
    "file's sum a number": lambda c: c["files"]["tensors-0.safetensors"].update(sha256=7),
    "file null": lambda c: c["files"].update({"tensors-0.safetensors": None}),
    "step a word": lambda c: c.update(step="3"),
    "step negative": lambda c: c.update(step=-3),
    "step true": lambda c: c.update(step=True),
    "step a half": lambda c: c.update(step=3.0),
    "no step": lambda c: c.pop("step"),
    "no meta": lambda c: c.pop("meta"),
    "meta a list": lambda c: c.update(meta=[1]),
    "no world_size": lambda c: c.pop("world_size"),
    "world_size zero": lambda c: c.update(world_size=0),
    "threads a word": lambda c: c.update(threads="all"),
    "threads zero": lambda c: c.update(threads=0),
    "milestone a number": lambda c: c.update(milestone=1),
    "no versions": lambda c: c.pop("versions"),
    "versions a word": lambda c: c.update(versions="2.15"),
    "no version of torch": lambda c: c["versions"].pop("torch"),
    "format a word": lambda c: c.update(format="2"),
    "no format": lambda c: c.pop("format"),
}


@pytest.mark.parametrize("kind", _MANIFESTS)
def test_an_altered_manifest_is_skipped_and_named(tmp_path: Path, kind: str) -> None:
    for step in (2, 3):
        folder = save(tmp_path, step, {"a": torch.ones(2, 3)}, {}, keep_last=2, milestone=False)
    content = json.loads((folder / MANIFEST_NAME).read_text())
    content.pop("sha256")
    _MANIFESTS[kind](content)
    (folder / MANIFEST_NAME).write_text(json.dumps(seal(content)))
    found = load(tmp_path)
    assert found is not None
    assert found.step == 2
    ((path, reason),) = found.skipped
    assert path == folder
    assert reason.startswith(f"{MANIFEST_NAME} is altered (")
    assert len(reason) < 400


_TEXTS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "empty": lambda c: b"",
    "no JSON": lambda c: b"step: 3\n",
    "UTF-16": lambda c: json.dumps(c).encode("utf-16"),
    "latin-1": lambda c: json.dumps({**c, "note": "é"}, ensure_ascii=False).encode("latin-1"),
    "a list": lambda c: b"[1, 2]",
    "a number": lambda c: b"3",
    "null": lambda c: b"null",
    "cut off": lambda c: json.dumps(c).encode()[:-9],
    "nested deep": lambda c: _deep(c).encode(),
    "a step of 5000 digits": lambda c: _huge(c).encode(),
    "with a byte-order mark": lambda c: b"\xef\xbb\xbf" + json.dumps(c).encode(),
    "binary": lambda c: bytes(range(256)),
}


@pytest.mark.parametrize("kind", _TEXTS)
def test_a_manifest_that_is_no_json_is_an_error_that_says_what_to_do(tmp_path: Path, kind: str) -> None:
    folder = save(tmp_path, 3, {"a": torch.ones(2, 3)}, {}, keep_last=2, milestone=False)
    content = json.loads((folder / MANIFEST_NAME).read_text())
    (folder / MANIFEST_NAME).write_bytes(_TEXTS[kind](content))
    with pytest.raises(CheckpointError) as told:
        load(tmp_path)
    words = str(told.value)
    assert f"no checkpoint of {tmp_path} can be used; restore one from a copy, or delete" in words
    assert f"{folder}: {MANIFEST_NAME} " in words
    with pytest.raises((UnsoundError, BelvedereError)):
        verify(folder)


def test_shapes_no_memory_holds_are_refused_without_taking_it(tmp_path: Path) -> None:
    """An empty tensor may have any shape with a zero in it; nothing else more numbers than the files."""
    tensors = {"a": torch.ones(2, 3), "none": torch.empty(10**9, 0)}
    save(tmp_path, 3, tensors, {}, keep_last=2, milestone=False)
    found = load(tmp_path)
    assert found is not None
    assert found.tensors["none"].shape == (10**9, 0)


# The sources


def _calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def _mistake(name: str, call: ast.Call) -> bool:
    given = {word.arg: ast.unparse(word.value) for word in call.keywords}
    match name.split("."):
        case ["pickle" | "marshal" | "shelve" | "dill" | "joblib" | "cloudpickle", what]:
            return what in ("load", "loads", "open", "Unpickler")
        case ["torch", "load"]:
            return given.get("weights_only") != "True"
        case ["np" | "numpy", "load"]:
            return given.get("allow_pickle") != "False"
        case ["yaml", what]:
            return what in ("load", "load_all", "unsafe_load", "full_load")
        case ["eval"] | ["exec"] | ["__import__"] | ["compile"]:
            return True
    return False


def test_nothing_in_the_sources_unpickles_or_evaluates_what_it_reads() -> None:
    root = Path(belvedere.__file__).parent
    for file in sorted(root.rglob("*.py")):
        text = file.read_text()
        wrong = [name for name, call in _calls(ast.parse(text)) if _mistake(name, call)]
        assert not wrong, f"{file}: {wrong}"
        assert "torch.distributed.checkpoint import" not in text, (
            f"{file} uses torch's loader, which unpickles"
        )

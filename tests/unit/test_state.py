"""Checkpoints: what is saved comes back bitwise, whatever interrupted the saving."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from belvedere.core import dist
from belvedere.core.errors import CheckpointError
from belvedere.engine import state
from belvedere.engine.state import flatten_optimizer, load, save, unflatten_optimizer_
from processes import answers_of, exit_code_of


def tensors_at(step: int) -> dict[str, Tensor]:
    """A state of every kind of tensor, different at every step."""
    generator = torch.Generator().manual_seed(step)
    matrix = torch.randn(6, 4, generator=generator)
    return {
        "student.weight": matrix,
        "student.transposed": matrix.t(),
        "student.every_other": torch.randn(10, generator=generator)[::2],
        "prototypes": torch.randn(3, 5, dtype=torch.float64, generator=generator),
        "half": torch.randn(7, generator=generator).bfloat16(),
        "counts": torch.arange(step, step + 3),
        "bytes": torch.tensor([0, 255], dtype=torch.uint8),
        "flags": torch.tensor([True, False]),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(float(step)),
        "special": torch.tensor([float("nan"), float("inf"), -0.0]),
        "optim/student.weight/step": torch.tensor(float(step)),
    }


def assert_bitwise(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert _bytes(found[name]) == _bytes(tensor), name


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def save_at(directory: Path, step: int, **options: Any) -> Path:
    return save(
        directory, step, tensors_at(step), {"at": step}, **{"keep_last": 2, "milestone": False, **options}
    )


def loaded(directory: Path) -> state.Loaded:
    found = load(directory)
    assert found is not None
    return found


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory / "checkpoints"))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_what_is_saved_comes_back_bitwise(tmp_path: Path) -> None:
    meta = {"replaced": [[3, 4]], "recipe": "ü", "none": None, "share": 0.1}
    path = save(tmp_path, 12500, tensors_at(1), meta, keep_last=1, milestone=False)
    assert path == tmp_path / "checkpoints" / "000012500"
    found = load(tmp_path, like=tensors_at(2))
    assert found is not None
    assert (found.step, found.meta, found.path, found.skipped) == (12500, meta, path, [])
    assert_bitwise(found.tensors, tensors_at(1))
    manifest = found.manifest
    assert manifest["world_size"] == 1
    assert manifest["threads"] == torch.get_num_threads()
    assert manifest["versions"]["torch"] == torch.__version__
    lies = {"file": "tensors-0.safetensors"}
    assert manifest["tensors"]["half"] == {"shape": [7], "dtype": "bfloat16", **lies}
    assert list(manifest["files"]) == ["tensors-0.safetensors"]
    assert sorted(os.listdir(path)) == ["manifest.json", "tensors-0.safetensors"]
    others = load_file(path / "tensors-0.safetensors")
    assert_bitwise(others, tensors_at(1))  # as another reader of the format sees it


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    assert load(tmp_path) is None


def test_rotation_keeps_the_last_and_all_milestones(tmp_path: Path) -> None:
    for step in range(1, 8):
        save_at(tmp_path, step, milestone=step in (2, 6))
    assert names(tmp_path) == ["000000002", "000000005", "000000006", "000000007"]
    save_at(tmp_path, 8, keep_last=1)
    assert names(tmp_path) == ["000000002", "000000006", "000000008"]


def test_a_milestone_does_not_push_out_the_one_before(tmp_path: Path) -> None:
    save_at(tmp_path, 1, keep_last=1)
    save_at(tmp_path, 2, keep_last=1, milestone=True)
    assert names(tmp_path) == ["000000001", "000000002"]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save_at(tmp_path, 4)
    save(tmp_path, 4, tensors_at(9), {"at": "again"}, keep_last=2, milestone=False)
    assert names(tmp_path) == ["000000004"]
    assert loaded(tmp_path).meta == {"at": "again"}
    assert_bitwise(loaded(tmp_path).tensors, tensors_at(9))


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, Path.unlink])
@pytest.mark.parametrize("name", ["tensors-0.safetensors", "manifest.json"])
def test_a_damaged_checkpoint_is_skipped_and_named(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    save_at(tmp_path, 1)
    newest = save_at(tmp_path, 2)
    damage(newest / name)
    found = loaded(tmp_path)
    assert found.step == 1
    assert_bitwise(found.tensors, tensors_at(1))
    assert [path for path, _ in found.skipped] == [newest]
    assert name in found.skipped[0][1]


def test_a_manifest_that_claims_another_step_is_skipped(tmp_path: Path) -> None:
    save_at(tmp_path, 1)
    path = save_at(tmp_path, 2)
    text = (path / "manifest.json").read_text()
    assert '"step": 2' in text
    (path / "manifest.json").write_text(text.replace('"step": 2', '"step": 3'))
    assert "checksum" in loaded(tmp_path).skipped[0][1]
    shutil.copytree(tmp_path / "checkpoints" / "000000001", tmp_path / "checkpoints" / "000000007")
    assert "step 1, renamed" in loaded(tmp_path).skipped[0][1]


def test_only_damaged_checkpoints_are_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    flip_a_bit(save_at(tmp_path, 1) / "tensors-0.safetensors")
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* can be used.*delete") as raised:
        load(tmp_path)
    assert "tensors-0.safetensors is altered" in str(raised.value)


def test_a_manifest_of_another_format_is_refused_with_its_version(tmp_path: Path) -> None:
    path = save_at(tmp_path, 1) / "manifest.json"
    content = json.loads(path.read_text())
    del content["sha256"]
    path.write_text(json.dumps(state.manifests.seal({**content, "format": 99})))
    with pytest.raises(CheckpointError, match="format 99, this version of belvedere reads formats 1 and 2"):
        load(tmp_path)


def test_damaged_checkpoints_do_not_push_out_good_ones(tmp_path: Path) -> None:
    save_at(tmp_path, 1)
    truncate(save_at(tmp_path, 2) / "tensors-0.safetensors")
    assert loaded(tmp_path).step == 1
    save_at(tmp_path, 3)  # a repeated part of the run, saved at other steps
    assert names(tmp_path) == ["000000001", "000000002", "000000003"]
    save_at(tmp_path, 4)
    assert names(tmp_path) == ["000000003", "000000004"]


def test_a_damaged_later_step_never_counts_against_the_one_just_saved(tmp_path: Path) -> None:
    save_at(tmp_path, 1)
    flip_a_bit(save_at(tmp_path, 9) / "tensors-0.safetensors")
    save_at(tmp_path, 5, keep_last=1)
    assert names(tmp_path) == ["000000005", "000000009"]
    assert loaded(tmp_path).step == 5


def test_other_names_and_shapes_are_listed(tmp_path: Path) -> None:
    save_at(tmp_path, 1)
    like = tensors_at(1)
    like["students.weight"] = like.pop("student.weight")
    like["counts"] = torch.zeros(4)
    like["optim/whatever/exp_avg"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as raised:
        load(tmp_path, like=like)
    told = str(raised.value)
    assert "missing (1): students.weight (nearest: student.weight)" in told
    assert "unexpected (1): student.weight (nearest: students.weight)" in told
    assert "mis-shaped (1): counts is [3], must be [4]" in told
    assert "optim" not in told


# Interruptions


def _die_at(directory: Path, step: int, event: str) -> None:
    def observer(heard: str) -> None:
        if heard == event:
            os.kill(os.getpid(), signal.SIGKILL)

    save_at(directory, step, observer=observer)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("event", state.EVENTS)
def test_a_killed_save_loses_nothing(tmp_path: Path, event: str, again: bool) -> None:
    save_at(tmp_path, 1)
    save_at(tmp_path, 2)
    step = 2 if again else 3
    assert exit_code_of(_die_at, tmp_path, step, event) == -signal.SIGKILL
    if event in ("first_file", "files_done", "before_rename"):
        assert f".writing-{step:09d}" in names(tmp_path)
    found = loaded(tmp_path)
    assert found.step == (step if event == "after_rename" else 2)
    assert_bitwise(found.tensors, tensors_at(found.step))
    assert [name for name in names(tmp_path) if name.startswith(".")] == []
    save_at(tmp_path, 3)
    assert names(tmp_path) == ["000000002", "000000003"]


def test_a_kill_between_the_renames_of_a_replaced_checkpoint_loses_nothing(tmp_path: Path) -> None:
    path = save_at(tmp_path, 1)
    path.rename(path.parent / ".replaced-000000001")
    (path.parent / ".writing-000000001").mkdir()
    found = loaded(tmp_path)
    assert found.step == 1
    assert names(tmp_path) == ["000000001"]


def test_only_our_leftovers_are_removed(tmp_path: Path) -> None:
    folder = save_at(tmp_path, 1).parent
    for name in (".writing-000000002", ".deleting-000000000", ".writing-notes", ".backup-000000001", "notes"):
        (folder / name).mkdir()
        (folder / name / "file").touch()
    loaded(tmp_path)
    assert names(tmp_path) == [".backup-000000001", ".writing-notes", "000000001", "notes"]


def test_a_disk_that_would_be_full_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_at(tmp_path, 1)
    monkeypatch.setattr(state, "free_bytes", lambda path: 1000)
    with pytest.raises(
        CheckpointError, match=r"of step 2 .* is at step 1\. It needs 1\.\d MiB, 1000 B are free"
    ):
        save_at(tmp_path, 2)
    assert names(tmp_path) == ["000000001"]
    assert loaded(tmp_path).step == 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel tells no peak of memory")
def test_saving_and_loading_take_no_second_copy(tmp_path: Path) -> None:
    """Of 200 MB in two tensors."""
    assert exit_code_of(_save_and_load_in_little_memory, tmp_path) == 0


def _save_and_load_in_little_memory(directory: Path) -> None:
    large = {name: torch.full((25_000_000,), 1.5) for name in "ab"}
    save(
        directory, 0, {"small": torch.zeros(2)}, {}, keep_last=1, milestone=False
    )  # whatever is imported late
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    save(directory, 1, large, {}, keep_last=1, milestone=False)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # KiB
    found = loaded(directory)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 260_000
    assert_bitwise({"a": found.tensors["a"][:9]}, {"a": large["a"][:9]})


def _save_with_little_room(directory: Path, told: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    try:
        save(directory, 2, {"large": torch.zeros(100_000)}, {}, keep_last=1, milestone=False)
    except CheckpointError as error:
        told.write_text(str(error))


def test_a_disk_that_fills_while_saving_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    save_at(tmp_path, 1)
    assert exit_code_of(_save_with_little_room, tmp_path, tmp_path / "told") == 0
    told = (tmp_path / "told").read_text()
    assert "training state on disk is at step 1" in told
    assert "It needs 1.4 MiB" in told
    assert names(tmp_path) == ["000000001"]
    assert_bitwise(loaded(tmp_path).tensors, tensors_at(1))


@pytest.mark.parametrize("event", state.EVENTS[:-1])
def test_an_interruption_from_the_keyboard_passes_through(tmp_path: Path, event: str) -> None:
    save_at(tmp_path, 1)

    def observer(heard: str) -> None:
        if heard == event:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_at(tmp_path, 2, observer=observer)
    assert names(tmp_path) == ["000000001"]


def test_meta_that_json_lacks_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not JSON serializable"):
        save(tmp_path, 1, tensors_at(1), {"path": tmp_path}, keep_last=1, milestone=False)
    assert names(tmp_path) == []


# Several processes


def _of_rank(rank: int, step: int) -> dict[str, Tensor]:
    return {**tensors_at(step), f"rank{rank}/queue": torch.full((4, rank + 1), float(rank + step))}


def _in_each_process(directory: Path, rank: int) -> tuple[int, str]:
    save(directory, 1, _of_rank(rank, 1), {}, keep_last=2, milestone=False)

    def full_on_rank_1(event: str) -> None:
        if event == "first_file" and dist.rank() == 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    refusal = ""
    try:
        save(directory, 2, _of_rank(rank, 2), {}, keep_last=2, milestone=False, observer=full_on_rank_1)
    except CheckpointError as error:
        refusal = str(error)
    found = load(directory, like=_of_rank(rank, 3))
    assert found is not None
    try:
        load(directory, like={**_of_rank(rank, 3), **({"more": torch.zeros(1)} if rank else {})})
    except CheckpointError as error:
        refusal += str(error)
    assert_bitwise(found.tensors, _of_rank(rank, 1))
    save(directory / "shared", 5, tensors_at(5), {}, keep_last=1, milestone=False)
    return found.step, refusal


def test_two_processes_keep_their_own_state_and_fail_together(tmp_path: Path) -> None:
    for step, refusal in answers_of(partial(_in_each_process, tmp_path), tmp_path):
        assert step == 1
        assert "(process 1: OSError: [Errno 28] No space left on device)" in refusal
        assert "training state on disk is at step 1. It needs" in refusal
        assert "missing (1): more" in refusal
    assert names(tmp_path) == ["000000001"]
    files = json.loads((tmp_path / "checkpoints" / "000000001" / "manifest.json").read_text())["files"]
    assert {"tensors-0.safetensors", "tensors-1.safetensors"} == set(files)
    with pytest.raises(
        CheckpointError, match=r"by 2 processes .*rank0/queue.* this run has 1; continue with 2"
    ):
        load(tmp_path)
    alone = loaded(tmp_path / "shared")
    assert alone.manifest["world_size"] == 2
    assert_bitwise(alone.tensors, tensors_at(5))


def test_what_all_processes_share_is_written_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each entry by one of them, much the same number of bytes by each."""
    monkeypatch.setattr(dist, "world_size", lambda: 3)
    shared = {f"layer{i}": torch.zeros(10 * i + 10) for i in range(30)}
    described = state.manifests.describe({**shared, "rank1/queue": torch.zeros(2000)})
    writers = state._writers(described)
    loads = [0, 0, 0]
    for name, writer in writers.items():
        loads[writer] += state.manifests.num_bytes(described[name])
    assert sorted(writers) == sorted(described)
    assert writers["rank1/queue"] == 1
    assert max(loads) - min(loads) <= 400


# The optimizer


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 4), nn.Linear(4, 3), nn.Conv2d(1, 2, 3).to(memory_format=torch.channels_last)
    )


def _train(network: nn.Module, optimizer: torch.optim.Optimizer, *, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for name, parameter in network.named_parameters():
            parameter.grad = None if name == "1.bias" else torch.randn(parameter.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("kind", [{"foreach": True}, {"fused": True}, {"foreach": False}, {"amsgrad": True}])
def test_the_optimizer_goes_on_bitwise(tmp_path: Path, kind: dict[str, bool]) -> None:
    straight, resumed = _network(), _network()
    optimizer = torch.optim.AdamW(straight.parameters(), lr=0.1, **kind)
    _train(straight, optimizer, steps=range(3))
    by_param = {parameter: name for name, parameter in straight.named_parameters()}
    flat = flatten_optimizer(optimizer, by_param)
    assert "optim/0.weight/exp_avg" in flat
    assert not any("1.bias" in name for name in flat)
    save(tmp_path, 3, {**straight.state_dict(), **flat}, {}, keep_last=1, milestone=False)
    _train(straight, optimizer, steps=range(3, 6))

    found = load(tmp_path, like=resumed.state_dict())
    assert found is not None
    resumed.load_state_dict({name: found.tensors[name] for name in resumed.state_dict()})
    again = torch.optim.AdamW(resumed.parameters(), lr=0.1, **kind)
    _train(resumed, again, steps=range(7, 8))  # state that must be gone afterwards
    resumed.load_state_dict({name: found.tensors[name] for name in resumed.state_dict()})
    by_param = {parameter: name for name, parameter in resumed.named_parameters()}
    unflatten_optimizer_(again, by_param, found.tensors)
    assert dict(resumed.named_parameters())["1.bias"] not in again.state
    _train(resumed, again, steps=range(3, 6))
    assert_bitwise(dict(resumed.state_dict()), dict(straight.state_dict()))
    by_param = {parameter: name for name, parameter in resumed.named_parameters()}
    assert_bitwise(
        flatten_optimizer(again, by_param),
        flatten_optimizer(optimizer, {parameter: name for name, parameter in straight.named_parameters()}),
    )


def test_a_loaded_state_shares_no_memory_with_the_optimizer() -> None:
    network = _network()
    optimizer = torch.optim.AdamW(network.parameters())
    _train(network, optimizer, steps=range(1))
    by_param = {parameter: name for name, parameter in network.named_parameters()}
    kept = {name: tensor.clone() for name, tensor in flatten_optimizer(optimizer, by_param).items()}
    unflatten_optimizer_(optimizer, by_param, kept)
    before = {name: tensor.clone() for name, tensor in kept.items()}
    _train(network, optimizer, steps=range(1, 2))
    assert_bitwise(kept, before)


def test_state_of_unknown_parameters_is_refused_and_nothing_changes() -> None:
    network = _network()
    optimizer = torch.optim.AdamW(network.parameters())
    _train(network, optimizer, steps=range(1))
    by_param = {parameter: name for name, parameter in network.named_parameters()}
    before = {name: tensor.clone() for name, tensor in flatten_optimizer(optimizer, by_param).items()}
    wrong = {"optim/0.weights/exp_avg": torch.zeros(4, 5), "optim/0.bias/exp_avg": torch.zeros(5)}
    with pytest.raises(CheckpointError) as raised:
        unflatten_optimizer_(optimizer, by_param, wrong)
    assert "unexpected (1): 0.weights/exp_avg" in str(raised.value)
    assert "mis-shaped (1): 0.bias/exp_avg is [5], must be [4]" in str(raised.value)
    assert_bitwise(flatten_optimizer(optimizer, by_param), before)

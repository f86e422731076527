"""Foreign files: mapped into memory where their format allows it, whole or refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from belvedere.core.errors import WeightsError
from belvedere.zoo.convert.checkpoint import checked
from belvedere.zoo.reading import read_checkpoint, read_pickle, weights_file


def _mapped(path: Path) -> bool:
    """Whether this process has the file in its memory."""
    return str(path) in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="tells by Linux' list of mapped files")
def test_a_file_of_today_is_mapped_and_not_copied(tmp_path: Path) -> None:
    state = {"weight": torch.randn(1000, 100)}
    torch.save(state, tmp_path / "new.pth")
    found = read_pickle(tmp_path / "new.pth")["weight"]
    assert torch.equal(found, state["weight"])
    assert _mapped(tmp_path / "new.pth")


def test_older_files_are_read_too(tmp_path: Path) -> None:
    state = {"weight": torch.randn(3, 4)}
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_pickle(tmp_path / "old.pth")["weight"], state["weight"])


def test_safetensors_are_known_by_their_first_bytes(tmp_path: Path) -> None:
    state = {"weight": torch.randn(3, 4)}
    save_file(state, tmp_path / "weights.bin")
    assert torch.equal(read_checkpoint(tmp_path / "weights.bin").content["weight"], state["weight"])


def test_a_folder_stands_for_its_best_file(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "pytorch_model.bin")
    assert weights_file(tmp_path).name == "pytorch_model.bin"
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert weights_file(tmp_path).name == "model.safetensors"
    assert weights_file(tmp_path / "pytorch_model.bin").name == "pytorch_model.bin"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"hello", b"\x80\x02.", bytes(range(64)) * 50])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    file = tmp_path / f"file.{suffix}"
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=f"file.{suffix}"):
        read_checkpoint(file)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_cut_file_is_refused(tmp_path: Path, share: float) -> None:
    torch.save({"weight": torch.randn(1000)}, tmp_path / "file.pth")
    whole = (tmp_path / "file.pth").read_bytes()
    (tmp_path / "file.pth").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(WeightsError):
        read_checkpoint(tmp_path / "file.pth")


@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        (torch.zeros(1).expand(10**12), r"has \d+ bytes and announces a tensor of shape \[1000000000000\]"),
        (torch.zeros(3, device="meta"), "holds a meta tensor"),
        (torch.ones(3).to_sparse(), "holds a sparse tensor"),
    ],
    ids=["repeated", "meta", "sparse"],
)
def test_numbers_that_are_not_in_the_file_are_refused(
    tensor: torch.Tensor, told: str, tmp_path: Path
) -> None:
    """Wherever they stand: copying the first would take four terabytes."""
    torch.save({"optimizer": {"state": [{"exp_avg": tensor}]}}, tmp_path / "file.pth")
    with pytest.raises(WeightsError, match=told):
        read_checkpoint(tmp_path / "file.pth")


def test_a_checkpoint_that_holds_itself_is_read(tmp_path: Path) -> None:
    content: dict[str, Any] = {"weight": torch.ones(2)}
    content["state_dict"] = content
    torch.save(content, tmp_path / "file.pth")
    assert read_checkpoint(tmp_path / "file.pth").content["state_dict"]["weight"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn])
def test_numbers_of_another_kind_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(WeightsError, match=r"file\.pth: weight is of (complex64|float8_e4m3fn), must be"):
        checked(torch.ones(2).to(dtype), "weight", origin="file.pth")
    assert checked(torch.ones(2, dtype=torch.bfloat16), "weight", origin="x").dtype is torch.float32


def test_a_refusal_does_not_advise_to_trust_the_file(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("x")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    for name, reason in (("text", "Unsupported operand 120"), ("module", r"GLOBAL torch\.nn\.modules\.lin")):
        with pytest.raises(WeightsError, match=reason) as caught:
            read_checkpoint(tmp_path / f"{name}.pth")
        assert "weights_only" not in str(caught.value)
        assert "add_safe_globals" not in str(caught.value)


@pytest.mark.parametrize("name", ["weights.pth", "model.safetensors", "model.safetensors.index.json"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(WeightsError, match="no regular file"):
        read_checkpoint(tmp_path / name)

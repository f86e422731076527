"""A disk that fills while weights are imported or exported: one message, and nothing half-written."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from export_networks import card, outgoing, vit
from published_files import drawn

from belvedere import cli
from belvedere.zoo.cards import export
from belvedere.zoo.load import load


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """The system refuses every byte of a file beyond this many, as a full disk does."""
    before, bytecode = resource.getrlimit(resource.RLIMIT_FSIZE), sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # else Python keeps modules as it compiled them cut off
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        sys.dont_write_bytecode = bytecode


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    export(tmp_path / "weights", outgoing(vit()).backbone, card(vit()))
    return tmp_path / "weights"


@pytest.mark.parametrize("target", ["safetensors", "published", "timm", "huggingface", "torchvision"])
@pytest.mark.parametrize("num_bytes", [1000, 8000])
def test_an_export_to_a_full_disk(
    weights: Path, tmp_path: Path, target: str, num_bytes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made" / "out"
    with largest_file(num_bytes):
        assert cli.main(["export", str(weights), "--to", target, "--out", str(out)]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "cannot be written: File too large: free some space" in told
    assert str(tmp_path / "made") in told
    assert ".writing" not in told
    assert "Traceback" not in told
    assert not out.exists()
    assert not (tmp_path / "made").exists() or not os.listdir(tmp_path / "made")


@pytest.mark.parametrize("num_bytes", [1000, 8000])
def test_an_import_to_a_full_disk(tmp_path: Path, num_bytes: int, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"target_encoder": drawn(vit())}, tmp_path / "msn.pth")
    words = ["import", str(tmp_path / "msn.pth"), "--heads", "3", "--out", str(tmp_path / "out")]
    with largest_file(num_bytes):
        assert cli.main(words) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "cannot be written: File too large: free some space" in told
    assert "Traceback" not in told
    assert not (tmp_path / "out").exists()
    assert cli.main(words) == 0


def test_a_full_disk_leaves_the_weights_that_are_there(weights: Path) -> None:
    before = {path.name: path.read_bytes() for path in weights.iterdir()}
    other = outgoing(vit(depth=3))
    with largest_file(8000), pytest.raises(OSError, match="File too large"):
        export(weights, other.backbone, other.card, heads={"prototypes": torch.zeros(2, 2)})
    assert {path.name: path.read_bytes() for path in weights.iterdir()} == before
    load(weights)


@pytest.mark.parametrize("command", ["import", "export"])
def test_a_place_that_cannot_be_written_is_said_before_anything_is_read(
    tmp_path: Path, command: str, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    given = str(tmp_path / "missing.pth") if command == "import" else str(weights)
    words = [command, given, *(["--to", "safetensors"] if command == "export" else []), "--out", str(out)]
    assert cli.main(words) != 0
    told = " ".join(capsys.readouterr().err.split())
    assert str(tmp_path / "file") in told
    assert "missing.pth" not in told

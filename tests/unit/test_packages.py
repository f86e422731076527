"""Advice to install: one that works for whoever has the repository only."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from belvedere.core.errors import MissingPackageError
from belvedere.core.packages import extra_command, package_command
from belvedere.data.sources import open_source
from belvedere.data.sources.access import missing_protocol

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_is_installed_in_a_clone_or_by_its_packages(extra: str) -> None:
    wanted = " ".join(f"'{each}'" for each in EXTRAS[extra])
    assert (
        extra_command(extra)
        == f"`uv sync --extra {extra}` in a clone of belvedere, or `pip install {wanted}`"
    )


def test_no_message_asks_for_an_extra_of_a_package_that_an_index_must_have() -> None:
    for path in (ROOT / "src" / "belvedere").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "belvedere[" not in text, path
        if path.name != "packages.py":
            assert not re.search(r"(?<!uv )pip install", text), path


def test_extras_that_messages_name_are_there() -> None:
    for path in (ROOT / "src" / "belvedere").rglob("*.py"):
        for name in re.findall(r"extra_command\(['\"](\w+)['\"]\)", path.read_text(encoding="utf-8")):
            assert name in EXTRAS, path


@pytest.mark.parametrize(
    ("protocol", "command"),
    [("s3", "pip install s3fs"), ("https", "--extra remote"), ("simplecache::gs", "pip install gcsfs")],
)
def test_a_protocol_names_its_package(protocol: str, command: str) -> None:
    assert command in missing_protocol(protocol, ImportError("no module"))
    assert package_command("s3fs") == "`uv pip install s3fs` in a clone of belvedere, or `pip install s3fs`"


def test_a_protocol_without_its_package_is_refused_with_the_command(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    try:
        import s3fs  # noqa: F401
    except ImportError:
        with pytest.raises(MissingPackageError, match="pip install s3fs"):
            open_source("s3://bucket/photos")
        (tmp_path / "files.txt").write_text("s3://bucket/a.png\n")
        with pytest.raises(MissingPackageError, match="pip install s3fs"):
            open_source(str(tmp_path / "files.txt"))

"""Imports point one way, as docs/architecture.md draws them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "belvedere"
LAYERS = (
    {"core"},
    {"nn", "ops", "data", "optim"},
    {"engine"},
    {"methods"},
    {"recipe"},
    {"zoo"},
    {"eval"},
    {"train", "viz"},
    {"launch"},
    {"cli", "commands", "demo", "__main__", "__init__"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
ALSO_FORBIDDEN = {"eval": {"methods", "train"}, "viz": {"train"}, "train": {"viz"}}


def _imports(file: Path) -> set[str]:
    """Top-level parts of belvedere that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("belvedere"):
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("belvedere.")}
    return found


def _part(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_down(file: Path) -> None:
    part = _part(file)
    assert part in LEVEL, f"{part} has no place in the layers"
    for imported in _imports(file) & LEVEL.keys():
        same_or_below = LEVEL[imported] < LEVEL[part] or imported == part
        sibling = LEVEL[imported] == LEVEL[part]
        assert same_or_below or sibling, f"{part} imports {imported}, which stands above it"
        assert imported not in ALSO_FORBIDDEN.get(part, set()), f"{part} may not import {imported}"


def test_no_test_but_kernels_writes_a_training_loop() -> None:
    tests = PACKAGE.parents[1] / "tests"
    # gradients of a loss alone, given embeddings, or of a network alone
    bricks = ("handlers_msn.py", "handlers_mugs_bricks.py", "test_made_msn.py")
    allowed = {tests / "golden" / name for name in bricks}
    guilty = [
        str(file.relative_to(tests))
        for file in tests.rglob("*.py")
        if ".backward(" in file.read_text() and file.parent.name != "unit" and file not in allowed
        if file != Path(__file__)
    ]
    assert guilty == []

"""Every golden case through one runner, keyed by (system, kind).

Cases lie in `cases/<system>/<case>/{case.json,arrays.npz}`, or below the folder that $BELVEDERE_GOLDEN names.
A `handlers_*.py` beside this file offers `HANDLERS[(system, kind)]`, called with the case and its arrays. A
kind without a handler is skipped by name; a kind with one may never skip.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).parent
CASES = Path(os.environ.get("BELVEDERE_GOLDEN", HERE / "cases"))
Handler = Callable[[dict[str, Any], dict[str, np.ndarray]], None]


def _handlers() -> dict[tuple[str, str], Handler]:
    found: dict[tuple[str, str], Handler] = {}
    for file in sorted(HERE.glob("handlers_*.py")):
        new = importlib.import_module(file.stem).HANDLERS
        assert not found.keys() & new.keys(), f"{file.name} handles a kind twice"
        found |= new
    return found


HANDLERS = _handlers()
FOLDERS = sorted(path.parent for path in CASES.glob("*/*/case.json"))


def test_there_are_cases() -> None:
    assert FOLDERS, f"no case below {CASES}"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_case(folder: Path) -> None:
    case = json.loads((folder / "case.json").read_text())
    key = (folder.parent.name, case["kind"])
    if key not in HANDLERS:
        pytest.skip(f"{key[0]} {key[1]} is not built yet")
    arrays: dict[str, np.ndarray] = {}
    if (folder / "arrays.npz").exists():
        with np.load(folder / "arrays.npz") as file:
            arrays = dict(file)
    try:
        HANDLERS[key](case, arrays)
    except pytest.skip.Exception as skipped:
        pytest.fail(f"{key} is built and may not skip: {skipped}")

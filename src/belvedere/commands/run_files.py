"""What a run's directory, or a folder of weights, tells of how they came to be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from belvedere.core.errors import BelvedereError
from belvedere.core.files import MOST_TEXT_BYTES, require_regular
from belvedere.core.log import warn

RECIPE_NAME = "recipe.yaml"
METRICS_NAME = "metrics.jsonl"


@dataclass(frozen=True)
class RunFiles:
    """Of each file its content, or None where there is none. metrics: the path; reports: evaluations by the
    name of what was evaluated on; versions: of the programs that trained."""

    recipe: str | None = None
    plan: Mapping[str, Any] | None = None
    data_report: Mapping[str, Any] | None = None
    metrics: Path | None = None
    reports: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    versions: Mapping[str, Any] | None = None


def read_run(weights: Path) -> RunFiles:
    """The files around `weights`: a run's directory, its `backbone/`, a folder of weights or a file in one.

    A file that cannot be read is said and left out.
    """
    folder = weights if weights.is_dir() else weights.parent
    run = next((one for one in (folder, folder.parent) if (one / RECIPE_NAME).is_file()), None)
    reports = _reports(folder) | ({} if run is None else _reports(run))
    if run is None:
        return RunFiles(reports=reports)
    metrics = run / METRICS_NAME
    manifest = _newest_manifest(run)
    return RunFiles(
        recipe=_text(run / RECIPE_NAME),
        plan=_json(run / "plan.json"),
        data_report=_json(run / "data_report.json"),
        metrics=metrics if metrics.is_file() else None,
        reports=reports,
        versions=None if manifest is None else manifest.get("versions"),
    )


def _reports(folder: Path) -> dict[str, Mapping[str, Any]]:
    found = {path.parent.name: _json(path) for path in sorted(folder.glob("evaluation/*/report.json"))}
    return {name: report for name, report in found.items() if report is not None}


def _newest_manifest(run: Path) -> Mapping[str, Any] | None:
    manifests = sorted(run.glob("checkpoints/*/manifest.json"), key=lambda path: path.parent.name)
    return _json(manifests[-1]) if manifests else None


def _text(path: Path) -> str | None:
    try:
        require_regular(path, most_bytes=MOST_TEXT_BYTES)
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        warn(f"{path} cannot be read and is left out of the model card: {error}")
        return None


def _json(path: Path) -> Mapping[str, Any] | None:
    text = _text(path)
    if text is None:
        return None
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise BelvedereError(f"it holds a {type(content).__name__}")
    except (ValueError, RecursionError, BelvedereError) as error:
        warn(f"{path} is damaged and is left out of the model card: {error}")
        return None
    return content

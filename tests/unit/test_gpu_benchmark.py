"""`benchmarks/gpu.py` runs whole where there is no GPU, and docs/results.md says what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu  # noqa: E402
import gpu_rows  # noqa: E402


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--tiny", "--device", "cpu", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.long
def test_every_part_runs_on_a_cpu(tmp_path: Path) -> None:
    done = run("--json", str(tmp_path / "gpu.json"))
    found = json.loads((tmp_path / "gpu.json").read_text())
    failed = {name: part for name, part in found["parts"].items() if not part["ok"]}
    assert not failed
    assert done.returncode == 0
    assert list(found["parts"]) == list(gpu.PARTS)
    assert found["parts"]["golden"]["passed"] > 0
    assert found["parts"]["contract"]["passed"] == 5


@pytest.mark.slow
def test_a_part_that_fails_is_told_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gpu.PARTS, "msn", (lambda where: 1 / 0, 5))
    here = gpu.Where("cpu", True)
    assert gpu.one_part("msn", here)["error"] == "ZeroDivisionError: division by zero"
    monkeypatch.setitem(gpu.PARTS, "build", (gpu.build, 0.001))  # its process is stopped
    parts = gpu.run_all(["build", "photometry"], here, minutes=5)
    assert parts["build"]["error"].startswith("stopped after")
    assert parts["photometry"]["ok"]
    assert gpu.run_all(["photometry"], here, minutes=0)["photometry"]["not_run"]


def test_the_rows_in_the_documentation_are_those_of_the_figures() -> None:
    figures = json.loads(gpu_rows.FIGURES.read_text()) if gpu_rows.FIGURES.exists() else {}
    text = gpu_rows.RESULTS.read_text()
    assert gpu_rows.replaced(text, gpu_rows.rows(figures)) == text


def test_rows_tell_figures_failures_and_what_did_not_run() -> None:
    parts = {
        "golden": {"ok": False, "passed": 3, "skipped": 0, "failed": {"test_case[msn]": "off by 1"}},
        "msn": {
            "ok": True,
            "images": 64,
            "seconds": 0.1,
            "images_per_s": 640.0,
            "precision": "bf16",
            "peak_memory_gib": 9.5,
            "bf16_share": 0.41,
            "bf16_tflop_per_s": 780.0,
            "plain_seconds": {"bf16": 0.15, "float32": 0.4},
        },
        "features": {"ok": True, "not_measured": "timm is not installed"},
        "kmeans": {"ok": False, "not_run": "the 8 minutes were used up"},
    }
    machine = {"card": "A card", "cpus": 16, "torch": "2.11", "commit": "abc", "date": "2026-11-30"}
    table = gpu_rows.rows({"machine": machine, "parts": parts})
    assert "A card, 16 CPUs, torch 2.11, at commit abc" in table
    assert "| failed: test_case[msn] |" in table
    assert "640 images/s (64 in 0.100 s, bf16); 9.5 GiB; 41% of this card's bf16 rate" in table
    assert "1.50 (bf16), 4.00 (float32)" in table
    assert "| not measured: timm is not installed |" in table
    assert table.count("| not measured |") == len(gpu_rows.ROWS) - 3

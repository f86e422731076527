"""The GPU rows of docs/results.md, made of the figures that `gpu.py --json` wrote.

    python benchmarks/gpu_rows.py gpu.json      # keeps the figures as docs/gpu.json and writes the rows
    python benchmarks/gpu_rows.py               # writes the rows again, of docs/gpu.json if there is one

A part that did not run, or failed, says so in its row; without any figures every row says "not measured".
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS, FIGURES = ROOT / "docs" / "results.md", ROOT / "docs" / "gpu.json"
BEGIN, END = "<!-- GPU rows: written by benchmarks/gpu_rows.py -->\n", "<!-- end of the GPU rows -->\n"

Part = dict[str, Any]


def tests(part: Part) -> str:
    return f"{part['passed']} passed, {part['skipped']} skipped"


def views(part: Part) -> str:
    return (
        "the same bytes" if not any(part["different"].values()) else f"different numbers: {part['different']}"
    )


def step(part: Part) -> str:
    one = f"{part['images']} in {part['seconds']:.3f} s, {part['precision']}"
    told = [
        f"{part['images_per_s']:.0f} images/s ({one})",
        f"{part['peak_memory_gib']:.1f} GiB",
        f"{part['bf16_share']:.0%} of this card's bf16 rate ({part['bf16_tflop_per_s']:.0f} TFLOP/s)",
    ]
    if "plain_seconds" in part:
        plain = part["plain_seconds"]
        ratios = (f"{seconds / part['seconds']:.2f} ({name})" for name, seconds in plain.items())
        told.append(f"a plain step takes times as long: {', '.join(ratios)}")
    return "; ".join(told)


def features(part: Part) -> str:
    cells = (f"{cell['precision']} batch {cell['batch']}: {cell['ratio']:.2f}" for cell in part["cells"])
    return "times the fastest of timm and transformers (eager, sdpa): " + ", ".join(cells)


def waiting(part: Part) -> str:
    cells = (
        f"{workers} workers: {cell['images_per_s']:.0f} images/s, {cell['waiting']:.0%} waiting"
        for workers, cell in part["workers"].items()
    )
    return f"{'; '.join(cells)} ({part['cpus']} CPUs)"


def photometry(part: Part) -> str:
    rates = part["gb_per_s"]
    share = rates["fused"] / rates["copy"]
    return (
        f"{1e3 * part['seconds']['fused']:.2f} ms, {rates['fused']:.0f} GB/s ({share:.0%} of the card's copy "
        f"rate), {part['times_torch']:.1f} times as fast as torch operations"
    )


def kmeans(part: Part) -> str:
    return f"{part['seconds']:.2f} s, inertia {part['inertia']:.4f}"


ROWS: dict[str, tuple[str, Callable[[Part], str]]] = {
    "kernels": ("tests of the CUDA renderer", tests),
    "golden": ("the authors' losses and training runs, on the card", tests),
    "contract": ("equal runs, resume, micro-batches and one step against the CPU's, six methods", tests),
    "renderer": ("views of four published recipes against the CPU's bytes", views),
    "msn": ("a step of `msn/vits16`", step),
    "esvit": ("a step of `esvit/swin-tiny-w7`", step),
    "swav": ("a step of `swav/rn50-800ep`", step),
    "mugs": ("a step of `mugs/vits16-100ep`", step),
    "features": ("features of a ViT-B/16", features),
    "waiting": ("`msn/vits16` on JPEG files of about 500 px", waiting),
    "photometry": ("photometry of 256 x 12 views", photometry),
    "kmeans": ("k-means of 1,281,167 x 128 into 3,000, 10 updates", kmeans),
}


def cell(name: str, figures: Part) -> str:
    """What a row says of a part."""
    part = figures.get("parts", {}).get(name)
    if part is None or "not_run" in part:
        return "not measured"
    if "not_measured" in part:
        return f"not measured: {part['not_measured']}"
    if not part["ok"]:
        return f"failed: {part.get('error') or ', '.join(part.get('failed', {})) or part}"[:300].replace(
            "|", "/"
        )
    return ROWS[name][1](part)


def rows(figures: Part) -> str:
    """The table in Markdown, with the machine above it."""
    machine = figures.get("machine")
    above = "No GPU was at hand yet.\n\n" if machine is None else f"{described(machine)}\n\n"
    lines = ["| what | figure |", "|---|---|"]
    lines += [f"| {what} | {cell(name, figures)} |" for name, (what, _) in ROWS.items()]
    return above + "\n".join(lines) + "\n"


def described(machine: Part) -> str:
    where = f"{machine['card']}, {machine['cpus']} CPUs, torch {machine['torch']}"
    return f"{where}, at commit {machine['commit']}, {machine['date']}."


def replaced(text: str, table: str) -> str:
    """`text` with this table between the two marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table + END + after


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figures", nargs="?", type=Path, help="what gpu.py --json wrote")
    given = parser.parse_args()
    if given.figures is not None:
        figures = json.loads(given.figures.read_text())
        if figures["tiny"]:
            print(f"{given.figures} is of --tiny, which measures nothing", file=sys.stderr)
            return 1
        FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    RESULTS.write_text(replaced(RESULTS.read_text(), rows(figures)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""An evaluation's report as a table for people; what is complete is `report.json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.table import Table

from belvedere.core.log import Text, screen

_NUM_PAIRS = 3
_PIPED_WIDTH = 200


def print_summary(report: Mapping[str, Any]) -> None:
    """Print accuracies, most confused pairs, short classes and unreadable files to stdout."""
    console = screen()
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("protocol", no_wrap=True)
    table.add_column("accuracy", justify="right", no_wrap=True)
    table.add_column("most confused")
    for row in _rows(report):
        table.add_row(*(Text(cell) for cell in row))
    if table.row_count:
        console.print(table)
    for note in _notes(report):
        console.print(Text(note), soft_wrap=True)


def _rows(report: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(protocol, accuracy in percent, confused pairs)."""
    if "knn" in report:
        part = report["knn"]
        yield f"{part['k']}-NN", _percent(part["accuracy"]), _pairs(part)
    logistic = report.get("logistic", {})
    for shots, part in logistic.get("shots", {}).items():
        labels = f"{shots} label{'s' if shots != '1' else ''} per class, {len(part['values'])} splits"
        yield labels, f"{_percent(part['mean'])} ± {100 * part['sd']:.1f}", _pairs(part)
    for name, part in logistic.get("fits", {}).items():
        yield f"listed images, {name} lambda {part['lambda']:g}", _percent(part["accuracy"]), _pairs(part)
    if "linear" in report:
        part = report["linear"]
        yield "linear probe", _percent(part["accuracy"]), _pairs(part)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _pairs(part: Mapping[str, Any]) -> str:
    """`dog as cat 12 %` for the pairs mistaken most often: of the images of the first, how many."""
    pairs = part["confused"][:_NUM_PAIRS]
    return ", ".join(f"{pair['label']} as {pair['predicted']} {100 * pair['share']:.0f} %" for pair in pairs)


def _notes(report: Mapping[str, Any]) -> Iterator[str]:
    for shots, part in report.get("logistic", {}).get("shots", {}).items():
        short = part["short_classes"]
        if short:
            named = ", ".join(f"{name} ({number})" for name, number in list(short.items())[:5])
            more = f" and {len(short) - 5} more" if len(short) > 5 else ""
            yield f"classes with fewer than {shots} labelled images, used with what they have: {named}{more}"
    for where, files in report["unreadable"].items():
        yield f"{len(files)} images of {where} cannot be read and were left out, first: {next(iter(files))}"
    if "predict" in report:
        part = report["predict"]
        counts = sorted(part["labels"].items(), key=lambda item: (-item[1], item[0]))
        named = ", ".join(f"{name} {number}" for name, number in counts[:10] if number)
        yield f"predicted labels of {part['images']} images: {named}"

"""An evaluation's report as a table for people; what is complete is `report.json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.table import Table

from belvedere.core.log import Text, named_few, screen

_NUM_PAIRS = 3
_PIPED_WIDTH = 80


def print_summary(report: Mapping[str, Any]) -> None:
    """Print accuracies, most confused pairs, and all that was read and not used, to stdout."""
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
        console.print(Text(note))


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

    yield from _not_used(report)
    yield from _copies(report)
    for shots, part in report.get("logistic", {}).get("shots", {}).items():
        short = [f"{name} ({number})" for name, number in part["short_classes"].items()]
        if short:
            yield (
                f"classes with fewer than {shots} labelled images, used with what they have: "
                f"{named_few(short)}"
            )
    if "predict" in report:
        part = report["predict"]
        counts = sorted(part["labels"].items(), key=lambda item: (-item[1], item[0]))
        named = ", ".join(f"{name} {number}" for name, number in counts[:10] if number)
        yield f"predicted labels of {part['images']} images: {named}"
        if part["trained_on"]:
            yield f"predicted images that are equal to images trained on: {part['trained_on']}"


def _not_used(report: Mapping[str, Any]) -> Iterator[str]:
    """Images and classes that were read and take no part."""

    for where, part in report["unlabelled"].items():
        named = named_few(part["first"], of=part["images"])
        yield f"images of --{where} without a label, not used: {part['images']} ({named})"
    for where, files in report["unreadable"].items():
        yield f"images of --{where} that cannot be read, not used: {len(files)} ({named_few(list(files))})"
    empty = [name for name, number in report["training"]["classes"].items() if not number]
    if empty:
        yield f"classes without a labelled image in --data: {named_few(empty)}"
    if report.get("only_in_training"):
        yield f"classes of which no image is scored: {named_few(report['only_in_training'])}"
    single = [name for name, number in report["training"]["classes"].items() if number == 1]
    if single and report["val"] is None:
        yield f"classes with one labelled image, never right when that is left out: {named_few(single)}"


def _copies(report: Mapping[str, Any]) -> Iterator[str]:
    """Equal images: what was left out, or what was trained on and scored."""
    copies = report["copies"]
    left_out = copies["left_out"]
    if report["val"] is not None and left_out:
        yield f"images of --data that are scored too, not trained on (--leave-out-copies): {left_out}"
    elif left_out:
        yield f"images of --data that are equal to others of it, not used (--leave-out-copies): {left_out}"
    if not copies.get("images"):
        return
    conflicts = copies["conflicting_groups"]
    groups = f"{copies['groups']} group{'s' if copies['groups'] != 1 else ''}"
    yield (
        f"{copies['images']} images of --data are equal to others of it ({groups}"
        f"{f', {conflicts} of them with several labels' if conflicts else ''})"
        + ("" if left_out else f", so that of the scored images {_also_trained_on(report)} were trained on ")
        + ("" if left_out else "too; --leave-out-copies takes one of each, `belvedere data check` lists them")
    )


def _also_trained_on(report: Mapping[str, Any]) -> str:
    found = [f"{report[name]['copies']} ({name})" for name in ("knn", "linear") if name in report]
    for shots, part in report.get("logistic", {}).get("shots", {}).items():
        mean = sum(part["copies"]) / len(part["copies"])
        found.append(f"{mean:.1f} a split ({shots} label{'s' if shots != '1' else ''} per class)")
    return ", ".join(found)

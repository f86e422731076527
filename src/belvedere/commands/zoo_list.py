"""How `belvedere zoo` shows published models: tables for a person, JSON for a program."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table

from belvedere.core.log import Text
from belvedere.zoo.catalogue import PLACES, Entry
from belvedere.zoo.network_words import in_words, short_name

_HEADERS = {
    "k-NN": "k-NN",
    "linear": "linear",
    "1 image per class": "1 per\nclass",
    "2 images per class": "2 per\nclass",
    "5 images per class": "5 per\nclass",
    "1% of labels": "1% of\nlabels",
}
"""By protocol the header of its column, in the order of columns; protocols that are not here come after."""

_LEGEND = """\
Scores are top-1 in percent. `belvedere zoo NAME` tells all of one model, `belvedere zoo get NAME` fetches it;
--json gives everything to a program."""


_PIPED_WIDTH = 80


def show(models: Sequence[Entry], screen: Console) -> None:
    """A table for each system, at most 80 columns wide, every model on a line of its own, in a pipe too;
    what a program needs beside that is in `as_json`."""
    if not screen.is_terminal:
        screen.width = _PIPED_WIDTH
    for _, group in groupby(models, key=lambda one: one.system):
        _show_system(list(group), screen)
    screen.print(Text(_LEGEND.replace("\n", " ")))


def as_json(models: Iterable[Entry]) -> str:
    """An array with an object for each model."""
    told = [
        {
            "name": one.name,
            "system": one.system,
            "network": one.backbone.model_dump(mode="json"),
            "epochs": one.epochs,
            "accuracy": dict(one.accuracy),
            "source": one.source,
            "licence": one.licence,
            "file": one.file,
            "address": one.address,
            "place": None if one.address else one.place,
        }
        for one in models
    ]
    return json.dumps(told, indent=2, ensure_ascii=False)


def show_one(one: Entry, screen: Console) -> None:
    """All there is to know of a model, and what to do next."""
    rows = [
        ("model", one.name),
        ("network", f"{short_name(one.backbone)}: {in_words(one.backbone)}"),
        ("epochs", str(one.epochs)),
        *((f"top-1, {name}", f"{score:g} %") for name, score in one.accuracy.items()),
        ("stated in", one.source),
        ("licence", one.licence),
        ("where", one.address or one.place),
        *((words, f"belvedere {command}") for words, command in _commands(one)),
    ]
    width = max(len(what) for what, _ in rows)
    if not screen.is_terminal:
        for what, value in rows:
            screen.print(Text(f"{what:<{width}}  {value}"), soft_wrap=True)
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for what, value in rows:
        grid.add_row(Text(what), Text(value))
    screen.print(grid)


def protocols(models: Iterable[Entry]) -> list[str]:
    """What any of these models is scored by, in the order of the columns."""
    known = dict.fromkeys(name for one in models for name in one.accuracy)
    return [name for name in _HEADERS if name in known] + [name for name in known if name not in _HEADERS]


def _show_system(models: Sequence[Entry], screen: Console) -> None:
    """One system's table, under its licence and where its files are."""
    first, names, by_hand = models[0], protocols(models), PLACES.get(models[0].system)
    how = f"to be fetched by hand, {by_hand}" if by_hand else "fetched by `belvedere zoo get NAME`"
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("model and recipe", overflow="fold")
    table.add_column("network", overflow="fold")
    for name in ("epochs", *(_HEADERS.get(name, name) for name in names)):
        table.add_column(name, justify="right", vertical="bottom", no_wrap=True)
    for one in models:
        scores = (f"{one.accuracy[name]:.1f}" if name in one.accuracy else "" for name in names)
        cells = (one.name, short_name(one.backbone), str(one.epochs), *scores)
        table.add_row(*(Text(cell) for cell in cells))
    screen.print(Text(first.system, style="bold"), Text(f": {_licence(first)}, {how}"), sep="")
    if missing := [one.name for one in models if not one.is_published]:
        screen.print(Text(f"no file is published of {', '.join(missing)}"))
    screen.print(table)
    screen.print()


def _licence(one: Entry) -> str:
    return one.licence.partition(" ")[0]


def _commands(one: Entry) -> Iterator[tuple[str, str]]:
    """What to do with the model, as (words, command)."""
    if one.address:
        yield "to fetch it", f"zoo get {one.name}"
    if one.is_published:
        yield "to read it", f"import FILE --as {one.name} --out DIR"
    yield "to train it", f"pretrain {one.name} data.path=DIR"

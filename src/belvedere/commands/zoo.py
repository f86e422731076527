"""`belvedere zoo`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from belvedere.commands.options import command_parser
from belvedere.core.errors import EXIT_DONE, UsageError
from belvedere.core.log import console, say
from belvedere.core.match import with_nearest

if TYPE_CHECKING:
    from belvedere.nn.spec import BackboneSpec
    from belvedere.zoo.catalogue import Entry
    from belvedere.zoo.download import Progress

_DESCRIPTION = """\
List the published models of MSN, SwAV, DeepCluster-v2, SeLa-v2, EsViT and Mugs: what they are, what they
reach (top-1 in percent), their licence, where they lie, and the recipe that trains the same. `get` fetches
one into the cache; a transfer that was stopped goes on where it was, and the SHA-256 of what came is
recorded."""

_EXAMPLES = """\
  belvedere zoo
  belvedere zoo get msn/vits16
  belvedere zoo get swav/rn50-800ep --mirror https://example.org/weights/"""

_PIPED_WIDTH = 260  # for `belvedere zoo | grep`: one line for each model
_FOLDER = "zoo"


def parser() -> argparse.ArgumentParser:
    """The options of `belvedere zoo`."""
    parser = command_parser("zoo", _DESCRIPTION, examples=_EXAMPLES)
    parser.add_argument("action", nargs="?", choices=("get",), help="fetch a model (default: list them all)")
    parser.add_argument("name", nargs="?", metavar="NAME", help="the model's recipe, as listed")
    parser.add_argument(
        "--mirror", metavar="URL", help="another place that has the file, under the same name"
    )
    parser.add_argument("--sha256", metavar="HEX", help="what the file must be; anything else is not kept")
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the table, or fetch a file."""
    if args.action is None:
        if args.mirror or args.sha256:
            raise UsageError("--mirror and --sha256 say how to fetch a model: belvedere zoo get NAME")
        screen = Console(highlight=False, emoji=False)
        if not screen.is_terminal:
            screen.width = _PIPED_WIDTH
        screen.print(_table(), crop=False)
        return EXIT_DONE
    if args.name is None:
        raise UsageError("belvedere zoo get NAME: give the name of a model; `belvedere zoo` lists them")
    _get(_entry(args.name), mirror=args.mirror, sha256=args.sha256)
    return EXIT_DONE


def _entry(name: str) -> Entry:
    from belvedere.zoo.catalogue import entries

    known = {entry.name: entry for entry in entries()}
    if name not in known:
        raise UsageError(f"there is no model {with_nearest(name, known)}; `belvedere zoo` lists them")
    return known[name]


def _get(entry: Entry, *, mirror: str | None, sha256: str | None) -> None:
    from belvedere.core.cache import writable_folder
    from belvedere.zoo.download import fetch, recorded_sha256

    if sha256 is not None and (len(sha256) != 64 or set(sha256.lower()) - set("0123456789abcdef")):
        raise UsageError(f"--sha256 {sha256}: must be 64 hexadecimal digits")
    address = entry.address
    if mirror is not None and entry.file is not None:
        address = f"{mirror.rstrip('/')}/{entry.file}"
    if address is None:
        raise UsageError(
            f"{entry.name} has no address that a program could fetch: it is {entry.place}. Fetch it in a "
            f"browser, then: belvedere import FILE --as {entry.name} --out DIR"
        )
    if not address.startswith(("https://", "http://")):
        raise UsageError(f"{address} is no address: it must begin with https:// or http://")
    say(f"{entry.name} ({entry.licence}): {address}")
    folder = writable_folder(_FOLDER) / entry.system
    folder.mkdir(exist_ok=True)
    with _shown(entry.file or entry.name) as progress:
        target = fetch(address, folder, expected_sha256=sha256, progress=progress)
    say(f"{target} (SHA-256 {recorded_sha256(target)})")
    say(f"next: belvedere import {target} --as {entry.name} --out weights/{entry.name}")


@contextmanager
def _shown(name: str) -> Iterator[Progress | None]:
    """A bar on a terminal; nothing elsewhere, where a log would fill with it."""
    if not console().is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bar(*columns, console=console(), transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _table() -> Table:
    from belvedere.zoo.catalogue import entries

    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("model and recipe", no_wrap=True)
    table.add_column("network")
    for name in ("epochs", "k-NN", "linear"):
        table.add_column(name, justify="right")
    for name in ("few labels", "licence", "where"):
        table.add_column(name)
    for entry in entries():
        accuracy = dict(entry.accuracy)
        scores = [f"{accuracy.pop(name):.1f}" if name in accuracy else "" for name in ("k-NN", "linear")]
        few = ", ".join(f"{name} {score:.1f}" for name, score in accuracy.items())
        licence = entry.licence.partition(" ")[0]
        where = entry.address or entry.place
        cells = (entry.name, _network(entry.backbone), str(entry.epochs), *scores, few, licence, where)
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _network(spec: BackboneSpec) -> str:
    """A network in a few words."""
    if spec.name == "vit":
        return f"ViT {spec.width}x{spec.depth}/{spec.patch_px}"
    blocks = "-".join(map(str, spec.blocks))
    if spec.name == "resnet":
        return f"ResNet {blocks}" + (f", {spec.widen} times as wide" if spec.widen > 1 else "")
    if spec.name == "swin":
        return f"Swin {spec.embed_width}, {blocks}, windows of {spec.window}"
    return f"{'CvT' if spec.name == 'cvt' else 'ViL'} {spec.widths[0]}, {blocks}, windows of {spec.window}"

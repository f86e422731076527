"""`belvedere zoo`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
from rich.progress import Progress as Bar

from belvedere.commands.options import command_parser
from belvedere.core.errors import EXIT_DONE, UsageError
from belvedere.core.log import console, say, screen, visible
from belvedere.core.match import with_nearest

if TYPE_CHECKING:
    from belvedere.zoo.catalogue import Entry
    from belvedere.zoo.download import Progress

_DESCRIPTION = """\
List the published models of MSN, SwAV, DeepCluster-v2, SeLa-v2, EsViT and Mugs, or those of one system: what
they are, what they reach (top-1 in percent), their licence. Each has the name of the recipe that trains the
same. With a model's name: all that is known of it, and where its file lies. `get` fetches one into the cache;
a transfer that was stopped goes on where it was, and the SHA-256 of what came is recorded.

The list is the same in a pipe. For a program, --json gives an array of objects: name, system, network,
epochs, accuracy, source, licence, file, address, and in words the place of what has no address."""

_EXAMPLES = """\
  belvedere zoo
  belvedere zoo esvit
  belvedere zoo msn/vits16
  belvedere zoo --json | jq '.[] | select(.accuracy.linear > 80) | .name'
  belvedere zoo get msn/vits16
  belvedere zoo get swav/rn50-800ep --mirror https://example.org/weights/"""

_FOLDER = "zoo"


def parser() -> argparse.ArgumentParser:
    """The options of `belvedere zoo`."""
    parser = command_parser("zoo", _DESCRIPTION, examples=_EXAMPLES)
    parser.add_argument(
        "what",
        nargs="*",
        metavar="[get] NAME",
        help="a model, as listed: tell of it or, after `get`, fetch it; or a system (msn): list its models",
    )
    parser.add_argument("--json", action="store_true", help="for a program: all that is known, as JSON")
    parser.add_argument(
        "--mirror", metavar="URL", help="another place that has the file, under the same name"
    )
    parser.add_argument("--sha256", metavar="HEX", help="what the file must be; anything else is not kept")
    return parser


def run(args: argparse.Namespace) -> int:
    """List models, tell of one, or fetch it."""
    if args.what[:1] == ["get"]:
        if args.json:
            raise UsageError("--json is for what is listed; leave it out of belvedere zoo get NAME")
        if len(args.what) != 2:
            raise UsageError("belvedere zoo get NAME: give the name of a model; `belvedere zoo` lists them")
        _get(_entry(args.what[1]), mirror=args.mirror, sha256=args.sha256)
        return EXIT_DONE
    if args.mirror or args.sha256:
        raise UsageError("--mirror and --sha256 say how to fetch a model: belvedere zoo get NAME")
    if len(args.what) > 1:
        raise UsageError(f"one name at a time, not {' '.join(args.what)}; to fetch: belvedere zoo get NAME")
    _show(*args.what, as_json=args.json)
    return EXIT_DONE


def _show(name: str | None = None, *, as_json: bool) -> None:
    """All models, a system's, or one, on standard output."""
    from belvedere.commands import zoo_list
    from belvedere.zoo.catalogue import entries

    own = tuple(one for one in entries() if name in (None, one.system))
    models = own or (_entry(name or ""),)
    if as_json:
        sys.stdout.write(zoo_list.as_json(models) + "\n")
        return
    if own:
        zoo_list.show(models, screen())
    else:
        zoo_list.show_one(models[0], screen())


def _entry(name: str) -> Entry:
    from belvedere.zoo.catalogue import LICENCES, entries

    known = {entry.name: entry for entry in entries()}
    if name not in known:
        nearest = with_nearest(name, [*known, *LICENCES])
        raise UsageError(f"there is no model {nearest}; `belvedere zoo` lists them")
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
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Bar(*columns, console=console(), transient=True) as bar:
        task = bar.add_task(visible(name), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)

"""`belvedere data check`."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from belvedere.commands.option_words import told_by_options
from belvedere.commands.options import (
    add_columns,
    add_range,
    command_parser,
    count,
    path,
    refuse_torchrun,
)
from belvedere.core.errors import EXIT_DONE, UsageError, WriteError
from belvedere.core.machine import cpu_count

if TYPE_CHECKING:
    from belvedere.data.sources.source import Source
    from belvedere.data.survey import Survey
    from belvedere.engine.progress import Progress

_DESCRIPTION = """\
What is in a set of images, before days are spent on it: counts, sizes, formats, labels, files that cannot be
read, copies of the same image, and images that an evaluation set shares with it. Changes nothing.

Equal images decode to the same pixels, whatever their file is called or how it was saved. Near copies are
recompressed, resized, slightly cropped or brightened, grayed or mirrored ones."""

_EXAMPLES = """\
  belvedere data check photos
  belvedere data check photos --against benchmark --against-split test \\
      --json leaks.json
  belvedere data check imagenet --split train
  belvedere data check photos --limit 2000 --no-near
  belvedere data check photos --keep good.csv"""

_WHAT = ("check",)
_MOST_WORKERS = 16


def parser() -> argparse.ArgumentParser:
    """The options of `belvedere data`."""
    parser = command_parser("data check", _DESCRIPTION, examples=_EXAMPLES)
    parser.add_argument("what", choices=_WHAT, metavar="check", help=argparse.SUPPRESS)
    parser.add_argument(
        "source", metavar="SOURCE", help="images: a folder, or any other single source (docs/data.md)"
    )
    parser.add_argument("--split", choices=("train", "test"), help="only this part of SOURCE")
    add_columns(parser, "SOURCE")
    parser.add_argument("--against", metavar="OTHER", help="evaluation images: which of them are in SOURCE?")
    parser.add_argument("--against-split", choices=("train", "test"), help="only this part of OTHER")
    parser.add_argument(
        "--near",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="look for near copies too (default: yes; it takes 0.8 GB of memory for a million images)",
    )
    parser.add_argument(
        "--limit", type=count, metavar="N", help="look at N images of each source, spread evenly over it"
    )
    parser.add_argument(
        "--workers", type=count, metavar="N", help="threads that decode (default: one for each core)"
    )
    add_range(parser, default="by the rules of docs/data.md")
    parser.add_argument("--json", type=path, metavar="FILE", help="write everything found, lists complete")
    parser.add_argument(
        "--keep",
        type=path,
        metavar="FILE",
        help="write the list (.csv, .tsv, .jsonl; .txt without labels) of images that can be read, one of "
        "each group of copies, which data.path reads",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Look at every image, print what was found, and write it to --json."""
    refuse_torchrun("data")
    if args.against_split is not None and args.against is None:
        raise UsageError("--against-split has no effect here: it belongs to --against; leave it out")
    if args.keep is not None and args.limit is not None:
        raise UsageError("--keep lists all good images, and --limit looks at some only; leave one out")
    _refuse_unwritable(args.json)
    from belvedere.commands.data_summary import print_report
    from belvedere.core.files import write_json
    from belvedere.core.log import say

    report = _checked(args)
    print_report(report)
    if args.json is not None:
        write_json(args.json, report)
        say(f"written: {args.json}")
    if args.keep is not None:
        say(f"written: {args.keep} (data.path={args.keep})")
    return EXIT_DONE


def _refuse_unwritable(file: Path | None) -> None:
    """Find out now, not after hours of decoding."""
    from belvedere.core.files import check_writable

    if file is not None:
        try:
            check_writable(file)
        except WriteError as error:
            raise UsageError(f"--json {error}") from error


class _Bar:
    """Progress of one stage: `bar(images done, images in all)`; use as a context manager."""

    def __init__(self, title: str) -> None:
        self._title, self._open = title, ExitStack()
        self._progress: Progress | None = None

    def __call__(self, done: int, total: int) -> None:
        from belvedere.engine.progress import Progress

        if self._progress is None:
            self._progress = Progress(total, images_per_step=1, title=self._title, show=True)
            self._open.enter_context(self._progress)
        self._progress.update(done)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)


def _checked(args: argparse.Namespace) -> dict[str, Any]:
    from belvedere.data.check import duplicates, find_copies, leakage, overview
    from belvedere.data.keep import check_keep, kept_images, write_kept
    from belvedere.data.sources import open_source
    from belvedere.data.sources.ranged import refuse_range_without_effect

    value_range = None if args.range is None else (args.range[0], args.range[1])
    chosen = {"label": args.label, "image": args.image}
    with told_by_options("SOURCE", "--split"):
        source = open_source(args.source, split=args.split, value_range=value_range, **chosen)
        if value_range is not None:
            refuse_range_without_effect(source, value_range)
    if args.keep is not None:
        check_keep(args.keep, source)
    other = None if args.against is None else _against(args, value_range)
    seen = _looked_at(source, args)
    against = None if other is None else _looked_at(other, args)
    with _Bar("near copies") as bar:
        copies = find_copies(seen, progress=bar)
    report = {**overview(seen), "duplicates": duplicates(seen, copies)}
    if args.keep is not None:
        positions, kept = kept_images(seen, copies)
        write_kept(args.keep, source, seen.indices[positions])
        report["kept"] = {**kept._asdict(), "file": str(args.keep)}
    if against is not None:
        with _Bar("leakage") as bar:
            found = leakage(seen, against, progress=bar)
        report = {"leakage": found, **report, "against": overview(against)}
        report["against"] |= {"given": args.against, "split": args.against_split}
    return report | {"given": args.source, "split": args.split}


def _against(args: argparse.Namespace, value_range: tuple[float, float] | None) -> Source:
    """The other images, with the same columns where they have any."""
    from belvedere.data.sources import has_columns, open_source

    chosen = {"label": args.label, "image": args.image} if has_columns(args.against) else {}
    with told_by_options("--against", "--against-split"):
        return open_source(args.against, split=args.against_split, value_range=value_range, **chosen)


def _looked_at(source: Source, args: argparse.Namespace) -> Survey:
    from belvedere.data.survey import survey

    workers = args.workers or min(_MOST_WORKERS, cpu_count())
    with _Bar(f"reading {source.name}") as bar:
        return survey(source, limit=args.limit, workers=workers, thumbs=args.near, progress=bar)

"""`belvedere embed`."""

from __future__ import annotations

import argparse

from belvedere.commands.option_words import told_by_options
from belvedere.commands.options import (
    add_backbone,
    add_columns,
    add_range,
    command_parser,
    path,
    range_for,
    refuse_torchrun,
)
from belvedere.commands.stages import Stages, tell_remarks
from belvedere.core.errors import EXIT_DONE
from belvedere.core.log import output, say, warn

_DESCRIPTION = """\
Write the features of every image, with its file name, to FILE: NumPy (.npz) or Parquet (.parquet).

An .npz holds `features` [N, D] float32, `files` [N] and, where the images lie in one folder per class,
`labels` [N] (-1: none) and `classes`. A .parquet has the columns `file`, `features` and perhaps `label`."""

_EXAMPLES = """\
  belvedere embed runs/msn/vits16 --data photos --out photos.npz
  belvedere embed vits16/backbone.safetensors --data photos \\
      --out photos.parquet --device cuda"""


def parser() -> argparse.ArgumentParser:
    """The options of `belvedere embed`."""
    parser = command_parser("embed", _DESCRIPTION, examples=_EXAMPLES)
    add_backbone(parser)
    parser.add_argument(
        "--data", required=True, metavar="PATH", help="the images: a folder, a list, an archive, `digits` ..."
    )
    parser.add_argument("--split", choices=("train", "test"), help="only this part of --data")
    add_range(parser, default="the card's, else by the rules of docs/data.md")
    add_columns(parser, "--data")
    parser.add_argument("--out", required=True, type=path, metavar="FILE", help="ends in .npz or .parquet")
    return parser


def run(args: argparse.Namespace) -> int:
    """Extract the features and write the file."""
    refuse_torchrun("embed")
    from belvedere.core.log import named_few
    from belvedere.data.sources import open_source
    from belvedere.data.sources.ranged import refuse_range_without_effect
    from belvedere.eval.embed import check_out, embed, escaped_names
    from belvedere.train.session import choose_device
    from belvedere.zoo.load import load

    check_out(args.out)
    backbone, card = load(args.weights)
    chosen = {"label": args.label, "image": args.image}
    with told_by_options("--data", "--split"):
        source = open_source(args.data, split=args.split, value_range=range_for(args, card), **chosen)
        if args.range is not None:
            refuse_range_without_effect(source, args.range)
    tell_remarks(source)
    with Stages() as stages:
        extracted = embed(
            backbone,
            card,
            source,
            out=args.out,
            batch_size=args.batch_size,
            device=choose_device(args.device),
            precision=args.precision,
            progress=lambda done, total: stages("data", done, total),
        )
    for key, reason in list(extracted.unreadable.items())[:5]:
        warn(f"{key} cannot be read and has no row: {reason}")
    if len(extracted.unreadable) > 5:
        warn(f"and {len(extracted.unreadable) - 5} more images that cannot be read")
    if odd := escaped_names(source, extracted):
        say(f"{len(odd)} names are not UTF-8; such bytes are written as \\xNN: {named_few(odd)}")
    rows, columns = extracted.features.shape
    output(f"{args.out}: {rows} images, {columns} features each")
    return EXIT_DONE

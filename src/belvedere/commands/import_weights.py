"""`belvedere import`."""

from __future__ import annotations

import argparse
from pathlib import Path

from belvedere.commands.options import command_parser, count, path
from belvedere.core.errors import EXIT_DONE, UsageError
from belvedere.core.log import say, table

_DESCRIPTION = """\
Convert a published checkpoint into a folder that `belvedere evaluate` and `belvedere embed` read: safetensors
and a card that says what the network is, which tensor is the feature and what licence the file has.

Reads the files of MSN, SwAV, DeepCluster-v2, SeLa-v2, EsViT and Mugs, whole training files too, Hugging
Face's ViTMSN (a file or its folder), and state dicts of timm and torchvision. Which of them a file is shows
in its names. A pickle is opened so that no code in it runs, and refused if it asks to. Every tensor must fit
by name and shape; what is not kept is listed with the reason.

To continue training from it: belvedere pretrain RECIPE init.from=DIR [init.start_epoch=N]"""

_EXAMPLES = """\
  belvedere import vits16_800ep.pth.tar --out weights/msn-vits16
  belvedere import checkpoint.pth --as esvit/swin-tiny-w7 --out weights/esvit
  belvedere import mine.pth.tar --as mugs/vit_small --out weights/mine"""


def parser() -> argparse.ArgumentParser:
    """The options of `belvedere import`."""
    parser = command_parser("import", _DESCRIPTION, examples=_EXAMPLES)
    parser.add_argument("file", type=path, metavar="FILE", help="a checkpoint, or a folder of Hugging Face's")
    parser.add_argument(
        "--as",
        dest="architecture",
        metavar="NAME",
        help="what it is, where names and shapes leave it open: a recipe (msn/vits16), a system (sela), an "
        "architecture (deit_small), or both (mugs/vit_small); a file that is anything else is refused",
    )
    parser.add_argument(
        "--heads",
        type=count,
        metavar="N",
        help="attention heads of a ViT, where neither the file nor what lies beside it says how many",
    )
    parser.add_argument(
        "--prefix",
        metavar="NAME",
        help="what the names of the network begin with, where a file holds several (student.backbone)",
    )
    parser.add_argument("--out", required=True, type=path, metavar="DIR", help="the folder to write")
    return parser


def run(args: argparse.Namespace) -> int:
    """Convert the file and say what came of it."""
    from belvedere.core.files import try_folder
    from belvedere.zoo.importing import import_checkpoint
    from belvedere.zoo.network_words import in_words

    _refuse_to_replace(args.out, args.file)
    try_folder(args.out)
    card = import_checkpoint(
        args.file, args.out, architecture=args.architecture, heads=args.heads, prefix=args.prefix
    )
    parts = {"heads": card.heads_sha256, "for continuing": card.training_sha256}
    training = {name: value for name, value in card.data.items() if isinstance(value, str | int)}
    rows = [
        ("system", card.system),
        ("network", in_words(card.backbone)),
        ("also kept", ", ".join(name for name, there in parts.items() if there) or "nothing"),
        ("licence", card.licence or "not stated"),
        *((f"published: {name}", str(value)) for name, value in card.published.items()),
        *((f"note: {name}", value) for name, value in card.notes.items()),
        *((f"training: {name}", str(value)) for name, value in training.items()),
        *((f"left out: {name}", reason) for name, reason in card.dropped.items()),
    ]
    table(f"{args.file} is now in {args.out}", rows)
    say(f"next: belvedere evaluate {args.out} --data DIR")
    return EXIT_DONE


def _refuse_to_replace(out: Path, file: Path) -> None:
    """Raise UsageError if `out` holds another backbone than one imported from this very file."""
    from belvedere.zoo.cards import CARD_NAME, read_card
    from belvedere.zoo.reading import source_sha256, weights_file

    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; give a directory")
    if not (out / CARD_NAME).exists():
        return
    card = read_card(out / CARD_NAME)
    source = weights_file(file)
    if not source.is_file() or card.source_sha256 != source_sha256(source):
        raise UsageError(f"--out {out} holds another backbone ({card.source}); give another directory")

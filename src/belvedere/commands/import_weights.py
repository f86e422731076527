"""`belvedere import`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from belvedere.commands.options import command_parser, path
from belvedere.core.errors import EXIT_DONE, UsageError
from belvedere.core.log import say, table

if TYPE_CHECKING:
    from belvedere.nn.spec import BackboneSpec

_DESCRIPTION = """\
Convert a published checkpoint into a folder that `belvedere evaluate` and `belvedere embed` read: safetensors
and a card that says what the network is, which tensor is the feature and what licence the file has.

Reads MSN's layout. The file is a pickle: it is opened so that no code in it runs, and refused if it asks to.
Every tensor must fit by name and shape; what is not kept is listed with the reason."""

_EXAMPLES = """\
  belvedere import vits16_800ep.pth.tar --out weights/msn-vits16
  belvedere import mine.pth.tar --as deit_small --out weights/mine"""


def parser() -> argparse.ArgumentParser:
    """The options of `belvedere import`."""
    parser = command_parser("import", _DESCRIPTION, examples=_EXAMPLES)
    parser.add_argument("file", type=path, metavar="FILE", help="the checkpoint")
    parser.add_argument(
        "--as",
        dest="architecture",
        metavar="NAME",
        help="its architecture (deit_small, ...), where the tensors leave it open",
    )
    parser.add_argument("--out", required=True, type=path, metavar="DIR", help="the folder to write")
    return parser


def run(args: argparse.Namespace) -> int:
    """Convert the file and say what came of it."""
    from belvedere.zoo.importing import import_checkpoint

    _refuse_to_replace(args.out, args.file)
    card = import_checkpoint(args.file, args.out, architecture=args.architecture)
    rows = [
        ("network", _told(card.backbone)),
        ("licence", card.licence or "not stated"),
        *((f"left out: {name}", reason) for name, reason in card.dropped.items()),
    ]
    table(f"{args.file} is now in {args.out}", rows)
    say(f"next: belvedere evaluate {args.out} --data DIR")
    return EXIT_DONE


def _told(spec: BackboneSpec) -> str:
    if spec.name == "vit":
        return f"ViT, width {spec.width}, depth {spec.depth}, patches of {spec.patch_px} px"
    return f"ResNet, {spec.block} blocks {', '.join(map(str, spec.blocks))}, {spec.widen} times as wide"


def _refuse_to_replace(out: Path, file: Path) -> None:
    """Raise UsageError if `out` holds another backbone than one imported from this very file."""
    from belvedere.core.files import sha256
    from belvedere.zoo.cards import CARD_NAME, read_card

    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; give a directory")
    if not (out / CARD_NAME).exists():
        return
    card = read_card(out / CARD_NAME)
    if not file.is_file() or card.source_sha256 != sha256(file):
        raise UsageError(f"--out {out} holds another backbone ({card.source}); give another directory")

"""`belvedere recipes`."""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from belvedere.commands.options import command_parser
from belvedere.core.errors import EXIT_DONE, RecipeError, UsageError
from belvedere.core.log import output
from belvedere.core.match import with_nearest
from belvedere.recipe.shipped import recipe_names, recipe_text
from belvedere.recipe.text import read

if TYPE_CHECKING:
    from belvedere.recipe.keys import Key

_DESCRIPTION = """\
List the shipped recipes, or print one as it is written, comments included. A recipe is complete in one file:
to change more than a few values, save it, edit it and give the file to `belvedere pretrain`.

The list can be narrowed by method, network, size and data; --keys prints what every key of a recipe means."""

_EXAMPLES = """\
  belvedere recipes
  belvedere recipes --method msn --size small
  belvedere recipes --data small
  belvedere recipes --keys run
  belvedere recipes msn/vits16 > mine.yaml"""

_WIDTH = 80
_SIZES = {"tiny": (0, 5), "small": (5, 40), "base": (40, 120), "large": (120, None)}  # millions of parameters
_ON_OTHERS = {
    "webvision": "WebVision",
    "openimages": "Open Images",
    "imagenet22k": "ImageNet-22K",
    "fashion": "Fashion-MNIST",
}
"""What a recipe was made for, by the end of its name; ImageNet else, and the digits of `tiny/*`."""
_SMALL_DATA = ("digits", "Fashion-MNIST")
_METHODS = ("msn", "swav", "deepcluster", "sela", "esvit", "mugs")
_BACKBONES = ("vit", "resnet", "swin", "cvt", "vil")
_DATA = ("imagenet", "small", "digits", "fashion-mnist", "webvision", "open-images", "imagenet-22k")


def parser() -> argparse.ArgumentParser:
    """The options of `belvedere recipes`."""
    parser = command_parser("recipes", _DESCRIPTION, examples=_EXAMPLES)
    parser.add_argument("name", nargs="?", metavar="NAME", help="the recipe to print")
    parser.add_argument("--method", choices=_METHODS, help="only recipes of this method")
    parser.add_argument("--backbone", choices=_BACKBONES, help="only recipes with this kind of network")
    parser.add_argument(
        "--size",
        choices=tuple(_SIZES),
        help="only networks of this size: tiny below 5 million parameters, small below 40, base below 120",
    )
    parser.add_argument(
        "--data",
        choices=_DATA,
        metavar="DATA",
        help=f"only recipes made for this data: {', '.join(_DATA)}; small: digits and Fashion-MNIST",
    )
    parser.add_argument("--json", action="store_true", help="print the list, or the keys, for a program")
    parser.add_argument(
        "--keys",
        nargs="?",
        const="",
        metavar="PREFIX",
        help="print every key of a recipe that begins so: its values, its default, what it means",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the list, the keys, or the recipe."""
    narrowed = [name for name in ("method", "backbone", "size", "data") if getattr(args, name) is not None]
    if args.keys is not None:
        _refuse_beside("--keys", ["NAME"] * (args.name is not None) + [f"--{name}" for name in narrowed])
        _print_keys(args.keys, as_json=args.json)
    elif args.name is not None:
        _refuse_beside("NAME", ["--json"] * args.json + [f"--{name}" for name in narrowed])
        _print_recipe(args.name.removesuffix(".yaml"))
    else:
        _print_list(args, narrowed)
    return EXIT_DONE


def _refuse_beside(given: str, others: list[str]) -> None:
    if others:
        raise UsageError(f"{others[0]} has no effect beside {given}; leave one of them out")


def _print_recipe(name: str) -> None:
    if name not in recipe_names():
        near = [other for other in recipe_names() if other.startswith(f"{name.partition('/')[0]}/")]
        listed = "".join(f"\n  {other}" for other in near)
        among = ", among them" if near else ""
        unknown = with_nearest(name, recipe_names())
        raise RecipeError(f"there is no recipe {unknown}; `belvedere recipes` lists all{among}{listed}")
    sys.stdout.write(recipe_text(name))


def _print_json(found: Sequence[_Shipped] | Sequence[Key]) -> None:
    sys.stdout.write(json.dumps([asdict(one) for one in found], indent=2) + "\n")


# The list


@dataclass(frozen=True)
class _Shipped:
    """What is listed of a recipe. accuracy: published top-1 in percent, by protocol."""

    name: str
    method: str
    backbone: str
    network: str
    data: str
    epochs: int
    batch: int
    accuracy: Mapping[str, float]
    about: str


def _print_list(args: argparse.Namespace, narrowed: list[str]) -> None:
    shipped = [one for one in map(_shipped, recipe_names()) if _is_wanted(one, args)]
    if not shipped:
        given = " ".join(f"--{name} {getattr(args, name)}" for name in narrowed)
        raise UsageError(f"no shipped recipe has {given}; leave one of these out")
    if args.json:
        _print_json(shipped)
        return
    rows = [("recipe", "network", "epochs", "batch", "top-1"), *map(_cells, shipped)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        output("  ".join(_aligned(row, widths)).rstrip())
    legend = "top-1: published accuracy in percent, first protocol. `belvedere recipes NAME` prints a recipe."
    for line in textwrap.wrap(legend, _WIDTH) if sys.stdout.isatty() else ():
        output(line)


def _aligned(row: tuple[str, ...], widths: list[int]) -> Iterator[str]:
    for at, (cell, width) in enumerate(zip(row, widths, strict=True)):
        yield cell.rjust(width) if at in (2, 3) else cell.ljust(width)


def _cells(one: _Shipped) -> tuple[str, ...]:
    protocol, score = next(iter(one.accuracy.items()), ("", None))
    short = protocol.replace(" image per class", "/class").replace(" of labels", "")
    top = "" if score is None else f"{score:.1f} {short}"
    return one.name, one.network, str(one.epochs), str(one.batch), top


def _shipped(name: str) -> _Shipped:
    text = recipe_text(name)
    values = read(text).values
    end = name.rpartition("-")[2].rpartition("/")[2]
    other = "digits" if name.startswith("tiny/") else "ImageNet"
    return _Shipped(
        name=name,
        method=values["method"]["name"],
        backbone=values["backbone"]["name"],
        network=_network(values["backbone"]),
        data=_ON_OTHERS.get(end, other),
        epochs=values["train"]["epochs"],
        batch=values["train"]["global_batch"],
        accuracy=(values.get("published") or {}).get("accuracy", {}),
        about=_summary(text),
    )


def _network(spec: Mapping[str, Any]) -> str:
    """Kind and sizes, in a cell: `vit 384x12/16`, `swin 2-2-6-2 w7`, `resnet 3-4-6-3 x2`."""
    kind = spec["name"]
    if kind == "vit":
        return f"vit {spec['width']}x{spec['depth']}/{spec['patch_px']}"
    blocks = "-".join(map(str, spec["blocks"]))
    if kind == "resnet":
        return f"resnet {blocks}" + (f" x{spec['widen']}" if spec["widen"] > 1 else "")
    width = spec.get("embed_width") or spec["widths"][0]
    return f"{kind} {width} {blocks}"


def _is_wanted(one: _Shipped, args: argparse.Namespace) -> bool:
    if args.method not in (None, one.method) or args.backbone not in (None, one.backbone):
        return False
    if args.data is not None:
        small = args.data == "small" and one.data in _SMALL_DATA
        if not small and one.data.lower().replace(" ", "-") != args.data:
            return False
    return args.size is None or _has_size(one, *_SIZES[args.size])


def _has_size(one: _Shipped, least: int, most: int | None) -> bool:
    from belvedere.recipe.load import load_recipe

    parameters = load_recipe(one.name).backbone.num_parameters
    return least * 1e6 <= parameters and (most is None or parameters < most * 1e6)


def _summary(text: str) -> str:
    """The first sentence of the comment that a recipe file opens with, without what follows a colon."""
    lines = []
    for line in text.splitlines():
        words = line.removeprefix("#").strip()
        if not line.startswith("#") or not words:
            break
        lines.append(words)
    return " ".join(lines).partition(": ")[0].rstrip(".")


# The keys


def _print_keys(prefix: str, *, as_json: bool) -> None:
    from belvedere.recipe.keys import all_keys

    keys = all_keys()
    wanted = _begins(keys, prefix)
    if not wanted:
        names = [key.key for key in keys]
        sections = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
        unknown = with_nearest(prefix, names)
        raise UsageError(f"no key of a recipe begins with {unknown}; they begin with {sections}")
    if as_json:
        _print_json(wanted)
        return
    for key in wanted:
        for line in _told(key):
            output(line)


def _begins(keys: list[Key], prefix: str) -> list[Key]:
    """The keys that begin so, or else that have a part of this name. A view's name and an item's number may
    stand where the schema has any."""
    parts = prefix.split(".")
    if parts[0] == "views" and len(parts) > 1 and not "ROLE".startswith(parts[1]):
        parts[1] = "ROLE"
    prefix = re.sub(r"\[\d+\]", "[i]", ".".join(parts))
    return [key for key in keys if key.key.startswith(prefix)] or [
        key for key in keys if prefix in key.key.split(".")
    ]


def _told(key: Key) -> Iterator[str]:
    """A key in a few lines of at most 80 columns."""
    yield key.key + (f"  ({', '.join(key.of)})" if key.of else "")
    default = "must be given" if key.default is None else f"default: {key.default}"
    for words in (key.about, f"{key.allowed}; {default}"):
        yield from textwrap.wrap(
            words, _WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False
        )

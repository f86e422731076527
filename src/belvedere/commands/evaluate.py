"""`belvedere evaluate`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from belvedere.commands.option_words import told_by_options
from belvedere.commands.options import (
    add_backbone,
    add_columns,
    add_lambda,
    add_range,
    command_parser,
    count,
    counts,
    path,
    range_for,
    refuse_ineffective,
    refuse_torchrun,
)
from belvedere.commands.stages import Stages, tell_remarks
from belvedere.commands.summary import print_summary
from belvedere.core.errors import EXIT_DONE, UsageError
from belvedere.core.files import real_path
from belvedere.core.log import say

if TYPE_CHECKING:
    from belvedere.data.sources.source import Source

_PROTOCOLS = ("knn", "logistic", "linear")
_DESCRIPTION = """\
How good are a backbone's features on these images? Weighted k-NN, logistic regression on a few labels per
class (over several drawn splits), and a linear probe. What is scored was never trained on.

Labels come from the folders the images lie in, one per class, or from a table of `file,label` lines. The
images of --subset are looked up in the training part where --data is divided into train/ and test/ or val/;
the other part is scored then. Images that are trained on and scored as well (the same files by path, or
copies under other names) are refused. Writes report.json, splits.json and, with --predict, predictions.csv;
the same command writes the same bytes. predictions.csv can be read as --labels: what it marks as predicted
is trained on where --val is given, and never scored."""

_EXAMPLES = """\
  belvedere evaluate runs/tiny/msn --data digits --split test
  belvedere evaluate runs/photos --data photos --protocols knn,logistic \\
      --shots 1,5 --splits 20
  belvedere evaluate runs/photos --data photos --labels names.csv \\
      --predict photos
  belvedere evaluate vits16/backbone.safetensors --data imagenet \\
      --subset 1imgs_class.txt"""


def parser() -> argparse.ArgumentParser:
    """The options of `belvedere evaluate`."""
    parser = command_parser("evaluate", _DESCRIPTION, examples=_EXAMPLES)
    add_backbone(parser)
    images = parser.add_argument_group("images")
    images.add_argument(
        "--data",
        required=True,
        metavar="PATH",
        help="labelled images: a folder, a list, an archive, `digits` ...",
    )
    images.add_argument("--split", choices=("train", "test"), help="only this part of --data")
    add_range(images, default="the card's, else by the rules of docs/data.md")
    add_columns(images, "--data")
    images.add_argument(
        "--labels", type=path, metavar="CSV", help="labels of images in --data: a table of file,label"
    )
    images.add_argument(
        "--subset", type=path, metavar="FILE", help="train on exactly these images of --data (a paper's list)"
    )
    images.add_argument("--val", metavar="PATH", help="score on these images instead of the rest of --data")
    images.add_argument("--val-split", choices=("train", "test"), help="only this part of --val")
    images.add_argument(
        "--leave-out-copies",
        action="store_true",
        help="train without images that are scored too (default: refused); without a scored set of its own, "
        "take one of each group of equal images (default: counted)",
    )
    images.add_argument(
        "--predict",
        metavar="PATH",
        help="write the three best labels for each of these images; for --data itself: those without one",
    )
    how = parser.add_argument_group("protocols")
    how.add_argument(
        "--protocols", type=protocols, default=_PROTOCOLS, metavar="LIST", help="default: knn,logistic,linear"
    )
    how.add_argument("--shots", type=counts, metavar="LIST", help="labels per class (default: 1,2,5,10)")
    how.add_argument("--splits", type=count, metavar="N", help="drawn splits for each of them (default: 10)")
    how.add_argument("--seed", type=_seed, default=0, metavar="N", help="of the splits (default: 0)")
    how.add_argument(
        "--k", type=count, metavar="N", help="neighbours of k-NN (default: the published number)"
    )
    add_lambda(how)
    parser.add_argument(
        "--out", type=path, metavar="DIR", help="where to write (default: evaluation/DATA beside the weights)"
    )
    return parser


def protocols(text: str) -> tuple[str, ...]:
    """`knn,linear` as protocols, in the order of the report."""
    given = set(text.split(","))
    unknown = sorted(given - set(_PROTOCOLS))
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r}; choose from {', '.join(_PROTOCOLS)}")
    return tuple(name for name in _PROTOCOLS if name in given)


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}; give a whole number from 0")
    return int(text)


class _Images(NamedTuple):
    """data: where training images come from; val: a scored set of its own, and what messages call it;
    unlabelled: to be given labels."""

    data: Source
    val: Source | None
    val_name: str
    unlabelled: Source | None


def run(args: argparse.Namespace) -> int:
    """Evaluate, write the files and print a summary."""
    refuse_torchrun("evaluate")
    _refuse_ineffective(args)
    from belvedere.eval.evaluate import Options, evaluate
    from belvedere.eval.place import check_out, written_names
    from belvedere.train.session import choose_device
    from belvedere.zoo.load import load

    out = args.out or _beside(args.weights, args.data, args.split)
    names = written_names(splits=args.subset is None and "logistic" in args.protocols, predicted=args.predict)
    check_out(out, names)
    backbone, card = load(args.weights)
    images = _open(args, range_for(args, card))
    given = {"shots": args.shots, "splits": args.splits, "k": args.k, "lambd": args.lambd}
    options = Options(
        protocols=args.protocols,
        seed=args.seed,
        batch_size=args.batch_size,
        precision=args.precision,
        leave_out_copies=args.leave_out_copies,
        **{name: value for name, value in given.items() if value is not None},
    )
    with Stages() as stages:
        evaluation = evaluate(
            backbone,
            card,
            images.data,
            val=images.val,
            val_name=images.val_name,
            list_name=None if args.subset is None else args.subset.name,
            unlabelled=images.unlabelled,
            options=options,
            device=choose_device(args.device),
            progress=stages,
        )
    try:
        written = evaluation.save(out)
    finally:  # what took hours is shown also where it cannot be written
        print_summary(evaluation.report)
    say(f"written: {', '.join(str(file) for file in written)}")
    return EXIT_DONE


def _refuse_ineffective(args: argparse.Namespace) -> None:
    """A setting that has no effect here is a mistake."""
    needs: Sequence[tuple[str, object, bool, str]] = (
        ("--shots", args.shots, "logistic" in args.protocols, "the protocol logistic"),
        ("--splits", args.splits, "logistic" in args.protocols, "the protocol logistic"),
        ("--k", args.k, "knn" in args.protocols, "the protocol knn"),
        (
            "--lambda",
            args.lambd,
            "logistic" in args.protocols or args.predict is not None,
            "logistic or --predict",
        ),
        ("--shots", args.shots, args.subset is None, "drawn splits, which --subset replaces"),
        ("--splits", args.splits, args.subset is None, "drawn splits, which --subset replaces"),
        ("--val-split", args.val_split, args.val is not None, "--val"),
    )
    refuse_ineffective(needs)


def _open(args: argparse.Namespace, value_range: tuple[float, float] | None) -> _Images:
    from belvedere.data.sources import from_list

    data, held_out = _opened_data(args, value_range)
    unlabelled = None
    if args.predict is not None:
        same = _real(args.predict) == _real(args.data)
        unlabelled = _without_labels(data) if same else _opened("--predict", args, value_range)
    val = None if args.val is None else _opened("--val", args, value_range)
    if args.subset is None:
        return _Images(data, val, "--val", unlabelled)
    listed = from_list(data, args.subset)
    if val is not None:
        return _Images(listed, val, "--val", unlabelled)
    if held_out is not None:
        say(f"scoring the held-out part of --data: {len(held_out)} images")
        return _Images(listed, held_out, "the held-out part of --data", unlabelled)
    say("scoring the images of --data that --subset does not list")
    return _Images(listed, _rest(data, listed), "what --subset does not list", unlabelled)


def _opened_data(
    args: argparse.Namespace, value_range: tuple[float, float] | None
) -> tuple[Source, Source | None]:
    """--data with its labels; with --subset and a divided source its training part, and the part to score."""
    from belvedere.data.sources import open_source, with_labels
    from belvedere.data.sources.places import is_divided, part_of
    from belvedere.data.sources.ranged import refuse_range_without_effect

    def part(split: str | None) -> Source:
        with told_by_options("--data", "--split"):
            return open_source(
                args.data, split=split, value_range=value_range, label=args.label, image=args.image
            )

    data = part(None if args.subset is not None else args.split)
    parted = args.subset is not None and is_divided(data) and args.split != "test"
    if args.subset is not None and args.split is not None and not parted:
        data = part(args.split)
    if args.range is not None:
        with told_by_options("--data"):
            refuse_range_without_effect(data, args.range)
    tell_remarks(data)
    if args.labels is not None:
        data = with_labels(data, args.labels, use_predicted=args.val is not None)
    if not parted:
        return data, None
    if args.split is None:
        say("looking up the images of --subset in the training part of --data")
    parts = [part(split) for split in (("train", "test") if args.val is None else ("train",))]
    train, *others = parts if args.labels is None else [part_of(data, each) for each in parts]
    return train, next(iter(others), None)


def _rest(data: Source, listed: Source) -> Source:
    """The images that are not listed."""
    from belvedere.data.sources import subset

    taken = {listed.key(index) for index in range(len(listed))}
    rest = [index for index in range(len(data)) if data.key(index) not in taken]
    if not rest:
        raise UsageError("--subset lists every image of --data, so that none is left to score; give --val")
    return subset(data, rest)


def _opened(option: str, args: argparse.Namespace, value_range: tuple[float, float] | None) -> Source:
    """The images of --val or --predict, with the columns of --data where they have any."""
    from belvedere.data.sources import has_columns, open_source

    path, split = (args.val, args.val_split) if option == "--val" else (args.predict, None)
    chosen = {"label": args.label, "image": args.image} if has_columns(path) else {}
    with told_by_options(option, "--val-split" if option == "--val" else None):
        source = open_source(path, split=split, value_range=value_range, **chosen)
    tell_remarks(source, option)
    return source


def _without_labels(data: Source) -> Source:
    from belvedere.data.sources import UNLABELLED, subset

    rest = [index for index, label in enumerate(data.labels) if label == UNLABELLED]
    if not rest:
        raise UsageError(f"--predict: every image of {data.name!r} has a label already; name other images")
    return subset(data, rest)


def _beside(weights: Path, data: str, split: str | None) -> Path:
    """Where an evaluation goes by default: a folder of its own per data set, beside the weights."""
    folder = weights if weights.is_dir() else weights.parent
    name = _real(data).name or "data"
    return folder / "evaluation" / (f"{name}-{split}" if split else name)


def _real(place: str) -> Path:
    return real_path(Path(place).expanduser())

"""`belvedere export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from belvedere.commands.option_words import told_by_options
from belvedere.commands.options import (
    add_columns,
    add_lambda,
    command_parser,
    path,
    refuse_ineffective,
    refuse_torchrun,
)
from belvedere.commands.stages import Stages
from belvedere.core.errors import EXIT_DONE, UsageError
from belvedere.core.log import say, table, warn

if TYPE_CHECKING:
    from torch import Tensor

    from belvedere.data.sources.source import Source
    from belvedere.zoo.cards import Card
    from belvedere.zoo.load import LoadedBackbone
    from belvedere.zoo.write import Classifier, Target

_TARGETS = ("huggingface", "timm", "torchvision", "onnx", "published", "safetensors")
_NUM_REAL = 8
_BATCH = 64
_DESCRIPTION = """\
Hand a backbone over to another library: its files, and a README.md that says what the weights are, what
they reach and how to load them. The files are read back with that library at once and compared with
belvedere's own network, on random images and on some of --data; if they differ, nothing is written.

  huggingface   ViT                transformers' ViTMSN, as the released models
  timm          ViT, ResNet, Swin  timm.create_model, strictly loaded
  torchvision   ViT, ResNet        resnet50, VisionTransformer, strictly loaded
  onnx          all                a graph of the features, for onnxruntime
  published     of its method      a .pth as the authors' code writes it
  safetensors   all                belvedere's own folder

--classifier fits a classifier on the labelled images of --data, as `belvedere evaluate --predict` does, and
exports it too: as the head of ViTMSNForImageClassification, or as probabilities of the ONNX graph."""

_EXAMPLES = """\
  belvedere export runs/msn/vits16 --to huggingface --out vits16-hf
  belvedere export runs/photos --to huggingface --data photos \\
      --classifier --labels names.csv --out photos-hf
  belvedere export weights/swav-rn50 --to torchvision --out rn50-tv
  belvedere export runs/msn/vits16 --to published --out vits16-msn
  belvedere export runs/photos --to onnx --data photos --out photos-onnx"""


def parser() -> argparse.ArgumentParser:
    """The options of `belvedere export`."""
    parser = command_parser("export", _DESCRIPTION, examples=_EXAMPLES)
    parser.add_argument(
        "weights", type=path, metavar="RUN_OR_WEIGHTS", help="a run's directory, or an exported backbone"
    )
    parser.add_argument("--to", required=True, choices=_TARGETS, metavar="FORMAT", help="one of those above")
    parser.add_argument("--out", required=True, type=path, metavar="DIR", help="the folder to write")
    images = parser.add_argument_group("images")
    images.add_argument(
        "--data", metavar="PATH", help="images to compare on: a folder, a list, an archive, `digits` ..."
    )
    images.add_argument("--split", choices=("train", "test"), help="only this part of --data")
    add_columns(images, "--data")
    images.add_argument(
        "--classifier", action="store_true", help="fit a classifier on the labelled images and export it"
    )
    images.add_argument("--labels", type=path, metavar="CSV", help="labels of images in --data: file,label")
    images.add_argument(
        "--subset", type=path, metavar="FILE", help="fit on exactly these images of --data (a paper's list)"
    )
    add_lambda(images)
    images.add_argument(
        "--device", choices=("cpu", "cuda"), help="where to compute what is fitted (default: the GPU if any)"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Export, compare, describe; the folder appears as a whole at the end."""
    refuse_torchrun("export")
    _refuse_ineffective(args)
    from belvedere.commands.model_card import model_card
    from belvedere.commands.run_files import read_run
    from belvedere.core.files import real_path, try_folder, write_text
    from belvedere.eval.classifier import FeatureNetwork
    from belvedere.zoo.load import load, load_heads, load_training
    from belvedere.zoo.write import Outgoing, fitting_target, write
    from belvedere.zoo.write.folder import check_replaceable, placing

    loaded = load(args.weights)
    backbone, card = loaded
    target = fitting_target(args.to, card)
    check_replaceable(args.out, target=target.name, source=card.source)
    try_folder(real_path(args.out).parent)
    source = None if args.data is None else _opened(args)
    real = {} if source is None else _real_images(source, card, target.px(card))
    classifier = _fitted(args, loaded, source, target)
    spec, weights = card.features, None
    if classifier is not None and target.classifier_feature is not None:
        spec, weights = target.classifier_feature(spec), classifier.weights
    outgoing = Outgoing(
        backbone,
        card,
        FeatureNetwork(backbone, spec, weights).eval(),
        load_heads(args.weights) if target.with_heads else {},
        classifier,
        load_training(args.weights) if target.with_training else {},
    )
    with placing(args.out, target=target.name, source=card.source) as folder:
        agreements = write(folder, target, outgoing, real=real)
        files = read_run(args.weights)
        curves = _drawn(files.metrics, folder)
        name = f"{card.source.removeprefix('recipe ')} ({target.name})"
        text = model_card(target, outgoing, agreements, files, name=name, curves=curves)
        write_text(folder / "README.md", text)
    rows = [(f"{one.what}, {one.images} images", one.told()) for one in agreements]
    table(f"{target.library} reads it; largest difference, in units of the root mean square:", rows)
    for note in target.notes(outgoing):
        say(f"note: {note}")
    say(f"written: {args.out} ({args.out / 'README.md'} says how to load it)")
    return EXIT_DONE


def _refuse_ineffective(args: argparse.Namespace) -> None:
    """A setting that has no effect here is a mistake."""
    if args.classifier and args.data is None:
        raise UsageError("--classifier is fitted on labelled images; name them by --data")
    needs = (
        ("--split", args.split, args.data is not None, "--data"),
        ("--label", args.label, args.data is not None, "--data"),
        ("--image", args.image, args.data is not None, "--data"),
        ("--labels", args.labels, args.classifier, "--classifier"),
        ("--subset", args.subset, args.classifier, "--classifier"),
        ("--lambda", args.lambd, args.classifier, "--classifier"),
        ("--device", args.device, args.classifier, "--classifier"),
    )
    refuse_ineffective(needs)


def _opened(args: argparse.Namespace) -> Source:
    from belvedere.data.sources import from_list, open_source, with_labels
    from belvedere.data.sources.places import is_divided, part_of

    with told_by_options("--data", "--split"):
        source = open_source(args.data, split=args.split, label=args.label, image=args.image)
    if args.labels is not None:
        source = with_labels(source, args.labels)
    if args.subset is None:
        return source
    if args.split is None and is_divided(source):
        say("looking up the images of --subset in the training part of --data")
        train = open_source(args.data, split="train", label=args.label, image=args.image)
        source = part_of(source, train)
    return from_list(source, args.subset)


def _real_images(source: Source, card: Card, px: int) -> dict[str, Tensor]:
    """A few images from all over the source, prepared as the card says, at a side of `px`."""
    import numpy as np
    import torch

    from belvedere.core.errors import DataError
    from belvedere.data.decode import UnreadableImage
    from belvedere.data.sources.source import read
    from belvedere.eval.features import image_transform

    if not len(source):
        raise DataError(f"--data: {source.name!r} has no image")
    features = card.features
    resize_px = round(features.resize_px * px / features.crop_px)
    spec = features.model_copy(update={"resize_px": resize_px, "crop_px": px})
    places = np.unique(np.linspace(0, len(source) - 1, _NUM_REAL).astype(int))
    prepared = []
    for place in places:
        try:
            pixels = read(source, int(place))
        except UnreadableImage as error:
            warn(f"{source.key(int(place))} cannot be read and is not compared: {error.reason}")
            continue
        prepared.append(image_transform(pixels, spec, mean=card.mean, std=card.std))
    if not prepared:
        raise DataError(f"--data: none of {len(places)} images of {source.name!r} can be read")
    return {f"{len(prepared)} real": torch.stack(prepared)}


def _fitted(
    args: argparse.Namespace, loaded: LoadedBackbone, source: Source | None, target: Target
) -> Classifier | None:
    """The classifier of --classifier, on the feature that the target's head reads."""
    if not args.classifier:
        return None
    from belvedere.eval.classifier import fit_classifier
    from belvedere.eval.labelled import extract_labelled
    from belvedere.train.session import choose_device
    from belvedere.zoo.write import TARGETS, Classifier

    if target.classifier_feature is None:
        able = ", ".join(name for name, other in TARGETS.items() if other.classifier_feature is not None)
        raise UsageError(f"--classifier: {target.name} has no place for one; export --to {able}")
    assert source is not None
    backbone, card = loaded
    read = target.classifier_feature(card.features)
    if read != card.features:
        warn(
            "the head reads the class token of the last block; the card's feature is another, so that its "
            "answers are not those of `belvedere evaluate`"
        )
    device = choose_device(args.device)
    with Stages() as stages:
        labelled, unreadable = extract_labelled(
            backbone,
            card.model_copy(update={"features": read}),
            source,
            batch_size=_BATCH,
            device=device,
            precision="float32",
            progress=lambda done, total: stages("data", done, total),
        )
    backbone.cpu()
    for key, reason in list(unreadable.items())[:5]:
        warn(f"{key} cannot be read and is not learned from: {reason}")
    fitted = fit_classifier(labelled, lambd=args.lambd, device=device)
    return Classifier(fitted.weights, labelled.classes, fitted.lambd, len(labelled.labels))


def _drawn(metrics: Path | None, folder: Path) -> bool:
    """Draw the run's curves into the folder, if it has any."""
    from belvedere.commands.model_card import CURVES_NAME
    from belvedere.core.errors import DataError
    from belvedere.viz.curves import run_picture

    if metrics is None:
        return False
    try:
        run_picture(metrics, folder / CURVES_NAME)
    except DataError as error:
        warn(f"the model card has no curves: {error}")
        return False
    return True

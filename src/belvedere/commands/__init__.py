"""The sub-commands of `belvedere`: a module each, named here with what it is for."""

from __future__ import annotations

from typing import NamedTuple


class Listed(NamedTuple):
    """module: in this package; summary: its line in `belvedere --help`."""

    module: str
    summary: str


COMMANDS = {
    "demo": Listed("demo", "pretrain on handwritten digits, see what few labels reach"),
    "pretrain": Listed("pretrain", "pretrain a backbone on a folder of images, by a recipe"),
    "evaluate": Listed("evaluate", "measure a backbone on labelled images: k-NN, few labels, linear"),
    "embed": Listed("embed", "write the features of images to a file"),
    "export": Listed("export_weights", "hand a backbone to transformers, timm, torchvision or ONNX, checked"),
    "import": Listed("import_weights", "convert a published checkpoint to belvedere's format"),
    "zoo": Listed("zoo", "list the published models of the six systems, or fetch one"),
    "data": Listed("data", "check images: unreadable ones, copies, what an evaluation set shares"),
    "recipes": Listed("recipes", "list the recipes, or show one"),
}

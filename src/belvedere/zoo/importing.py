"""Published checkpoints to safetensors and a card: finds the layout by its names and has it converted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast

from belvedere.core.errors import WeightsError
from belvedere.zoo.cards import CARD_NAME, WEIGHTS_NAME, Card, export
from belvedere.zoo.convert import esvit, huggingface, msn, mugs, swav, timm, torchvision
from belvedere.zoo.convert.asked import asked_for
from belvedere.zoo.convert.checkpoint import Asked, Checkpoint, Converted
from belvedere.zoo.convert.unwrapping import Found, is_neutral, networks_in, unwrapped
from belvedere.zoo.load import load_heads, load_tensors, load_training
from belvedere.zoo.reading import read_checkpoint, source_sha256, weights_file
from belvedere.zoo.statement import Statement


class Converter(Protocol):
    """What a module of `belvedere.zoo.convert` offers."""

    SYSTEMS: tuple[str, ...]

    def identifies(self, checkpoint: Checkpoint) -> bool:
        """Whether a file has what this layout alone has."""

    def recognises(self, checkpoint: Checkpoint) -> bool:
        """Whether a file's names could be of this layout."""

    def convert(self, checkpoint: Checkpoint, asked: Asked) -> Converted:
        """The file under our names, all of it."""


CONVERTERS = cast("tuple[Converter, ...]", (msn, swav, esvit, mugs, huggingface, torchvision, timm))
_LISTED = 12


def import_checkpoint(
    file: str | Path,
    out_dir: str | Path,
    *,
    architecture: str | None = None,
    heads: int | None = None,
    prefix: str | None = None,
) -> Card:
    """Convert the published checkpoint `file`, or a folder of Hugging Face's or of an export, into a folder
    that `belvedere.zoo.load` reads and a recipe's `init.from` continues; returns its card.

    architecture: what `--as` takes (`convert.asked`): needed where names and shapes leave system or network
    open, and held against them otherwise. heads: how many attention heads a ViT has, where nobody says.
    prefix: what the names of the network begin with, where a file holds several.

    Raises `WeightsError` if the file is missing, damaged, of an unknown layout, holds anything but plain
    data, or has one tensor too many, too few or of another shape; nothing is written then.
    """
    path = weights_file(Path(file))
    converted = read_published(path, replace(asked_for(architecture), heads=heads, prefix=prefix))
    card = converted.card.model_copy(update={"source_sha256": source_sha256(path)})
    return export(Path(out_dir), converted.backbone, card, heads=converted.heads, training=converted.training)


def read_published(path: Path, asked: Asked) -> Converted:
    """What the checkpoint file `path` holds, under our names. Raises `WeightsError` as `import_checkpoint`
    does."""
    if path.name == WEIGHTS_NAME and (path.parent / CARD_NAME).is_file():
        return _own(path, asked)
    checkpoint = read_checkpoint(path)
    if checkpoint.statement is not None and asked.prefix is None:
        return _stated(checkpoint, checkpoint.statement, asked)
    converter, found = _converter(checkpoint, asked, path)
    return converter.convert(found, asked)


def _own(path: Path, asked: Asked) -> Converted:
    """A folder of belvedere's own, as it is."""
    card, tensors = load_tensors(path)
    _require_asked(card, asked, f"{path.parent / CARD_NAME}")
    return Converted(tensors, load_heads(path), card, load_training(path))


def _stated(checkpoint: Checkpoint, statement: Statement, asked: Asked) -> Converted:
    """An export of belvedere's: the network is the one that its card describes, and so is the feature."""
    card = statement.card
    _require_asked(card, asked, f"{checkpoint.origin}, which belvedere exported,")
    wanted = card.system if statement.layout == "published" else statement.layout
    able = [one for one in CONVERTERS if wanted in one.SYSTEMS and one.recognises(checkpoint)]
    if not able:
        raise WeightsError(
            f"{checkpoint.origin} says that it is an export to {statement.layout}, and is none"
        )
    own = Asked("the export's card", wanted, card.backbone, exact=True)
    bare = replace(checkpoint, beside={})
    converted = able[0].convert(bare, own)
    kept = card.model_copy(update={"backbone": converted.card.backbone, "dropped": converted.card.dropped})
    return replace(converted, card=kept)


def _require_asked(card: Card, asked: Asked, what: str) -> None:
    """Raise `WeightsError` where options say something else than a card does."""
    spec = card.backbone
    said = {
        f"--as {asked.name}": asked.system not in (None, card.system, "huggingface", "timm", "torchvision"),
        f"--as {asked.name} (its network)": asked.backbone is not None and asked.backbone.name != spec.name,
        f"--heads {asked.heads}": asked.heads not in (None, getattr(spec, "heads", None)),
    }
    if wrong := [option for option, differs in said.items() if differs]:
        heads = f", {spec.heads} heads" if spec.name == "vit" else ""
        raise WeightsError(f"{what} says {card.system}, {spec.name}{heads}; leave out {' and '.join(wrong)}")


def _converter(checkpoint: Checkpoint, asked: Asked, path: Path) -> tuple[Converter, Checkpoint]:
    """The one that knows this layout, and the file as it reads it. Raises `WeightsError` if none or several
    do, or another system was asked for."""
    if asked.prefix is None:
        sure = [one for one in CONVERTERS if one.identifies(checkpoint)]
        if sure:
            return _chosen(sure, asked, path), checkpoint
    inside = unwrapped(checkpoint, asked.prefix)
    flat = checkpoint if inside is None else inside[0]
    sure = [one for one in CONVERTERS if one.identifies(flat)]
    found = sure or [one for one in CONVERTERS if one.recognises(flat)]
    if not found:
        raise WeightsError(
            f"{path} is of no layout known here. It has {_keys(checkpoint.content)}; known are the files of "
            f"{', '.join(_systems(CONVERTERS))}{networks_in(checkpoint.content)}"
        )
    if inside is not None and not sure and asked.system is None and not is_neutral(inside[1]):
        _refuse_names_of_anyone(found, inside[1], path)
    return _chosen(found, asked, path), flat


def _chosen(found: list[Converter], asked: Asked, path: Path) -> Converter:
    if asked.system is not None:
        wanted = [converter for converter in found if asked.system in converter.SYSTEMS]
        if not wanted:
            raise WeightsError(
                f"--as {asked.name} says {asked.system}; {path} is of {' or '.join(_systems(found))}"
            )
        found = wanted
    if len(found) > 1 and all(name in ("timm", "torchvision") for name in _systems(found)):
        return found[0]  # their ResNets are the same, name by name
    if len(found) > 1:
        systems = _systems(found)
        raise WeightsError(
            f"{path} could be of {' or '.join(systems)}, whose names and shapes are the same; say which with "
            f"{_options(systems)}, and with a slash and the architecture if you like (--as "
            f"{systems[0]}/vit_small)"
        )
    return found[0]


def _refuse_names_of_anyone(found: list[Converter], where: Found, path: Path) -> None:
    systems = _systems(found)
    raise WeightsError(
        f"{path} holds a network whose names begin with {where.prefix!r}, as many programs save one, so "
        f"that they do "
        f"not tell whose it is: it could be of {' or '.join(systems)}, or your own. Say which with "
        f"{_options(systems)} ({systems[-1]} where it is your own: nothing is claimed of it then)"
    )


def _options(systems: list[str]) -> str:
    return " or ".join(f"--as {name}" for name in systems)


def _systems(converters: list[Converter] | tuple[Converter, ...]) -> list[str]:
    return [name for converter in converters for name in converter.SYSTEMS]


def _keys(content: object) -> str:
    """What a file that nobody knows begins with."""
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    names = [str(name) for name in list(content)[:_LISTED]]
    more = f" and {len(content) - _LISTED} more" if len(content) > _LISTED else ""
    return f"{', '.join(names) or 'nothing'}{more}"

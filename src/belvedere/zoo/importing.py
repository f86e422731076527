"""Published checkpoints to safetensors and a card: finds the layout by its names and has it converted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast

from belvedere.core.errors import WeightsError
from belvedere.core.files import sha256
from belvedere.zoo.cards import Card, export
from belvedere.zoo.convert import esvit, huggingface, msn, mugs, swav, timm, torchvision
from belvedere.zoo.convert.asked import asked_for
from belvedere.zoo.convert.checkpoint import Asked, Checkpoint, Converted
from belvedere.zoo.reading import read_checkpoint, weights_file


class Converter(Protocol):
    """What a module of `belvedere.zoo.convert` offers."""

    SYSTEMS: tuple[str, ...]

    def recognises(self, checkpoint: Checkpoint) -> bool:
        """Whether a file's names are of this layout."""

    def convert(self, checkpoint: Checkpoint, asked: Asked) -> Converted:
        """The file under our names, all of it."""


CONVERTERS = cast("tuple[Converter, ...]", (msn, swav, esvit, mugs, huggingface, torchvision, timm))
_LISTED = 12


def import_checkpoint(file: str | Path, out_dir: str | Path, *, architecture: str | None = None) -> Card:
    """Convert the published checkpoint `file`, or a folder of Hugging Face's, into a folder that
    `belvedere.zoo.load` reads and a recipe's `init.from` continues; returns its card.

    architecture: what `--as` takes (`convert.asked`): needed where names and shapes leave system or network
    open, and held against them otherwise.

    Raises `WeightsError` if the file is missing, damaged, of an unknown layout, holds anything but plain
    data, or has one tensor too many, too few or of another shape; nothing is written then.
    """
    path = weights_file(Path(file))
    converted = read_published(path, asked_for(architecture))
    card = converted.card.model_copy(update={"source_sha256": sha256(path)})
    return export(Path(out_dir), converted.backbone, card, heads=converted.heads, training=converted.training)


def read_published(path: Path, asked: Asked) -> Converted:
    """What the checkpoint file `path` holds, under our names. Raises `WeightsError` as `import_checkpoint`
    does."""
    checkpoint = read_checkpoint(path)
    return _converter(checkpoint, asked, path).convert(checkpoint, asked)


def _converter(checkpoint: Checkpoint, asked: Asked, path: Path) -> Converter:
    """The one that knows this layout. Raises `WeightsError` if none or several do, or another system was
    asked for."""
    found = [converter for converter in CONVERTERS if converter.recognises(checkpoint)]
    if not found:
        raise WeightsError(
            f"{path} is of no layout known here. It has {_keys(checkpoint.content)}; known are the files of "
            f"{', '.join(_systems(CONVERTERS))}"
        )
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
        choices = " or ".join(f"--as {name}" for name in systems)
        raise WeightsError(
            f"{path} could be of {' or '.join(systems)}, whose names and shapes are the same; say which with "
            f"{choices}, and with a slash and the architecture if you like (--as {systems[0]}/vit_small)"
        )
    return found[0]


def _systems(converters: list[Converter] | tuple[Converter, ...]) -> list[str]:
    return [name for converter in converters for name in converter.SYSTEMS]


def _keys(content: object) -> str:
    """What a file that nobody knows begins with."""
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    names = [str(name) for name in list(content)[:_LISTED]]
    more = f" and {len(content) - _LISTED} more" if len(content) > _LISTED else ""
    return f"{', '.join(names) or 'nothing'}{more}"

"""Reads an exported backbone. Only safetensors are opened here, never a pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load as parse
from torch import Tensor, nn

from belvedere.core.errors import WeightsError
from belvedere.core.match import mismatches
from belvedere.nn.build import Backbone, build
from belvedere.zoo.cards import (
    CARD_NAME,
    HEADS_NAME,
    TRAINING_NAME,
    WEIGHTS_NAME,
    Card,
    checksum,
    read_card,
)
from belvedere.zoo.room import require_agreement, require_readable, require_room

BACKBONE_FOLDER = "backbone"
_SUFFIX = ".safetensors"


class LoadedBackbone(NamedTuple):
    """A backbone in evaluation mode on the CPU, and its card."""

    backbone: Backbone
    card: Card


def load(path: str | Path) -> LoadedBackbone:
    """The backbone at `path`: a run directory, an exported folder, or the weights file in one.

    Raises `WeightsError` if there is none, if weights and card do not belong together, or if one tensor is
    missing, unexpected or of another shape than the card's network has; nothing is ever loaded in part.
    """
    weights = _find(Path(path))
    card, tensors = _read_pair(weights)
    backbone = build(card.backbone)
    fill_(backbone, tensors, origin=str(weights))
    return LoadedBackbone(backbone.eval(), card)


def load_heads(path: str | Path) -> dict[str, Tensor]:
    """What was kept beside the backbone at `path` (see `load`): `<head>` or `<head>.<name>` -> tensor.

    Empty if the card knows of no heads. Raises `WeightsError` as `load` does.
    """
    folder = _find(Path(path)).parent
    card = read_card(folder / CARD_NAME)
    return _read(folder / HEADS_NAME, card.heads_sha256) if card.heads_sha256 else {}


def load_tensors(path: str | Path) -> tuple[Card, dict[str, Tensor]]:
    """The card at `path` (see `load`) and the backbone's tensors by name, without building it."""
    return _read_pair(_find(Path(path)))


def load_training(path: str | Path) -> dict[str, Tensor]:
    """What an imported training file has beside backbone and heads, by its names in the method's state.

    Empty if there is none. Raises `WeightsError` as `load` does.
    """
    folder = _find(Path(path)).parent
    card = read_card(folder / CARD_NAME)
    return _read(folder / TRAINING_NAME, card.training_sha256) if card.training_sha256 else {}


def fill_(module: nn.Module, tensors: Mapping[str, Tensor], *, origin: str) -> None:
    """Put every tensor into `module`, which takes over their dtypes. All names and shapes must fit.

    origin: what the tensors were read from, for the `WeightsError`.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wrong := mismatches(expected, found):
        raise WeightsError(f"{origin} does not fit the network it should fill\n  " + "\n  ".join(wrong))
    module.load_state_dict(dict(tensors), strict=True, assign=True)


def _find(path: Path) -> Path:
    """The weights file that `path` stands for."""
    if path.is_file():
        if path.suffix == _SUFFIX:
            return path
        raise WeightsError(
            f"{path} is not a {_SUFFIX} file; a published checkpoint is converted by `belvedere import`"
        )
    if not path.exists():
        raise WeightsError(f"{path} does not exist")
    for folder in (path / BACKBONE_FOLDER, path):
        if (folder / WEIGHTS_NAME).is_file():
            return folder / WEIGHTS_NAME
    raise WeightsError(
        f"{path} holds no backbone: neither {BACKBONE_FOLDER}/{WEIGHTS_NAME} (which a run directory has from "
        f"its first checkpoint on) nor {WEIGHTS_NAME}"
    )


def _read_pair(weights: Path) -> tuple[Card, dict[str, Tensor]]:
    """Card and tensors that belong together.

    A run that is still training may replace both between the two reads: then the card has changed as well.
    """
    card = read_card(weights.parent / CARD_NAME)
    while True:
        require_room(card, origin=str(weights.parent / CARD_NAME))
        try:
            tensors = _read(weights, card.weights_sha256)
            require_agreement(card, tensors, origin=str(weights))
            return card, tensors
        except WeightsError:
            now = read_card(weights.parent / CARD_NAME)
            if now == card:
                raise
            card = now


def _read(path: Path, expected_sha256: str | None) -> dict[str, Tensor]:
    try:
        require_readable(path)
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    if (found := checksum(content)) != expected_sha256:
        raise WeightsError(
            f"{path} and the {CARD_NAME} beside it do not belong together (SHA-256 {found[:12]}, the card "
            f"says {(expected_sha256 or 'nothing')[:12]}): the file is altered, or its writer was stopped "
            "between the two; continuing the run, or importing again, writes both"
        )
    try:
        return parse(content)
    except SafetensorError as error:
        raise WeightsError(f"{path} is no valid {_SUFFIX} file: {error}") from error

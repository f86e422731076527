"""What people exchange: a backbone as safetensors, with a card that says all there is to know to use it.

backbone/
  backbone.safetensors   the network's tensors under their published names
  heads.safetensors      what the method trained on top of it, if anything was kept
  training.safetensors   of an imported training file: what else continuing needs
  card.yaml              written last; carries the SHA-256 of all
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer
from torch import Tensor, nn
from yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

from belvedere.core.errors import WeightsError
from belvedere.core.files import (
    remove_interrupted,
    replacing,
    require_regular,
    save_tensors,
    sha256,
    write_yaml,
)
from belvedere.core.settings import Settings
from belvedere.nn.spec import BackboneSpec, FeatureSpec

WEIGHTS_NAME = "backbone.safetensors"
HEADS_NAME = "heads.safetensors"
TRAINING_NAME = "training.safetensors"
CARD_NAME = "card.yaml"
_SUMS = {
    "weights_sha256": WEIGHTS_NAME,
    "heads_sha256": HEADS_NAME,
    "training_sha256": TRAINING_NAME,
}
_MOST_CHARACTERS = 4_000_000  # the labels of 20,000 classes are a tenth of it
_MOST_LEVELS = 50


class Card(Settings):
    """A backbone's card.

    system: the method. mean, std: per channel, in [0, 1]. source: the recipe or imported file it comes from,
    source_sha256 that file's checksum. step: optimization steps it was trained for, if known. published:
    accuracies reported for these weights. value_range: what became black and white in training images of more
    than eight bits (`data.range`), where the run said it. dropped: parts of an imported file that are not
    kept, with the reason. notes: what was assumed or found out of an imported file. data: what it was trained
    on. weights_sha256, heads_sha256, training_sha256: filled in by `export`.
    """

    system: str
    backbone: BackboneSpec
    features: FeatureSpec
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    source: str
    source_sha256: str | None = None
    licence: str | None = None
    step: int | None = None
    published: dict[str, float | str] = Field(default_factory=dict)
    dropped: dict[str, str] = Field(default_factory=dict)
    notes: dict[str, str] = Field(default_factory=dict)
    data: dict[str, Any] = Field(default_factory=dict)
    value_range: tuple[float, float] | None = None
    weights_sha256: str | None = None
    heads_sha256: str | None = None
    training_sha256: str | None = None

    @model_serializer(mode="wrap")
    def _without_unused(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = written(self)
        return {name: value for name, value in values.items() if name != "value_range" or value is not None}


def export(
    directory: Path,
    backbone: nn.Module | Mapping[str, Tensor],
    card: Card,
    *,
    heads: Mapping[str, nn.Module | Tensor] | None = None,
    training: Mapping[str, Tensor] | None = None,
) -> Card:
    """Write backbone, heads and card to `directory`, replacing what is there; returns the card as written.

    training: tensors by their names in the method's state, for a run that continues.

    All files are written beside those that are there and take their places when all are whole, the card last:
    a disk that fills leaves what was there, and a reader always finds a matching set or, when the writer was
    killed between two, a card whose checksum does not hold, which it reports.
    """
    remove_interrupted(directory)
    state = backbone.state_dict() if isinstance(backbone, nn.Module) else backbone
    parts = {
        HEADS_NAME: _head_tensors(heads or {}),
        TRAINING_NAME: _head_tensors(training or {}),
        WEIGHTS_NAME: _head_tensors(state),
    }
    is_new = not directory.exists()
    try:
        with ExitStack() as last_comes_first:
            place = last_comes_first.enter_context(replacing(directory / CARD_NAME))
            sums: dict[str, str | None] = dict.fromkeys(parts)
            for name, kept in reversed(parts.items()):
                if kept:
                    temporary = last_comes_first.enter_context(replacing(directory / name))
                    save_tensors(temporary, kept)
                    sums[name] = sha256(temporary)
            written = card.model_copy(update={key: sums[name] for key, name in _SUMS.items()})
            write_yaml(place, written.model_dump(mode="json"))
    except BaseException:
        if is_new and directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()
        raise
    for name, kept in parts.items():
        if not kept:
            (directory / name).unlink(missing_ok=True)
    return written


def read_card(path: Path) -> Card:
    """The card in the file `path`. Raises `WeightsError` listing every mistake in it."""
    try:
        require_regular(path, most_bytes=4 * _MOST_CHARACTERS)
        text = path.read_text(encoding="utf-8-sig")
        _check_text(text)
        content = yaml.safe_load(text)
        return Card.model_validate_json(json.dumps(content))
    except FileNotFoundError as error:
        raise WeightsError(
            f"{path} is missing: weights are read with their card, which says how to build the network; "
            "`belvedere import` writes one for a published checkpoint"
        ) from error
    except ValidationError as error:
        mistakes = [f"{'.'.join(map(str, one['loc'])) or 'card'}: {one['msg']}" for one in error.errors()]
        raise WeightsError(f"{path} is no valid card\n  " + "\n  ".join(mistakes)) from error
    except (OSError, ValueError, yaml.YAMLError, TypeError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error


def _check_text(text: str) -> None:
    """Raise ValueError for a text that a reader would spend any time or memory on."""
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"it has {len(text):,} characters, more than {_MOST_CHARACTERS:,}")
    level = 0
    for event in yaml.parse(text):
        level += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if level > _MOST_LEVELS:
            raise ValueError(f"it is nested more than {_MOST_LEVELS} levels deep")
        if isinstance(event, AliasEvent):
            raise ValueError("it has an alias (*NAME), which may stand for any amount; write it out")


def checksum(content: bytes) -> str:
    """SHA-256 of a file's content, as the card keeps it."""
    return hashlib.sha256(content).hexdigest()


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def _head_tensors(heads: Mapping[str, nn.Module | Tensor]) -> dict[str, Tensor]:
    """All heads' tensors in one dictionary: `<head>` for a tensor, `<head>.<name>` for a module's."""
    flat: dict[str, Tensor] = {}
    for head, value in heads.items():
        if isinstance(value, Tensor):
            flat[head] = _plain(value)
        else:
            flat |= {f"{head}.{name}": _plain(tensor) for name, tensor in value.state_dict().items()}
    return flat

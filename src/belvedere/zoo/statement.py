"""What an export says of itself inside its file, so that an import needs no hints: the card, as JSON.

It stands where other libraries do not look: in the metadata of a safetensors file, or as one more record of
the zip archive that `torch.save` writes.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from belvedere.core.errors import WeightsError
from belvedere.zoo.cards import Card

KEY = "belvedere"
_RECORD = "belvedere.json"
_SUMS = ("weights_sha256", "heads_sha256", "training_sha256", "source_sha256")
_LARGEST_BYTES = 16 << 20


class Statement(NamedTuple):
    """layout: the target of the export (`timm`, `published`, ...). card: of the weights as they are written,
    without checksums."""

    layout: str
    card: Card


def written(statement: Statement) -> str:
    """The statement as a line of JSON."""
    card = statement.card.model_dump(mode="json", exclude=set(_SUMS))
    return json.dumps({"layout": statement.layout, "card": card})


def metadata(statement: Statement) -> dict[str, str]:
    """The metadata of a safetensors file that says so; `format` is what transformers asks for."""
    return {"format": "pt", KEY: written(statement)}


def append_to_zip(path: Path, statement: Statement) -> None:
    """Add the statement to a file of `torch.save`'s, which reads records by name and passes over others."""
    with zipfile.ZipFile(path, "a") as archive:
        folder = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{folder}/{_RECORD}", written(statement))


def of_safetensors(path: Path) -> Statement | None:
    """What the metadata of a safetensors file says; None where there is no such statement."""
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is no valid safetensors file: {error}") from error
    return None if text is None else _parsed(text, path)


def of_zip(path: Path) -> Statement | None:
    """What a record of a zip archive says; None where there is no such record, or no readable archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.count("/") == 1]
            found = [name for name in names if name.endswith(f"/{_RECORD}")]
            if not found:
                return None
            if archive.getinfo(found[0]).file_size > _LARGEST_BYTES:
                raise WeightsError(f"{path}: {_RECORD} in it is larger than any that an export writes")
            text = archive.read(found[0]).decode()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError):
        return None  # reading the checkpoint says what is wrong with it
    return _parsed(text, path)


def _parsed(text: str, path: Path) -> Statement:
    try:
        content = json.loads(text)
        layout, card = content["layout"], Card.model_validate_json(json.dumps(content["card"]))
    except (ValueError, TypeError, KeyError, RecursionError, ValidationError) as error:
        raise WeightsError(
            f"{path}: what belvedere's export says in it cannot be read ({type(error).__name__}); export "
            "again, or save its tensors alone in a new file"
        ) from error
    if not isinstance(layout, str):
        raise WeightsError(f"{path}: what belvedere's export says in it has the layout {layout!r}")
    return Statement(layout, card)

"""Which column of a table holds the images, and which their labels."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from belvedere.core.errors import DataError

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")


class Columns(NamedTuple):
    """Which column holds images and which labels; names of the classes if the file gives them."""

    image: str
    label: str | None
    classes: list[str] | None


def columns_of(schema: Any, file: str) -> Columns:
    """Which columns to take; raises DataError listing them all."""
    candidates = [field.name for field in schema if _holds_images(field.type)]
    image = next((name for name in IMAGE_COLUMNS if name in candidates), None)
    if image is None:
        if len(candidates) != 1:
            listed = ", ".join(f"{field.name} ({_short(field.type)})" for field in schema)
            raise DataError(
                f"{file} (data.path) has {'no' if not candidates else 'more than one'} column of images; one "
                f"must be named {' or '.join(IMAGE_COLUMNS)}, or be the only one of bytes: {listed}"
            )
        image = candidates[0]
    label = next((name for name in LABEL_COLUMNS if name in schema.names and _labels(schema, name)), None)
    return Columns(image, label, _class_names(schema, label))


def _holds_images(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        names = [kind.field(at).name for at in range(kind.num_fields)]
        return "bytes" in names and _holds_images(kind.field(names.index("bytes")).type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _labels(schema: Any, name: str) -> bool:
    import pyarrow.types as types

    kind = schema.field(name).type
    return bool(types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind))


def _short(kind: Any) -> str:
    text = str(kind)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _class_names(schema: Any, label: str | None) -> list[str] | None:
    """The names that Hugging Face's description of the columns gives the classes."""
    content = (schema.metadata or {}).get(b"huggingface")
    if content is None or label is None:
        return None
    try:
        names = json.loads(content)["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None

"""Which column of a table holds the images, and which their labels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from belvedere.core.errors import DataError
from belvedere.data.sources.choice import (
    IMAGE,
    LABELS_ARE,
    NO_LABEL,
    NotAClassError,
    as_class,
    chosen_image,
    chosen_label,
    dug,
    listed,
    told_label,
)

IMAGE_COLUMNS = ("image", "img")


class Columns(NamedTuple):
    """Which column holds images and which labels (with dots for one in a struct); names of the classes if the
    file gives them; chosen: whether data.label says the column; notes: what to tell about all this."""

    image: str
    label: str | None
    classes: list[str] | None
    chosen: bool
    notes: tuple[str, ...]

    @property
    def label_column(self) -> str | None:
        """The column that the label is in."""
        return None if self.label is None else self.label_path[0]

    @property
    def label_path(self) -> list[str]:
        """The column, and the names in its structs."""
        assert self.label is not None
        return self.label.split("\0")

    def values(self, column: Iterable[Any]) -> Iterator[Any]:
        """What the rows of the label's column say as labels."""
        inner = self.label_path[1:]
        return (dug(value, inner) if inner else value for value in column)

    def without_labels(self, why: str) -> Columns:
        others = [note for note in self.notes if not note.startswith(LABELS_ARE)]
        return self._replace(label=None, classes=None, notes=(why, *others))


def columns_of(schema: Any, file: str, *, image: str | None = None, label: str | None = None) -> Columns:
    """Which columns to take; image, label: the names that data.image and data.label give. Raises DataError
    listing all columns where the choice is open or not there."""
    image = _image_column(schema, file, image)
    fields = dict(_leaves(schema))
    others = [name for name, _ in fields.items() if name.split("\0")[0] != image]
    shown = {name.replace("\0", "."): name for name in others}
    if label is None:
        usable = [name for name in others if "\0" not in name and _usable(fields[name])]
        found = chosen_label(usable, given=None, where=file, noun="column")
    else:
        whole = [
            name for name in schema.names if name not in shown
        ]  # structs and lists, refused by their values
        chosen = chosen_label([*shown, *whole], given=label, where=file, noun="column")
        found = shown.get(str(chosen), chosen)
    notes = [told_label(None if found is None else found.replace("\0", "."), shown, "column")]
    rest = [name for name, inner in shown.items() if inner != found]
    if rest and (found is not None or notes == [None]):
        notes.append(f"columns that were not used: {listed(rest)}")
    told = tuple(note for note in notes if note is not None)
    return Columns(image, found, _class_names(schema, found), label is not None, told)


def _image_column(schema: Any, file: str, given: str | None) -> str:
    candidates = [field.name for field in schema if _holds_images(field.type)]
    every = ", ".join(f"{field.name} ({_short(field.type)})" for field in schema)
    if given is not None:
        name = chosen_image(schema.names, given, where=file, noun="column")
        if name in candidates:
            return name
        raise DataError(
            f"{file} (data.path) has no images in the column {name!r}, which {IMAGE} names; the columns are "
            f"{every}"
        )
    usual = [name for name in IMAGE_COLUMNS if name in candidates]
    if len(usual) == 1 or len(candidates) == 1:
        return (usual or candidates)[0]
    raise DataError(
        f"{file} (data.path) has {'no' if not candidates else 'more than one'} column of images; one must be "
        f"named {' or '.join(IMAGE_COLUMNS)}, be the only one of bytes, or be chosen by {IMAGE}: {every}"
    )


def classes_in(values: Iterable[Any], columns: Columns, file: str) -> set[str]:
    """The classes that the labels name. Raises DataError, or NotAClassError where nobody chose the column."""
    found = set()
    for value in values:
        text = class_of(value, columns, file)
        if text is not None:
            found.add(text)
    return found


def class_of(value: Any, columns: Columns, file: str) -> str | None:
    """The class of one label; raises DataError, or NotAClassError where nobody chose the column."""
    try:
        return as_class(value)
    except NotAClassError as error:
        if not columns.chosen:
            raise
        name = ".".join(columns.label_path)
        raise DataError(
            f"{file} (data.path) has no classes in the column {name!r} (data.label): a label is {error}; "
            f"choose another column, or none"
        ) from error


def unusable(columns: Columns, error: NotAClassError) -> str:
    """What to say of a column that would be taken for the labels, if its values were classes."""
    return (
        f"{NO_LABEL}: the column {'.'.join(columns.label_path)!r} holds what is no class, for a "
        f"label is {error}; data.label chooses another column"
    )


def number_of(text: str, columns: Columns, file: str) -> int:
    """The number of a class by the file's own names of classes. Raises DataError."""
    classes = columns.classes or []
    if text.removeprefix("-").isdecimal() and -1 <= int(text) < len(classes):
        return int(text)
    if text in classes:
        return classes.index(text)
    raise DataError(
        f"{file} (data.path) labels an image {text} in the column {'.'.join(columns.label_path)!r}, but has "
        f"the classes 0 to {len(classes) - 1}"
    )


def _leaves(schema: Any) -> Iterator[tuple[str, Any]]:
    """All columns and their types, those in structs by their names below each other."""
    import pyarrow.types as types

    waiting = [(field.name, field.type) for field in reversed(list(schema))]
    while waiting:
        name, kind = waiting.pop()
        if types.is_struct(kind) and not _holds_images(kind):
            inner = [kind.field(at) for at in range(kind.num_fields)]
            waiting += [(f"{name}\0{field.name}", field.type) for field in reversed(inner)]
        else:
            yield name, kind


def _holds_images(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        names = [kind.field(at).name for at in range(kind.num_fields)]
        return "bytes" in names and _holds_images(kind.field(names.index("bytes")).type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _usable(kind: Any) -> bool:
    """Whether values of this type may be classes."""
    import pyarrow.types as types

    if types.is_dictionary(kind):
        return _usable(kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _usable(kind.value_type)
    tests = (
        *(types.is_integer, types.is_floating, types.is_boolean, types.is_decimal),
        *(types.is_string, types.is_large_string, types.is_string_view),
    )
    return any(test(kind) for test in tests)


def _short(kind: Any) -> str:
    text = str(kind)
    return text if len(text) <= 40 else f"{text[:37]}..."


def merged(schemas: Iterable[Any]) -> Any:
    """A schema of all columns that any of the files has: the labels may be missing in the first one."""
    import pyarrow as pa

    fields: dict[str, Any] = {}
    for schema in schemas:
        for field in schema:
            known = fields.setdefault(field.name, field)
            if pa.types.is_null(known.type):  # a column without a value says no type
                fields[field.name] = field
    return pa.schema(list(fields.values()))


def classes_of_all(
    schemas: Sequence[Any], files: Sequence[str], label: str | None, *, where: str
) -> list[str] | None:
    """The names that the files give the numbers of the classes. Raises DataError where they differ."""
    named = {
        file: names
        for file, schema in zip(files, schemas, strict=True)
        if (names := _class_names(schema, label)) is not None
    }
    first = next(iter(named), None)
    if first is None:
        return None
    other = next((file for file, names in named.items() if names != named[first]), None)
    if other is not None:
        raise DataError(
            f"{where} (data.path): the files number their classes differently: {first} "
            f"{listed(named[first])}; {other} {listed(named[other])}; give each as a part of a mixture, "
            f"which joins classes by name"
        )
    return named[first]


def _class_names(schema: Any, label: str | None) -> list[str] | None:
    """The names that Hugging Face's description of the columns gives the classes."""
    content = (schema.metadata or {}).get(b"huggingface")
    if content is None or label is None:
        return None
    try:
        described = dug(json.loads(content), ["info", "features", *label.split("\0")])
        names = dug(described, ["names"]) or dug(described, ["feature", "names"])
    except (ValueError, TypeError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None

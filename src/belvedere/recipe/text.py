"""YAML as recipes use it: text to plain values that remember their lines, and back.

Stricter and more literal than PyYAML's own rules: `1e-3` is a number, only `true` and `false` are booleans
(`no`, `on` are text), there are no dates, tags or merge keys, a key given twice is an error. Lists become
tuples, because a recipe is frozen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.events import CollectionEndEvent, CollectionStartEvent, Event
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

Path = tuple[str, ...]

_TAG = "tag:yaml.org,2002:"
_KEY_TAGS = tuple(_TAG + name for name in ("str", "null", "bool", "int", "float"))
_RULES = (
    ("null", re.compile(r"^(?:~|null|)$"), "~n\0"),
    ("bool", re.compile(r"^(?:true|false)$"), "tf"),
    ("int", re.compile(r"^[-+]?[0-9]+$"), "-+0123456789"),
    (
        "float",
        re.compile(r"^(?:[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan)$"),
        "-+0123456789.",
    ),
)
_MOST_VALUES = 10_000  # a recipe has about a hundred; aliases of aliases could make a small file endless
_MOST_DIGITS = 18  # more than any count, and what follows from a larger one leaves the range of floats
_MOST_LEVELS = 32  # a recipe has five; what reads and checks them calls itself at every level
MOST_CHARACTERS = 500_000  # a recipe has a few thousand, and longer texts take minutes to read


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, _pattern, _first in _RULES:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            _TAG + _name, _pattern, ["" if letter == "\0" else letter for letter in _first]
        )


def _mapping(dumper: yaml.SafeDumper, values: dict[str, Any]) -> Node:
    """Short sections of single values stand in one line, as people write them."""
    short = not any(isinstance(value, (dict, list)) for value in values.values()) and len(str(values)) < 90
    return dumper.represent_mapping(_TAG + "map", values.items(), flow_style=short)


_Dumper.add_representer(dict, _mapping)
_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence(_TAG + "seq", items, flow_style=True)
)


@dataclass(frozen=True)
class Mistake:
    """One thing wrong: where (line, None for an override; dotted path) and what, in words."""

    line: int | None
    path: Path
    words: str


@dataclass
class Written:
    """What a file says. values: nested dicts, tuples and scalars; lines: of every key path, from 1; unread:
    keys with a value that could not be read, which stands in `mistakes`, and is None in `values`."""

    values: dict[str, Any]
    lines: dict[Path, int] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)
    unread: list[Path] = field(default_factory=list)


def read(text: str) -> Written:
    """The values of one YAML document, whose top level must be keys; mistakes are collected, not raised."""
    written = Written({})
    try:
        _check_size(text)
        root = yaml.compose(text, Loader=_Loader)
    except _NoRecipeError as error:
        written.mistakes.append(error.mistake)
        return written
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
        words = f"not YAML: {problem}"
        if "\t" in text and "\\t" in str(problem):
            words += " (indent with spaces)"
        written.mistakes.append(Mistake(mark.line + 1 if mark else 1, (), words))
        return written
    if not isinstance(root, MappingNode):
        found = (
            "nothing" if root is None else "a list" if isinstance(root, SequenceNode) else "a single value"
        )
        written.mistakes.append(Mistake(1, (), f"holds {found}; a recipe is `key: value` lines"))
        return written
    try:
        reader = _Reader(written)
        if root.tag != _TAG + "map":
            reader.mistake(root, (), f"tags ({_told_tag(root)}) are not allowed in a recipe")
        written.values = reader.mapping(root, ())
    except _NoRecipeError as error:
        return Written({}, mistakes=[error.mistake])
    return written


class _NoRecipeError(Exception):
    """The text is larger than any recipe; whatever else is wrong in it does not matter."""

    def __init__(self, line: int, path: Path, words: str) -> None:
        super().__init__(words)
        self.mistake = Mistake(line, path, words)


def _check_size(text: str) -> None:
    """Raises _NoRecipeError before anything calls itself for every level of nesting."""
    if len(text) > MOST_CHARACTERS:
        words = f"not a recipe: {len(text):,} characters, more than {MOST_CHARACTERS:,}"
        raise _NoRecipeError(1, (), words)
    level = 0
    for event in yaml.parse(text, Loader=_Loader):
        level += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if level > _MOST_LEVELS:
            raise _NoRecipeError(_line(event), (), _TOO_DEEP)


_TOO_DEEP = f"not a recipe: nested more than {_MOST_LEVELS} levels deep"


class _Reader:
    """Turns nodes into values, noting lines and mistakes in `written`."""

    def __init__(self, written: Written) -> None:
        self.written = written
        self.open: list[Node] = []
        self.count = 0

    def value(self, node: Node, path: Path) -> Any:
        self.count += 1
        if self.count > _MOST_VALUES:
            raise _NoRecipeError(_line(node), path, f"more than {_MOST_VALUES:,} values, aliases counted")
        if node in self.open:
            return self.unread(node, path, "an alias that contains itself")
        if isinstance(node, ScalarNode):
            return self.scalar(node, path)
        if node.tag not in (_TAG + "map", _TAG + "seq"):
            return self.unread(node, path, f"tags ({_told_tag(node)}) are not allowed in a recipe")
        if isinstance(node, MappingNode):
            return self.mapping(node, path)
        with self.opened(node, path):
            return tuple(self.item(child, (*path, str(i))) for i, child in enumerate(node.value))

    @contextmanager
    def opened(self, node: Node, path: Path) -> Iterator[None]:
        """While the values in a section or list are read."""
        if len(self.open) >= _MOST_LEVELS:  # aliases may nest where the text does not
            raise _NoRecipeError(_line(node), path[:3], _TOO_DEEP)
        self.open.append(node)
        yield
        self.open.pop()

    def item(self, node: Node, path: Path) -> Any:
        self.written.lines[path] = node.start_mark.line + 1
        return self.value(node, path)

    def mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        first_line: dict[str, int] = {}
        with self.opened(node, path):
            for key_node, child in node.value:
                line = _line(key_node)
                if not isinstance(key_node, ScalarNode) or key_node.tag not in _KEY_TAGS:
                    self.mistake(key_node, path, "a key must be a single word without a tag")
                    continue
                key = key_node.value
                if key in first_line:
                    words = f"given twice, in lines {first_line[key]} and {line}"
                    self.written.mistakes.append(Mistake(line, (*path, key), words))
                    continue
                first_line[key] = line
                self.written.lines[(*path, key)] = line
                result[key] = self.value(child, (*path, key))
        return result

    def scalar(self, node: ScalarNode, path: Path) -> Any:
        kind = node.tag.removeprefix(_TAG)
        if kind == "str":
            return node.value
        try:
            return _scalar(kind, node.value)
        except KeyError:
            return self.unread(node, path, f"tags ({_told_tag(node)}) are not allowed in a recipe")
        except ValueError as error:
            return self.unread(
                node, path, f"{_short(node.value)} is not allowed as {_told_tag(node)}: {error}"
            )

    def mistake(self, node: Node, path: Path, words: str) -> None:
        self.written.mistakes.append(Mistake(_line(node), path, words))

    def unread(self, node: Node, path: Path, words: str) -> None:
        """A value that cannot be read: None stands for it."""
        self.mistake(node, path, words)
        self.written.unread.append(path)


def _line(found: Node | Event) -> int:
    return found.start_mark.line + 1 if found.start_mark else 1


def _told_tag(node: Node) -> str:
    """The tag as it is written."""
    return _short(node.tag.replace(_TAG, "!!"), quoted=False)


def _short(text: str, *, quoted: bool = True) -> str:
    text = text if len(text) <= 40 else f"{text[:37]}..."
    return repr(text) if quoted or not text.isprintable() else text


def _scalar(kind: str, text: str) -> Any:
    if kind == "float":
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    if kind == "int":
        if len(text) > _MOST_DIGITS + 1 or abs(int(text)) >= 10**_MOST_DIGITS:
            raise ValueError(f"a whole number has at most {_MOST_DIGITS} digits")
        return int(text)
    if kind == "bool":
        if text not in ("true", "false"):
            raise ValueError("neither true nor false")
        return text == "true"
    if kind != "null":
        raise KeyError(kind)
    if text not in ("~", "null", ""):
        raise ValueError("not null")
    return None


def read_value(text: str) -> Any:
    """One value from a command line. Lists, sections and quoted text follow YAML; anything else is a number,
    true, false, null or, word for word, text: `#`, `:` and `=` need no quotes. Raises ValueError."""
    text = text.strip()
    if text[:1] in ("[", "{", "'", '"'):
        written = read(f"value: {text}\n")
        if written.mistakes or set(written.values) != {"value"}:
            reason = written.mistakes[0].words if written.mistakes else "more than one value"
            raise ValueError(reason)
        return written.values["value"]
    for kind, pattern, _ in _RULES:
        if pattern.match(text):
            return _scalar(kind, text)
    return text


def write(values: dict[str, Any]) -> str:
    """YAML that `read` turns back into `values`; keys keep their order."""
    return yaml.dump(
        _plain(values),
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=False,
        width=100,
        allow_unicode=True,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value

"""YAML as recipes use it: text to plain values that remember their lines, and back.

Stricter and more literal than PyYAML's own rules: `1e-3` is a number, only `true` and `false` are booleans
(`no`, `on` are text), there are no dates, tags or merge keys, a key given twice is an error. Lists become
tuples, because a recipe is frozen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

Path = tuple[str, ...]

_TAG = "tag:yaml.org,2002:"
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
    """What a file says. values: nested dicts, tuples and scalars; lines: of every key path, from 1."""

    values: dict[str, Any]
    lines: dict[Path, int] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)


def read(text: str) -> Written:
    """The values of one YAML document, whose top level must be keys; mistakes are collected, not raised."""
    written = Written({})
    try:
        root = yaml.compose(text, Loader=_Loader)
    except RecursionError:
        written.mistakes.append(Mistake(1, (), "not a recipe: nested too deeply"))
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
    written.values = _Reader(written).value(root, ())
    return written


class _Reader:
    """Turns nodes into values, noting lines and mistakes in `written`."""

    def __init__(self, written: Written) -> None:
        self.written = written
        self.open: list[Node] = []
        self.count = 0

    def value(self, node: Node, path: Path) -> Any:
        self.count += 1
        if node in self.open or self.count > _MOST_VALUES:
            reason = "an alias that contains itself" if node in self.open else "too many values"
            if self.count <= _MOST_VALUES + 1:
                self.mistake(node, path, reason)
            return None
        if isinstance(node, ScalarNode):
            return self.scalar(node, path)
        if not node.tag.startswith(_TAG) or node.tag[len(_TAG) :] not in ("map", "seq"):
            self.mistake(node, path, f"tags ({node.tag}) are not allowed in a recipe")
            return None
        self.open.append(node)
        result = (
            self.mapping(node, path)
            if isinstance(node, MappingNode)
            else tuple(self.item(child, (*path, str(i))) for i, child in enumerate(node.value))
        )
        self.open.pop()
        return result

    def item(self, node: Node, path: Path) -> Any:
        self.written.lines[path] = node.start_mark.line + 1
        return self.value(node, path)

    def mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        first_line: dict[str, int] = {}
        for key_node, child in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode):
                self.mistake(key_node, path, "a key must be a single word")
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
        except (KeyError, ValueError):
            self.mistake(node, path, f"{node.value!r} with the tag {node.tag} is not allowed in a recipe")
            return None

    def mistake(self, node: Node, path: Path, words: str) -> None:
        self.written.mistakes.append(Mistake(node.start_mark.line + 1, path, words))


def _scalar(kind: str, text: str) -> Any:
    if kind == "float":
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    if kind == "int":
        return int(text)
    if kind == "bool":
        return {"true": True, "false": False}[text]
    return {"null": None}[kind]


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

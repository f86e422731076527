"""Recipe files, shipped or your own, with overrides: read, checked, written again, compared."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, cast

from belvedere.core.errors import RecipeError
from belvedere.methods.options.frozen import EPOCHS, STEPS
from belvedere.recipe.checks import Finding, flat
from belvedere.recipe.explain import did_you_mean, dotted, given
from belvedere.recipe.mistakes import validated
from belvedere.recipe.schema import Recipe
from belvedere.recipe.shipped import recipe_names, recipe_text
from belvedere.recipe.text import MOST_CHARACTERS, Mistake, Path, Written, read, read_value, write


def load_recipe(name_or_path: str | FilePath, overrides: Sequence[str] = ()) -> Recipe:
    """The shipped recipe of this name, or the one in this file, with `key.path=value` overrides applied.

    Raises RecipeError, which tells every mistake at once: file and line (or `override`), dotted key, what was
    given, what is allowed, what was probably meant.
    """
    label, text = _source(name_or_path)
    draft = _Draft(read(text))
    for override in overrides:
        draft.apply(override)
    split_is_default = isinstance(name_or_path, str) and name_or_path in recipe_names()
    split_is_default = split_is_default and not draft.is_given(("data", "split"))
    remarks = _without_split(draft.written.values) if split_is_default else ()
    recipe = _finished(draft, label)
    recipe._split_is_default, recipe._remarks = split_is_default, remarks
    return recipe


def _without_split(values: dict[str, Any]) -> tuple[str, ...]:
    """Take the split that came with a recipe from `values` where `data.path` is a list, whose parts say
    themselves which split they are; returns what to tell of it."""
    data = values.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("path"), tuple) or data.get("split") is None:
        return ()
    values["data"] = data | {"split": None}
    words = (
        f"data.split: {data['split']} comes with the recipe {values.get('name')} and is not used, because "
    )
    return (words + "data.path is a list; give each of its parts its `split`, or all its images are used",)


def read_recipe(text: str, *, label: str = "recipe.yaml") -> Recipe:
    """The recipe in a text that `dump` wrote, as saved with a run. Raises RecipeError."""
    return _finished(_Draft(read(text)), label)


def read_recipe_file(file: FilePath) -> Recipe:
    """The recipe that was saved with a run. Raises RecipeError for a file that is none, in any way."""
    return read_recipe(_text(file), label=str(file))


def _source(name_or_path: str | FilePath) -> tuple[str, str]:
    """(what to call it in messages, the text)."""
    name = str(name_or_path)
    if name in recipe_names() and isinstance(name_or_path, str):
        return f"{name}.yaml", recipe_text(name)
    file = FilePath(name_or_path)
    if file.suffix not in (".yaml", ".yml") and not _exists(file):
        told = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."
        words = f"there is no recipe {told!r}{did_you_mean(name, recipe_names())}\n"
        words += f"  shipped recipes: {', '.join(recipe_names())}\n  or give the path of a .yaml file"
        raise RecipeError(words)
    return name, _text(file)


_LONGEST_NAME = 200


def _exists(file: FilePath) -> bool:
    try:
        return file.exists()
    except (OSError, ValueError):  # a name that is too long, or one with a zero byte
        return False


def _text(file: FilePath) -> str:
    """What stands in a recipe's file. Raises RecipeError."""
    name = str(file) if len(str(file)) <= _LONGEST_NAME else f"{str(file)[: _LONGEST_NAME - 3]}..."
    try:
        kind = stat.S_IFMT(file.stat().st_mode)
        if kind not in (stat.S_IFREG, stat.S_IFDIR):  # a pipe that nobody writes to would be waited for
            raise RecipeError(f"{name}: no regular file; save the recipe in one")
        with file.open("rb") as opened:
            data = opened.read(4 * MOST_CHARACTERS + 1)
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or error
        raise RecipeError(f"{name}: cannot be read: {words}; give a recipe's name or a .yaml file") from error
    if len(data) > 4 * MOST_CHARACTERS:
        raise RecipeError(f"{name}: not a recipe: more than {4 * MOST_CHARACTERS:,} bytes")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise RecipeError(f"{name}: a text in UTF-16; save it in UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        words = f"{name}: not a text file in UTF-8 ({error.reason} at byte {error.start}); save it in UTF-8"
        raise RecipeError(words) from error


def _quoted(text: str) -> str:
    return given(text).removeprefix("the text ")


_FROZEN: tuple[Path, ...] = (("method", STEPS), ("method", EPOCHS))
ALTERNATIVES = {path: tuple(other for other in _FROZEN if other != path) for path in _FROZEN}
"""Keys of which a recipe has one: an override of one takes the other's place."""


@dataclass
class _Draft:
    """A recipe as written, with overrides; knows where each key came from."""

    written: Written
    overridden: list[Path] = field(default_factory=list)

    @property
    def mistakes(self) -> list[Mistake]:
        return self.written.mistakes

    @property
    def unreadable(self) -> bool:
        """Whether the file gave no keys at all, so that everything would be reported missing."""
        return bool(self.mistakes) and not self.written.lines

    def apply(self, override: str) -> None:
        """Put one `key.path=value` in; the value is everything behind the first `=`."""
        key, equals, text = override.partition("=")
        path = tuple(key.strip().split("."))
        if not equals or not all(path):
            images = not equals and (os.sep in override or os.path.exists(override))
            meant = f", for images {_quoted(f'data.path={override}')}" if images else ""
            self._mistake((), f"{_quoted(override)} is no override; write key.path=value{meant}")
            return
        before = [other for other in self.overridden if other[: len(path)] == path]
        if before:
            self._mistake(path, f"given twice (before it: {dotted(before[-1])})")
            return
        try:
            value = read_value(text)
        except ValueError as error:
            self._mistake(path, f"{_quoted(text)} cannot be read: {error}")
            self.written.unread.append(path)
            return
        section = self._section(path)
        if section is None:
            return
        section[path[-1]] = value
        for other in ALTERNATIVES.get(path, ()):  # the recipe gave one of them, the person another
            if value is not None and other not in self.overridden:
                section.pop(other[-1], None)
        self.overridden.append(path)
        self.written.unread[:] = [known for known in self.written.unread if known[: len(path)] != path]
        for line_path in [known for known in self.written.lines if known[: len(path)] == path]:
            del self.written.lines[line_path]

    def is_given(self, path: Path) -> bool:
        """Whether an override gave the key at `path`, alone or with the section around it."""
        return any(path[: len(known)] == known for known in self.overridden)

    def _section(self, path: Path) -> dict[str, Any] | None:
        """The section that holds the key at `path`, copied along the way: an alias shares it with others."""
        section = self.written.values
        for depth, part in enumerate(path[:-1], start=1):
            inner = section.get(part)
            if inner is not None and not isinstance(inner, dict):
                words = f"{dotted(path[:depth])} is {given(inner)}, no section; give it as a whole"
                self._mistake(path, words)
                return None
            section[part] = dict(inner or {})
            section = section[part]
        return section

    def _mistake(self, path: Path, words: str) -> None:
        self.mistakes.append(Mistake(None, path, words))

    def located(self, finding: Finding) -> Mistake:
        """The finding with the line of its key, or of the closest section around it."""
        path, words = finding
        if path not in self.written.lines and any(known[: len(path)] == path for known in self.overridden):
            return Mistake(None, path, words)
        for depth in range(len(path), 0, -1):
            if path[:depth] in self.overridden:
                return Mistake(None, path, words)
            if path[:depth] in self.written.lines:
                return Mistake(self.written.lines[path[:depth]], path, words)
        return Mistake(1, path, words)


def _finished(draft: _Draft, label: str) -> Recipe:
    if draft.unreadable:
        raise RecipeError(_report(label, draft.mistakes))
    recipe, findings = validated(draft.written.values, unreadable=draft.written.unread)
    mistakes = draft.mistakes + [draft.located(finding) for finding in findings]
    if mistakes:
        raise RecipeError(_report(label, mistakes))
    return cast(Recipe, recipe)


def _report(label: str, mistakes: list[Mistake]) -> str:
    """All mistakes, one a line, in the order of the file and overrides last."""
    ordered = sorted(
        dict.fromkeys(mistakes), key=lambda mistake: (mistake.line is None, mistake.line or 0, mistake.path)
    )
    lines = []
    for mistake in ordered:
        where = "override" if mistake.line is None else f"{label}:{mistake.line}"
        key = f"{dotted(mistake.path)}: " if mistake.path else ""
        lines.append(f"{where}: {key}{mistake.words}")
    if len(lines) == 1:
        return lines[0]
    return "\n".join([f"{len(lines)} mistakes in {label}:", *(f"  {line}" for line in lines)])


def dump(recipe: Recipe) -> str:
    """The whole recipe as YAML, defaults included; loads back to an equal recipe."""
    return write(recipe.model_dump())


def _resumable(recipe: Recipe) -> dict[str, Any]:
    """{dotted key: value} of what may not change while a run lasts: everything outside `run`, but for
    `measured`, which changes nothing of it."""
    values = {name: value for name, value in recipe.model_dump().items() if name not in ("run", "measured")}
    return {".".join(path): value for path, value in flat(values)}


def difference(old: Recipe, new: Recipe, *, steps_per_epoch: int | None = None) -> list[str]:
    """What differs outside `run`, one `key: old -> new` each, sorted; empty if a run may continue.

    steps_per_epoch: of the run; then a duration in epochs is the same as one in as many steps.
    """
    if steps_per_epoch is not None and old.method != new.method:
        options = [recipe.method.in_steps(steps_per_epoch) for recipe in (old, new)]
        if options[0] == options[1]:
            old = old.model_copy(update={"method": new.method})
    before, after = _resumable(old), _resumable(new)
    return [
        f"{key}: {_shown(before, key)} -> {_shown(after, key)}"
        for key in sorted(before.keys() | after.keys())
        if _shown(before, key) != _shown(after, key)
    ]


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else "(absent)"


def recipe_hash(recipe: Recipe) -> str:
    """A short name of everything outside `run`: equal exactly where `difference` is empty (SHA-256)."""
    text = json.dumps(_resumable(recipe), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

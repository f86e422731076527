"""Torchvision's data sets by name: `torchvision:FashionMNIST?root=DIR&download=true`."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from belvedere.core.cache import writable_folder
from belvedere.core.errors import DataError, MissingPackageError, UndividedError
from belvedere.core.packages import extra_command, package_command
from belvedere.data.sources.arrays import checked_pixels, joined_arrays
from belvedere.data.sources.objects import ObjectSource, holds_pixels, labelled
from belvedere.data.sources.source import Source

PREFIX = "torchvision:"
_OWN = ("root", "download")
_SPLITS = {"train": ("train", "trainval", "train-standard"), "test": ("test", "val", "valid")}
"""What data sets with a `split` call our splits, in the order in which they are tried."""
_CONSTANTS: dict[str, Any] = {"true": True, "false": False, "none": None}


def open_torchvision(path: str, split: str | None) -> Source:
    """The data set that `torchvision:NAME?OPTION=VALUE&...` names.

    root: where its files are (default: a folder of the cache). download: fetch them if they are missing.
    Other options go to the class (`split=letters` for EMNIST). Without a data.split: all parts that the class
    divides into train and test. Raises DataError, or MissingPackageError without torchvision.
    """
    name, _, query = path.removeprefix(PREFIX).partition("?")
    kind = _class_named(name)
    allowed = _parameters(kind)
    options = _options(name, query, allowed)
    if "root" in allowed:
        root = Path(options["root"]).expanduser() if "root" in options else writable_folder("torchvision")
        options["root"] = str(root)
    if "download" in allowed:
        options.setdefault("download", False)  # never unasked, whatever the class's own default
    parts = _parts(kind, allowed, options, split)
    held = [np.asarray(part.data) for part in parts if holds_pixels(part)]
    labels, classes = labelled(parts)
    if len(held) == len(parts):
        names = ["" if len(parts) == 1 else ("train", "test")[number] for number in range(len(parts))]
        pixels = [checked_pixels(each, path) for each in held]
        named = f"{name}/{split}" if split else name
        return joined_arrays(named, pixels, labels, classes, parts=names, where=path)
    return ObjectSource(name, parts, labels, classes)


def _class_named(name: str) -> Callable[..., Any]:
    try:
        datasets = importlib.import_module("torchvision.datasets")
    except ImportError as error:
        raise MissingPackageError(
            f"data.path names a data set of torchvision, which is not installed ({error}); "
            f"{extra_command('torchvision')}"
        ) from error
    known = [each for each in datasets.__all__ if inspect.isclass(getattr(datasets, each, None))]
    if name not in known:
        folded = {each.lower(): each for each in known}
        near = [folded[each] for each in difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.5)]
        raise DataError(
            f"data.path is {PREFIX}{name}, but torchvision has no such data set; "
            + (f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(known)}")
        )
    return getattr(datasets, name)  # type: ignore[no-any-return]


def _parameters(kind: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """What the class can be told, by name; what it hands on to its base class included."""
    found: dict[str, inspect.Parameter] = {}
    for base in inspect.getmro(kind):  # type: ignore[arg-type]
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        for parameter in parameters:
            found.setdefault(parameter.name, parameter)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    skipped = ("kwargs", "transform", "target_transform", "transforms", "loader", "is_valid_file")
    return {name: parameter for name, parameter in found.items() if name not in skipped}


def _options(name: str, query: str, allowed: dict[str, inspect.Parameter]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for option, value in parse_qsl(query, keep_blank_values=True):
        if option not in allowed:
            raise DataError(
                f"data.path gives {PREFIX}{name} the option {option!r}; "
                f"it knows {', '.join(allowed) or 'none'}"
            )
        lowered = value.lower()
        if lowered in _CONSTANTS:
            options[option] = _CONSTANTS[lowered]
        else:
            options[option] = int(value) if value.isdecimal() and option not in _OWN else value
    return options


# --- building the data set


def _parts(
    kind: Callable[..., Any],
    allowed: dict[str, inspect.Parameter],
    options: dict[str, Any],
    split: str | None,
) -> list[Any]:
    """The data set of a split, or those of all splits."""
    if "train" in allowed and "train" not in options:
        wanted = [True, False] if split is None else [split == "train"]
        return [_built(kind, {**options, "train": train}) for train in wanted]
    if "split" in allowed and "split" not in options:
        return _by_split(kind, options, split)
    if split is not None:
        raise UndividedError(
            f"data.split is {split!r}, but {_title(kind)} "
            + ("is told its split in data.path" if {"split", "train"} & set(options) else "is not divided")
            + "; set data.split=null"
        )
    return [_built(kind, options)]


def _by_split(kind: Callable[..., Any], options: dict[str, Any], split: str | None) -> list[Any]:
    built = []
    refusals = []
    for wanted in (split,) if split is not None else tuple(_SPLITS):
        for name in _SPLITS[wanted]:
            try:
                built.append(_built(kind, {**options, "split": name}))
                break
            except _NoSuchSplitError as error:
                refusals.append(str(error))
    if not built:
        raise DataError(
            f"data.split is {split!r}, which {_title(kind)} does not know: {refusals[0]}; give its own "
            f"name of the split as an option in data.path (?split=NAME) and set data.split=null"
        )
    return built


class _NoSuchSplitError(Exception):
    """The class refused the value of `split`."""


def _built(kind: Callable[..., Any], options: dict[str, Any]) -> Any:
    try:
        return kind(**options)
    except ValueError as error:
        if "split" in options and "split" in str(error):
            raise _NoSuchSplitError(" ".join(str(error).split())) from error
        raise DataError(f"{_title(kind)} (data.path) refuses {options}: {error}") from error
    except (RuntimeError, OSError) as error:
        remedy = (
            "give the folder that holds it (?root=DIR) or let it be fetched (?download=true)"
            if not options.get("download")
            else "it was asked to download and could not"
        )
        raise DataError(
            f"{_title(kind)} (data.path) cannot be opened in {options.get('root')}: "
            f"{' '.join(str(error).split())}; {remedy}"
        ) from error
    except TypeError as error:
        raise DataError(
            f"{_title(kind)} (data.path) needs more options, as ?NAME=VALUE&...: {error}"
        ) from error
    except ImportError as error:
        command = f"; {package_command(error.name)}" if error.name else ""
        raise MissingPackageError(f"{_title(kind)} (data.path) needs a package: {error}{command}") from error


def _title(kind: Callable[..., Any]) -> str:
    return f"torchvision's {getattr(kind, '__name__', kind)}"

"""What is said of images in a recipe's words, in those of the command line: `data.path` is an option here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from belvedere.core.errors import BelvedereError


@contextmanager
def told_by_options(path: str, split: str | None = None) -> Iterator[None]:
    """Errors raised in here name options and not keys of a recipe, which the command does not have.

    path, split: the options that say what `data.path` and `data.split` say in a recipe (`--val`,
    `--val-split`); split is None where the images cannot be divided here.
    """
    try:
        yield
    except BelvedereError as error:
        if error.args and isinstance(error.args[0], str):
            error.args = (in_options(error.args[0], path, split), *error.args[1:])
        raise


def in_options(text: str, path: str, split: str | None = None) -> str:
    """`text` with options in place of the keys below `data`; see `told_by_options`."""
    for pattern, words in (
        (r"set data\.split=null", f"leave out {split}" if split else "give one part"),
        (r"data\.range=\[\S+\] \((--range [^)]*)\)", r"\1"),
        (r"data\.(label|image) \(on the command line: --\1\)", r"--\1"),
        (r"data\.(label|image|range)=", r"--\1 "),
        (r"data\.(label|image|range)\b", r"--\1"),
        (r"data\.split=", f"{split or 'split'} "),
        (r"data\.split\b", split or "the split"),
        (r"data\.path=", f"{path} "),
        (r"data\.path\b", path),
    ):
        text = re.sub(rf"(?<![\w./-]){pattern}", words, text)
    return text

"""Reading an exported folder with transformers, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from belvedere.core.errors import WeightsError


def opened(kind: str, folder: Path) -> nn.Module:
    """The model of this class of transformers, read from nothing but `folder`, in float64.

    Raises WeightsError where a tensor is missing, left over or of another shape.
    """
    import transformers

    with _quiet():
        known = getattr(transformers, kind)
        model, report = known.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    skipped = {"classifier.weight", "classifier.bias"} if "Classification" not in kind else set()
    wrong = {
        what: sorted(names)
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if (names := set(report[what]) - skipped)
    }
    if wrong:
        raise WeightsError(f"transformers does not read the exported file whole: {wrong}")
    network: nn.Module = model.double().eval()
    return network


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' bars and remarks off the screen: what it says of the keys is checked here."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()

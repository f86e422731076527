"""Published checkpoints to safetensors and a card. They are pickles, so only plain data is let through."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from belvedere.core.errors import WeightsError
from belvedere.core.files import sha256
from belvedere.zoo.cards import Card, export
from belvedere.zoo.convert import msn

_SCALARS = "float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool"


def import_checkpoint(file: str | Path, out_dir: str | Path, *, architecture: str | None = None) -> Card:
    """Convert the MSN checkpoint `file` into a folder that `belvedere.zoo.load` reads; returns its card.

    architecture: a name of MSN's code (`deit_small`, ...), needed where the tensors' shapes leave the number
    of attention heads open, and checked against the shapes otherwise.

    Raises `WeightsError` if the file is missing, damaged, of an unknown layout, holds anything but plain
    data, or has one tensor too many, too few or of another shape; nothing is written then.
    """
    path = Path(file)
    content = read_pickle(path)
    if not msn.recognises(content):
        keys = (
            ", ".join(map(str, list(content)[:12])) if isinstance(content, dict) else type(content).__name__
        )
        raise WeightsError(
            f"{path} is of no layout known here: an MSN checkpoint has a `target_encoder`, this file has "
            f"{keys or 'nothing'}"
        )
    converted = msn.convert(content, origin=path.name, architecture=architecture)
    card = converted.card.model_copy(update={"source_sha256": sha256(path)})
    return export(Path(out_dir), converted.backbone, card, heads=converted.heads)


def read_pickle(path: Path) -> Any:
    """What a checkpoint holds, read without running anything it asks to run.

    Besides tensors and plain containers only `argparse.Namespace` and numpy's numbers pass.
    """
    try:
        with torch.serialization.safe_globals(_allowed()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(f"{path} does not exist") from error
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[0]
        raise WeightsError(
            f"{path} is refused: it is damaged, or asks to run code or build objects that no checkpoint "
            f"needs ({_wanted(error) or reason})"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} is no readable checkpoint ({type(error).__name__}: {error})") from error


def _allowed() -> list[Any]:
    """Learning rates in published files are numpy numbers; their module was renamed in numpy 2."""
    scalar = np.float64(0.0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    kinds = {type(np.dtype(name)) for name in _SCALARS.split()}
    return [argparse.Namespace, np.dtype, *kinds, *((scalar, name) for name in names)]


def _wanted(error: pickle.UnpicklingError) -> str | None:
    """The object that a refused file asked for, out of torch's long explanation."""
    for line in str(error).splitlines():
        if "GLOBAL" in line:
            return line.strip()
    return None

"""Features written to a file, for whatever comes after belvedere.

`.npz`: `features` [N, D] float32, `files` [N] and, where the source has labels, `labels` [N] int64 (-1 none)
and `classes`. `.parquet`: one row per image with `file`, `features` (fixed-size list of float32) and, where
there are labels, `label` (the class name, null for none). Bytes of a file's or class's name that are no UTF-8
are written as \\xNN, as Parquet holds nothing else. Same images and weights, same bytes.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from belvedere.core.errors import UsageError
from belvedere.core.files import replacing
from belvedere.data.sources.dataset import as_source
from belvedere.data.sources.source import Source
from belvedere.engine.precision import Precision
from belvedere.eval.features import Extracted, FeatureCard, Progress, extract
from belvedere.eval.place import try_writing

FORMATS = (".npz", ".parquet")
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # numpy writes the time of day into its archives


def embed(
    backbone: nn.Module,
    card: FeatureCard,
    source: Any,
    *,
    out: Path,
    batch_size: int = 64,
    device: torch.device | None = None,
    precision: Precision = "float32",
    progress: Progress | None = None,
) -> Extracted:
    """Extract the features of every image of a source, or of a map-style torch.utils.data.Dataset, and write
    them to `out`, whole or not at all.

    Images that cannot be read have no row and are in `unreadable` of what is returned. Raises UsageError for
    an `out` that is neither .npz nor .parquet, and WriteError for one that cannot be written, before any
    work.
    """
    check_out(out)
    source = as_source(source)
    extracted = extract(
        backbone, card, source, batch_size=batch_size, device=device, precision=precision, progress=progress
    )
    write_features(out, extracted, source)
    return extracted


def check_out(out: Path) -> None:
    """Raise UsageError unless `out` names a file of a known format."""
    if out.suffix.lower() not in FORMATS:
        raise UsageError(f"--out {out} ends in {out.suffix or 'nothing'!r}; use {' or '.join(FORMATS)}")
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder; name a file in it")
    try_writing(out)


def write_features(out: Path, extracted: Extracted, source: Source) -> None:
    """Write features, file names and labels to `out` (.npz or .parquet)."""
    features = extracted.features.numpy()
    files = [_valid_text(source.key(int(i))) for i in extracted.index]
    labels = source.labels[extracted.index] if source.classes else None
    classes = [_valid_text(name) for name in source.classes]
    with replacing(out) as temporary:
        if out.suffix.lower() == ".npz":
            _write_npz(temporary, features, files, labels, classes)
        else:
            _write_parquet(temporary, features, files, labels, classes)


def escaped_names(source: Source, extracted: Extracted) -> list[str]:
    """The names of rows, and of classes, that are not UTF-8, as they are written."""
    names = [*(source.key(int(i)) for i in extracted.index), *source.classes]
    return [written for name in names if (written := _valid_text(name)) != name]


def _write_npz(
    path: Path,
    features: NDArray[np.float32],
    files: Sequence[str],
    labels: NDArray[np.int64] | None,
    classes: Sequence[str],
) -> None:
    arrays: dict[str, NDArray[Any]] = {"features": features, "files": np.array(files)}
    if labels is not None:
        arrays |= {"labels": labels, "classes": np.array(classes)}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _ZIP_DATE), content.getbuffer())


def _write_parquet(
    path: Path,
    features: NDArray[np.float32],
    files: Sequence[str],
    labels: NDArray[np.int64] | None,
    classes: Sequence[str],
) -> None:
    import pyarrow as pa  # slow to import, and only this format needs it
    import pyarrow.parquet as pq

    width = features.shape[1]
    columns = {
        "file": pa.array(files, pa.string()),
        "features": pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), width),
    }
    if labels is not None:
        names = [classes[label] if label >= 0 else None for label in labels]
        columns["label"] = pa.array(names, pa.string())
    pq.write_table(pa.table(columns), path)


def _valid_text(name: str) -> str:
    """A file name as valid UTF-8; bytes that are none become \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

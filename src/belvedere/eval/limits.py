"""What an evaluation asks for and these images or this machine cannot give: told before features are made.

N images, C classes, D feature columns, S splits, n images of a split.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from belvedere.core.errors import EvaluationError
from belvedere.core.files import readable_size
from belvedere.core.machine import available_bytes
from belvedere.eval.knn import PUBLISHED_K
from belvedere.nn.spec import FeatureSpec

_FLOAT, _DOUBLE = 4, 8
_COPIES = 4  # of the rows of a column: as they are, preprocessed, and what the solver holds beside them
_NEIGHBOUR_BYTES = 2 * (_FLOAT + _DOUBLE)  # similarity and row, found and joined


def check_k(k: int, *, bank: int, queries: int, asked: bool) -> None:
    """Raise EvaluationError for more neighbours than the bank has, if they were asked for, and for more than
    memory holds."""
    if asked and k > bank:
        raise EvaluationError(
            f"--k {k} asks for more neighbours than the {bank} images that may be neighbours"
        )
    if k > max(PUBLISHED_K):  # which are looked up in any case
        _fits(f"--k {k}", k, each=queries * _NEIGHBOUR_BYTES)


def check_shots(shots: Sequence[int], counts: NDArray[np.int64], *, has_scored: bool, asked: bool) -> None:
    """Raise EvaluationError for more labels per class than any class has, if they were asked for, and for
    columns that leave no image to score. counts: labelled images by class [C]."""
    largest, most = int(counts.max()), max(shots)
    if asked and most > largest:
        raise EvaluationError(
            f"--shots asks for {most} labels per class, but no class has more than {largest} labelled images"
        )
    none_left = [k for k in shots if k >= largest]
    if none_left and not has_scored:
        fewer = [k for k in shots if k < largest]
        advice = f"give --shots {','.join(map(str, fewer))}" if fewer else "give more labels"
        raise EvaluationError(
            f"with {none_left[0]} labels per class every labelled image is in training and none is left to "
            f"score: no class has more than {largest}; {advice}, or a scored set by --val"
        )


def check_splits(
    splits: int, shots: Sequence[int], counts: NDArray[np.int64], *, columns: int, num_scored: int
) -> None:
    """Raise EvaluationError for more splits than memory holds; columns: D. All splits of a column are solved
    as one batch."""
    rows = max(int(np.minimum(counts, k).sum()) for k in shots)
    per = _DOUBLE * (_COPIES * columns * (rows + len(counts)) + 2 * num_scored)
    _fits(f"--splits {splits}", splits, each=per)


def check_batch(batch: int, *, num_images: int, px: int) -> None:
    """Raise EvaluationError for a batch whose images alone are more than memory holds."""
    per = 3 * px * px * _FLOAT * 3  # this batch, the next one read ahead, and the stack of one
    _fits(f"--batch-size {batch}", min(batch, num_images), each=per)


def num_columns(width: int, spec: FeatureSpec) -> int:
    """D at most: a stage may be narrower than the last."""
    if spec.source == "pooled":
        return width
    return width * spec.blocks * (2 if spec.source == "cls+mean" else 1)


def _fits(option: str, count: int, *, each: int) -> None:
    """Raise EvaluationError where `count` times `each` bytes are more than are free."""
    free = available_bytes()
    if free is not None and count * each > free:
        raise EvaluationError(
            f"{option} would take about {readable_size(count * each)} of memory; {readable_size(free)} are "
            f"free: give at most {free // each}"
        )

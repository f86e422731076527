"""The demo's question, asked of a run: pixels, untrained and pretrained network, with few labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from belvedere.data.sources import Source, open_source
from belvedere.eval.compare import Comparison, TrainAndScored, compare_features
from belvedere.eval.features import FeatureCard, extract
from belvedere.eval.labelled import Labelled
from belvedere.eval.pixels import pixel_rows, standardised
from belvedere.eval.predict import Predictions, predict
from belvedere.eval.splits import Splits, draw_splits
from belvedere.recipe.plan import data_path
from belvedere.recipe.schema import Recipe
from belvedere.train.session import build_method
from belvedere.zoo.load import load

SHOTS = (1, 2, 5, 10)
NUM_SPLITS = 10
PREDICTED_SHOTS, PREDICTED_SPLIT = 10, 0
"""The labels that predictions are made from."""


@dataclass(frozen=True)
class Scored:
    """train: the images that were pretrained on and lend labels; unseen: those that are scored; predictions:
    of their labels, from the pretrained features."""

    train: Source
    unseen: Source
    splits: Splits
    comparison: Comparison
    predictions: Predictions


def score(recipe: Recipe, run: Path, *, shots: Sequence[int] = SHOTS) -> Scored:
    """Score the three kinds of features of the run in this directory on the same splits.

    Labels are drawn from the `train` part of the recipe's data, and its `test` part alone is scored.
    """
    train, unseen = (open_source(data_path(recipe), split=split) for split in ("train", "test"))
    backbone, card = load(run)
    kinds = {
        "pixels": _pixels(card, train, unseen),
        "untrained": _features(build_method(recipe).export().backbone, card, train, unseen),
        "pretrained": _features(backbone, card, train, unseen),
    }
    splits = draw_splits(train.labels, shots, splits=NUM_SPLITS, seed=recipe.seed)
    labelled, scored = kinds["pretrained"]["features"]
    lent = labelled.take(splits.shots[max(shots)][PREDICTED_SPLIT])
    return Scored(train, unseen, splits, compare_features(kinds, splits), predict(lent, scored.features))


def _pixels(card: FeatureCard, train: Source, unseen: Source) -> dict[str, TrainAndScored]:
    """Raw, and standardised by the statistics of all training images, which need no labels."""
    first, second = pixel_rows(train, card.features), pixel_rows(unseen, card.features)
    return {
        "raw": (_labelled(first, train), _labelled(second, unseen)),
        "standardised": (
            _labelled(standardised(first, first), train),
            _labelled(standardised(second, first), unseen),
        ),
    }


def _features(
    backbone: nn.Module, card: FeatureCard, train: Source, unseen: Source
) -> dict[str, TrainAndScored]:
    first, second = (extract(backbone, card, source, batch_size=256).features for source in (train, unseen))
    return {"features": (_labelled(first, train), _labelled(second, unseen))}


def _labelled(features: Tensor, source: Source) -> Labelled:
    return Labelled(features, source.labels, source.classes)

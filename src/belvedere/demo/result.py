"""What the demo leaves behind and says: report, predictions, splits, pictures; the table and the answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from belvedere.core import rng
from belvedere.core.files import write_bytes
from belvedere.core.log import output
from belvedere.data.loader import Loader
from belvedere.data.sources import Source, describe, read
from belvedere.demo.place import RUN
from belvedere.demo.scoring import NUM_SPLITS, PREDICTED_SHOTS, PREDICTED_SPLIT, SHOTS, Scored
from belvedere.eval.compare import protocol_report
from belvedere.eval.predict import Predictions, predictions_text
from belvedere.eval.report import write_report
from belvedere.eval.words import answer, table
from belvedere.methods import msn
from belvedere.nn.spec import ViTSpec
from belvedere.recipe.load import recipe_hash
from belvedere.recipe.schema import Recipe
from belvedere.train.record import METRICS_NAME
from belvedere.train.run import Outcome
from belvedere.train.session import build_method
from belvedere.viz.confusion import confusion_picture
from belvedere.viz.curves import curves_picture
from belvedere.viz.views import KeptPatches, views_picture

_NUM_SHOWN = 5
_FILES = {
    "report.json": "every score, and the paired differences",
    "predictions.csv": f"the three best labels of each unseen digit, from {PREDICTED_SHOTS} a class",
    "splits.json": "the digits that lent their labels, the same for all rows",
    "views.png": "digits, and the views of them that were trained on",
    "curves.png": "the loss, and how evenly the prototypes are used",
    "confusion.png": "which digits are taken for which",
    f"{RUN}/": "the run, with the backbone",
}


def write(out: Path, recipe: Recipe, outcome: Outcome, scored: Scored) -> dict[str, Any]:
    """Write all files but the run's own, report.json last; returns what that holds."""
    scored.splits.save(out / "splits.json")
    _write_predictions(out / "predictions.csv", scored.unseen, scored.predictions)
    _draw_views(out / "views.png", recipe, scored.train)
    curves_picture(
        outcome.directory / METRICS_NAME, out / "curves.png", num_prototypes=_options(recipe).prototypes
    )
    _draw_confusion(out / "confusion.png", scored)
    report = _report(recipe, outcome, scored)
    write_report(out / "report.json", report)
    return report


def tell(out: Path, run: Path, scored: Scored) -> None:
    """Print the table, the answer, where the files lie and what to do next, on stdout."""
    comparison = scored.comparison
    content, unseen = comparison.report(), f"{len(scored.unseen)} unseen digits"
    choices = ", ".join(f"{column} {name}" for column, name in comparison.rows[0].preprocessing.items())
    lines = [
        "",
        f"% of {unseen} right, by labels per class: mean ± standard deviation over {NUM_SPLITS} splits",
        "",
        table(comparison.rows, content),
        f"(pixels: the better of two preprocessings in each column: {choices})",
        "",
        *answer(comparison.rows, content, scored=unseen, num_labelled=len(scored.train)),
        "",
        f"In {out}:",
        *(f"  {name:<16} {words}" for name, words in _FILES.items()),
        "",
        "Your own images: belvedere pretrain msn/vits16 data.path=YOUR_FOLDER",
        f"This backbone:   belvedere evaluate {run} --data LABELLED_FOLDER",
    ]
    for line in "\n".join(lines).split("\n"):
        output(line)


def _write_predictions(path: Path, unseen: Source, predictions: Predictions) -> None:
    keys = [unseen.key(index) for index in range(len(unseen))]
    true = [unseen.classes[label] for label in unseen.labels]
    write_bytes(path, predictions_text(keys, predictions, classes=unseen.classes, true=true))


def _draw_views(path: Path, recipe: Recipe, train: Source) -> None:
    """Digits of the first step with the views they were trained on, the anchor's dropped patches marked."""
    with Loader(
        train,
        recipe.views,
        data=recipe.data,
        seed=recipe.seed,
        global_batch=recipe.train.global_batch,
        total_steps=1,
    ) as loader:
        batch = next(iter(loader))
    method = build_method(recipe)
    order = method.draws(rng.torch_generator(recipe.seed, "draws", 0), batch)["patch_order"].tolist()
    kept = order[: _options(recipe).num_kept(len(order))]
    shown = np.sort(np.unique(batch.label.numpy(), return_index=True)[1])[:_NUM_SHOWN]  # one of a class
    views_picture(
        {role: view[:, shown] for role, view in batch.views.items()},
        list(recipe.views),
        path,
        mean=recipe.data.mean,
        std=recipe.data.std,
        originals=[read(train, int(index)) for index in batch.index[shown]],
        kept={"anchor": KeptPatches(kept, _network(recipe).patch_px)},
        count=_NUM_SHOWN,
    )


def _draw_confusion(path: Path, scored: Scored) -> None:
    best = _best_row(scored)
    confusion_picture(
        scored.comparison.confusion(best, PREDICTED_SHOTS) / NUM_SPLITS,
        scored.unseen.classes,
        path,
        title=f"{best}, {PREDICTED_SHOTS} labels per class:\n"
        f"{len(scored.unseen)} unseen digits, mean counts over {NUM_SPLITS} splits",
    )


def _best_row(scored: Scored) -> str:
    """The features with the best mean score from the most labels."""
    return max(scored.comparison.rows, key=lambda row: row.shots[PREDICTED_SHOTS].mean).features


def _options(recipe: Recipe) -> msn.Options:
    assert isinstance(recipe.method, msn.Options)
    return recipe.method


def _network(recipe: Recipe) -> ViTSpec:
    assert isinstance(recipe.backbone, ViTSpec), "MSN works with nothing else"
    return recipe.backbone


def _report(recipe: Recipe, outcome: Outcome, scored: Scored) -> dict[str, Any]:
    """The same for the same pretraining, however often that was interrupted."""
    best, predictions = _best_row(scored), scored.predictions
    return {
        "recipe": {"name": recipe.name, "hash": recipe_hash(recipe), "steps": outcome.total_steps},
        "precision": recipe.train.precision,
        "seed": recipe.seed,
        "data": {"train": describe(scored.train), "scored": describe(scored.unseen)},
        "protocol": protocol_report(len(scored.train), len(scored.unseen), SHOTS),
        "splits": {"file": "splits.json", "count": NUM_SPLITS, "sha256": scored.splits.sha256},
        **scored.comparison.report(),
        "confusion": {
            "features": best,
            "shots": PREDICTED_SHOTS,
            "splits": NUM_SPLITS,
            "counts": scored.comparison.confusion(best, PREDICTED_SHOTS).tolist(),
        },
        "predictions": {
            "file": "predictions.csv",
            "features": "pretrained",
            "shots": PREDICTED_SHOTS,
            "split": PREDICTED_SPLIT,
            "lambda": predictions.lambd,
            "accuracy": float((predictions.label == scored.unseen.labels).mean()),
        },
    }

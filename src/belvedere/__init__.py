"""Learn image representations without labels, so that a handful of labels is enough afterwards.

    import belvedere

    outcome = belvedere.pretrain(belvedere.load_recipe("tiny/msn"))
    backbone, card = belvedere.load_backbone(outcome.directory)
    result = belvedere.evaluate(backbone, card, belvedere.open_source("digits", split="test"))
    print(result.report["logistic"]["shots"]["1"]["mean"])

Mistakes in what is given raise a `BelvedereError`. Names are imported when they are first used: `import
belvedere` alone loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from belvedere.core.errors import (
    BelvedereError,
    CheckpointError,
    DataError,
    EvaluationError,
    MissingPackageError,
    NonFiniteError,
    RecipeError,
    RunLockedError,
    UsageError,
    WeightsError,
)

if TYPE_CHECKING:
    from belvedere.data.sources import from_huggingface, open_source
    from belvedere.eval.embed import embed
    from belvedere.eval.evaluate import evaluate
    from belvedere.recipe.load import load_recipe
    from belvedere.train.run import pretrain
    from belvedere.zoo.load import load as load_backbone

    __version__: str

__all__ = [
    "BelvedereError",
    "CheckpointError",
    "DataError",
    "EvaluationError",
    "MissingPackageError",
    "NonFiniteError",
    "RecipeError",
    "RunLockedError",
    "UsageError",
    "WeightsError",
    "__version__",
    "embed",
    "evaluate",
    "from_huggingface",
    "load_backbone",
    "load_recipe",
    "open_source",
    "pretrain",
]

_PLACES = {
    "embed": ("belvedere.eval.embed", "embed"),
    "evaluate": ("belvedere.eval.evaluate", "evaluate"),
    "load_backbone": ("belvedere.zoo.load", "load"),
    "load_recipe": ("belvedere.recipe.load", "load_recipe"),
    "from_huggingface": ("belvedere.data.sources", "from_huggingface"),
    "open_source": ("belvedere.data.sources", "open_source"),
    "pretrain": ("belvedere.train.run", "pretrain"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("belvedere")
    if name not in _PLACES:
        raise AttributeError(f"module 'belvedere' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

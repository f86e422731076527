"""Where the demo writes, and the recipe it runs there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from belvedere.core.errors import UsageError
from belvedere.core.files import read_json, write_json
from belvedere.core.log import say
from belvedere.engine.precision import best_device, multiplies_bf16_fast
from belvedere.recipe.load import load_recipe
from belvedere.recipe.schema import Recipe

RECIPE = "tiny/msn"
DEFAULT_OUT = Path("belvedere-demo")
MARKER, RUN = "demo.json", "pretraining"


def settle(out: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe to run below `out`: in the precision that `out` was begun in, or in the one that suits this
    machine. Marks a new `out` as the demo's.

    Raises UsageError for a directory with other content, RecipeError for an override.
    """
    given = {override.partition("=")[0].strip() for override in overrides}
    begun, fast = _begun_in(out), multiplies_bf16_fast(best_device())
    precision = begun or ("bf16" if fast else "float32")
    own = {
        "train.precision": precision,
        "run.dir": json.dumps(str(out / RUN)),
        "run.save_every_steps": "500",  # a kill loses less than a minute
    }
    ours = [f"{key}={value}" for key, value in own.items() if key not in given]
    recipe = load_recipe(RECIPE, [*ours, *overrides])
    if begun is None:
        write_json(out / MARKER, {"recipe": RECIPE, "precision": recipe.train.precision})
    if recipe.train.precision == "float32" and not fast:
        say("without AMX or AVX-512 BF16 on this CPU: float32, the same number of steps, and it takes longer")
    return recipe


def _begun_in(out: Path) -> str | None:
    """The precision of an earlier call; None for a directory that is empty or not there yet."""
    advice = "give a directory that is empty or does not exist"
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; {advice}")
    marker = out / MARKER
    if not marker.exists():
        foreign = sorted(path.name for path in out.iterdir()) if out.exists() else []
        if foreign:
            names = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
            raise UsageError(
                f"--out {out} holds files that are not the demo's: {names}. Nothing was changed; {advice}"
            )
        return None
    try:
        precision = read_json(marker)["precision"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{marker} is damaged ({error!r}); remove {out}, or {advice}") from error
    return str(precision)

"""`belvedere demo`: pretrain on scikit-learn's digits, then say whether the features are better.

    belvedere-demo/
      demo.json          marks the directory as the demo's; the precision it was begun in
      pretraining/       the run: recipe, metrics, checkpoints, backbone
      splits.json        which of the 1,347 digits lend their labels, split by split
      report.json        every score and the paired differences; see docs/report.md
      predictions.csv    the 450 held-out digits: predicted class, its probability, the true class
      views.png curves.png confusion.png

450 digits take no part in pretraining, in choosing the recipe or in drawing labels, and only they are scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from belvedere.core.errors import EXIT_DONE, EXIT_RUN_AGAIN
from belvedere.core.log import say
from belvedere.demo.place import DEFAULT_OUT, settle
from belvedere.demo.result import tell, write
from belvedere.demo.scoring import score
from belvedere.train.run import pretrain


@dataclass(frozen=True)
class Demo:
    """How a call of `run` ended. report: what report.json holds; None where somebody stopped it, and the same
    call continues."""

    directory: Path
    report: dict[str, Any] | None

    @property
    def exit_code(self) -> int:
        return EXIT_DONE if self.report is not None else EXIT_RUN_AGAIN


def run(out: str | Path = DEFAULT_OUT, *, overrides: Sequence[str] = ()) -> Demo:
    """Pretrain, score, draw, write everything to `out` and print the answer; continues what is there.

    overrides: `key.path=value` for the recipe tiny/msn. Raises UsageError for a directory with other content.
    """
    out = Path(out)
    again = f"Continue with: belvedere demo --out {out}"
    recipe = settle(out, overrides)
    outcome = pretrain(recipe)
    if outcome.stopped:
        say(f"stopped at step {outcome.step} of {outcome.total_steps}; all of it is saved. {again}")
        return Demo(out, None)
    say("scoring pixels, untrained and pretrained features on digits that took no part in training")
    try:
        with _one_thread():
            result = score(recipe, outcome.directory)
            report = write(out, recipe, outcome, result)
    except KeyboardInterrupt:
        say(f"stopped while scoring; the pretraining is complete and saved. {again}")
        return Demo(out, None)
    tell(out, outcome.directory, result)
    return Demo(out, report)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Scoring is thousands of tiny products: threads would wait for each other longer than they work, and the
    last bits of a score would depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


__all__ = ["DEFAULT_OUT", "Demo", "run"]

"""The claim: with few labels, a run's features beat pixels and the untrained network, on images it never saw.

    python benchmarks/few_labels.py runs/msn/fashion --shots 1,5,10 --out runs/msn/fashion/few_labels.json

The run's data must have a `train` and a `test` part. Pretraining used `train`, without labels; the labels are
drawn from it, in ten splits that all rows share; `test` alone is scored. Same protocol for all rows (with one
label per class the published regularization, else the one chosen by inner cross-validation), and of two
preprocessings of the pixels the better one, column by column.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from belvedere.core.files import write_json
from belvedere.demo.scoring import score
from belvedere.eval.words import answer, table
from belvedere.recipe.load import read_recipe


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--shots", default="1,5,10")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)  # thousands of small products: threads would wait for each other
    shots = tuple(int(count) for count in args.shots.split(","))
    recipe = read_recipe((args.run / "recipe.yaml").read_text())
    result = score(recipe, args.run, shots=shots)
    report = {
        "recipe": recipe.name,
        "images": {"train": len(result.train), "scored": len(result.unseen)},
        "splits_sha256": result.splits.sha256,
        **result.comparison.report(),
    }
    rows = result.comparison.rows
    print(table(rows, report))
    scored = f"{len(result.unseen):,} unseen images"
    print("\n".join(["", *answer(rows, report, scored=scored, num_labelled=len(result.train))]))
    if args.out:
        write_json(args.out, report)


if __name__ == "__main__":
    main()

"""A comparison of features in plain words: a table, the answer, and what was not won as plainly as what
was."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from belvedere.eval.report import Row

Content = Mapping[str, Any]
"""`rows` and `differences`, as in report.json."""


def table(rows: Sequence[Row], content: Content) -> str:
    """Lines of equal columns: percent right, mean and standard deviation over splits; then where the last row
    wins."""
    shots = list(rows[-1].shots)
    lines = [["features", "k-NN", *(f"{k} label{'s' if k > 1 else ''}" for k in shots)]]
    for row in rows:
        scores = [f"{100 * row.shots[k].mean:.1f} ± {100 * row.shots[k].sd:.1f}" for k in shots]
        lines.append([row.features, f"{100 * row.knn:.1f}", *scores])
    won = [k for k in shots if not _not_won(content, k)]
    lines.append([f"{rows[-1].features} wins", "", *("yes" if k in won else "no" for k in shots)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )


def answer(rows: Sequence[Row], content: Content, *, scored: str, num_labelled: int) -> list[str]:
    """Sentences: yes, in part or no; the score with the fewest labels; each column that is not won; k-NN.

    scored: the images, as in `450 unseen digits`.
    """
    last, others = rows[-1], rows[:-1]
    shots = list(last.shots)
    lost = {k: found for k in shots if (found := _not_won(content, k))}
    verdict = "Yes." if not lost else "No." if len(lost) == len(shots) else "In part."
    names = [f"{row.features} ({row.shots[shots[0]].mean:.0%})" for row in others]
    sentences = [
        f"Are the {last.features} features better on these images, with few labels? {verdict}",
        f"With {_labels(shots[0])} per class, {last.shots[shots[0]].mean:.0%} of {scored} are right from "
        f"{last.features} features; the others: {_listed(names)}.",
    ]
    won = [str(k) for k in shots if k not in lost]
    if won:
        sentences.append(
            f"Won: {_listed(won)} labels per class. The mean difference to each other row is more than "
            "twice its standard error."
        )
    sentences += [f"Not won: {_labels(k)} per class. {' '.join(found)}" for k, found in lost.items()]
    knn = [f"{row.features} {row.knn:.1%}" for row in rows]
    return [
        *sentences,
        f"With the labels of all {num_labelled:,} other images, k-NN reaches: {', '.join(knn)}.",
    ]


def _not_won(content: Content, shots: int) -> list[str]:
    """One sentence for each other row that the last one is not clearly better than."""
    found = []
    for difference in content["differences"]:
        column = difference["shots"][str(shots)]
        if not column["wins"]:
            found.append(
                f"Against {difference['against']} the mean difference is {100 * column['mean']:+.1f} points "
                f"{_error_words(column['standard_error'])}."
            )
    return found


def _error_words(standard_error: float) -> str:
    if math.isnan(standard_error):
        return "and one split has no standard error"
    return f"with a standard error of {100 * standard_error:.1f}"


def _labels(count: int) -> str:
    return f"{count} label{'' if count == 1 else 's'}"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"

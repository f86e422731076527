"""A model card: what these weights are, where they come from, what they reach, how to load them."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import torch

from belvedere import __version__
from belvedere.commands.run_files import RunFiles
from belvedere.zoo.cards import Card
from belvedere.zoo.write import Agreement, Outgoing, Target

CURVES_NAME = "curves.png"
_LICENCE_KEYS = (
    ("CC-BY-NC-4.0", "cc-by-nc-4.0"),
    ("Apache-2.0", "apache-2.0"),
    ("MIT", "mit"),
)
_SYSTEMS = {
    "msn": "MSN (Masked Siamese Networks, arXiv 2204.07141)",
    "swav": "SwAV (arXiv 2006.09882)",
    "deepcluster": "DeepCluster-v2 (arXiv 2006.09882)",
    "sela": "SeLa-v2 (arXiv 2006.09882)",
    "esvit": "EsViT (arXiv 2106.09785)",
    "mugs": "Mugs (arXiv 2203.14415)",
}


def model_card(
    target: Target,
    outgoing: Outgoing,
    agreements: Sequence[Agreement],
    run: RunFiles,
    *,
    name: str,
    curves: bool,
) -> str:
    """The text of README.md. name: what to call the weights; curves: whether `curves.png` lies beside it."""
    card = outgoing.card
    parts = [
        *_head(card, target, name),
        *_loading(target, outgoing),
        *_images(card, target, outgoing),
        *_checked(target, agreements),
        *_results(card, run),
        *_training(card, run, curves=curves),
        *_environment(target, run),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _head(card: Card, target: Target, name: str) -> Iterator[str]:
    library = {"huggingface": "transformers", "timm": "timm"}.get(target.name)
    licence = next((key for words, key in _LICENCE_KEYS if words in (card.licence or "")), None)
    yield "---"
    if licence:
        yield f"license: {licence}"
    if library:
        yield f"library_name: {library}"
    yield from ("tags: [self-supervised, image-feature-extraction]", "---", "")
    yield from (f"# {name}", "")
    network = ", ".join(
        f"{key} {_short(value)}" for key, value in card.backbone.model_dump().items() if key != "name"
    )
    yield f"A {card.backbone.name} trained without labels by {_SYSTEMS.get(card.system, card.system)}."
    yield ""
    yield from _table(
        ("", ""),
        [
            ("network", f"{card.backbone.name}: {network}"),
            ("origin", card.source + ("" if card.step is None else f", {card.step} steps")),
            ("licence", card.licence or "not stated: that of whoever trained these weights"),
        ],
    )


def _loading(target: Target, outgoing: Outgoing) -> Iterator[str]:
    yield from ("## Loading", "", "`DIR` is this folder.", "", "```python")
    yield target.loading(outgoing).rstrip()
    yield from ("```", "")
    if outgoing.classifier is not None:
        fitted = outgoing.classifier
        yield (
            f"The classifier is logistic regression on {fitted.images} labelled images "
            f"(lambda {fitted.lambd:g}). Its {len(fitted.classes)} classes: {_few(fitted.classes)}."
        )
        yield ""


def _images(card: Card, target: Target, outgoing: Outgoing) -> Iterator[str]:
    features = card.features
    yield from ("## Images", "")
    yield (
        f"RGB in [0, 1], the shorter side resized to {features.resize_px} px ({features.interpolation}), "
        f"the central {features.crop_px} x {features.crop_px} px, less the mean {_numbers(card.mean)}, "
        f"divided by {_numbers(card.std)}. The feature that belvedere evaluates: {_feature(card)}."
    )
    yield ""
    notes = target.notes(outgoing)
    yield from (f"- {note}" for note in notes)
    yield from ([""] if notes else [])


def _checked(target: Target, agreements: Sequence[Agreement]) -> Iterator[str]:
    yield from ("## Checked", "")
    yield (
        f"These files were read back with {_version(target)} and compared with belvedere's own network: the "
        "largest difference, in units of the features' root mean square."
    )
    yield ""
    rows = [(one.what, one.images, one.told()) for one in agreements]
    yield from _table(("what", "images", "difference"), rows)


def _results(card: Card, run: RunFiles) -> Iterator[str]:
    if not run.reports and not card.published:
        return
    yield from ("## Few labels", "")
    if card.published:
        yield from _table(("published", ""), [(key, str(value)) for key, value in card.published.items()])
    for name, report in run.reports.items():
        rows = list(_scores(report))
        if rows:
            data = report.get("data", {})
            images = data.get("images", "?")
            yield f"Percent right of {name} ({images} images), measured by `belvedere evaluate`:"
            yield ""
            yield from _table(("labels", "right"), rows)


def _scores(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    logistic = report.get("logistic", {})
    for shots, part in logistic.get("shots", {}).items():
        splits = len(part["values"])
        yield f"{shots} per class, {splits} splits", f"{100 * part['mean']:.1f} ± {100 * part['sd']:.1f}"
    for kind, part in logistic.get("fits", {}).items():
        yield f"listed images, {kind} lambda", _percent(part["accuracy"])
    if "knn" in report:
        yield f"{report['knn']['k']}-NN", _percent(report["knn"]["accuracy"])
    if "linear" in report:
        yield "linear probe", _percent(report["linear"]["accuracy"])


def _training(card: Card, run: RunFiles, *, curves: bool) -> Iterator[str]:
    yield from ("## Training", "")
    rows = [(key, _short(value)) for key, value in card.data.items()]
    if run.plan is not None:
        steps, batch = run.plan.get("total_steps"), run.plan.get("batch")
        world = run.plan.get("world_size")
        processes = "one process" if world == 1 else f"each of {world} processes"
        rows += [("steps", f"{steps}, each of {batch} images on {processes}")]
    if run.data_report is not None:
        unread = run.data_report.get("not_read", 0)
        rows += [("images that could not be read", f"{unread} of {run.data_report.get('tried', '?')} tried")]
    yield from _table(("", ""), rows) if rows else ()
    if card.notes:
        yield from _table(("of the imported file", ""), list(card.notes.items()))
    if card.dropped:
        left_out = [(key, reason) for key, reason in card.dropped.items()]
        yield from _table(("left out of the imported file", "because"), left_out)
    if curves:
        yield from (f"![Loss and entropy over the run]({CURVES_NAME})", "")
    if run.recipe is not None:
        yield from ("<details><summary>The recipe</summary>", "", "```yaml")
        yield _without_run(run.recipe)
        yield from ("```", "", "</details>", "")


def _environment(target: Target, run: RunFiles) -> Iterator[str]:
    yield from ("## Environment", "")
    rows = []
    if run.versions is not None:
        trained = ", ".join(f"{name} {version}" for name, version in run.versions.items())
        rows.append(("trained with", trained))
    if run.plan is not None:
        rows.append(("on", f"{run.plan.get('device', '?')}, {run.plan.get('precision', '?')}"))
    exported = f"belvedere {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    rows.append(("exported with", exported))
    yield from _table(("", ""), rows)


def _version(target: Target) -> str:
    try:
        return f"{target.library} {metadata.version(target.library)}"
    except metadata.PackageNotFoundError:  # belvedere run from its sources
        return target.library


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    for row in (header, ("---",) * len(header), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"
    yield ""


def _percent(share: float | None) -> str:
    return "nothing to score" if share is None else f"{100 * share:.1f}"


def _feature(card: Card) -> str:
    features = card.features
    if features.source == "pooled":
        return "the pooled output"
    blocks = "the last block" if features.blocks == 1 else f"the last {features.blocks} blocks"
    norm = {"none": "no", "last_stage": "the last stage's", "all": "each"}[features.norm]
    return f"{features.source} of {blocks}, the final norm on {norm} block"


def _without_run(recipe: str) -> str:
    """A recipe's text without `run:`, which says where and on what it ran and changes no number."""
    kept, inside = [], False
    for line in recipe.rstrip().splitlines():
        if line[:1].strip():
            inside = line.startswith("run:")
        if not inside:
            kept.append(line)
    return "\n".join(kept)


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

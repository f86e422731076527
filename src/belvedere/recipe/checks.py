"""What must hold between a recipe's settings; the range of each alone is in its `Settings`.

Each check names the sections it reads and runs when those are valid, so its findings are reported together
with the mistakes elsewhere. A setting that would have no effect is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from belvedere.data.spec import ViewSpec, mistakes_between
from belvedere.methods.method import MethodOptions
from belvedere.methods.pages import page
from belvedere.nn.spec import BackboneSpec, FeatureSpec
from belvedere.optim.spec import AnyOptimSpec, Range
from belvedere.recipe.explain import did_you_mean
from belvedere.recipe.schema import InitSpec, Published, Recipe, RunSpec, TrainSpec
from belvedere.recipe.text import Path

Finding = tuple[Path, str]
Findings = Iterator[Finding]
Views = dict[str, ViewSpec]

_MOST_EPOCHS = 1_000_000_000


def _roles(method_name: str, roles: tuple[str, ...]) -> Findings:
    build = page(method_name).build
    required = [role for role in build.roles if role not in build.optional_roles]
    for role in required:
        if role not in roles:
            yield ("views", role), f"is missing; {method_name} needs the views {', '.join(required)}"
    for role in roles:
        if role not in build.roles:
            words = f"{method_name} has no view of this name{did_you_mean(role, build.roles)}"
            yield ("views", role), f"{words} (its views: {', '.join(build.roles)})"


def _backbone(method_name: str, backbone: BackboneSpec) -> Findings:
    able = page(method_name).build.backbones
    if backbone.name not in able:
        words = f"{backbone.name} is not allowed; {method_name} works with {', '.join(able)}"
        yield ("backbone", "name"), words


def _method_views(method: MethodOptions, views: Views, backbone: BackboneSpec) -> Findings:
    build = page(method.name).build
    if backbone.name not in build.backbones:
        return
    known = {role: view for role, view in views.items() if role in build.roles}
    sizes = {role: (view.count, backbone.num_patches(view.px)) for role, view in known.items()}
    for key, words in [*method.mistakes(sizes), *method.unfit_views(known)]:
        yield tuple(key.split(".")), words


def _view_sizes(backbone: BackboneSpec, views: Views) -> Findings:
    for role, view in views.items():
        if words := backbone.refusal(view.px):
            yield ("views", role, "px"), f"{view.px} {words}"


def _features(backbone: BackboneSpec, features: FeatureSpec) -> Findings:
    if words := backbone.refusal(features.crop_px):
        yield ("features", "crop_px"), f"{features.crop_px} {words}"
    if features.blocks > backbone.depth:
        words = f"{features.blocks} blocks of a backbone with depth {backbone.depth}; give at most its depth"
        yield ("features", "blocks"), words
    if words := backbone.source_refusal(features.source):
        yield ("features", "source"), f"{features.source} is not allowed; {words}"
    elif words := backbone.norm_refusal(features.norm, features.blocks):
        yield ("features", "norm"), f"{features.norm} {words}"


def _photometry(views: Views) -> Findings:
    for role, view in views.items():
        jitter, blur, path = view.photometry.jitter, view.photometry.blur, ("views", role, "photometry")
        if jitter is not None and jitter.p == 0:
            yield (
                (*path, "jitter", "p"),
                "0 leaves the other keys of jitter without effect; write jitter: null",
            )
        elif jitter is not None and not any(
            (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        ):
            yield (*path, "jitter"), "changes nothing with every strength 0; write jitter: null"
        if blur is not None and blur.p == 0:
            yield (*path, "blur", "p"), "0 leaves blur.radius without effect; write blur: null"


def _learning_rate(optim: AnyOptimSpec) -> Findings:
    lr, path = optim.lr, ("optim", "lr")
    if lr.peak == 0:
        yield (*path, "peak"), "0 trains nothing; give a number more than 0"
    for name, value in (("start", lr.start), ("final", lr.final)):
        if value > lr.peak > 0:
            yield (*path, name), f"{value:g} is more than optim.lr.peak, {lr.peak:g}"
    if lr.warmup_epochs == 0 and lr.start < lr.peak:
        words = (
            f"{lr.start:g} has no effect with warmup_epochs 0; repeat peak, {lr.peak:g}, or give a warm-up"
        )
        yield (*path, "start"), words


def _lengths(optim: AnyOptimSpec, train: TrainSpec) -> Findings:
    longest = optim.stretch * train.epochs
    if longest > _MOST_EPOCHS:
        words = (
            f"{optim.stretch:g} lays the schedules out over {longest:.3g} epochs; at most {_MOST_EPOCHS:,} "
        )
        yield ("optim", "stretch"), words + "are allowed"
    if optim.lr.warmup_epochs > longest:
        words = f"{optim.lr.warmup_epochs:g} is longer than the schedule: "
        words += f"optim.stretch * train.epochs = {longest:g}"
        yield ("optim", "lr", "warmup_epochs"), words
    if optim.clip is not None and optim.clip.from_epoch >= train.epochs:
        words = f"{optim.clip.from_epoch} is never reached with train.epochs {train.epochs}, so nothing is "
        yield ("optim", "clip", "from_epoch"), words + "clipped; write optim.clip: null or give a smaller one"
    elif optim.clip is not None and optim.clip.later and optim.clip.later.from_epoch >= train.epochs:
        words = f"{optim.clip.later.from_epoch} is never reached with train.epochs {train.epochs}; write "
        yield ("optim", "clip", "later", "from_epoch"), words + "optim.clip.later: null or give a smaller one"


def _milestones(run: RunSpec, train: TrainSpec) -> Findings:
    if run.milestone_epochs is not None and run.milestone_epochs > train.epochs:
        words = f"{run.milestone_epochs} is never reached with train.epochs {train.epochs}; "
        yield ("run", "milestone_epochs"), words + "write null or give a smaller one"


def _batch_norm(method: MethodOptions, backbone: BackboneSpec, train: TrainSpec) -> Findings:
    """BatchNorm needs more than one image, and its groups need a BatchNorm."""
    head = getattr(method, "head", None)
    in_head, in_backbone = getattr(head, "batch_norm", False), backbone.has_batch_norm
    if train.global_batch < 2 and (in_backbone or (in_head and method.head_views < 2)):
        key = "the backbone's BatchNorm" if in_backbone else "method.head.batch_norm"
        words = (
            f"{train.global_batch} is too small for {key}, which needs the statistics of at least 2 images"
        )
        yield ("train", "global_batch"), words
    if train.batch_norm_group is not None and not (in_head or in_backbone):
        words = (
            f"{train.batch_norm_group} has no effect: neither backbone nor head has a BatchNorm; write null"
        )
        yield ("train", "batch_norm_group"), words


def _method_ranges(method: MethodOptions) -> Findings:
    """A momentum is a weight between 0 and 1; a sharpening exponent's inverse is above 0."""
    for name, low, high, words in (
        ("momentum", 0.0, 1.0, "it must be a number from 0 to 1"),
        ("sharpen", 1e-3, float("inf"), "it must be a number of at least 0.001"),
    ):
        moving = getattr(method, name, None)
        if isinstance(moving, Range):
            for end, value in (("start", moving.start), ("final", moving.final)):
                if not low <= value <= high:
                    yield ("method", name, end), f"{value:g} is not allowed; {words}"


def _init(init: InitSpec | None, train: TrainSpec, method: MethodOptions) -> Findings:
    if init is None or init.start_epoch is None:
        return
    for key, words in method.unfit_start(init.start_epoch, epochs=train.epochs):
        yield tuple(key.split(".")), words
    if init.start_epoch >= train.epochs:
        words = f"{init.start_epoch} is the end of the run, train.epochs {train.epochs}; give a smaller one"
        yield ("init", "start_epoch"), words


def flat(values: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every key of nested sections that is no section itself, with its value. An empty section is a value."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, (*path, key))
        else:
            yield (*path, key), value


_CHECKS: tuple[tuple[Callable[..., Findings], tuple[str, ...]], ...] = (
    (_roles, ("method_name", "roles")),
    (_backbone, ("method_name", "backbone")),
    (_method_ranges, ("method",)),
    (_method_views, ("method", "views", "backbone")),
    (_view_sizes, ("backbone", "views")),
    (_features, ("backbone", "features")),
    (_photometry, ("views",)),
    (mistakes_between, ("views",)),
    (_learning_rate, ("optim",)),
    (_lengths, ("optim", "train")),
    (_milestones, ("run", "train")),
    (_batch_norm, ("method", "backbone", "train")),
    (_init, ("init", "train", "method")),
)


def check(sections: Mapping[str, Any], *, sound: bool = True) -> list[Finding]:
    """The findings of every check whose sections are all there: (path of the key to change, words).

    sections: of a recipe by name; and `method_name` and `roles`, the names of its views, which may be known
    where the sections are not valid. sound: False where a section contradicts itself, so that a check may
    not be able to work with it; what it found until then counts.
    """
    found: list[Finding] = []
    for find, names in _CHECKS:
        if all(name in sections for name in names):
            try:
                found.extend(find(*(sections[name] for name in names)))
            except (ArithmeticError, LookupError, ValueError):
                if sound:
                    raise
    return found


def check_published(published: Published, keys: set[Path]) -> list[Finding]:
    """The names under `published.unknown` must be keys of the recipe. keys: paths of all it has."""
    known = {".".join(key) for key in keys}
    return [
        (("published", "unknown", name), f"is no key of this recipe{did_you_mean(name, known)}")
        for name in published.unknown
        if name not in known
    ]


def check_recipe(recipe: Recipe) -> list[Finding]:
    """The findings in a recipe that was built without a file."""
    return check({**dict(recipe), "method_name": recipe.method.name, "roles": tuple(recipe.views)})

"""The recipe meeting reality once: this data set, this many processes, this device -> numbers, frozen."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from belvedere.core.errors import RecipeError
from belvedere.core.schedule import WarmupCosine
from belvedere.data.order import steps_per_epoch as whole_batches
from belvedere.data.spec import Part
from belvedere.data.spec import told as told_path
from belvedere.engine.precision import Precision, settled
from belvedere.methods.method import Clock, Extent
from belvedere.methods.pages import page
from belvedere.recipe.checks import check_recipe
from belvedere.recipe.durations import compared, doubts, in_epochs, shorter
from belvedere.recipe.explain import dotted
from belvedere.recipe.fit import extent, fits
from belvedere.recipe.load import recipe_hash
from belvedere.recipe.schema import Recipe


@dataclass(frozen=True)
class Plan:
    """Everything a run derives from its recipe.

    batch: images per step and process; micro_batch: rows of those encoded at a time; schedule_steps: what the
    schedules are laid out over (`optim.stretch` times the run), which need not be whole; run_dir: where
    everything is written; warnings: what is allowed and probably not meant, with the reason; on_precision:
    that this device lacks the precision asked for, what it costs and what is taken.
    """

    recipe: Recipe
    num_images: int
    world_size: int
    steps_per_epoch: int
    total_steps: int
    schedule_steps: float
    warmup_steps: int
    batch: int
    micro_batch: int
    micro_batches: int
    lr: WarmupCosine
    weight_decay: WarmupCosine
    device: str
    precision: Precision
    threads: int | None
    run_dir: Path
    warnings: tuple[str, ...]
    on_precision: str | None = None

    def clock(self, step: int) -> Clock:
        """What a schedule may read at `step`."""
        return Clock(step, self.steps_per_epoch, self.total_steps, self.schedule_steps)

    @property
    def extent(self) -> Extent:
        """How large the run is, for a method."""
        return extent(self.recipe, self.num_images, self.world_size)

    def table(self) -> list[tuple[str, str]]:
        """The plan as (what, value) rows, to be printed as one table."""
        recipe, lr = self.recipe, self.lr
        comparison = compared(recipe, self.extent)
        left = self.num_images - self.steps_per_epoch * recipe.train.global_batch
        parts = (
            f", {self.micro_batches} micro-batches of {self.micro_batch}" if self.micro_batches > 1 else ""
        )
        return [
            ("recipe", f"{recipe.name} ({recipe_hash(recipe)})"),
            (
                "images",
                f"{self.num_images:,} in {told_path(data_path(recipe))}, "
                f"{left:,} left out each epoch (others each time)",
            ),
            ("views", ", ".join(f"{view.count} {role} {view.px} px" for role, view in recipe.views.items())),
            ("batch", f"{recipe.train.global_batch} = {self.world_size} x {self.batch}{parts}"),
            (
                "length",
                f"{in_epochs(recipe.train.epochs)} x {self.steps_per_epoch:,} = {self.total_steps:,} steps",
            ),
            *([("measured", comparison)] if comparison is not None else []),
            ("learning rate", f"{lr.start:g} -> {lr.peak:g} in {self.warmup_steps:,} steps -> {lr.final:g}"),
            ("weight decay", _told_course(self.weight_decay)),
            (
                "schedules",
                f"laid out over {self.schedule_steps:,.10g} steps, {recipe.optim.stretch:g} x the run",
            ),
            *recipe.method.remarks(self.extent),
            (
                "device",
                f"{self.device}, {self.precision}{f', {self.threads} threads' if self.threads else ''}",
            ),
            *([("precision", self.on_precision)] if self.on_precision is not None else []),
            ("written to", str(self.run_dir)),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for plan.json; the recipe is saved beside it and stands here by name and hash."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["recipe"] = {"name": self.recipe.name, "hash": recipe_hash(self.recipe)}
        values["lr"] = dataclasses.asdict(self.lr)
        values["weight_decay"] = dataclasses.asdict(self.weight_decay)
        values["run_dir"] = str(self.run_dir)
        values["warnings"] = list(self.warnings)
        return values


def data_path(recipe: Recipe) -> str | tuple[Part, ...]:
    """Where the recipe's images are. Raises RecipeError where it leaves that to whoever runs it."""
    if recipe.data.path is None:
        raise RecipeError(f"data.path: {recipe.name} does not say where the images are; set data.path=DIR")
    return recipe.data.path


def run_dir(recipe: Recipe) -> Path:
    """Where a run of this recipe is written: `run.dir`, or `runs/<name>`."""
    return Path(recipe.run.dir) if recipe.run.dir is not None else Path("runs", recipe.name)


def plan(
    recipe: Recipe,
    *,
    num_images: int,
    world_size: int = 1,
    device: str = "cpu",
    threads: int | None = None,
    elsewhere: bool = False,
) -> Plan:
    """What `recipe` comes to with `num_images` images on `world_size` processes.

    device: what the networks run on; elsewhere: the run is meant for another machine, so that what this one's
    device lacks does not count; threads: how many the CPU uses (None: as `run.threads` says). Raises
    RecipeError for settings that contradict each other or do not fit the data or the processes.
    """
    data_path(recipe)
    findings = [*check_recipe(recipe), *fits(recipe, num_images, world_size)]
    if findings:
        raise RecipeError("\n  ".join(f"{dotted(path)}: {words}" for path, words in findings))

    train, optim, method = recipe.train, recipe.optim, page(recipe.method.name).build
    steps_per_epoch = whole_batches(num_images, train.global_batch)
    schedule_steps = optim.stretch * train.epochs * steps_per_epoch
    warmup_steps = int(optim.lr.warmup_epochs * steps_per_epoch)
    batch = train.global_batch // world_size
    micro_batch = min(batch, recipe.run.micro_batch or batch)
    lr, decay, first = optim.lr, optim.weight_decay, method.schedule_first
    schedule = int(schedule_steps)
    precision, words = (train.precision, None) if elsewhere else settled(train.precision, device)
    result = Plan(
        recipe=recipe,
        num_images=num_images,
        world_size=world_size,
        steps_per_epoch=steps_per_epoch,
        total_steps=train.epochs * steps_per_epoch,
        schedule_steps=schedule_steps,
        warmup_steps=warmup_steps,
        batch=batch,
        micro_batch=micro_batch,
        micro_batches=math.ceil(batch / micro_batch),
        lr=WarmupCosine(
            lr.start, lr.peak, lr.final, warmup_steps, schedule, first=first, peak_twice=method.peak_twice
        ),
        weight_decay=WarmupCosine(decay.start, decay.start, decay.final, 0, schedule, first=first),
        device=device,
        precision=precision,
        threads=recipe.run.threads if threads is None else threads,
        run_dir=run_dir(recipe),
        warnings=(),
        on_precision=words,
    )
    return dataclasses.replace(result, warnings=tuple(_warnings(result)))


def _told_course(schedule: WarmupCosine) -> str:
    if schedule.peak == schedule.final:
        return f"{schedule.peak:g}"
    return f"{schedule.peak:g} -> {schedule.final:g}"


def _warnings(plan: Plan) -> list[str]:
    recipe, found = plan.recipe, list(plan.recipe.method.doubts(plan.extent))
    if (short := shorter(recipe, plan.extent)) is not None:
        found.append(short)
    prototypes = getattr(recipe.method, "prototypes", 0)
    if isinstance(prototypes, int) and prototypes > plan.num_images:
        found.append(
            f"{recipe.method.prototypes_key}: {prototypes} prototypes for {plan.num_images} images: every "
            "image could have one to itself, and then nothing ties similar images together; set it well "
            "below the images"
        )
    left = plan.num_images - plan.steps_per_epoch * recipe.train.global_batch
    if left > plan.num_images // 4:
        found.append(
            f"train.global_batch: {recipe.train.global_batch} leaves {left} of {plan.num_images} images out "
            "of every epoch, because an epoch is a whole number of batches; a smaller batch uses more of them"
        )
    if plan.warmup_steps >= plan.total_steps:
        found.append(
            f"optim.lr.warmup_epochs: the warm-up takes {plan.warmup_steps} steps, the run "
            f"{plan.total_steps}: the learning rate never reaches its peak; make the warm-up shorter or "
            "train longer"
        )
    if plan.micro_batches > 1 and recipe.backbone.has_batch_norm:
        found.append(
            f"run.micro_batch: each of the {plan.micro_batches} micro-batches has statistics of its own in "
            "the backbone's BatchNorm, so the numbers are those of as many processes with "
            "train.batch_norm_group=1, not those of the whole batch"
        )
    told = {words.partition(":")[0] for words in found}
    return found + [words for words in doubts(recipe, plan.extent) if words.partition(":")[0] not in told]

"""Whether a run fits the memory there is: told from its description, before any of it is taken."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass

from belvedere.core import machine
from belvedere.core.errors import RecipeError
from belvedere.core.files import readable_size
from belvedere.nn.spec.count import MODULE_BYTES
from belvedere.recipe.estimate import Estimate, estimate, num_moments, value_bytes, with_micro_batch
from belvedere.recipe.plan import Plan
from belvedere.recipe.schema import Recipe

SURE = 0.6
"""The share of what is estimated, and not counted, that a run takes at least: one is refused only if counts
and this share of the rest are more than there is."""
_SURE_COMPILED = 0.4  # a compiler keeps less for the backward pass
_FILLED = 0.85  # of the free memory, by the micro-batch that is advised
_MANY_WORKERS = 8
_COUNTED = 1 << 60  # from here on a power of ten says more


@dataclass(frozen=True)
class Memory:
    """Bytes that a process can have. total: all there can ever be for it; free: now; None: not known. where:
    for people."""

    total: int | None
    free: int | None
    where: str


def memory_here(device: str) -> Memory:
    """The memory of this process: a GPU's own, or its share of the machine's (or the control group's)."""
    if device == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info()
        return Memory(total, free, "this GPU")
    processes = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    total_, free_ = machine.memory_bytes(), machine.available_bytes()
    where = f"each of {processes} processes on this machine" if processes > 1 else "this machine"
    return Memory(
        None if total_ is None else total_ // processes, None if free_ is None else free_ // processes, where
    )


def refuse_too_large(recipe: Recipe, plan: Plan, memory: Memory, *, elsewhere: bool = False) -> list[str]:
    """What to say of the memory that a run takes; mostly nothing.

    elsewhere: the run is meant for another device than the one here, on which only its networks are built.
    Raises RecipeError if it cannot fit: with numbers, the key that is at fault and, where one is enough, the
    `run.micro_batch` that fits.
    """
    total = memory.total
    if total is None:
        return []
    _refuse_parts(recipe, plan, total, memory)
    if elsewhere:
        return []
    needs = estimate(recipe, plan)
    sure = needs.held + int(needs.estimated * (_SURE_COMPILED if recipe.run.compile else SURE))
    told = f"a process needs about {readable_size(needs.memory)} (an estimate, mostly {_largest(needs)})"
    if sure > total:
        there = f"{memory.where} has {readable_size(total)} of memory"
        raise RecipeError(f"{_remedy(recipe, plan, memory)}: {told}, and {there}{_on_gpu(recipe, plan)}")
    if memory.free is not None and needs.memory > memory.free:
        there = f"{readable_size(memory.free)} are free on {memory.where}"
        return [f"{_remedy(recipe, plan, memory)}: {told}, and {there}: the run may be killed for memory"]
    return []


def fitting_micro_batch(recipe: Recipe, plan: Plan, memory: Memory) -> int | None:
    """The largest power of two that fits the free memory as a micro-batch; None where none does."""
    room = memory.free if memory.free is not None else memory.total
    least = 2 if recipe.backbone.has_batch_norm else 1
    size = 1 << max(0, plan.micro_batch - 1).bit_length()
    while room is not None and size > least:
        size //= 2
        leaves_one = recipe.backbone.has_batch_norm and plan.batch % size == 1
        fits = with_micro_batch(recipe, plan, size).memory <= _FILLED * room
        if fits and not leaves_one and size < plan.micro_batch:
            return size
    return None


def _refuse_parts(recipe: Recipe, plan: Plan, total: int, memory: Memory) -> None:
    """Raise RecipeError if what is counted, and not estimated, is more than there is."""
    counted = _counted(recipe, plan)
    together = sum(num_bytes for _, num_bytes, _ in counted)
    if together <= total:
        return
    key, num_bytes, words = max(counted, key=lambda part: part[1])
    size = readable_size(num_bytes) if num_bytes < _COUNTED else f"about 10^{len(str(num_bytes)) - 1} bytes"
    raise RecipeError(
        f"{key}: {words} {size} in each process, and {memory.where} has {readable_size(total)} of memory; "
        "make it smaller"
    )


def _counted(recipe: Recipe, plan: Plan) -> list[tuple[str, int, str]]:
    """(key, bytes, words) of what a process cannot do without, however small its micro-batch."""
    size, moments = value_bytes(plan.precision), num_moments(recipe)[0]
    found = []
    for part in recipe.method.held(recipe.backbone, plan.extent):
        parameters = (part.trained * (2 + moments) + part.teacher) * size + part.layers * MODULE_BYTES
        state = (part.own_bytes + part.shared_bytes) * size // 4
        number = f"{part.trained:,}" if part.trained < _COUNTED else f"10^{len(str(part.trained)) - 1}"
        words = f"{number} parameters, their gradients and moments take"
        found.append((part.key, parameters + state, words if part.trained else "takes"))
    for role, view in recipe.views.items():
        tables = 4 * recipe.backbone.num_constants(view.px)
        pixels = 3 * view.count * view.px**2 * size
        found.append((f"views.{role}.px", tables, f"tables of positions for views of {view.px} px take"))
        found.append((f"views.{role}.px", pixels * plan.batch, f"a batch of {plan.batch:,} images takes"))
    if recipe.run.workers > _MANY_WORKERS:
        batch = sum(num for _, num, words in found if words.startswith("a batch"))
        workers = recipe.run.workers
        found.append(("run.workers", batch * workers, f"a batch for each of {workers} workers takes"))
    return found


def _largest(needs: Estimate) -> str:
    parts = {
        "parameters, gradients and moments": needs.held,
        "activations": needs.activations,
        "heads and loss": needs.loss,
        "batches of views": needs.views,
    }
    name = max(parts, key=lambda part: parts[part])
    return f"{name}, {readable_size(parts[name])}"


def _remedy(recipe: Recipe, plan: Plan, memory: Memory) -> str:
    """The overrides that make the run fit: a micro-batch, with fewer workers where their batches take too
    much, else a smaller batch."""
    for workers in dict.fromkeys((recipe.run.workers, min(recipe.run.workers, 1), 0)):
        fewer = recipe.model_copy(update={"run": recipe.run.model_copy(update={"workers": workers})})
        size = fitting_micro_batch(fewer, plan, memory)
        if size is not None:
            also = f" run.workers={workers}" if workers != recipe.run.workers else ""
            return f"run.micro_batch: set run.micro_batch={size}{also}, the same run with less memory"
    batch = _fitting_batch(recipe, plan, memory)
    told = "set a smaller train.global_batch" if batch is None else f"train.global_batch={batch} would fit"
    return f"train.global_batch: no run.micro_batch is small enough; {told}{_spread(plan)}"


def _spread(plan: Plan) -> str:
    return "" if plan.world_size > 1 else ", or train on several devices"


def _fitting_batch(recipe: Recipe, plan: Plan, memory: Memory) -> int | None:
    """The largest power of two that fits as the batch of all processes, in micro-batches if need be."""
    room, batch = memory.free if memory.free is not None else memory.total, plan.batch
    while room is not None and batch > 2:
        batch = 1 << ((batch - 1).bit_length() - 1)
        smaller = dataclasses.replace(plan, batch=batch, micro_batch=batch, micro_batches=1)
        if estimate(recipe, smaller).memory <= _FILLED * room:
            return batch * plan.world_size
        if fitting_micro_batch(recipe, smaller, memory) is not None:
            return batch * plan.world_size
    return None


def _on_gpu(recipe: Recipe, plan: Plan) -> str:
    if plan.device != "cpu" or recipe.run.device is not None:
        return ""
    return ". To check a run for a GPU on a machine without one, add run.device=cuda"

"""Whether a recipe fits the images and the processes there are."""

from __future__ import annotations

from belvedere.data.order import steps_per_epoch
from belvedere.data.spec import told
from belvedere.methods.method import Extent
from belvedere.recipe.checks import Finding
from belvedere.recipe.schema import Recipe


def extent(recipe: Recipe, num_images: int, world_size: int) -> Extent:
    """How large a run of this recipe is."""
    batch = recipe.train.global_batch
    return Extent(num_images, recipe.train.epochs, steps_per_epoch(num_images, batch), batch, world_size)


def fits(recipe: Recipe, num_images: int, world_size: int) -> list[Finding]:
    """What does not fit: (path of the key to change, words). The method is asked once the batch fits."""
    found = _batch(recipe, num_images, world_size)
    if found:
        return found
    misfits = recipe.method.misfits(extent(recipe, num_images, world_size))
    return [*_batch_norm(recipe, world_size), *((tuple(key.split(".")), words) for key, words in misfits)]


def _batch(recipe: Recipe, num_images: int, world_size: int) -> list[Finding]:
    batch, path = recipe.train.global_batch, ("train", "global_batch")
    found: list[Finding] = []
    if batch > num_images:
        words = (
            f"{batch} is more than the {num_images} images found in {told(recipe.data.path or 'no path')}; "
        )
        words += f"set it to at most {num_images}" if num_images else "look at data.path"
        found.append((path, words))
    if batch % world_size:
        below = batch // world_size * world_size
        nearest = f"{below} or {below + world_size}" if below else f"{world_size}"
        words = f"{batch} cannot be shared equally by {world_size} processes; the nearest are {nearest}"
        found.append((path, words))
    return found


def _batch_norm(recipe: Recipe, world_size: int) -> list[Finding]:
    """Groups of processes are of equal size, and a BatchNorm sees 2 rows at least."""
    group, batch = recipe.train.batch_norm_group, recipe.train.global_batch // world_size
    if group is not None and world_size % group:
        fit = ", ".join(str(size) for size in range(1, world_size + 1) if world_size % size == 0)
        words = f"{group} cannot share out {world_size} processes; give null (all together) or one of {fit}"
        return [(("train", "batch_norm_group"), words)]
    together = group or world_size
    in_head = getattr(getattr(recipe.method, "head", None), "batch_norm", False)
    if in_head and together * batch * recipe.method.head_views < 2 <= recipe.train.global_batch:
        words = f"{group} leaves 1 image to each BatchNorm of the head, which needs 2; give null, or set "
        return [(("train", "batch_norm_group"), f"{words}method.head.batch_norm to false")]
    if not recipe.backbone.has_batch_norm:
        return []
    if together * batch < 2:
        words = f"{group} leaves 1 image to each of the backbone's BatchNorms, which need 2; give null"
        return [(("train", "batch_norm_group"), words)]
    size = min(batch, recipe.run.micro_batch or batch)
    if together * (batch % size or size) < 2:
        words = f"{size} leaves a micro-batch of 1 image to the backbone's BatchNorm, which needs 2; "
        return [(("run", "micro_batch"), words + "choose another or null")]
    return []

"""Making views on the CPU, belvedere's against torchvision's and Pillow's, in images per second of one core.

    python benchmarks/views.py                    # about two minutes; nothing else should run
    python benchmarks/views.py --images DIR       # of your own images

Three sides, one thread each, take turns on the same JPEG files of about 500 px. `pil` is the pipeline as
users write it: decode, RandomResizedCrop, RandomHorizontalFlip, ColorJitter, RandomGrayscale, Pillow's blur,
RandomSolarize, ToTensor, Normalize, and torch's collation of a batch; for Mugs' strong views RandAugment by
Pillow before the crop, and RandomErasing. `whole` is belvedere from the file to
the normalized batch. `worker` is what its loader's processes do where the photometry is left to a device:
decode, draw, crop. Every side ends with a batch in memory. Times are medians over rounds whose order rotates.

Before anything is timed, the pipelines are given the parameters that belvedere drew, and must make the same
views. The images are cut out of scikit-learn's two photographs.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import platform
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image, ImageFilter
from pil_randaugment import PilRandAugment, changed
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor
from torch.utils.data import default_collate
from torchvision import transforms as T
from torchvision.transforms import functional as F

from belvedere.data.decode import open_image
from belvedere.data.fetch import Fetch, Fetched, Order, Wanted
from belvedere.data.order import epoch_order
from belvedere.data.sources import open_source
from belvedere.data.sources.source import ArraySource, Source
from belvedere.data.spec import DataSpec, Strong, ViewSpec
from belvedere.data.views import native
from belvedere.data.views.draw import draw_views
from belvedere.data.views.photometry import normalize, photometry
from belvedere.data.views.randaugment import Operation
from belvedere.data.views.render import crop_views, empty_crops, finish, largest_shrink
from belvedere.data.views.row import ARGUMENTS, BICUBIC, ERASED, OPERATIONS, Column
from belvedere.recipe.load import load_recipe

SEED = 0
GOALS = {"whole": (6, 10), "worker": (10, 15)}
"""At least, and aimed for: times the images per second of `pil`, of JPEG files around 500 px. For Mugs, of
whose strong views most is done before the crop: at least 4 times, whole."""
MEAN, P99 = 1.5, 6.0
"""Largest mean and 99th percentile of the difference between the sides, in gray levels."""

Views = dict[str, ViewSpec]


# What is measured


@dataclass(frozen=True)
class Case:
    """One row of the report: views of one source, in batches."""

    name: str
    source: Source
    views: Views
    data: DataSpec
    batch: int

    @property
    def steps_per_epoch(self) -> int:
        return len(self.source) // self.batch


PUBLISHED = {
    "MSN 2x224+10x96": "msn/vits16",
    "SwAV 2x224+6x96": "swav/rn50-800ep",
    "EsViT 2x224+8x96": "esvit/swin-tiny-w7",
    "Mugs 4x224+10x96": "mugs/vits16-800ep",
}
"""The recipes whose views are measured; half of those of Mugs' student are strong."""


def published() -> dict[str, tuple[Views, DataSpec]]:
    """The views of the published runs, by name."""
    recipes = {name: load_recipe(recipe, ["data.path=digits"]) for name, recipe in PUBLISHED.items()}
    return {name: (dict(recipe.views), recipe.data) for name, recipe in recipes.items()}


def save_photographs(folder: Path, count: int) -> None:
    """Cut-outs of scikit-learn's photographs, about 500 px on the longer side, as JPEG files."""
    rng = np.random.default_rng(SEED)
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    for number in range(count):
        whole = photographs[number % 2]
        share = rng.uniform(0.6, 1.0, 2)
        width, height = int(whole.width * share[0]), int(whole.height * share[1])
        left, top = rng.integers(whole.width - width + 1), rng.integers(whole.height - height + 1)
        longer = rng.integers(440, 561) / max(width, height)
        part = whole.crop((left, top, left + width, top + height))
        resized = part.resize((round(width * longer), round(height * longer)), Image.Resampling.BICUBIC)
        resized.save(folder / f"{number:04}.jpg", quality=90)


def save_large_photographs(folder: Path, count: int) -> None:
    """The photographs laid out side by side to 4000 x 3000 pixels, as sharp as they are."""
    china, flower = load_sample_images().images
    for number in range(count):
        strip = np.concatenate([china, flower] * 4, axis=1)[:, 100 * number :]
        tiled = np.concatenate([np.roll(strip, 300 * row, axis=1) for row in range(8)])[:3000, :4000]
        Image.fromarray(tiled).save(folder / f"{number:04}.jpg", quality=90)


def small_cases(batch: int) -> Iterator[Case]:
    """Gray images of 28 and 8 px in memory, by the recipes made for them."""
    noise = np.random.default_rng(SEED).integers(0, 256, (4 * batch, 28, 28, 1), dtype=np.uint8)
    digits = (load_digits().images[: 4 * batch, :, :, None] * (255 / 16)).astype(np.uint8)
    for name, recipe, pixels in (("28 px gray", "msn/fashion", noise), ("8 px gray", "tiny/msn", digits)):
        read = load_recipe(recipe, ["data.path=digits"])
        keys = [str(number) for number in range(len(pixels))]
        labels = np.zeros(len(pixels), dtype=np.int64)
        source = ArraySource(name, pixels, labels=labels, classes=("one",), keys=keys)
        yield Case(f"{name}, {recipe}", source, dict(read.views), read.data, batch)


# Torchvision's and Pillow's side


class PilBlur:
    def __init__(self, radius: tuple[float, float]) -> None:
        self.radius = radius

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(*self.radius)))


def pipeline(spec: ViewSpec, data: DataSpec) -> T.Compose:
    """One view as users write it; what a recipe leaves out is left out here."""
    looks = spec.photometry
    mode = F.InterpolationMode(spec.interpolation)
    steps: list[Any] = [T.RandomResizedCrop(spec.px, spec.scale, spec.aspect, mode)]
    if looks.flip:
        steps.append(T.RandomHorizontalFlip(looks.flip))
    if (jitter := looks.jitter) is not None:
        color = T.ColorJitter(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        steps.append(T.RandomApply([color], p=jitter.p))
    if looks.gray:
        steps.append(T.RandomGrayscale(looks.gray))
    if looks.blur is not None:
        steps.append(T.RandomApply([PilBlur(looks.blur.radius)], p=looks.blur.p))
    if looks.solarize:
        steps.append(T.RandomSolarize(128, p=looks.solarize))
    # gray images stay in one channel until they are tensors, which is the cheapest for Pillow
    return T.Compose([*steps, T.ToTensor(), Expand(), T.Normalize(data.mean, data.std)])


def strong_pipeline(spec: ViewSpec, strong: Strong, data: DataSpec) -> T.Compose:
    """One strong view, in the order of the paper's code."""
    steps: list[Any] = [
        T.RandomHorizontalFlip(spec.photometry.flip),
        PilRandAugment(**strong.randaugment.model_dump()),
        T.RandomResizedCrop(spec.px, spec.scale, spec.aspect, F.InterpolationMode(spec.interpolation)),
        T.ToTensor(),
    ]
    if (erasing := strong.erasing) is not None:
        steps.append(T.RandomErasing(erasing.p, erasing.area, erasing.aspect, value="random"))
    return T.Compose([*steps, T.Normalize(data.mean, data.std)])


def ways(spec: ViewSpec, data: DataSpec) -> tuple[T.Compose, ...]:
    """The weak pipeline of a view, and the strong one where there is one."""
    weak = pipeline(spec, data)
    return (weak,) if spec.strong is None else (weak, strong_pipeline(spec, spec.strong, data))


class Expand:
    def __call__(self, image: Tensor) -> Tensor:
        return image.expand(3, -1, -1)


def pillow(stored: Any) -> Image.Image:
    """An image as torchvision's data sets read it."""
    if isinstance(stored, np.ndarray):
        return Image.fromarray(stored[..., 0] if stored.shape[-1] == 1 else stored)
    return Image.open(io.BytesIO(stored)).convert("RGB")


def pil_side(case: Case) -> Callable[[int], list[Tensor]]:
    """A batch by its step: a list of views [B, 3, px, px]."""
    each = [(spec.strong, ways(spec, case.data)) for spec in case.views.values() for _ in range(spec.count)]

    def views(image: Image.Image) -> list[Tensor]:
        made, toss = [], random.random()  # one for all views with the images' coin
        for strong, by_strength in each:
            own = toss if strong is not None and strong.coin == "image" else random.random()
            made.append(by_strength[strong is not None and own > 1 - strong.p](image))
        return made

    def batch(step: int) -> list[Tensor]:
        images = [pillow(case.source.stored(int(index))) for index in wanted(case, step).asked]
        return default_collate([views(image) for image in images])

    return batch


# Belvedere's side


def wanted(case: Case, step: int) -> Wanted:
    """The images of one step; both sides get the same ones."""
    epoch, within = divmod(step, case.steps_per_epoch)
    start = within * case.batch
    return Wanted(step, epoch_order(case.source, SEED, epoch)[start : start + case.batch])


def our_side(case: Case, *, finished: bool) -> Callable[[int], Fetched]:
    order = Order(seed=SEED, global_batch=case.batch, rank=0, world_size=1)
    fetch = Fetch(
        case.source,
        case.views,
        data=case.data,
        order=order,
        dtype=torch.float32,
        finished=finished,
        replaced={},
    )
    return lambda step: fetch.fetch(wanted(case, step))


# Both sides must make the same views


def check(case: Case) -> tuple[float, float]:
    """Mean and 99th percentile of the difference of the sides, in gray levels, given the same parameters."""
    crops, views = (our_side(case, finished=finished)(0) for finished in (False, True))
    std = torch.tensor(case.data.std).view(3, 1, 1)
    apart = []
    for number, index in enumerate(views.index[:8].tolist()):
        image = pillow(case.source.stored(index)).convert("RGB")
        for role, spec in case.views.items():
            for place in range(spec.count):
                row = crops.rows[role][number, place]
                theirs = F.to_tensor(replayed(image, spec, row))
                normalized = F.normalize(theirs, case.data.mean, case.data.std)
                difference = ((views.views[role][place, number] - normalized) * std).abs() * 255
                top, left, height, width = row[ERASED].astype(int)
                difference[:, top : top + height, left : left + width] = 0  # noise is each side's own
                apart.append(difference.flatten())
    all_apart = torch.cat(apart).numpy()
    mean, p99 = float(all_apart.mean()), float(np.percentile(all_apart, 99))
    assert mean <= MEAN, f"{case.name}: the sides differ by {mean:.2f} gray levels on average"
    assert p99 <= P99, f"{case.name}: one value in a hundred differs by more than {p99:.1f} gray levels"
    return mean, p99


def replayed(image: Image.Image, spec: ViewSpec, row: np.ndarray) -> Image.Image:
    """The pipeline's view by the parameters of one row [P]."""
    if row[Column.MIRROR]:
        image = F.hflip(image)
    for number, argument, bicubic in zip(row[OPERATIONS], row[ARGUMENTS], row[BICUBIC], strict=True):
        if number and spec.strong is not None:
            name, fill = Operation(int(number)).name, spec.strong.randaugment.fill
            image = changed(image, name, float(argument), bicubic=bool(bicubic), fill=fill)
    box = [int(value) for value in row[: Column.WIDTH + 1]]
    image = F.resized_crop(image, *box, [spec.px, spec.px], F.InterpolationMode(spec.interpolation))
    if row[Column.FLIP]:
        image = F.hflip(image)
    if row[Column.JITTER]:
        adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
        for number in row[Column.ORDER_0 : Column.ORDER_3 + 1].astype(int):
            factor = float(row[Column.BRIGHTNESS + number])
            if factor != (0.0 if number == 3 else 1.0):
                image = adjust[number](image, factor)
    if row[Column.GRAY]:
        image = F.to_grayscale(image, 3)
    if row[Column.BLUR]:
        image = image.filter(ImageFilter.GaussianBlur(float(row[Column.RADIUS])))
    return F.solarize(image, 128) if row[Column.SOLARIZE] else image


# Measuring


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Images per second of each side: medians, and the best round."""
    mean, p99 = check(case)
    sides: dict[str, Callable[[int], Any]] = {
        "pil": pil_side(case),
        "whole": our_side(case, finished=True),
        "worker": our_side(case, finished=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(rounds + 1):
        for name in names[number % 3 :] + names[: number % 3]:
            before = time.perf_counter()
            sides[name](number)
            if number:  # the first round is not timed
                seconds[name].append(time.perf_counter() - before)
    result: dict[str, Any] = {"case": case.name, "apart_mean": mean, "apart_p99": p99}
    for name, values in seconds.items():
        result[name] = {
            "images_per_s": case.batch / statistics.median(values),
            "best": case.batch / min(values),
        }
    for name in GOALS:
        result[name]["ratio"] = result[name]["images_per_s"] / result["pil"]["images_per_s"]
    return result


def stages(case: Case, rounds: int) -> dict[str, float]:
    """Milliseconds per image of each stage of belvedere's side, medians."""
    found = []
    for step in range(rounds + 1):
        taken: Counter[str] = Counter()

        def timed(name: str, work: Callable[[], Any], taken: Counter[str] = taken) -> Any:
            before = time.perf_counter()
            done = work()
            taken[name] += 1000 * (time.perf_counter() - before) / case.batch
            return done

        render_in_stages(case, step, timed)
        found.append(taken)
    return {name: statistics.median(each[name] for each in found[1:]) for name in found[0]}


def render_in_stages(case: Case, step: int, timed: Callable[[str, Callable[[], Any]], Any]) -> None:
    """One batch by the functions that `Fetch` calls; `timed` calls each under its name."""
    views, data, where = case.views, case.data, np.arange(case.batch)
    stored = timed("read", lambda: [case.source.stored(int(index)) for index in wanted(case, step).asked])
    opened = timed("decode", lambda: [open_image(each, "") for each in stored])
    sizes = np.array([(image.height, image.width) for image in opened])

    rows = timed("draw", lambda: draw_views(views, seed=SEED, epoch=step, positions=where, sizes=sizes))
    each_rows = [{role: rows[role][number] for role in rows} for number in where]
    crops = {role: empty_crops(spec, case.batch) for role, spec in views.items()}

    def decoded_and_cropped(number: int) -> None:
        own = each_rows[number]
        shrink = largest_shrink(views, own)
        image = timed("decode", lambda: opened[number].decoded(shrink=shrink))
        out = {role: crops[role][:, number].numpy() for role in crops}
        timed("crop", lambda: crop_views(image.pixels, views, own, out=out, shrink=image.shrink))

    for number in where:
        decoded_and_cropped(number)
    flat = {role: rows[role].transpose(1, 0, 2).reshape(-1, rows[role].shape[-1]) for role in rows}
    changed = timed(
        "photometry", lambda: [photometry(crops[role].flatten(0, 1), flat[role]) for role in rows]
    )
    timed("normalize", lambda: [normalize(each, data.mean, data.std, torch.float32) for each in changed])
    timed(
        "both at once",
        lambda: [finish(crops[role], rows[role], data=data, dtype=torch.float32) for role in rows],
    )


# Reporting


def print_table(title: str, results: list[dict[str, Any]], *, goals: bool) -> None:
    print(f"\n{title}")
    print(
        f"{'images/s of one core':26s} {'pil':>9s} {'whole':>9s} {'ratio':>7s} {'worker':>9s} {'ratio':>7s}"
    )
    for found in results:
        pil, whole, worker = (found[side]["images_per_s"] for side in ("pil", "whole", "worker"))
        print(
            f"{found['case']:26s} {pil:9.1f} {whole:9.1f} {found['whole']['ratio']:7.2f} "
            f"{worker:9.1f} {found['worker']['ratio']:7.2f}"
        )
    if goals:
        wanted_ = [f"{least} to {aim} x" for least, aim in GOALS.values()]
        print(f"{'goal':26s} {'':9s} {'':9s} {wanted_[0]:>7s} {'':6s} {wanted_[1]:>9s}")
    print("apart: " + "; ".join(f"mean {r['apart_mean']:.2f}, p99 {r['apart_p99']:.1f}" for r in results))


def machine() -> str:
    """What the numbers belong to."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = (
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line
        )
        name = next(lines, name)
    return (
        f"{name}, 1 thread, torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"Pillow {PIL.__version__}"
    )


def cases(folder: Path, given: argparse.Namespace) -> tuple[list[Case], list[Case]]:
    """The cases that goals are set for, and the others."""
    batch = given.batch
    if given.images is None:
        (folder / "photographs").mkdir()
        save_photographs(folder / "photographs", max(given.count, batch))
    source = open_source(str(given.images or folder / "photographs"))
    if len(source) < batch:
        raise SystemExit(f"--images holds {len(source)} images, and --batch is {batch}")
    aimed = [Case(name, source, views, data, batch) for name, (views, data) in published().items()]
    (folder / "large").mkdir()
    few = max(1, batch // 8)  # each takes a third of a second
    save_large_photographs(folder / "large", few)
    msn, data = published()["MSN 2x224+10x96"]
    large = Case("4000 x 3000 px, MSN", open_source(str(folder / "large")), msn, data, few)
    return aimed, [large, *small_cases(4 * batch)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="a folder of images, instead of the generated ones")
    parser.add_argument("--count", type=int, default=256, help="images to generate")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="of the cases with goals, those whose name begins so")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    given = parser.parse_args()
    if min(given.count, given.batch, given.rounds) < 1:
        parser.error("--count, --batch and --rounds must be at least 1")
    torch.set_num_threads(1)
    random.seed(SEED)
    torch.manual_seed(SEED)
    renderer = "native" if native.available() else "portable"
    print(f"{machine()}\nrenderer: {renderer}; {given.rounds} rounds of batches of {given.batch}")
    with tempfile.TemporaryDirectory() as folder:
        aimed, others = cases(Path(folder), given)
        sizes = [open_image(aimed[0].source.stored(index), "") for index in range(min(64, given.batch))]
        side = statistics.median(math.sqrt(image.height * image.width) for image in sizes)
        title = f"{len(aimed[0].source)} images, {side:.0f} px a side (root of the area, median)"
        if given.only:
            aimed, others = [case for case in aimed if case.name.startswith(given.only)], []
        measured = [measure(case, given.rounds) for case in aimed]
        print_table(title, measured, goals=True)
        rest = [measure(case, given.rounds) for case in others]
        if rest:
            print_table("other sizes", rest, goals=False)
        parts = {case.name: stages(case, given.rounds) for case in aimed}
    print("\nbelvedere's stages, ms per image (both at once: as `whole` does them)")
    for name, values in parts.items():
        print(f"{name:26s} " + ", ".join(f"{stage} {ms:.2f}" for stage, ms in values.items()))
    if given.json is not None:
        content = {"machine": machine(), "renderer": renderer, "rounds": given.rounds, "batch": given.batch}
        content |= {"aimed": measured, "others": rest, "stages_ms_per_image": parts}
        given.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()

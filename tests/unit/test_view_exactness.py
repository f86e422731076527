"""The same seed, epoch and position give the same bytes, whoever prepares them and in whatever company."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from belvedere.data.batch import Batch
from belvedere.data.fetch import Fetch, Fetched, Order, Wanted
from belvedere.data.loader import Loader
from belvedere.data.order import epoch_order
from belvedere.data.sources import open_source
from belvedere.data.sources.source import ArraySource, Source
from belvedere.data.spec import (
    Blur,
    DataSpec,
    Erasing,
    Interpolation,
    Jitter,
    Photometry,
    RandAugment,
    Strong,
    ViewSpec,
)
from belvedere.data.views.draw import draw
from belvedere.data.views.render import finish, largest_shrink

DATA = DataSpec(
    path=None, split=None, mean=(0.485, 0.456, 0.406), std=(0.228, 0.224, 0.225), max_bad_share=0.5
)
NUM = 26  # and batches of 8: three steps an epoch, two images left out
STEPS = 7
LARGE_PX = 700


def view(count: int, px: int, *, interpolation: Interpolation, blur: float, solarize: float) -> ViewSpec:
    looks = Photometry(
        flip=0.5,
        jitter=Jitter(p=0.8, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2),
        gray=0.2,
        blur=Blur(p=blur, radius=(0.1, 2.0)),
        solarize=solarize,
    )
    return ViewSpec(
        count=count,
        px=px,
        scale=(0.2, 1.0),
        aspect=(0.75, 4 / 3),
        interpolation=interpolation,
        photometry=looks,
    )


# every operation, both interpolations, sizes that are no multiple of a vector
VIEWS = {
    "global_1": view(1, 21, interpolation="bicubic", blur=1.0, solarize=0.0),
    "global_2": view(1, 21, interpolation="bicubic", blur=0.1, solarize=0.5),
    "local": view(3, 13, interpolation="bilinear", blur=0.5, solarize=0.0),
}

STRONG = Strong(
    p=0.5,
    coin="image",
    randaugment=RandAugment(operations=2, p=0.8, magnitude=9.0, magnitude_std=0.5, fill=(124, 116, 104)),
    erasing=Erasing(p=0.5, area=(0.02, 0.3333), aspect=(0.3, 3.3333)),
)
OWN_COIN = STRONG.model_copy(update={"coin": "view"})
STRONG_VIEWS = {
    "teacher": VIEWS["global_2"],
    "global_1": VIEWS["global_1"].model_copy(update={"strong": STRONG}),
    "global_2": VIEWS["global_2"].model_copy(update={"strong": STRONG}),
    "local": VIEWS["local"].model_copy(update={"strong": OWN_COIN}),
    "again": VIEWS["global_2"].model_copy(update={"copy_of": "teacher"}),
}


def picture(height: int, width: int, number: int) -> Image.Image:
    """Smooth colours with some noise, as JPEG likes it."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((width, height))
    noise = rng.integers(-20, 21, (height, width, 3))
    return Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """JPEG files of many sizes: two large ones, one in gray, one empty, one that ends in the middle."""
    found = tmp_path_factory.mktemp("pictures")
    for number in range(NUM):
        size = (LARGE_PX, LARGE_PX + 100) if number in (3, 11) else (40 + 7 * number, 190 - 5 * number)
        image = picture(*size, number)
        file = io.BytesIO()
        (image.convert("L") if number == 7 else image).save(file, "JPEG", quality=85)
        data = {5: b"", 16: file.getvalue()[: len(file.getvalue()) // 2]}.get(number, file.getvalue())
        (found / f"{number:02}.jpg").write_bytes(data)
    return found


def arrays(px: int, channels: int) -> ArraySource:
    pixels = np.random.default_rng(px).integers(0, 256, (NUM, px, px, channels), dtype=np.uint8)
    keys = [str(number) for number in range(NUM)]
    return ArraySource("arrays", pixels, labels=np.arange(NUM) % 3, classes=("a", "b", "c"), keys=keys)


@pytest.fixture(scope="module")
def sources(folder) -> dict[str, Source]:
    """Files; arrays that are cropped as a batch, gray and in colour; arrays cropped one by one. Of some the
    views may be strong."""
    files, gray = open_source(str(folder)), arrays(28, 1)
    return {
        "files": files,
        "gray arrays": gray,
        "arrays": arrays(40, 3),
        "large arrays": arrays(80, 3),
        "strong files": files,
        "strong gray arrays": gray,
    }


KINDS = ("files", "gray arrays", "arrays", "large arrays", "strong files", "strong gray arrays")
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def views_of(kind: str) -> dict[str, ViewSpec]:
    return STRONG_VIEWS if kind.startswith("strong") else VIEWS


def drained(sources: dict[str, Source], kind: str, **changes: object) -> list[Batch]:
    settings = {"data": DATA, "seed": 4, "global_batch": 8, "total_steps": STEPS} | changes
    with Loader(sources[kind], views_of(kind), **settings) as batches:
        return list(batches)


@pytest.fixture(scope="module")
def whole(sources) -> dict[str, list[Batch]]:
    """All steps, prepared in this process on one rank."""
    return {kind: drained(sources, kind) for kind in sources}


def content(batch: Batch) -> dict[str, bytes]:
    """The bytes of a batch: those of its views and flags, and which images they are of."""
    tensors = batch.views | batch.flags | {"index": batch.index, "label": batch.label}
    return {name: tensor.contiguous().numpy().tobytes() for name, tensor in tensors.items()}


def same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert content(one) == content(other)


def joined(parts: list[Batch]) -> Batch:
    """The batches of all ranks, or of following steps, as one."""
    views = {role: torch.cat([part.views[role] for part in parts], dim=1) for role in parts[0].views}
    index, label = (torch.cat([getattr(part, name) for part in parts]) for name in ("index", "label"))
    flags = {name: torch.cat([part.flags[name] for part in parts]) for name in parts[0].flags}
    return Batch(views=views, index=index, label=label, rows=range(len(index)), flags=flags)


def test_the_files_are_what_these_tests_are_about(sources, whole):
    """Images are replaced, before and after their size is known, and the large ones are decoded smaller."""
    with Loader(sources["files"], VIEWS, data=DATA, seed=4, global_batch=8, total_steps=STEPS) as batches:
        list(batches)
        assert batches.replaced == {5: 6, 16: 17}
        reasons = dict(batches.report.first_failures(5))
        assert reasons[5] == "the file is empty"
        assert "truncated" in reasons[16]
        assert batches.report.kinds == {"RGB": 23, "gray": 1}
    sizes = np.tile((LARGE_PX, LARGE_PX + 100), (50, 1))
    drawn = {role: draw(spec, 0, np.arange(50), sizes) for role, spec in VIEWS.items()}
    for number in range(50):
        assert largest_shrink(VIEWS, {role: rows[number] for role, rows in drawn.items()}) > 1
    used = {index for batch in whole["files"] for index in batch.index.tolist()}
    assert {3, 6, 7, 11, 17} <= used


@pytest.mark.parametrize("kind", ["strong files", "strong gray arrays"])
def test_the_strong_views_are_what_these_tests_are_about(kind, whole):
    """Images with weak and with strong views, and a role that repeats another."""
    weak = torch.cat([batch.flags["weak"] for batch in whole[kind]])
    assert weak.dtype == torch.bool
    assert 0.25 < weak.float().mean() < 0.75
    for batch in whole[kind]:
        assert torch.equal(batch.views["again"], batch.views["teacher"])
        assert not torch.equal(batch.views["global_2"], batch.views["teacher"])
    assert all("weak" not in batch.flags for batch in whole["files"])


@EVERY_KIND
def test_running_again_gives_the_same_bytes_and_each_epoch_its_own(kind, sources, whole):
    same(whole[kind], drained(sources, kind))
    contents = [content(batch) for batch in whole[kind]]
    for role in views_of(kind):
        assert len({each[role] for each in contents}) == STEPS
    other = content(drained(sources, kind, seed=5, total_steps=1)[0])
    assert all(other[role] != contents[0][role] for role in views_of(kind))


def test_workers_give_the_same_bytes(sources, whole):
    """Here, and not in a test of each, because starting processes takes seconds."""
    same(whole["strong files"], drained(sources, "strong files", workers=4))
    resumed = {"start_step": 5, "replaced": {5: 6, 16: 17}}  # in the middle of the second epoch
    same(whole["files"][5:], drained(sources, "files", workers=1, **resumed))
    same(whole["arrays"][2:5], drained(sources, "arrays", workers=2, start_step=2, total_steps=5))


@EVERY_KIND
@pytest.mark.parametrize("start", range(1, STEPS))
def test_resuming_at_any_step_gives_the_same_bytes(kind, start, sources, whole):
    replaced = {5: 6, 16: 17} if kind.endswith("files") else {}
    same(whole[kind][start:], drained(sources, kind, start_step=start, replaced=replaced))
    if start == 4:  # nothing depends on what was met before
        same(whole[kind][start:], drained(sources, kind, start_step=start))


@EVERY_KIND
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_together_give_the_same_bytes(kind, ranks, sources, whole):
    parts = [drained(sources, kind, rank=rank, world_size=ranks) for rank in range(ranks)]
    same(whole[kind], [joined(list(step)) for step in zip(*parts, strict=True)])


@EVERY_KIND
def test_the_size_of_the_batch_does_not_matter_to_a_view(kind, sources):
    """Epochs of 24 images as 1, 3 and 12 batches."""
    epochs = []
    for global_batch in (24, 8, 2):
        steps = 24 // global_batch
        batches = drained(sources, kind, global_batch=global_batch, total_steps=steps)
        epochs.append(content(joined(batches)))
    assert epochs[0] == epochs[1] == epochs[2]


def fetched(sources: dict[str, Source], kind: str, *, finished: bool) -> Fetched:
    """The second batch, prepared in this thread."""
    order, source, views = Order(seed=4, global_batch=8, rank=0, world_size=1), sources[kind], views_of(kind)
    fetch = Fetch(source, views, data=DATA, order=order, dtype=torch.float32, finished=finished, replaced={})
    return fetch.fetch(Wanted(1, epoch_order(source, 4, 0)[8:16]))


@EVERY_KIND
def test_photometry_here_and_photometry_afterwards_give_the_same_bytes(kind, sources, whole):
    """What a worker finishes and what is left to the device's process, from the same uint8 crops."""
    crops, views = (fetched(sources, kind, finished=finished) for finished in (False, True))
    assert views.rows == {}
    for role in crops.views:
        assert crops.views[role].dtype == torch.uint8
        before = crops.views[role].clone()
        after = finish(crops.views[role], crops.rows[role], data=DATA, dtype=torch.float32)
        assert torch.equal(crops.views[role], before)
        assert torch.equal(after, views.views[role])
        assert torch.equal(after, whole[kind][1].views[role])
        for row in range(8):  # one image by itself, as when a micro-batch is rendered again
            part = slice(row, row + 1)
            alone = finish(crops.views[role][:, part], crops.rows[role][part], data=DATA, dtype=torch.float32)
            assert torch.equal(alone, after[:, part])


@pytest.mark.parametrize("kind", ["strong files", "gray arrays"])
def test_the_number_of_threads_does_not_matter(kind, sources, whole):
    usual = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            views = fetched(sources, kind, finished=True).views
            assert all(torch.equal(views[role], whole[kind][1].views[role]) for role in views)
    finally:
        torch.set_num_threads(usual)

"""Strong views beside weak ones: coins, crops, erasing, what a batch says of them, and their settings."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from strong_views import ERASING, NUM, by_pillow, mugs, rows_of, strong, view

from belvedere.data.fetch import Fetched
from belvedere.data.handover import _Packed
from belvedere.data.loader import Loader
from belvedere.data.sources.source import ArraySource
from belvedere.data.spec import DataSpec, Strong, ViewSpec, mistakes_between
from belvedere.data.views import native
from belvedere.data.views.draw import draw, draw_views, weak_images
from belvedere.data.views.render import crop, crop_views, empty_crops, finish, largest_shrink
from belvedere.data.views.row import ERASED, Column

DATA = DataSpec(
    path=None, split=None, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), max_bad_share=0.0
)

# --- coins


def test_one_coin_is_tossed_for_the_pair_and_one_for_each_local_view():
    num = 4000
    rows = draw_views(mugs(), seed=3, epoch=1, positions=np.arange(num), sizes=np.tile((50, 60), (num, 1)))
    tossed = {role: rows[role][:, :, Column.STRONG] for role in rows}
    assert not tossed["teacher"].any()
    assert np.array_equal(tossed["global_1"], tossed["global_2"])
    columns = np.concatenate([tossed["global_1"], tossed["local"]], axis=1)  # four independent coins
    error = 0.5 / math.sqrt(num)
    assert np.abs(columns.mean(axis=0) - 0.5).max() < 5 * error
    assert np.abs(np.corrcoef(columns.T) - np.eye(4)).max() < 10 * error
    assert np.array_equal(weak_images(mugs(), rows), tossed["global_1"][:, 0] == 0)
    some = np.array([1717, 5])
    again = draw_views(mugs(), seed=3, epoch=1, positions=some, sizes=np.tile((50, 60), (2, 1)))
    assert all(np.array_equal(again[role], rows[role][some]) for role in rows)
    for seed, epoch in ((4, 1), (3, 2)):
        other = draw_views(
            mugs(), seed=seed, epoch=epoch, positions=np.arange(num), sizes=np.tile((50, 60), (num, 1))
        )
        assert 0.4 < (other["global_1"][:, 0, Column.STRONG] == tossed["global_1"][:, 0]).mean() < 0.6


def test_p_is_the_share_of_strong_views():
    for p in (0.2, 0.9, 1.0):
        share = len(rows_of(strong(p=p))) / NUM
        assert abs(share - p) <= 5 * math.sqrt(p * (1 - p) / NUM)
    coins = np.array([[0.3, 0.3000001, 0.9], [0.0, 0.1, 0.5]])
    drawn = draw(view(count=3, how=strong(p=0.7)), 1, np.arange(2), np.tile((9, 9), (2, 1)), coins=coins)
    assert drawn[:, :, Column.STRONG].tolist() == [[0, 1, 1], [0, 0, 1]]


def test_a_weak_view_is_what_it_is_without_strong_ones():
    spec, sizes = view(count=2, how=strong()), np.tile((70, 80), (300, 1))
    ours = draw(spec, 9, np.arange(300), sizes)
    plain = draw(spec.model_copy(update={"strong": None}), 9, np.arange(300), sizes)
    which = ours[:, :, Column.STRONG] > 0
    assert np.array_equal(ours[~which], plain[~which])
    box = slice(Column.TOP, Column.WIDTH + 1)
    assert np.array_equal(ours[which][:, box], plain[which][:, box])
    assert np.array_equal(ours[which][:, Column.MIRROR], plain[which][:, Column.FLIP])
    after = [Column.FLIP, Column.JITTER, Column.GRAY, Column.BLUR, Column.SOLARIZE]
    assert not ours[which][:, after].any()
    assert not plain[:, :, Column.STRONG :].any()


# --- whole views


@pytest.fixture(params=["native", "portable"])
def renderer(request, monkeypatch) -> str:
    if request.param == "portable":
        monkeypatch.setattr(native, "available", lambda: False)
    elif not native.available():
        pytest.skip(native.MISSING)
    return request.param


def test_weak_and_strong_crops_of_one_image_stand_side_by_side(renderer):
    rng = np.random.default_rng(3)
    images = [rng.integers(0, 256, (60 + 9 * number, 90, 3), dtype=np.uint8) for number in range(4)]
    sizes = np.array([image.shape[:2] for image in images])
    views = mugs()
    rows = draw_views(views, seed=0, epoch=0, positions=np.arange(4), sizes=sizes)
    crops = {role: empty_crops(spec, 4) for role, spec in views.items()}
    for number, image in enumerate(images):
        own = {role: rows[role][number] for role in rows}
        crop_views(image, views, own, out={role: crops[role][:, number].numpy() for role in rows})
    numbers = {True: 0, False: 0}
    for role, spec in views.items():
        for number, image in enumerate(images):
            for place, row in enumerate(rows[role][number]):
                plain = by_pillow(image, row, spec.px)  # a weak row has no operation
                assert np.array_equal(crops[role][place, number].numpy(), plain)
                numbers[bool(row[Column.STRONG])] += 1
    assert min(numbers.values()) > 4


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("num", "count"), [(30, 3), (1, 1)])
def test_small_images_in_a_batch_are_rendered_as_one_by_one(channels, num, count):
    images = np.random.default_rng(4).integers(0, 256, (num, 28, 28, channels), dtype=np.uint8)
    spec = view(count=count, px=16, how=strong(p=0.5 if num > 1 else 1.0))
    rows = draw(spec, 9, np.arange(num), np.tile((28, 28), (num, 1)))
    together = crop(spec, images, rows)
    assert together.shape == (count, num, 3, 16, 16)
    assert torch.equal(together, crop(spec, list(images), rows))
    ours = finish(together, rows, data=DATA, dtype=torch.float32)
    assert torch.isfinite(ours).all()


def test_an_image_with_a_strong_view_is_decoded_whole():
    views = {"global": view(px=8), "local": view(px=8, how=strong())}
    rows = draw_views(views, seed=0, epoch=0, positions=np.arange(60), sizes=np.tile((2000, 2000), (60, 1)))
    shrinks = {False: set(), True: set()}
    for number in range(60):
        own = {role: rows[role][number] for role in rows}
        shrinks[bool(own["local"][0, Column.STRONG])].add(largest_shrink(views, own))
    assert shrinks[True] == {1}
    assert max(shrinks[False]) == 8


# --- erasing


def test_boxes_to_erase_follow_the_rule():
    drawn = rows_of(strong(p=1.0), size=(40, 40), num=40_000)
    boxes = drawn[:, ERASED]
    erased = boxes[boxes[:, 2] > 0]
    assert abs(len(erased) / len(drawn) - 0.25) < 0.012
    top, left, height, width = erased.T
    assert (height >= 1).all()
    assert (width >= 1).all()
    assert ((height < 24) & (width < 24)).all()
    assert ((top >= 0) & (left >= 0) & (top + height <= 24) & (left + width <= 24)).all()
    area = height * width / 24**2
    assert 0.01 < area.min() < 0.03
    assert 0.3 < area.max() < 0.36
    assert abs(np.log(height / width).mean()) < 0.03
    assert set(top[height == 20]) == {0, 1, 2, 3, 4}
    assert not draw(view(px=1, how=strong(p=1.0)), 1, np.arange(300), np.tile((9, 9), (300, 1)))[
        :, :, ERASED
    ].any()


def test_erased_pixels_are_noise_from_before_normalization(renderer):
    how = strong(p=1.0, erasing=ERASING.model_copy(update={"p": 1.0}))
    crops = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (1, 80, 3, 24, 24), dtype=np.uint8))
    rows = draw(view(how=how), 7, np.arange(80), np.tile((24, 24), (80, 1)))
    without = rows.copy()
    without[:, :, ERASED] = 0
    ours = finish(crops, rows, data=DATA, dtype=torch.float32)
    plain = finish(crops, without, data=DATA, dtype=torch.float32)
    values = []
    for number in range(80):
        top, left, height, width = rows[number, 0, ERASED].astype(int)
        inside = torch.zeros((24, 24), dtype=torch.bool)
        inside[top : top + height, left : left + width] = True
        assert torch.equal(ours[0, number][:, ~inside], plain[0, number][:, ~inside])
        values.append(ours[0, number][:, inside])
    noise = torch.cat(values, dim=1)  # [3, N]
    before = noise * torch.tensor(DATA.std)[:, None] + torch.tensor(DATA.mean)[:, None]
    assert before.mean(dim=1).abs().max() < 0.05
    assert (before.std(dim=1) - 1).abs().max() < 0.05
    assert 4.2 < noise.std() < 4.6
    assert len(torch.unique(noise)) > 0.95 * noise.numel()  # each pixel's own, and each view's
    wide = finish(crops, rows, data=DATA, dtype=torch.float64)
    assert (wide - ours).abs().max() < 1e-5
    half = finish(crops, rows, data=DATA, dtype=torch.bfloat16)
    assert (half.float() - ours).abs().max() < 0.1


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_device_erases_the_same(dtype):
    how = strong(p=0.5, erasing=ERASING.model_copy(update={"p": 1.0}))
    crops = torch.from_numpy(np.random.default_rng(6).integers(0, 256, (2, 40, 3, 96, 96), dtype=np.uint8))
    rows = draw(view(count=2, px=96, how=how), 7, np.arange(40), np.tile((24, 24), (40, 1)))
    here, there = (finish(crops.to(device), rows, data=DATA, dtype=dtype).cpu() for device in ("cpu", "cuda"))
    assert torch.equal(here, there)


# --- batches


def source(num: int = 12) -> ArraySource:
    pixels = np.random.default_rng(num).integers(0, 256, (num, 70, 75, 3), dtype=np.uint8)
    keys = [str(number) for number in range(num)]
    return ArraySource("arrays", pixels, labels=np.zeros(num, dtype=np.int64), classes=("one",), keys=keys)


def test_a_batch_says_which_images_are_weak_and_repeats_copies():
    views = mugs() | {"again": view(count=2, copy_of="teacher")}
    with Loader(source(), views, data=DATA, seed=1, global_batch=6, total_steps=4) as loader:
        batches = list(loader)
    flags = torch.cat([batch.flags["weak"] for batch in batches])
    assert flags.dtype == torch.bool
    assert 0 < flags.sum() < len(flags)
    for batch in batches:
        assert list(batch.views) == list(views)
        assert torch.equal(batch.views["again"], batch.views["teacher"])
        assert batch.views["again"].data_ptr() != batch.views["teacher"].data_ptr()
        assert torch.equal(batch.part(2, 5).flags["weak"], batch.flags["weak"][2:5])


def test_images_are_weak_where_the_pair_is_copied_and_unsaid_where_no_view_is_strong():
    vanilla = {"teacher": view(), "global": view(copy_of="teacher"), "local": view(how=strong(p=0.9))}
    for views, expected in ((vanilla, {"weak"}), ({"teacher": view()}, set())):
        with Loader(source(), views, data=DATA, seed=1, global_batch=6, total_steps=2) as loader:
            for batch in loader:
                assert set(batch.flags) == expected
                assert all(flag.all() for flag in batch.flags.values())


def test_flags_pass_through_a_pipe():
    batch = Fetched({}, {}, torch.arange(2), np.arange(2), flags={"weak": torch.tensor([True, False])})
    arrived = pickle.loads(pickle.dumps(_Packed(batch)))
    assert isinstance(arrived, Fetched)
    assert arrived.flags["weak"].tolist() == [True, False]


# --- recipes


def test_what_is_not_said_is_not_written():
    written = view().model_dump()
    assert "strong" not in written
    assert "copy_of" not in written
    for spec in (view(how=strong()), view(copy_of="teacher"), view()):
        assert ViewSpec.model_validate(spec.model_dump()) == spec


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("p", 0.0),
        ("p", 1.5),
        ("coin", "pair"),
        ("randaugment.operations", 4),
        ("randaugment.p", 0.0),
        ("randaugment.magnitude", 11.0),
        ("randaugment.magnitude_std", -1.0),
        ("randaugment.fill", (124, 116, 256)),
        ("erasing.p", 0.0),
        ("erasing.area", (0.3, 0.2)),
        ("erasing.aspect", (3.0, 0.3)),
        ("erasing.aspect", (0.0, 0.3)),
    ],
)
def test_settings_that_mean_nothing_are_refused(key, value):
    settings = strong().model_dump()
    section, _, name = key.rpartition(".")
    (settings[section] if section else settings)[name] = value
    with pytest.raises(ValidationError, match=name):
        Strong.model_validate(settings)


def test_roles_that_do_not_fit_are_told_by_the_key_to_change():
    pair = strong(coin="image")
    assert list(mistakes_between(mugs())) == []
    for change, path, words in (
        ({"global_2": view(how=strong(coin="image", p=0.4))}, "global_2.strong.p", "0.4 differs from"),
        ({"again": view(copy_of="techer")}, "again.copy_of", "'techer' is no view"),
        ({"again": view(copy_of="again")}, "again.copy_of", "'again' is no view"),
        ({"again": view(copy_of="teacher")}, "again.count", "differs from views.teacher.count"),
        ({"again": view(count=2, px=12, copy_of="teacher")}, "again.px", "differs from"),
        ({"again": view(count=2, how=pair, copy_of="teacher")}, "again.strong", "differs from"),
    ):
        ((found, told),) = mistakes_between(mugs() | change)
        assert ".".join(found) == f"views.{path}"
        assert words in told
    always = dict(mistakes_between({"local": view(how=strong(p=1.0))}))
    assert {path[-1] for path in always} == {"jitter", "gray", "blur", "solarize"}
    assert all("views.local.strong.p is 1" in told for told in always.values())

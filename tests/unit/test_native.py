"""The compiled renderer against Pillow and against the portable renderer: the same bytes, at every level of
instructions this machine has."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from belvedere.data.spec import Blur, DataSpec, Jitter, Photometry, ViewSpec
from belvedere.data.views import native
from belvedere.data.views.color import adjust_hue
from belvedere.data.views.draw import NUM_COLUMNS, Column, draw
from belvedere.data.views.geometry import crop_image, geometry
from belvedere.data.views.native import Crops
from belvedere.data.views.photometry import normalization, normalize, photometry
from belvedere.data.views.render import crop, finish

if not native.available() and shutil.which(os.environ.get("CC", "cc")) is None:
    pytest.skip(native.MISSING, allow_module_level=True)

PIL = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
BOX = slice(Column.TOP, Column.WIDTH + 1)
DATA = DataSpec(
    path=None, split=None, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), max_bad_share=0.0
)


def test_the_library_was_built_where_there_is_a_compiler():
    assert native.available()


@pytest.fixture(params=range(3), ids=["baseline", "avx2", "avx512"])
def level(request, monkeypatch) -> int:
    if request.param > native._level():
        pytest.skip("this machine lacks these instructions")
    monkeypatch.setattr(native, "_level", lambda: request.param)
    return request.param


@pytest.fixture
def portable(monkeypatch):
    """What a call gives without the library."""

    def run(function, *args, **kwargs):
        with monkeypatch.context() as patch:
            patch.setattr(native, "available", lambda: False)
            return function(*args, **kwargs)

    return run


def image_of(height, width, channels, rng) -> np.ndarray:
    pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return (pixels > 127).astype(np.uint8) * 255 if rng.random() < 0.4 else pixels  # overshoots with bicubic


def boxes_of(num, height, width, rng, *, parts=1) -> np.ndarray:
    """Boxes [num, 4] that begin and end at multiples of 1 / parts pixels."""
    size = np.stack([rng.integers(1, side * parts + 1, num) for side in (height, width)], axis=1)
    start = np.floor(rng.random((num, 2)) * ((height * parts, width * parts) - size + 1))
    return np.concatenate([start, size], axis=1) / parts


def by_pillow(image: np.ndarray, box: np.ndarray, px: int, interpolation: str) -> np.ndarray:
    """[C, px, px]: the covering whole pixels alone, resized across and then down."""
    (top, left), (bottom, right) = box[:2], box[:2] + box[2:]
    y, x = int(top), int(left)
    cover = image[y : int(np.ceil(bottom)), x : int(np.ceil(right)), :3].squeeze(
        -1 if image.shape[2] == 1 else ()
    )
    part = Image.fromarray(np.ascontiguousarray(cover))
    wide = part.resize((px, part.height), PIL[interpolation], box=(left - x, 0, right - x, part.height))
    resized = np.asarray(wide.resize((px, px), PIL[interpolation], box=(0, top - y, px, bottom - y)))
    return np.atleast_3d(resized).transpose(2, 0, 1)


def spec(*, count=1, px=32, interpolation="bilinear", solarize=0.3, scale=(0.05, 1.0)) -> ViewSpec:
    looks = Photometry(
        flip=0.5,
        jitter=Jitter(p=0.8, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2),
        gray=0.2,
        blur=Blur(p=0.5, radius=(0.1, 2.0)),
        solarize=solarize,
    )
    return ViewSpec(
        count=count, px=px, scale=scale, aspect=(0.75, 4 / 3), interpolation=interpolation, photometry=looks
    )


def rows_of(num, height, width, seed) -> np.ndarray:
    return draw(spec(count=num), seed, np.arange(1), np.array([[height, width]]))[0]


# --- crops


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("parts", [1, 2, 8], ids=["whole", "halves", "eighths"])
@pytest.mark.parametrize("px", [1, 8, 28, 96, 160, 224])
def test_crops_equal_pillow(level, interpolation, parts, px):
    rng = np.random.default_rng(px * parts)
    sizes = [(1, 1), (1, 40), (61, 1), (16, 16), (33, 17), (64, 65), (200, 301)]
    for height, width in sizes:
        channels = int(rng.choice([1, 3, 4]))
        image = image_of(height, width, channels, rng)
        boxes = boxes_of(2, height, width, rng, parts=parts)
        out = np.full((2, 3, 1 if channels == 1 else 3, px, px), 7, dtype=np.uint8)
        native.crop(image, [Crops(boxes, interpolation, out[:, 1])])
        for ours, box in zip(out[:, 1], boxes, strict=True):
            assert np.array_equal(ours, by_pillow(image, box, px, interpolation)), (image.shape, box)
        assert (out[:, ::2] == 7).all()  # the neighbours in a batch stay as they are


@pytest.mark.parametrize(("height", "width"), [(5, 3000), (3000, 7)])
def test_long_strips_equal_pillow(level, height, width):
    rng = np.random.default_rng(height)
    image = image_of(height, width, 3, rng)
    boxes = np.concatenate([boxes_of(2, height, width, rng, parts=4), [[0, 0, height, width]]])
    for interpolation in PIL:
        out = np.empty((3, 3, 30, 30), dtype=np.uint8)
        native.crop(image, [Crops(boxes, interpolation, out)])
        for ours, box in zip(out, boxes, strict=True):
            assert np.array_equal(ours, by_pillow(image, box, 30, interpolation))


def test_a_box_of_the_size_of_the_view_is_copied(level):
    image = image_of(50, 60, 3, np.random.default_rng(0))
    for interpolation in PIL:
        out = np.empty((1, 3, 28, 28), dtype=np.uint8)
        native.crop(image, [Crops(np.array([[11.0, 13.0, 28.0, 28.0]]), interpolation, out)])
        assert np.array_equal(out[0], image[11:39, 13:41].transpose(2, 0, 1))


def test_jobs_of_several_sizes_share_an_image_whose_rows_are_apart(level):
    rng = np.random.default_rng(5)
    image = rng.integers(0, 256, (90, 140, 3), dtype=np.uint8)[7:80:2, 20:120]
    jobs = [
        Crops(boxes_of(3, 37, 100, rng), "bicubic", np.empty((3, 3, 40, 40), dtype=np.uint8)),
        Crops(boxes_of(0, 37, 100, rng), "bilinear", np.empty((0, 3, 8, 8), dtype=np.uint8)),
        Crops(boxes_of(5, 37, 100, rng), "bilinear", np.empty((5, 3, 9, 9), dtype=np.uint8)),
    ]
    native.crop(image, jobs)
    for boxes, interpolation, out in jobs:
        for ours, box in zip(out, boxes, strict=True):
            assert np.array_equal(ours, by_pillow(image, box, out.shape[-1], interpolation))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_without_the_library_crops_are_the_same(portable, channels):
    rng = np.random.default_rng(6)
    image = image_of(70, 50, channels, rng)
    ours, theirs = (
        np.empty((4, min(channels, 3) if channels > 1 else 1, 24, 24), np.uint8) for _ in range(2)
    )
    boxes = boxes_of(4, 70, 50, rng, parts=4)
    crop_image(image, [Crops(boxes, "bicubic", ours)])
    portable(crop_image, image, [Crops(boxes, "bicubic", theirs)])
    assert np.array_equal(ours, theirs)


def test_boxes_in_a_smaller_decoded_image_stay_inside(portable):
    image = image_of(47, 63, 3, np.random.default_rng(7))  # of 375 x 501 pixels, at an eighth
    rows = np.zeros((2, NUM_COLUMNS))
    rows[:, BOX] = [[0, 0, 375, 501], [3, 5, 372, 496]]
    for interpolation in PIL:
        ours = geometry(image, rows, 20, interpolation=interpolation, shrink=8)
        assert np.array_equal(
            ours, portable(geometry, image, rows, 20, interpolation=interpolation, shrink=8)
        )


@pytest.mark.parametrize(
    "box",
    [
        (-1, 0, 5, 5),
        (0, 0, 11, 5),
        (0, 8, 5, 13),
        (3, 3, 0, 4),
        (0, 0, np.nan, 4),
        (0, np.inf, 1, 1),
        (9.5, 0, 1, 1),
    ],
)
def test_a_box_outside_its_image_is_refused(box):
    image, out = np.zeros((10, 20, 3), dtype=np.uint8), np.empty((1, 3, 8, 8), dtype=np.uint8)
    with pytest.raises(ValueError, match="leaves its image of 10 x 20"):
        native.crop(image, [Crops(np.array([box], dtype=np.float64), "bilinear", out)])


@pytest.mark.parametrize(
    ("image", "out"),
    [
        (np.zeros((10, 20, 2), np.uint8), np.empty((1, 3, 8, 8), np.uint8)),
        (np.zeros((10, 20, 3), np.float32), np.empty((1, 3, 8, 8), np.uint8)),
        (np.zeros((10, 40, 3), np.uint8)[:, ::2], np.empty((1, 3, 8, 8), np.uint8)),
        (np.zeros((10, 20, 3), np.uint8)[::-1], np.empty((1, 3, 8, 8), np.uint8)),
        (np.zeros((10, 20, 3), np.uint8), np.empty((1, 1, 8, 8), np.uint8)),
        (np.zeros((10, 20, 3), np.uint8), np.empty((1, 3, 8, 9), np.uint8)),
        (np.zeros((10, 20, 3), np.uint8), np.empty((2, 3, 8, 8), np.uint8)),
        (np.zeros((10, 20, 3), np.uint8), np.empty((1, 3, 0, 0), np.uint8)),
        (np.zeros((10, 20, 3), np.uint8), np.empty((1, 3, 8, 8), np.int16)),
        (np.zeros((10, 20, 3), np.uint8), np.empty((1, 3, 8, 16), np.uint8)[..., ::2]),
        (np.zeros((10, 20, 1), np.uint8), np.empty((1, 3, 8, 8), np.uint8)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(image, out):
    with pytest.raises(ValueError, match="not"):
        native.crop(image, [Crops(np.array([[0.0, 0.0, 5.0, 5.0]]), "bilinear", out)])


# --- photometry


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (8, 8), (28, 28), (31, 65), (96, 96)])
def test_photometry_equals_the_portable_one(level, portable, channels, size):
    rng = np.random.default_rng(size[1])
    for seed in range(4):
        crops = torch.from_numpy(rng.integers(0, 256, (20, channels, *size), dtype=np.uint8))
        rows = rows_of(20, *size, seed)
        before = crops.clone()
        assert torch.equal(photometry(crops, rows), portable(photometry, crops, rows))
        assert torch.equal(crops, before)


@pytest.mark.parametrize("channels", [1, 3])
def test_extreme_factors_equal_the_portable_ones(level, portable, channels):
    rng = np.random.default_rng(11)
    crops = torch.from_numpy(rng.integers(0, 256, (60, channels, 13, 21), dtype=np.uint8))
    crops[:10] = crops[:10] // 128 * 255
    rows = rows_of(60, 13, 21, 1)
    rows[:, Column.JITTER] = 1
    factors = slice(Column.BRIGHTNESS, Column.SATURATION + 1)
    rows[:, factors] = rng.choice([0.0, 1e-9, 0.5, 1.0, 1.8, 4.0, 300.0, -1.0], (60, 3))
    rows[:, Column.HUE] = rng.choice([0.0, 0.5, -0.5, 0.0039, 0.004, -0.004, 2.3], 60)
    assert torch.equal(photometry(crops, rows), portable(photometry, crops, rows))


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (40, 7), (33, 64)])
def test_blurs_of_any_radius_equal_the_portable_ones(level, portable, size):
    radii = np.concatenate([np.linspace(0.01, 6.0, 40), [1.0478468517732487, 20, 62, 63.7, 64, 65, 100, 400]])
    crops = torch.from_numpy(
        np.random.default_rng(12).integers(0, 256, (len(radii), 3, *size), dtype=np.uint8)
    )
    crops[::2] = crops[::2] // 128 * 255
    rows = np.zeros((len(radii), NUM_COLUMNS))
    rows[:, Column.BLUR], rows[:, Column.RADIUS] = 1, radii
    assert torch.equal(photometry(crops, rows), portable(photometry, crops, rows))


@pytest.mark.parametrize("shift", [0.1, -0.13])
def test_the_hue_of_every_colour_is_turned_as_by_the_portable_renderer(level, shift):
    row = np.zeros((1, NUM_COLUMNS))
    row[0, [Column.JITTER, Column.BRIGHTNESS, Column.CONTRAST, Column.SATURATION]] = 1
    row[0, Column.HUE], row[0, Column.ORDER_0 : Column.ORDER_3 + 1] = shift, (3, 0, 1, 2)
    factor = torch.tensor([shift], dtype=torch.float64)
    green, blue = torch.meshgrid(*(2 * [torch.arange(256, dtype=torch.uint8)]), indexing="ij")
    for red in range(256):
        colours = torch.stack([torch.full_like(green, red), green, blue])[None]
        assert torch.equal(photometry(colours, row), adjust_hue(colours, factor))


def test_rows_and_crops_that_do_not_fit_are_refused():
    crops, rows = torch.zeros((2, 3, 8, 8), dtype=torch.uint8), np.zeros((2, NUM_COLUMNS))
    broken = rows.copy()
    broken[1, Column.RADIUS] = np.nan
    for wrong, with_rows in [
        (crops[:, :2], rows),
        (crops.float(), rows),
        (crops[0], rows),
        (crops, rows[:1]),
        (crops, rows[:, :-1]),
        (crops, broken),
        (crops[..., :0], rows),
    ]:
        with pytest.raises(ValueError, match=r"crops? "):
            native.photometry(wrong, with_rows)
    with pytest.raises(ValueError, match="contiguous float32"):
        native.finish(crops, rows, factor=torch.ones(3), offset=torch.zeros(3), out=torch.empty((2, 3, 8, 4)))


# --- finished views


@pytest.mark.parametrize("channels", [1, 3])
def test_finished_views_have_the_bits_of_the_portable_ones(level, portable, channels):
    rng = np.random.default_rng(13)
    crops = torch.from_numpy(rng.integers(0, 256, (5, 4, channels, 19, 19), dtype=np.uint8))
    rows = draw(spec(count=5, px=19), 3, np.arange(4), np.tile((60, 60), (4, 1)))
    ours = finish(crops, rows, data=DATA, dtype=torch.float32)
    assert ours.shape == (5, 4, 3, 19, 19)
    assert torch.equal(ours, portable(finish, crops, rows, data=DATA, dtype=torch.float32))


def test_every_pixel_value_is_normalized_to_the_same_bits(level):
    crops = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    factor, offset = (part.float() for part in normalization(DATA.mean, DATA.std))
    ours = native.finish(crops, np.zeros((1, NUM_COLUMNS)), factor=factor, offset=offset)
    assert torch.equal(ours, normalize(crops, DATA.mean, DATA.std, torch.float32))


def test_views_go_where_they_are_wanted():
    crops = torch.from_numpy(np.random.default_rng(14).integers(0, 256, (6, 3, 10, 10), dtype=np.uint8))
    rows, room = rows_of(6, 10, 10, 0), torch.full((8, 3, 10, 10), -7.0)
    numbers = {"factor": torch.tensor([0.1, 0.2, 0.3]), "offset": torch.tensor([0.0, -1.0, 1.0])}
    result = native.finish(crops, rows, out=room[1:7], **numbers)
    assert result.data_ptr() == room[1:7].data_ptr()
    assert torch.equal(room[1:7], native.finish(crops, rows, **numbers))
    assert (room[[0, 7]] == -7).all()


def test_rows_do_not_depend_on_their_batch(level):
    crops = torch.from_numpy(np.random.default_rng(15).integers(0, 256, (30, 3, 20, 20), dtype=np.uint8))
    rows = rows_of(30, 20, 20, 2)
    whole = photometry(crops, rows)
    for start in (0, 7, 29):
        assert torch.equal(
            whole[start : start + 7], photometry(crops[start : start + 7], rows[start : start + 7])
        )
    assert native.photometry(crops[:0], rows[:0]).shape == (0, 3, 20, 20)


def test_threads_do_not_disturb_each_other():
    rng = np.random.default_rng(16)
    view = spec(count=6, px=40)
    images = [image_of(80, 120, 3, rng) for _ in range(8)]
    rows = draw(view, 4, np.arange(8), np.tile((80, 120), (8, 1)))

    def rendered() -> torch.Tensor:
        return finish(crop(view, images, rows), rows, data=DATA, dtype=torch.float32)

    alone, together = rendered(), []
    threads = [
        threading.Thread(target=lambda: together.extend(rendered() for _ in range(15))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(together) == 30
    assert all(torch.equal(alone, one) for one in together)


# --- without the library


def test_a_machine_without_the_library_is_told_once(monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(native, "warn", said.append)
    monkeypatch.setattr(native, "_library", lambda: None)
    native.warn_if_missing.cache_clear()
    try:
        native.warn_if_missing()
        native.warn_if_missing()
    finally:
        native.warn_if_missing.cache_clear()
    assert said == [native.MISSING]
    assert not native.available()
    with pytest.raises(RuntimeError, match="compiled renderer"):
        native.photometry(torch.zeros((1, 3, 2, 2), dtype=torch.uint8), np.zeros((1, NUM_COLUMNS)))


def test_a_library_of_other_sources_or_machines_is_not_used(monkeypatch, tmp_path):
    library = native._library
    monkeypatch.setattr(native, "_INTERFACE", -1)
    assert library.__wrapped__() is None
    monkeypatch.undo()
    for suffix in native.EXTENSION_SUFFIXES:
        (tmp_path / f"_kernels{suffix}").write_bytes(b"not a library")
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    assert library.__wrapped__() is None


def test_a_failing_compiler_leaves_the_package_installable(tmp_path):
    root = Path(__file__).parents[2]
    shutil.copy(root / "setup.py", tmp_path)
    kernels = Path("src/belvedere/data/views/kernels")
    shutil.copytree(root / kernels, tmp_path / kernels)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", "built"]
    failing = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "CC": "false"}, capture_output=True, text=True
    )
    assert failing.returncode == 0, failing.stderr
    assert not list(tmp_path.glob("built/**/_kernels*"))


def test_three_of_four_bytes_are_cropped_without_a_copy_or_a_byte_too_many():
    wide = np.random.default_rng(3).integers(0, 256, (40, 50, 4), dtype=np.uint8)
    boxes = np.array([[3.0, 5.0, 30.0, 41.0], [0.0, 0.0, 40.0, 50.0]])

    def cropped(image: np.ndarray) -> np.ndarray:
        out = np.empty((2, 3, 16, 16), dtype=np.uint8)
        native.crop(image, [native.Crops(boxes, "bilinear", out)])
        return out

    expected = cropped(np.ascontiguousarray(wide[..., :3]))
    assert np.array_equal(cropped(wide[..., :3]), expected)
    # memory that ends with the third byte of the last pixel
    short = np.frombuffer(wide.tobytes()[:-1], dtype=np.uint8)
    ending = np.lib.stride_tricks.as_strided(short, (40, 50, 3), (200, 4, 1), writeable=False)
    assert np.array_equal(cropped(ending), expected)

"""RandAugment before the crop: its draws, and its operations to the byte of Pillow."""

from __future__ import annotations

import math
import os
import shutil

import numpy as np
import pytest
from strong_views import CHANGES, FILL, NUM, by_pillow, rows_of, strong

from belvedere.data.views import native
from belvedere.data.views.native import Augmented
from belvedere.data.views.randaugment import NUM_OPERATIONS, Operation, arguments
from belvedere.data.views.row import ARGUMENTS, BICUBIC, NUM_COLUMNS, OPERATIONS, Column
from belvedere.data.views.strong import StrongCrop, crop_strong

# --- levels


def test_levels_are_to_the_letter():
    """What the published string says at magnitudes 9 and 10, and a case where the last bit is at stake."""
    for operation, nine, ten in (
        (Operation.ROTATE, -27.0, -30.0),
        (Operation.POSTERIZE, 1, 0),
        (Operation.SOLARIZE, 26, 0),
        (Operation.SOLARIZE_ADD, 99, 110),
        (Operation.COLOR, 1 - 0.81, 1 - 0.9),
        (Operation.SHEAR_Y, -0.27, -0.3),
        (Operation.TRANSLATE_X, -0.9 * 0.45, -0.45),
        (Operation.EQUALIZE, 0, 0),
    ):
        found = arguments(np.full(2, operation), np.array([9.0, 10.0]), np.full(2, True))
        assert found.tolist() == [nine, ten], operation
    assert (9.3 / 10.0) * 30.0 != 30.0 * 9.3 / 10.0
    turned = arguments(np.array([Operation.ROTATE]), np.array([9.3]), np.array([False]))
    assert turned[0] == (9.3 / 10.0) * 30.0


# --- draws


def test_operations_are_drawn_evenly_and_without_replacement():
    drawn = rows_of(strong(p=1.0, randaugment=CHANGES.model_copy(update={"p": 1.0})))[:, OPERATIONS]
    first, second, third = drawn.T.astype(int)
    assert (first != second).all()
    assert (third == 0).all()
    for each in (first, second):
        counts = np.bincount(each, minlength=NUM_OPERATIONS + 1)
        assert counts[0] == 0
        assert np.abs(counts[1:] - NUM / 15).max() < 5 * math.sqrt(NUM / 15)
    pairs = np.bincount(16 * first + second, minlength=256)
    assert (pairs > 0).sum() == 15 * 14
    three = CHANGES.model_copy(update={"operations": 3, "p": 1.0})
    assert all(
        len(set(row)) == 3 for row in rows_of(strong(p=1.0, randaugment=three), num=500)[:, OPERATIONS]
    )


def test_each_operation_is_applied_half_of_the_time_by_itself():
    applied = rows_of(strong(p=1.0))[:, OPERATIONS][:, :2] > 0
    assert np.abs(applied.mean(axis=0) - 0.5).max() < 5 * 0.5 / math.sqrt(NUM)
    assert abs((applied[:, 0] & applied[:, 1]).mean() - 0.25) < 5 * 0.5 / math.sqrt(NUM)


def test_magnitudes_are_normal_and_cut():
    changes = CHANGES.model_copy(update={"p": 1.0})
    drawn = np.concatenate([rows_of(strong(p=1.0, randaugment=changes), seed=seed) for seed in range(3)])
    turned = drawn[drawn[:, Column.OPERATION_0] == Operation.ROTATE, Column.ARGUMENT_0]
    magnitudes, error = np.abs(turned) / 3.0, 1 / math.sqrt(len(turned))
    cut = np.isclose(magnitudes, 10.0)
    assert abs(cut.mean() - 0.02275) < 5 * 0.15 * error  # beyond two deviations
    assert magnitudes.max() < 10.0 + 1e-9
    below = magnitudes[magnitudes < 9.0]
    assert abs(len(below) * error**2 - 0.5) < 2.5 * error
    assert abs(np.sqrt(((below - 9.0) ** 2).mean()) - 0.5) < 2.5 * error
    assert abs((magnitudes < 8.5).mean() - 0.15866) < 2.5 * error
    assert abs((turned < 0).mean() - 0.5) < 2.5 * error
    assert abs(drawn[:, Column.BICUBIC_0].mean() - 0.5) < 5 * 0.5 / math.sqrt(len(drawn))
    fixed = changes.model_copy(update={"magnitude_std": 0.0})
    still = rows_of(strong(p=1.0, randaugment=fixed), num=500)
    assert set(np.abs(still[still[:, Column.OPERATION_0] == Operation.ROTATE, Column.ARGUMENT_0])) == {27.0}


# --- operations


@pytest.fixture(params=["baseline", "avx2", "avx512", "portable"])
def renderer(request, monkeypatch) -> str:
    if request.param == "portable":
        monkeypatch.setattr(native, "available", lambda: False)
        return request.param
    if not native.available():
        assert shutil.which(os.environ.get("CC", "cc")) is None, "there is a compiler, and no library"
        pytest.skip(native.MISSING)
    number = ["baseline", "avx2", "avx512"].index(request.param)
    if number > native._level():
        pytest.skip("this machine lacks these instructions")
    monkeypatch.setattr(native, "_level", lambda: number)
    return request.param


def strong_row(
    operations: tuple[int, ...],
    magnitudes: tuple[float, ...],
    *,
    negative: bool = False,
    bicubic: bool = False,
    mirror: bool = False,
) -> np.ndarray:
    """A row without its box."""
    row, count = np.zeros(NUM_COLUMNS), len(operations)
    row[Column.STRONG], row[Column.MIRROR] = 1, mirror
    row[OPERATIONS][:count] = operations
    row[ARGUMENTS][:count] = arguments(np.array(operations), np.array(magnitudes), np.full(count, negative))
    row[BICUBIC][:count] = bicubic
    return row


def image_of(kind: str, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height * width)
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind == "extremes":
        return (noise > 127).astype(np.uint8) * 255
    if kind == "narrow":  # few levels, another range in each channel
        return (noise // 16 + np.array([3, 90, 210])).astype(np.uint8)
    if kind == "one colour":
        return np.broadcast_to(noise[:1, :1], noise.shape).copy()
    return noise


def compared(pixels: np.ndarray, rows: list[np.ndarray], *, px: int) -> None:
    """Every row as one of the strong views of an image, against Pillow."""
    out = np.empty((len(rows), 3, px, px), dtype=np.uint8)
    crop_strong(
        pixels, [StrongCrop(row, "bicubic", FILL, place) for row, place in zip(rows, out, strict=True)]
    )
    for row, ours in zip(rows, out, strict=True):
        theirs = by_pillow(pixels, row, px)
        assert np.array_equal(ours, theirs), (row[OPERATIONS], row[ARGUMENTS], row[: Column.WIDTH + 1])


@pytest.mark.parametrize("kind", ["noise", "extremes", "narrow", "one colour"])
@pytest.mark.parametrize("operation", list(Operation)[1:], ids=lambda operation: operation.name)
def test_every_operation_equals_pillow(renderer, operation, kind):
    """Parts as large as their view are not resized, so that every pixel of the operation shows."""
    pixels = image_of(kind, 40, 57)
    rows = []
    for number, magnitude in enumerate((0.0, 3.3, 9.0, 9.61, 10.0)):
        for negative in (False, True):
            row = strong_row(
                (operation,), (magnitude,), negative=negative, bicubic=number % 2 == 0, mirror=negative
            )
            for left in (0, 17):
                rows.append(row.copy())
                rows[-1][: Column.WIDTH + 1] = 0, left, 40, 40
    compared(pixels, rows, px=40)


def test_operations_in_a_row_equal_pillow(renderer):
    rng = np.random.default_rng(1)
    for size in ((31, 44), (64, 20)):
        rows = []
        for _ in range(60):
            count = int(rng.integers(0, 4))
            chosen = tuple(int(each) + 1 for each in rng.permutation(NUM_OPERATIONS)[:count])
            row = strong_row(
                chosen,
                tuple(rng.uniform(0, 10, count)),
                negative=bool(rng.integers(2)),
                bicubic=bool(rng.integers(2)),
                mirror=bool(rng.integers(2)),
            )
            height, width = (int(rng.integers(1, side + 1)) for side in size)
            row[: Column.WIDTH + 1] = (
                rng.integers(size[0] - height + 1),
                rng.integers(size[1] - width + 1),
                height,
                width,
            )
            rows.append(row)
        compared(image_of("noise", *size), rows, px=16)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (2, 2), (3, 3), (2, 19)])
def test_tiny_images_equal_pillow(renderer, size):
    rows = []
    for operation in list(Operation)[1:]:
        for negative in (False, True):
            row = strong_row((operation,), (9.2,), negative=negative, bicubic=True, mirror=negative)
            row[: Column.WIDTH + 1] = 0, 0, *size
            rows.append(row)
    compared(image_of("noise", *size), rows, px=5)


@pytest.mark.parametrize("size", [(5, 4000), (1500, 9), (900, 1300)])
def test_large_images_equal_pillow(size):
    rows = []
    for first, second in (
        (Operation.ROTATE, Operation.EQUALIZE),
        (Operation.SHARPNESS, Operation.ROTATE),
        (Operation.SHEAR_X, Operation.TRANSLATE_Y),
        (Operation.EQUALIZE, Operation.CONTRAST),
    ):
        row = strong_row((first, second), (9.0, 8.8), bicubic=first == Operation.ROTATE, mirror=True)
        top, left = size[0] // 3, size[1] // 3
        row[: Column.WIDTH + 1] = top, left, size[0] - top, size[1] - left
        rows.append(row)
    compared(image_of("noise", *size), rows, px=32)


def test_an_image_of_four_bytes_a_pixel_and_a_gray_one_are_read_alike():
    rng = np.random.default_rng(2)
    four = rng.integers(0, 256, (30, 33, 4), dtype=np.uint8)
    row = strong_row((Operation.SHARPNESS, Operation.ROTATE), (9.0, 8.0))
    row[: Column.WIDTH + 1] = 2, 3, 25, 28
    compared(four[..., :3], [row], px=20)
    gray = np.ascontiguousarray(four[..., :1])
    made = [np.empty((3, 20, 20), dtype=np.uint8) for _ in range(2)]
    for image, out in zip((gray, np.repeat(gray, 3, axis=-1)), made, strict=True):
        crop_strong(image, [StrongCrop(row, "bicubic", FILL, out)])
    assert np.array_equal(*made)
    assert not np.array_equal(made[0][0], made[0][2])  # the fill is no gray


def test_a_part_outside_its_image_is_refused():
    out = np.empty((3, 8, 8), dtype=np.uint8)
    for box in ((0, 0, 11, 5), (-1, 0, 5, 5), (0, np.nan, 5, 5)):
        view_ = Augmented(np.array(box, dtype=float), "bicubic", False, [], FILL, out)
        with pytest.raises(ValueError, match="leaves its image of 10 x 20"):
            native.crop_strong(np.zeros((10, 20, 3), dtype=np.uint8), [view_])


def test_steps_that_c_must_not_see_are_refused():
    out, box = np.empty((3, 8, 8), dtype=np.uint8), np.array([0.0, 0.0, 5.0, 5.0])
    turn = (int(Operation.ROTATE), (1.0, math.nan, 0.0, 0.0, 1.0, 0.0), True)
    image = np.zeros((10, 20, 3), dtype=np.uint8)
    for steps in ([turn], 4 * [(int(Operation.INVERT), (0.0,), False)]):
        with pytest.raises(ValueError, match="at most 3 steps of finite numbers"):
            native.crop_strong(image, [Augmented(box, "bicubic", False, steps, FILL, out)])
    with pytest.raises(ValueError, match="must be uint8"):
        native.crop_strong(image.astype(np.float32), [Augmented(box, "bicubic", False, [], FILL, out)])

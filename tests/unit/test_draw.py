"""View parameters: keyed by position, and distributed as the papers' transforms draw them."""

import itertools

import numpy as np
import pytest

from belvedere.core.errors import DataError
from belvedere.data.order import permutation, positions, rows_of, steps_per_epoch
from belvedere.data.spec import Blur, Jitter, Photometry, ViewSpec
from belvedere.data.views.draw import NUM_COLUMNS, Column, draw, view_key

NUM = 20_000


def spec(*, count=1, scale=(0.3, 1.0), aspect=(3 / 4, 4 / 3), solarize=0.2) -> ViewSpec:
    looks = Photometry(
        flip=0.5,
        jitter=Jitter(p=0.8, brightness=0.4, contrast=0.4, saturation=1.5, hue=0.1),
        gray=0.2,
        blur=Blur(p=0.5, radius=(0.1, 2.0)),
        solarize=solarize,
    )
    return ViewSpec(
        count=count, px=32, scale=scale, aspect=aspect, interpolation="bilinear", photometry=looks
    )


def rows(view_spec: ViewSpec, *, size=(1000, 1000), num=NUM, seed=0) -> np.ndarray:
    where = np.arange(num)
    return draw(view_spec, view_key(seed, 0, "target"), where, np.tile(size, (num, 1)))[:, 0]


def share_of_uniform(values: np.ndarray, low: float, high: float) -> float:
    """Largest distance between the values' distribution and the uniform one (Kolmogorov-Smirnov)."""
    ordered = (np.sort(values) - low) / (high - low)
    steps = np.arange(len(values) + 1) / len(values)
    return float(max(np.abs(ordered - steps[1:]).max(), np.abs(ordered - steps[:-1]).max()))


KS = 1.95 / NUM**0.5  # passed by chance with probability 0.999


def test_crop_area_and_aspect_follow_the_rule():
    # small enough that the first attempt always fits, so that nothing is selected
    drawn = rows(spec(scale=(0.05, 0.3)), size=(4000, 4000))
    height, width = drawn[:, Column.HEIGHT], drawn[:, Column.WIDTH]
    assert share_of_uniform(height * width / 4000**2, 0.05, 0.3) < KS + 0.002
    assert share_of_uniform(np.log(width / height), np.log(3 / 4), np.log(4 / 3)) < KS + 0.002
    assert share_of_uniform(drawn[:, Column.TOP] / (4000 - height), 0, 1) < KS + 0.002
    assert share_of_uniform(drawn[:, Column.LEFT] / (4000 - width), 0, 1) < KS + 0.002


@pytest.mark.parametrize(
    ("scale", "size"), [((0.3, 1.0), (375, 500)), ((0.08, 1.0), (90, 700)), ((0.3, 1.0), (8, 8))]
)
def test_crops_agree_with_torchvision_in_distribution(scale, size):
    torch = pytest.importorskip("torch")
    transforms = pytest.importorskip("torchvision.transforms")
    torch.manual_seed(0)
    image = torch.empty(3, *size)
    theirs = np.array(
        [transforms.RandomResizedCrop.get_params(image, scale, (3 / 4, 4 / 3)) for _ in range(4000)]
    )
    ours = rows(spec(scale=scale), size=size)[:, : Column.WIDTH + 1]
    for column in range(4):
        both = np.unique(np.concatenate([theirs[:, column], ours[:, column]]))
        here = np.searchsorted(np.sort(ours[:, column]), both, side="right") / len(ours)
        there = np.searchsorted(np.sort(theirs[:, column]), both, side="right") / len(theirs)
        assert np.abs(here - there).max() < 1.95 * (1 / 4000 + 1 / NUM) ** 0.5


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (8, 8), (3, 1000), (375, 500)])
def test_boxes_always_lie_inside_the_image(size):
    box = rows(spec(), size=size, num=3000)[:, : Column.WIDTH + 1]
    assert np.array_equal(box, np.floor(box))
    assert box[:, Column.TOP].min() >= 0
    assert box[:, Column.LEFT].min() >= 0
    assert box[:, Column.HEIGHT].min() >= 1
    assert box[:, Column.WIDTH].min() >= 1
    assert (box[:, Column.TOP] + box[:, Column.HEIGHT]).max() <= size[0]
    assert (box[:, Column.LEFT] + box[:, Column.WIDTH]).max() <= size[1]


def test_a_box_that_never_fits_falls_back_to_the_centre():
    drawn = rows(spec(scale=(1.0, 1.0)), size=(100, 400), num=10)
    expected = [0, (400 - 133) // 2, 100, 133]  # width = round(100 * 4 / 3)
    assert (drawn[:, : Column.WIDTH + 1] == expected).all()


def test_application_rates_and_factors():
    drawn = rows(spec())
    three_sd = 3.3 * (0.25 / NUM) ** 0.5
    for column, p in (
        (Column.FLIP, 0.5),
        (Column.JITTER, 0.8),
        (Column.GRAY, 0.2),
        (Column.BLUR, 0.5),
        (Column.SOLARIZE, 0.2),
    ):
        assert set(np.unique(drawn[:, column])) == {0.0, 1.0}
        assert abs(drawn[:, column].mean() - p) < three_sd
    for column, low, high in (
        (Column.BRIGHTNESS, 0.6, 1.4),
        (Column.CONTRAST, 0.6, 1.4),
        (Column.SATURATION, 0.0, 2.5),  # 1 - 1.5 is cut at 0
        (Column.HUE, -0.1, 0.1),
        (Column.RADIUS, 0.1, 2.0),
    ):
        assert share_of_uniform(drawn[:, column], low, high) < KS
    switches = drawn[
        :,
        [
            Column.FLIP,
            Column.JITTER,
            Column.GRAY,
            Column.BLUR,
            Column.SOLARIZE,
            Column.BRIGHTNESS,
            Column.HUE,
        ],
    ]
    correlation = np.corrcoef(switches, rowvar=False) - np.eye(switches.shape[1])
    assert np.abs(correlation).max() < 4.5 / NUM**0.5
    assert len(np.unique(drawn[:, Column.NOISE])) == NUM


def test_every_order_of_the_jitter_is_equally_likely():
    orders = rows(spec())[:, Column.ORDER_0 : Column.ORDER_3 + 1].astype(int)
    counts = dict.fromkeys(itertools.permutations(range(4)), 0)
    for order in map(tuple, orders.tolist()):
        counts[order] += 1
    expected = NUM / 24
    chi2 = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi2 < 49.7  # 23 degrees of freedom, 0.999


def test_rates_of_zero_and_one_and_parts_that_are_off():
    off = Photometry(flip=0.0, jitter=None, gray=1.0, blur=None, solarize=0.0)
    plain = ViewSpec(
        count=2, px=8, scale=(1.0, 1.0), aspect=(1.0, 1.0), interpolation="bicubic", photometry=off
    )
    drawn = draw(plain, 1, np.arange(50), np.tile((8, 8), (50, 1)))
    assert drawn.shape == (50, 2, NUM_COLUMNS)
    assert (drawn[..., : Column.WIDTH + 1] == [0, 0, 8, 8]).all()
    assert (drawn[..., Column.GRAY] == 1).all()
    assert (drawn[..., [Column.FLIP, Column.JITTER, Column.BLUR, Column.SOLARIZE]] == 0).all()


def test_rows_depend_on_position_and_size_alone():
    view_spec = spec(count=3)
    sizes = np.array([[20 + i, 40 + 2 * i] for i in range(12)])
    where = np.arange(100, 112)
    key = view_key(7, 2, "focal")
    whole = draw(view_spec, key, where, sizes)
    parts = [draw(view_spec, key, where[i : i + 5], sizes[i : i + 5]) for i in (0, 5, 10)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert len(np.unique(whole[..., Column.NOISE])) == 36
    keys = {view_key(*path) for path in ((7, 2, "focal"), (7, 3, "focal"), (8, 2, "focal"), (7, 2, "target"))}
    assert len(keys) == 4


def test_a_sample_drawn_in_two_epochs_gets_two_views():
    sizes = np.tile((100, 100), (5, 1))
    first, second = (draw(spec(), view_key(0, epoch, "target"), np.arange(5), sizes) for epoch in (0, 1))
    assert not np.any(np.all(first == second, axis=-1))


# --- order


def test_epochs_are_whole_batches():
    assert steps_per_epoch(103, 10) == 10
    with pytest.raises(DataError, match=r"train\.global_batch is 104.*103 images"):
        steps_per_epoch(103, 104)


def test_permutations_are_complete_and_differ_by_epoch_and_seed():
    orders = [permutation(50, *path) for path in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        assert sorted(order.tolist()) == list(range(50))
    assert len({tuple(order.tolist()) for order in orders}) == 3
    with pytest.raises(ValueError, match="read-only"):
        orders[0][0] = 1


def test_ranks_share_a_batch_in_order():
    shape = {"steps_per_epoch": 5, "global_batch": 12}
    epoch, whole = positions(13, **shape)
    assert (epoch, whole.tolist()) == (2, list(range(36, 48)))
    parts = [positions(13, **shape, rank=rank, world_size=3)[1] for rank in range(3)]
    assert np.concatenate(parts).tolist() == whole.tolist()
    assert rows_of(12, rank=2, world_size=3) == range(8, 12)
    with pytest.raises(DataError, match=r"train\.global_batch is 12, which 5 processes"):
        rows_of(12, rank=0, world_size=5)

"""What every published recipe draws, against what its own torchvision pipeline draws.

Two-sample tests with fixed seeds. For another seed each would fail with probability 1e-4 where nothing is
wrong; `test_a_wrong_number_is_noticed` shows that they see a mistake.
"""

from __future__ import annotations

import itertools
from math import ceil

import numpy as np
import pytest
from published_views import PUBLISHED, SMALL, T, recorded
from scipy import stats

from belvedere.data.spec import ViewSpec
from belvedere.data.views.draw import Column, Floats, draw, view_key

NUM_OURS, NUM_THEIRS = 10_000, 1000
CHANCE = 1e-4
SIZE = (375, 500)
ALL = PUBLISHED | SMALL
ROLES: list[tuple[str, str]] = []
for _name, _published in ALL.items():
    for _role, _spec in _published.views.items():  # two recipes may have a role in common
        if all(_spec != ALL[name].views[role] for name, role in ROLES):
            ROLES.append((_name, _role))
FACTORS = (Column.BRIGHTNESS, Column.CONTRAST, Column.SATURATION, Column.HUE)


def ours(spec: ViewSpec, *, size: tuple[int, int] = SIZE, num: int = NUM_OURS) -> Floats:
    """Rows [num * views, P], the views of one image after another."""
    images = ceil(num / spec.count)
    rows = draw(spec, view_key(11, 2, "role"), np.arange(images), np.tile(size, (images, 1)))
    return rows.reshape(-1, rows.shape[-1])[:num]


def differences(mine: Floats, theirs: Floats, size: tuple[int, int] = SIZE) -> dict[str, float]:
    """By what was compared, the probability of samples at least this different if nothing is."""
    return {
        **_of_boxes(mine, theirs, size),
        **_of_rates(mine, theirs),
        **_of_jitter(mine, theirs),
        **_of_radii(mine, theirs),
    }


def _of_boxes(mine: Floats, theirs: Floats, size: tuple[int, int]) -> dict[str, float]:
    def parts(rows: Floats) -> dict[str, Floats]:
        top, left, height, width = rows[:, : Column.WIDTH + 1].T
        return {
            "area": height * width,
            "aspect": width / height,
            "centre down": (2 * top + height) / size[0],
            "centre across": (2 * left + width) / size[1],
            # of boxes as large as the image there is one place
            "room above": (top / np.maximum(size[0] - height, 1))[height < size[0]],
            "room on the left": (left / np.maximum(size[1] - width, 1))[width < size[1]],
        }

    here, there = parts(mine), parts(theirs)
    return {name: _p_value(here[name], there[name]) for name in here if len(there[name])}


def _p_value(mine: Floats, theirs: Floats) -> float:
    """Kolmogorov and Smirnov's, of two samples."""
    return float(stats.ks_2samp(mine, theirs, method="asymp").pvalue)


def _of_rates(mine: Floats, theirs: Floats) -> dict[str, float]:
    columns = (Column.FLIP, Column.JITTER, Column.GRAY, Column.BLUR, Column.SOLARIZE)
    found = {}
    for column in columns:
        counts = [[int(rows[:, column].sum()), int((1 - rows[:, column]).sum())] for rows in (mine, theirs)]
        found[f"rate of {column.name}"] = float(stats.fisher_exact(counts).pvalue)
    return found


def _of_jitter(mine: Floats, theirs: Floats) -> dict[str, float]:
    mine, theirs = (rows[rows[:, Column.JITTER] > 0] for rows in (mine, theirs))
    found = {}
    used = [column for column in FACTORS if len(theirs) and np.ptp(theirs[:, column]) > 0]
    for column in used:
        found[f"factor of {column.name}"] = _p_value(mine[:, column], theirs[:, column])
    if len(used) == len(FACTORS):  # a pipeline leaves out what it has no strength for, and its place with it
        every = np.array(list(itertools.permutations(range(4))))
        orders = (rows[:, None, Column.ORDER_0 : Column.ORDER_3 + 1] == every for rows in (mine, theirs))
        table = np.array([same.all(axis=-1).sum(axis=0) for same in orders])
        assert table.sum() == len(mine) + len(theirs)
        found["order"] = float(stats.chi2_contingency(table).pvalue)
    return found


def _of_radii(mine: Floats, theirs: Floats) -> dict[str, float]:
    mine, theirs = (rows[rows[:, Column.BLUR] > 0, Column.RADIUS] for rows in (mine, theirs))
    if not len(theirs):
        return {}
    return {"radius": _p_value(mine, theirs)}


@pytest.mark.parametrize(("name", "role"), ROLES)
def test_a_recipe_draws_as_its_pipeline_does(name, role):
    spec, pipeline = ALL[name].views[role], ALL[name].pipelines[role]
    size = SIZE if name in PUBLISHED else {"fashion": (28, 28), "digits": (8, 8)}[name]
    found = differences(ours(spec, size=size), recorded(pipeline, size, NUM_THEIRS, seed=1), size=size)
    assert {what: p for what, p in found.items() if p < CHANCE} == {}
    jitters = spec.photometry.jitter is not None
    assert ("factor of BRIGHTNESS" in found) == jitters
    assert ("order" in found) == (jitters and name in PUBLISHED)
    assert ("radius" in found) == (spec.photometry.blur is not None)


@pytest.mark.parametrize("size", [(90, 700), (700, 60), (4000, 3000)])
@pytest.mark.parametrize("role", ["target", "focal"])
def test_boxes_of_odd_and_of_large_images(size, role):
    spec, pipeline = PUBLISHED["msn"].views[role], PUBLISHED["msn"].pipelines[role]
    found = _of_boxes(ours(spec, size=size), recorded(pipeline, size, NUM_THEIRS, seed=5), size)
    assert {what: p for what, p in found.items() if p < CHANCE} == {}


@pytest.mark.parametrize(("name", "role"), ROLES)
def test_rates_ranges_and_sizes_are_the_published_numbers(name, role):
    """Against the pipeline's settings, not a sample of it: sharper, and blind to none of the five rates."""
    spec, pipeline = ALL[name].views[role], ALL[name].pipelines[role]
    rows = ours(spec)
    asked = dict.fromkeys((Column.FLIP, Column.JITTER, Column.GRAY, Column.BLUR, Column.SOLARIZE), 0.0)
    for step in pipeline.transforms:
        inner = step.transforms[0] if isinstance(step, T.RandomApply) else step
        if isinstance(inner, T.RandomResizedCrop):
            assert inner.size == (spec.px, spec.px)
            assert inner.interpolation.value == spec.interpolation
        elif isinstance(inner, T.ColorJitter):
            asked[Column.JITTER] = step.p
            ranges = (inner.brightness, inner.contrast, inner.saturation, inner.hue)
            for column, reach in zip(FACTORS, ranges, strict=True):
                _is_uniform(rows[:, column], *(reach or ((0.0,) * 2 if column == Column.HUE else (1.0,) * 2)))
        else:
            column = {
                T.RandomHorizontalFlip: Column.FLIP,
                T.RandomGrayscale: Column.GRAY,
                T.RandomSolarize: Column.SOLARIZE,
            }.get(type(inner), Column.BLUR)
            asked[column] = step.p
            if column == Column.BLUR:
                _is_uniform(rows[:, Column.RADIUS], *inner.radius)
    for column, rate in asked.items():
        applied = int(rows[:, column].sum())
        assert stats.binomtest(applied, len(rows), rate).pvalue > CHANCE, (column.name, rate, applied)


def _is_uniform(values: Floats, low: float, high: float) -> None:
    if low == high:
        assert (values == low).all()
        return
    assert values.min() >= low
    assert values.max() <= high
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > CHANCE


@pytest.mark.parametrize(("name", "role"), [("msn", "target"), ("esvit", "local")])
def test_draws_of_one_view_say_nothing_of_another_or_of_each_other(name, role):
    spec = ALL[name].views[role]
    spec = spec.model_copy(update={"count": max(2, spec.count)})
    columns = [Column.FLIP, Column.JITTER, *FACTORS, Column.GRAY, Column.BLUR, Column.RADIUS]
    rows = ours(spec, num=NUM_OURS * spec.count).reshape(NUM_OURS, spec.count, -1)
    boxes = rows[..., Column.HEIGHT : Column.WIDTH + 1]
    values = np.concatenate([rows[..., columns], boxes.prod(-1, keepdims=True)], axis=-1)
    flat = values[:, :2].reshape(NUM_OURS, -1)  # two views of an image side by side
    beside = np.concatenate([flat[:-1], flat[1:]], axis=1)  # and of two neighbours
    varying = beside[:, beside.std(axis=0) > 0]
    ranks = np.corrcoef(stats.rankdata(varying, axis=0), rowvar=False)
    off = np.abs(ranks[~np.eye(len(ranks), dtype=bool)])
    pairs = len(off) // 2
    limit = stats.norm.isf(CHANCE / 2 / pairs) / NUM_OURS**0.5
    assert off.max() < limit


@pytest.fixture(scope="module")
def msn_target() -> Floats:
    return recorded(PUBLISHED["msn"].pipelines["target"], SIZE, NUM_THEIRS, seed=0)


def _changed(spec: ViewSpec, part: str, **changes: object) -> ViewSpec:
    """The specification with another number somewhere in `part` ("", "jitter" or "blur")."""
    looks = spec.photometry
    if part:
        changed = getattr(looks, part).model_copy(update=changes)
        return spec.model_copy(update={"photometry": looks.model_copy(update={part: changed})})
    own = {key: value for key, value in changes.items() if key in ViewSpec.model_fields}
    rest = {key: value for key, value in changes.items() if key not in own}
    return spec.model_copy(update={"photometry": looks.model_copy(update=rest), **own})


@pytest.mark.parametrize(
    ("part", "changes", "noticed"),
    [
        ("", {"scale": (0.36, 1.0)}, "area"),
        ("", {"scale": (0.3, 0.75)}, "area"),
        ("", {"aspect": (0.8, 1.25)}, "aspect"),
        ("", {"flip": 0.39}, "rate of FLIP"),
        ("", {"gray": 0.28}, "rate of GRAY"),
        ("", {"solarize": 0.03}, "rate of SOLARIZE"),
        ("jitter", {"p": 0.72}, "rate of JITTER"),
        ("jitter", {"brightness": 0.3}, "factor of BRIGHTNESS"),
        ("jitter", {"contrast": 0.5}, "factor of CONTRAST"),
        ("jitter", {"saturation": 0.2}, "factor of SATURATION"),
        ("jitter", {"hue": 0.08}, "factor of HUE"),
        ("blur", {"p": 0.61}, "rate of BLUR"),
        ("blur", {"radius": (0.1, 1.7)}, "radius"),
    ],
)
def test_a_wrong_number_is_noticed(part, changes, noticed, msn_target):
    found = differences(ours(_changed(PUBLISHED["msn"].views["target"], part, **changes)), msn_target)
    assert found[noticed] < CHANCE


def test_a_wrong_order_is_noticed(msn_target):
    rows = ours(PUBLISHED["msn"].views["target"])
    last = rows[:, Column.ORDER_3].copy()
    swap = (last == 3) & (np.arange(len(rows)) % 2 == 0)  # hue comes last less often
    rows[swap, Column.ORDER_3], rows[swap, Column.ORDER_0] = rows[swap, Column.ORDER_0], last[swap]
    assert differences(rows, msn_target)["order"] < CHANCE

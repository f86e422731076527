"""Grouping equal and near-equal images: on photographs, drawn scenes and digits."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from belvedere.data.duplicates import (
    NEAR,
    THUMB_PX,
    detailed,
    first_equal,
    groups_of_pairs,
    same_color,
    similarity,
    where_equal,
)
from belvedere.data.neighbours import Pictures, alike, near_between, near_within

Thumbs = NDArray[np.uint8]


def thumb(image: Image.Image) -> Thumbs:
    size = (THUMB_PX, THUMB_PX)
    return np.asarray(image.convert("L").resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0))


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """45 distinct parts, 106 x 106 px, of two photographs."""
    parts = []
    for pixels in load_sample_images().images:
        for top in range(0, 424, 106):
            for left in range(0, 636, 106):
                parts.append(Image.fromarray(pixels[top : top + 106, left : left + 106]))
    return [part for part in parts if detailed(thumb(part)[None])[0]]  # not the plain sky


def pictures(thumbs: Thumbs, rows: NDArray[np.int64] | None = None, *, small: bool = False) -> Pictures:
    colors = np.zeros((len(thumbs), 2), dtype=np.int8)
    which = np.arange(len(thumbs)) if rows is None else rows
    return Pictures(thumbs, colors, np.full(len(thumbs), small), which)


def quiet(done: int, total: int) -> None:
    assert 0 <= done <= total


def test_copies_are_near_and_distinct_photographs_are_not(photographs: list[Image.Image]) -> None:
    base = np.stack([thumb(image) for image in photographs])
    width, height = photographs[0].size
    copies = {
        "resized": [image.resize((width // 2, height * 2)) for image in photographs],
        "cropped": [image.crop((3, 2, width - 4, height - 3)) for image in photographs],
        "brighter": [image.point(lambda value: round(value * 0.9)) for image in photographs],
    }
    for name, images in copies.items():
        score = similarity(base, np.stack([thumb(image) for image in images]))
        assert (score >= NEAR).mean() >= 0.95, name
    one, two = np.triu_indices(len(base), 1)
    assert (similarity(base[one], base[two]) >= NEAR).sum() == 0


def test_similarity_is_one_for_equal_and_near_zero_for_unrelated_pictures() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, THUMB_PX, THUMB_PX), dtype=np.uint8)
    np.testing.assert_allclose(similarity(noise, noise), 1.0, atol=1e-5)
    assert similarity(noise[:100], noise[100:]).max() < 0.6


def test_flat_pictures_are_not_compared() -> None:
    flat = np.full((3, THUMB_PX, THUMB_PX), 255, dtype=np.uint8)
    flat[1, 3, 4] = 254
    flat[2, 6:18, 6:18] = 120
    assert detailed(flat).tolist() == [False, False, True]


def test_skies_that_share_a_gradient_are_not_copies() -> None:
    rng = np.random.default_rng(1)
    ramp = np.linspace(60, 190, THUMB_PX)[:, None] + np.zeros((40, THUMB_PX, THUMB_PX))
    skies = (ramp + rng.normal(0, 12, ramp.shape)).clip(0, 255).astype(np.uint8)
    correlation = np.corrcoef(skies.reshape(40, -1))
    assert correlation[np.triu_indices(40, 1)].min() > 0.85  # plain correlation would take them for copies
    one, two = np.triu_indices(40, 1)
    assert similarity(skies[one], skies[two]).max() < 0.8


def test_colors_part_a_red_flag_from_a_green_one_but_not_from_its_gray_copy() -> None:
    red, green, gray, faded = (
        np.array([c], dtype=np.int8) for c in ((-20, 60), (-30, -40), (0, 1), (-17, 52))
    )
    assert not same_color(red, green)[0]
    assert same_color(red, gray)[0]
    assert same_color(red, faded)[0]


def test_the_search_finds_planted_copies_mirrored_ones_too(photographs: list[Image.Image]) -> None:
    base = np.stack([thumb(image) for image in photographs])
    crop = np.stack([thumb(image.crop((4, 2, 104, 104))) for image in photographs])
    thumbs = np.concatenate([base, crop[:, :, ::-1]])
    found = near_within(pictures(thumbs), progress=quiet)
    assert found.mirrored.all()
    assert set(found.second - found.first) == {len(base)}  # each with its own copy, and nothing else
    assert len(found.first) >= 0.95 * len(base)


def test_the_search_agrees_with_comparing_all_with_all() -> None:
    rng = np.random.default_rng(2)
    scenes = rng.normal(128, 40, (150, 8, 8)).clip(0, 255).astype(np.uint8)
    base = np.stack([thumb(Image.fromarray(scene).resize((96, 96))) for scene in scenes])
    noisy = (base[:60] + rng.normal(0, 3, base[:60].shape)).clip(0, 255).astype(np.uint8)
    thumbs = np.concatenate([base, noisy])
    one, two = np.triu_indices(len(thumbs), 1)
    all_pairs = similarity(thumbs[one], thumbs[two]) >= NEAR
    found = near_within(pictures(thumbs), progress=quiet)
    assert set(zip(found.first, found.second, strict=True)) == set(
        zip(one[all_pairs], two[all_pairs], strict=True)
    )
    assert all_pairs.sum() == 60


def test_only_the_rows_asked_for_are_searched(photographs: list[Image.Image]) -> None:
    base = np.stack([thumb(image) for image in photographs[:6]])
    asked, table = pictures(base, np.array([4, 5])), pictures(base, np.array([1, 4]))
    found = near_between(asked, table, progress=quiet)
    assert (found.first.tolist(), found.second.tolist()) == ([4], [4])


@pytest.mark.parametrize("num", [0, 1])
def test_nothing_to_compare(num: int) -> None:
    thumbs = np.random.default_rng(0).integers(0, 256, (num, THUMB_PX, THUMB_PX), dtype=np.uint8)
    assert len(near_within(pictures(thumbs), progress=quiet).first) == 0
    full = pictures(np.zeros((2, THUMB_PX, THUMB_PX), dtype=np.uint8))
    assert len(near_between(pictures(thumbs), full, progress=quiet).first) == 0


def test_ten_thousand_frames_of_one_scene_give_groups_not_all_their_pairs() -> None:
    rng = np.random.default_rng(3)
    scene = rng.integers(0, 256, (THUMB_PX, THUMB_PX)).astype(np.float32)
    frames = scene + rng.normal(0, 1, (10_000, 1, 1)) + rng.normal(0, 1, (10_000, THUMB_PX, THUMB_PX))
    thumbs = frames.clip(0, 255).astype(np.uint8)
    found = near_within(pictures(thumbs), progress=quiet)
    assert len(found.first) < 20 * len(thumbs)
    everything = pictures(thumbs)
    leader = groups_of_pairs(
        found.first, found.second, total=len(thumbs), alike=lambda one, two: alike(everything, one, two)
    )
    assert (leader == 0).mean() > 0.9


def test_a_chain_is_cut_where_its_ends_are_not_alike() -> None:
    # 0-1-2-3-4: neighbours are alike, and nothing further apart
    first, second = np.array([0, 1, 2, 3]), np.array([1, 2, 3, 4])
    groups = groups_of_pairs(first, second, total=6, alike=lambda one, two: np.abs(one - two) <= 1)
    assert groups.tolist() == [0, 0, 2, 2, 4, 5]


def test_equal_hashes() -> None:
    hashes = np.array([[7, 1], [7, 2], [7, 1], [9, 1]], dtype=np.uint64)
    assert first_equal(hashes).tolist() == [0, 1, 0, 3]
    assert where_equal(hashes, hashes[[3, 0, 0]]).tolist() == [1, -1, 1, 0]
    assert where_equal(hashes, hashes[:0]).tolist() == [-1] * 4


def test_digits_of_28_px_are_told_apart() -> None:
    digits = (load_digits().images[:400] * 15).astype(np.uint8)
    large = [Image.fromarray(digit).resize((28, 28), Image.Resampling.BICUBIC) for digit in digits]
    found = near_within(pictures(np.stack([thumb(image) for image in large]), small=True), progress=quiet)
    assert len(found.first) == 0

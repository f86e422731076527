"""Pixels that Pillow hands out without a copy."""

import gc

import numpy as np
import pytest
from PIL import Image

from belvedere.data.pixels import pixels_of

PIXELS = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)


def test_pixels_are_those_of_the_image_and_read_only():
    pixels = pixels_of(Image.fromarray(PIXELS))
    assert np.array_equal(pixels, PIXELS)
    assert not pixels.flags.writeable


def test_pixels_outlive_the_image():
    kept = [pixels_of(Image.fromarray(PIXELS ^ np.uint8(number))) for number in range(200)]
    gc.collect()
    assert all(np.array_equal(pixels, PIXELS ^ np.uint8(number)) for number, pixels in enumerate(kept))


def test_an_image_in_several_blocks_is_copied():
    image = Image.new("RGB", (5000, 3000), (1, 2, 3))
    with pytest.raises(ValueError, match="contiguous"):
        image.__arrow_c_array__()
    assert np.array_equal(pixels_of(image)[::1000, ::1000], np.full((3, 5, 3), (1, 2, 3)))


def test_a_pillow_without_the_export_is_copied_from(monkeypatch):
    monkeypatch.delattr(Image.Image, "__arrow_c_array__")
    assert np.array_equal(pixels_of(Image.fromarray(PIXELS)), PIXELS)

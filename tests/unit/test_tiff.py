"""TIFF files of every layout: the pixels that the file means, and what is left out named."""

import io
import struct
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image
from tiffs import (
    ASSOCIATED,
    BLACK_IS_ZERO,
    CMYK,
    DEFLATE,
    NONE,
    PACKBITS,
    PALETTE,
    RGB,
    UNASSOCIATED,
    UNSPECIFIED,
    WHITE_IS_ZERO,
    tiff,
)

from belvedere.data.decode import UnreadableImage, decode, open_image
from belvedere.data.tiff import bands_of, layout_of

RNG = np.random.default_rng(0)


def gray_of(data: bytes) -> list[int]:
    pixels = decode(data, "x").pixels
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0].reshape(-1).tolist()


# --- gray: every depth, both photometric interpretations, both byte orders, compressed or not

RAMPS = {
    "1 bit": (np.array([0, 1], np.uint8), 1, [0, 255]),
    "2 bits": (np.array([0, 1, 2, 3], np.uint8), 2, [0, 85, 170, 255]),
    "4 bits": (np.array([0, 5, 15], np.uint8), 4, [0, 85, 255]),
    "8 bits": (np.array([0, 9, 255], np.uint8), None, [0, 9, 255]),
    "10 bits": (np.array([0, 341, 1023], np.uint16), 10, [0, 85, 255]),
    "12 bits": (np.array([0, 1365, 4095], np.uint16), 12, [0, 85, 255]),
    "16 bits": (np.array([0, 257, 65535], np.uint16), None, [0, 1, 255]),
    "32 bits": (np.array([0, 2**32 - 1, 858993459], np.uint32), None, [0, 255, 51]),
    "32 bits, few used": (np.array([0, 257, 65535], np.uint32), None, [0, 1, 255]),
    "64 bits": (np.array([0, 2**40, 2**40 // 5], np.uint64), None, [0, 255, 51]),
    "signed 8": (np.array([-100, 0, 50, 100], np.int8), None, [0, 128, 191, 255]),
    "signed 16": (np.array([-100, 155, 0], np.int16), None, [0, 255, 100]),
    "signed 32": (np.array([-(10**9), 0, 10**9], np.int32), None, [0, 128, 255]),
    "half": (np.array([0, 0.25, 1], np.float16), None, [0, 64, 255]),
    "single": (np.array([0, 0.25, 1], np.float32), None, [0, 64, 255]),
    "double": (np.array([-1e9, 0, 1.5e9], np.float64), None, [0, 102, 255]),
}


@pytest.mark.parametrize("compression", [NONE, DEFLATE, PACKBITS])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("name", RAMPS)
def test_gray_of_every_depth_and_both_photometric_interpretations(name, order, compression):
    values, bits, levels = RAMPS[name]
    options = {"bits": bits, "order": order, "compression": compression}
    black = gray_of(tiff(values[None], BLACK_IS_ZERO, **options))
    assert np.abs(np.array(black) - levels).max() <= (name == "signed 8")
    white = gray_of(tiff(values[None], WHITE_IS_ZERO, **options))
    assert white == [255 - level for level in black]
    tall = np.repeat(values[:, None], 19, axis=1)  # rows that end within a byte, and tiles that are not full
    in_tiles = gray_of(tiff(tall, BLACK_IS_ZERO, tile=16, **options))
    assert in_tiles == np.repeat(black, 19).tolist()


def test_a_palette_is_no_gray():
    colors = [0] * 768
    colors[5] = colors[256 + 6] = 65535
    for order in ("<", ">"):
        data = tiff(np.array([[5, 6, 0]], np.uint8), PALETTE, order=order, tags={320: colors})
        assert decode(data, "x").pixels[0].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 0]]


@pytest.mark.parametrize(("values", "mode"), [(np.float32, "F"), (np.int32, "I"), (np.uint16, "I;16")])
@pytest.mark.parametrize("predictor", [1, 2, 3])
@pytest.mark.parametrize("rows", [40, 7])
def test_predictors_as_the_library_undoes_them(values, mode, predictor, rows):
    if predictor == 3 and values != np.float32:
        pytest.skip("for floats only")
    held = (RNG.random((40, 33)) * 60_000).astype(values)
    file = io.BytesIO()
    Image.fromarray(held).save(
        file, "TIFF", compression="tiff_adobe_deflate", tiffinfo={317: predictor, 278: rows}
    )
    data = file.getvalue()
    with Image.open(io.BytesIO(data)) as image:
        assert image.tag_v2.get(317, 1) == predictor
        assert np.array_equal(np.asarray(image), held)
    scale = held - held.min() if mode == "F" else held
    expected = np.rint(scale / (scale.max() if mode == "F" else 65535) * 255)
    assert np.abs(np.array(gray_of(data)).reshape(40, 33) - expected).max() <= 1


def test_values_of_every_layout_come_back_as_they_were_written():
    """Whole numbers of many depths in strips and tiles, together and in planes."""
    for _ in range(150):
        bits = int(RNG.choice([1, 2, 4, 8, 10, 12, 14, 16]))
        shape = (*RNG.integers(1, 50, 2).tolist(), int(RNG.integers(1, 6)))
        held = RNG.integers(0, 2**bits, shape).astype(np.uint8 if bits <= 8 else np.uint16)
        options = {
            "bits": bits,
            "order": "<>"[RNG.integers(2)],
            "compression": [NONE, DEFLATE, PACKBITS][RNG.integers(3)],
            "tile": [None, 16, 32][RNG.integers(3)],
            "planar": bool(RNG.integers(2)),
        }
        data = tiff(held, BLACK_IS_ZERO, **options)
        layout = layout_of(data)
        assert np.array_equal(bands_of(data, layout, range(shape[2])), held), options


def test_a_big_tiff_is_a_tiff():
    held = np.array([[0, 257, 65535]], np.uint16)
    file = io.BytesIO()
    Image.fromarray(held).save(file, "TIFF", big_tiff=True)
    assert file.getvalue()[2] == 43
    assert gray_of(file.getvalue()) == [0, 1, 255]


def test_a_big_tiff_of_the_other_byte_order():
    held = np.array([[0, 257, 65535]], ">u2")
    tags = {256: 3, 257: 1, 258: 16, 259: 1, 262: BLACK_IS_ZERO, 273: 16, 277: 1, 278: 1, 279: 6}
    entries = b"".join(struct.pack(">HHQQ", tag, 16, 1, value) for tag, value in tags.items())
    header = struct.pack(">2sHHHQ", b"MM", 43, 8, 0, 22)
    data = header + held.tobytes() + struct.pack(">Q", len(tags)) + entries + bytes(8)
    assert gray_of(data) == [0, 1, 255]


@pytest.mark.parametrize("tile", [None, 16])
@pytest.mark.parametrize("compression", [NONE, DEFLATE])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colors_and_gray_in_planes(dtype, order, compression, tile):
    options = {"order": order, "compression": compression, "tile": tile, "planar": True}
    held = RNG.integers(0, 256, (5, 7, 3)) * (np.iinfo(dtype).max // 255)
    levels = held // (np.iinfo(dtype).max // 255)
    assert np.array_equal(decode(tiff(held.astype(dtype), RGB, **options), "x").pixels, levels)
    for photometric, expected in ((BLACK_IS_ZERO, levels[..., 0]), (WHITE_IS_ZERO, 255 - levels[..., 0])):
        data = tiff(held[..., :1].astype(dtype), photometric, **options)
        assert np.array_equal(decode(data, "x").pixels[..., 0], expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_is_zero_with_transparency(dtype):
    held = np.array([[[0, 255], [255, 255], [51, 0]]]) * (np.iinfo(dtype).max // 255)
    assert gray_of(tiff(held.astype(dtype), WHITE_IS_ZERO, extra=[UNASSOCIATED])) == [255, 0, 255]


def test_orientation_and_further_frames_of_a_layout_of_our_own():
    held = np.array([[0, 100, 200], [10, 110, 210]], np.uint8)
    bands = np.stack([held, held], axis=-1)
    opened = open_image(tiff(bands, BLACK_IS_ZERO, tags={274: [6]}), "x")
    assert (opened.height, opened.width) == (3, 2)
    decoded = opened.decoded()
    assert decoded.kind == "gray, 1 of 2 bands left out, turned by EXIF"
    assert decoded.pixels[..., 0].tolist() == np.rot90(held, -1).tolist()


# --- bands


def bands(dtype: type, *levels: int) -> np.ndarray:
    """Two pixels: levels in each band, once half transparent and once wholly so in the last band."""
    top = np.iinfo(dtype).max
    pixel = np.array([level * (top // 255) for level in levels], dtype)
    return np.stack([pixel, pixel])[None]


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("compression", [NONE, DEFLATE])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    ("photometric", "levels", "extra", "color", "said"),
    [
        (RGB, (10, 20, 30, 0), None, (10, 20, 30), "1 of 4 bands left out"),
        (RGB, (10, 20, 30, 0), [UNSPECIFIED], (10, 20, 30), "1 of 4 bands left out"),
        (RGB, (10, 20, 30, 0), [UNASSOCIATED], (255, 255, 255), "with transparency"),
        (RGB, (0, 0, 0, 0), [ASSOCIATED], (255, 255, 255), "with transparency"),
        (RGB, (64, 0, 0, 128), [ASSOCIATED], (191, 127, 127), "with transparency"),
        (RGB, (128, 0, 0, 128), [UNASSOCIATED], (191, 127, 127), "with transparency"),
        (RGB, (10, 20, 30, 0, 0), None, (10, 20, 30), "2 of 5 bands left out"),
        (RGB, (10, 20, 30, 99, 0), [UNSPECIFIED, UNASSOCIATED], (255, 255, 255), "1 of 5 bands left out"),
        (RGB, (10, 20, 30, 0, 99, 7), [UNASSOCIATED, UNSPECIFIED, UNSPECIFIED], (255,) * 3, "2 of 6"),
        (BLACK_IS_ZERO, (40, 0), None, (40, 40, 40), "1 of 2 bands left out"),
        (BLACK_IS_ZERO, (40, 0), [UNSPECIFIED], (40, 40, 40), "1 of 2 bands left out"),
        (BLACK_IS_ZERO, (40, 0), [UNASSOCIATED], (255, 255, 255), "with transparency"),
        (BLACK_IS_ZERO, (0, 0), [ASSOCIATED], (255, 255, 255), "with transparency"),
        (WHITE_IS_ZERO, (40, 0), None, (215, 215, 215), "1 of 2 bands left out"),
        (BLACK_IS_ZERO, (40, 0, 0, 0), None, (40, 40, 40), "3 of 4 bands left out"),
        (BLACK_IS_ZERO, (40, 1, 2, 3, 4, 5, 6), [UNSPECIFIED] * 6, (40, 40, 40), "6 of 7 bands left out"),
        (CMYK, (0, 255, 255, 0), None, (255, 0, 0), "CMYK"),
        (CMYK, (0, 255, 255, 0, 9), [UNSPECIFIED], (255, 0, 0), "1 of 5 bands left out"),
        (CMYK, (0, 255, 255, 0, 0), [UNASSOCIATED], (255, 255, 255), "with transparency"),
    ],
)
def test_only_what_the_file_calls_transparency_is_it(
    photometric, levels, extra, color, said, dtype, order, compression, planar
):
    options = {"extra": extra, "order": order, "compression": compression, "planar": planar}
    decoded = decode(tiff(bands(dtype, *levels), photometric, **options), "x")
    assert np.abs(decoded.pixels.astype(int) - color).max() <= 1
    assert said in decoded.kind
    assert ("transparency" in decoded.kind) == (extra is not None and max(extra) > 0)


@pytest.mark.parametrize("values", [np.float32, np.int16, np.uint32])
def test_colors_of_other_types_share_one_range(values):
    held = np.array([[[0, 50, 100], [100, 0, 0]]], values) * (1000 if values == np.uint32 else 1)
    data = tiff(held, RGB)
    decoded = decode(data, "x").pixels[0]
    if values == np.int16:  # whole numbers within 0..65535 count as 16-bit
        assert decoded.max() == 0
    else:
        assert np.abs(decoded.astype(int) - [[0, 128, 255], [255, 0, 0]]).max() <= 1


def jp2(mode: str, *, raw: bool) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (8, 8), (10, 20, 30, 0)[-len(mode) :]).save(file, "JPEG2000", no_jp2=raw)
    return file.getvalue()


def tga(attributes: int) -> bytes:
    header = bytes([0, 0, 2, *bytes(9), 2, 0, 1, 0, 32, 0x20 | attributes])
    return header + bytes([10, 20, 30, 0] * 2)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (jp2("RGBA", raw=True), "1 of 4 bands left out"),
        (jp2("LA", raw=True), "1 of 2 bands left out"),
        (jp2("RGBA", raw=False), "with transparency"),
        (jp2("LA", raw=False), "with transparency"),
        (tga(0), "1 of 4 bands left out"),
        (tga(8), "with transparency"),
    ],
)
def test_other_formats_say_it_in_their_own_way(data, said):
    decoded = decode(data, "x")
    assert said in decoded.kind
    assert (decoded.pixels == 255).all() == (said == "with transparency")


# --- values: a range, and pixels without one


@pytest.mark.parametrize("compression", [NONE, DEFLATE])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [BLACK_IS_ZERO, WHITE_IS_ZERO])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.uint32, np.int32, np.float32, np.float64])
def test_a_range_says_what_is_black_and_white(dtype, photometric, order, compression):
    data = tiff(np.array([[0, 819, 4095, 5000]], dtype), photometric, order=order, compression=compression)
    decoded = open_image(data, "x", value_range=(0.0, 4095.0)).decoded()
    levels = [0, 51, 255, 255]
    expected = levels if photometric == BLACK_IS_ZERO else [255 - level for level in levels]
    assert decoded.pixels[0, :, 1].tolist() == expected
    assert (decoded.values.low, decoded.values.high) == (0, 5000)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("photometric", [BLACK_IS_ZERO, WHITE_IS_ZERO])
def test_pixels_without_a_value_are_black_and_do_not_count(dtype, photometric):
    held = np.array([[-9999, 100, 200, 300]] if dtype != np.uint16 else [[0, 100, 200, 300]]).astype(dtype)
    nodata = str(held[0, 0]) if dtype != np.float32 else "-9999.0000"
    decoded = decode(tiff(held, photometric, nodata=nodata), "x")
    assert decoded.pixels[0, 0, 0] == 0
    assert "pixels without a value black" in decoded.kind
    assert (decoded.values.missing, decoded.values.low, decoded.values.pixels) == (1, 100, 4)
    if dtype in (np.float32, np.float64):
        white = photometric == WHITE_IS_ZERO
        assert decoded.pixels[0, 1:, 0].tolist() == ([255, 127, 0] if white else [0, 128, 255])
        held[0, 1:3] = np.nan, np.inf
        assert decode(tiff(held, photometric, nodata=nodata), "x").values.missing == 3
    with pytest.raises(UnreadableImage, match="no pixel has a value"):
        decode(tiff(held[:, :1], photometric, nodata=nodata), "x")


@pytest.mark.parametrize("nodata", ["", "none", "nan", "1e999", "\xff"])
def test_a_nodata_value_that_is_no_number_is_none(nodata):
    assert gray_of(tiff(np.array([[0, 257, 65535]], np.uint16), BLACK_IS_ZERO, nodata=nodata)) == [0, 1, 255]


def test_a_range_reaches_colors_of_a_tiff_and_is_refused_where_half_of_them_is_read():
    held = np.array([[[0, 819, 4095], [4095, 0, 409]]], np.uint16)
    colors = open_image(tiff(held, RGB), "x", value_range=(0.0, 4095.0)).decoded().pixels
    assert colors[0].tolist() == [[0, 51, 255], [255, 0, 25]]
    plain = encoded_png16(held)
    assert decode(plain, "x").kind == "RGB"
    with pytest.raises(UnreadableImage, match=r"the upper 8 bits are read, so data\.range cannot be applied"):
        open_image(plain, "x", value_range=(0.0, 4095.0)).decoded()


def encoded_png16(held: np.ndarray) -> bytes:
    from test_hostile import png

    return png(held.shape[1], 1, 16, 2, b"\0" + held.astype(">u2").tobytes())


# --- what cannot be read says what it is


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tags": {317: [7]}}, "predictor 7.*without a predictor"),
        ({"tags": {259: [34887]}}, "compression 34887"),
        ({"tags": {258: [24] * 5}}, "5 bands of 24-bit values.*8, 16 or 32 bits"),
        ({"tags": {258: [8, 8, 8, 16, 16]}}, "the bands differ in bits"),
        ({"tags": {279: [3]}}, "."),
        ({"tags": {277: [9]}}, "."),
        ({"tags": {256: [60000], 257: [60000]}}, "more than 89478485 pixels"),
        ({"tags": {256: [9000], 257: [9000], 277: [1000], 258: [64], 339: [3]}}, "too large to read"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(changes, said):
    values = RNG.integers(0, 255, (4, 4, 5), dtype=np.uint8)
    with pytest.raises(UnreadableImage, match=said):
        decode(tiff(values, RGB, compression=DEFLATE, **changes), "x")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("planar", [False, True])
def test_whatever_happened_to_such_a_file_it_is_an_image_or_unreadable(planar):
    whole = tiff(RNG.integers(0, 255, (9, 7, 5), dtype=np.uint8), RGB, compression=DEFLATE, planar=planar)
    for number in range(400):
        changed = bytearray(whole)
        for at in RNG.integers(0, min(len(whole), 300), 1 + number % 3):
            changed[at] = RNG.choice([0, 1, 127, 128, 255, changed[at] ^ 1])
        end = len(changed) if number % 2 else int(RNG.integers(8, len(changed)))
        with suppress(UnreadableImage):
            assert decode(bytes(changed[:end]), "x").pixels.ndim == 3

"""Files as people have them: each is an image by stated rules, or unreadable with a reason; nothing else."""

import io
import os
import pickle
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from tiffs import tiff

from belvedere.core.errors import DataError
from belvedere.data import decode as decoding
from belvedere.data.decode import PIXEL_LIMIT, Decoded, UnreadableImage, decode, open_image
from belvedere.data.sources import check_sample, open_source, read
from belvedere.data.spec import DataSpec, Photometry, ViewSpec

RNG = np.random.default_rng(0)
NOISE = Image.fromarray(RNG.integers(0, 256, (23, 17, 3), dtype=np.uint8))
SLOW_S = 2.0
"""Far more than any small file may take, on a busy machine too."""


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def quarters(height: int = 16, width: int = 24) -> np.ndarray:
    """Red, green, blue and white quarters: no turn or mirror leaves them in place."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    half, middle = height // 2, width // 2
    pixels[:half, :middle, 0] = pixels[:half, middle:, 1] = pixels[half:, :middle, 2] = 250
    pixels[half:, middle:] = 250
    return pixels


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, depth: int, color: int, rows: bytes, *extra: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    parts = (header, *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


STORED = {  # how an upright picture lies in a file of each orientation
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


def stored(orientation: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(STORED[orientation](quarters())))


# --- turned by EXIF


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options", "error"),
    [
        ("JPEG", {"quality": 100, "subsampling": 0}, 6),
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
    ],
)
def test_every_orientation_is_turned_upright_once(kind, options, error, orientation):
    opened = open_image(encoded(stored(orientation), kind, exif=exif(orientation), **options), "x")
    assert (opened.height, opened.width) == (16, 24)
    decoded = opened.decoded()
    assert decoded.pixels.shape == (16, 24, 3)
    assert np.abs(decoded.pixels.astype(int) - quarters()).max() <= error
    assert ("turned by EXIF" in decoded.kind) == (orientation != 1)


def test_exif_behind_the_pixels_of_a_png_counts_too():
    data = encoded(stored(6), "PNG", exif=exif(6))
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    late = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    assert late.index(b"eXIf") > late.index(b"IDAT")
    assert np.array_equal(decode(late, "x").pixels, quarters())


@pytest.mark.parametrize(
    "tags", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + bytes(40)]
)
def test_damaged_exif_leaves_an_image_as_it_is(tags):
    decoded = decode(encoded(NOISE, "JPEG", exif=tags), "x")
    assert decoded.kind == "RGB"
    assert decoded.pixels.shape == (23, 17, 3)


def test_an_orientation_that_does_not_exist_is_none():
    for orientation in (0, 9, 65535):
        assert decode(encoded(NOISE, "JPEG", exif=exif(orientation)), "x").pixels.shape == (23, 17, 3)


# --- modes


def test_sixteen_bits_in_every_dress():
    values = np.array([[0, 1000, 32768, 65535]], dtype=np.uint16)
    rows = b"\0" + values.astype(">u2").tobytes()
    gray = decode(png(4, 1, 16, 0, rows), "x")
    assert (gray.kind, gray.pixels[0, :, 0].tolist()) == ("16-bit gray", [0, 4, 128, 255])
    clear = decode(png(4, 1, 16, 0, rows, chunk(b"tRNS", struct.pack(">H", 1000))), "x")
    assert clear.kind == "16-bit gray with transparency"
    assert clear.pixels[0, :, 2].tolist() == [0, 255, 128, 255]
    color = np.repeat(values.reshape(-1), 3).reshape(1, 4, 3)
    rgb = decode(png(4, 1, 16, 2, b"\0" + color.astype(">u2").tobytes()), "x")
    assert rgb.kind == "RGB"
    assert np.abs(rgb.pixels[0, :, 1].astype(int) - [0, 4, 128, 255]).max() <= 1
    alpha = np.array([[[65535, 0], [0, 65535]]], dtype=">u2")
    assert decode(png(2, 1, 16, 4, b"\0" + alpha.tobytes()), "x").pixels[0, :, 0].tolist() == [255, 0]
    for order in ("<u2", ">u2"):
        tiff = encoded(Image.fromarray(values.astype(order).view(order)), "TIFF")
        assert decode(tiff, "x").pixels[0, :, 0].tolist() == [0, 4, 128, 255]


@pytest.mark.parametrize(
    ("depth", "color", "row", "key", "levels"),
    [
        (1, 0, bytes([0b01000000]), (1,), [0, 255]),
        (2, 0, bytes([0b00010000]), (1,), [0, 255]),
        (4, 0, bytes([0x05]), (5,), [0, 255]),
        (8, 0, bytes([0, 5]), (5,), [0, 255]),
        (8, 2, bytes([0, 0, 0, 5, 6, 7]), (5, 6, 7), [0, 255]),
        (16, 2, struct.pack(">6H", 0, 0, 0, 1000, 2000, 3000), (1000, 2000, 3000), [0, 255]),
    ],
)
def test_a_transparent_color_of_a_png_is_found_at_every_depth(depth, color, row, key, levels):
    clear = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    decoded = decode(png(2, 1, depth, color, b"\0" + row, clear), "x")
    assert decoded.pixels[0, :, 0].tolist() == levels
    assert "with transparency" in decoded.kind


@pytest.mark.parametrize("mode", ["LA", "PA", "RGBA", "P", "La", "RGBa"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF"])
def test_whatever_is_transparent_lies_on_white(mode, kind):
    image = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (2, 0, 4, 2))
    if mode == "P":
        palette = Image.new("P", (4, 2), 1)
        palette.putpalette([0, 0, 0, 0, 0, 0])
        palette.paste(0, (2, 0, 4, 2))
        palette.info["transparency"] = 1
        image = palette
    elif mode == "PA":
        image = Image.merge("LA", image.convert("LA").split()).convert("PA")
    else:
        image = image.convert({"La": "LA", "RGBa": "RGBA"}.get(mode, mode))
    try:
        data = encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {}))
    except (OSError, ValueError, KeyError):
        pytest.skip(f"{kind} cannot hold {mode}")
    with Image.open(io.BytesIO(data)) as image:
        if np.asarray(image.convert("RGBA"))[0, :, 3].tolist() != [0, 0, 255, 255]:
            pytest.skip(f"{kind} does not keep the transparency of {mode}")
    decoded = decode(data, "x")
    assert "transparency" in decoded.kind
    assert decoded.pixels[:, :, 0].tolist() == [[255, 255, 0, 0]] * 2


def test_cmyk_as_adobe_inverts_it_and_as_ycck():
    inks = Image.merge("CMYK", [Image.new("L", (16, 16), value) for value in (0, 255, 255, 0)])
    data = encoded(inks, "JPEG", quality=100)
    decoded = decode(data, "x")
    assert decoded.kind == "CMYK"
    assert np.abs(decoded.pixels[8, 8].astype(int) - [255, 0, 0]).max() <= 3
    marker = data.index(b"Adobe") + 11
    assert data[marker] == 0
    ycck = data[:marker] + b"\x02" + data[marker + 1 :]  # the same numbers, said to be Y, Cb, Cr and K
    assert decode(ycck, "x").kind == "CMYK"
    with Image.open(io.BytesIO(data)) as image:
        c, m, y, _ = (255 - np.asarray(image)[8, 8].astype(float)).tolist()  # as stored
    # JFIF's YCbCr to RGB, which YCCK takes for the complement of the inks; what is stored is inverted again
    red = c + 1.402 * (y - 128)
    green = c - 0.344136 * (m - 128) - 0.714136 * (y - 128)
    blue = c + 1.772 * (m - 128)
    inks_stored = 255 - np.clip([red, green, blue], 0, 255)
    assert np.abs(decode(ycck, "x").pixels[8, 8] - inks_stored).max() <= 3


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_counts(kind):
    frames = [Image.new("RGB", (6, 4), color) for color in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options), "x")
    assert "first of several frames" in decoded.kind
    assert np.unique(decoded.pixels.reshape(-1, 3), axis=0).tolist() == [[250, 0, 0]]


def test_the_content_counts_and_not_the_name(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(encoded(NOISE, "PNG"))
    assert np.array_equal(read(open_source(str(tmp_path)), 0), np.asarray(NOISE))


# --- sizes


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (2, 3), (65_000, 1)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_one_pixel_is_wide_enough(size, kind):
    decoded = decode(encoded(Image.new("RGB", size, (9, 99, 199)), kind, quality=95), "x")
    assert decoded.pixels.shape == (size[1], size[0], 3)
    assert np.abs(decoded.pixels.reshape(-1, 3).astype(int) - [9, 99, 199]).max() <= 4


@pytest.mark.parametrize(
    ("width", "height"), [(80_000_000, 1), (1, 80_000_000), (2**18 + 1, 1), (2, 2**18 + 1), (2**24, 5)]
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "5 bands", "BMP", "PPM", "array"])
def test_an_extreme_side_is_unreadable_by_the_header_alone(width, height, kind):
    sides = {256: [width], 257: [height]}
    stored = {
        "PNG": png(width, height, 8, 0, b""),
        "TIFF": tiff(np.zeros((1, 1), np.uint8), 1, long_tags=sides),
        "5 bands": tiff(np.zeros((1, 1, 5), np.uint8), 2, long_tags=sides),
        "BMP": b"BM" + struct.pack("<IIIIiiHHIIiiII", 99, 0, 54, 40, width, height, 1, 24, 0, 0, 1, 1, 0, 0),
        "PPM": b"P5\n%d %d\n255\n" % (width, height),
        "array": np.broadcast_to(np.zeros((1, 1, 1), np.uint8), (height, width, 1)),
    }[kind]
    with pytest.raises(UnreadableImage, match="a side of more than 262144 pixels, refused; cut it"):
        open_image(stored, "x")


BOMBS = [
    png(30_000, 3_000, 8, 2, b""),
    png(2**31 - 1, 2**31 - 1, 8, 6, b""),
    png(20_000, 10_000, 1, 0, bytes(100)),
    b"BM" + struct.pack("<IIIIiiHHIIiiII", 200, 0, 54, 40, 100_000, 100_000, 1, 24, 0, 0, 1, 1, 0, 0),
    b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x08\x01\0\0;",
    b"P6\n99999 99999\n255\n",
]


@pytest.mark.parametrize("data", BOMBS)
def test_a_bomb_is_refused_by_its_header(data, monkeypatch):
    def load(self: Image.Image) -> None:
        raise AssertionError("memory was taken")

    monkeypatch.setattr(Image.Image, "load", load)
    with pytest.raises(
        UnreadableImage, match=f"more than {PIXEL_LIMIT} pixels, refused.*BELVEDERE_PIXEL_LIMIT"
    ):
        open_image(data, "x")


LIMITED = """
import sys
from belvedere.data.decode import open_image
print(open_image(sys.stdin.buffer.read(), "x").width)
"""


def test_the_limit_can_be_set(monkeypatch):
    environment = {**os.environ, "BELVEDERE_PIXEL_LIMIT": "900000000"}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], input=BOMBS[2], env=environment, capture_output=True, check=False
    )
    assert done.stdout == b"20000\n", done.stderr
    monkeypatch.setattr(decoding, "PIXEL_LIMIT", 390)
    with pytest.raises(UnreadableImage, match="17 x 23 is more than 390 pixels, refused"):
        decode(encoded(NOISE, "PNG"), "x")
    monkeypatch.setattr(decoding, "PIXEL_LIMIT", 391)
    assert decode(encoded(NOISE, "PNG"), "x").pixels.shape == (23, 17, 3)
    for wrong in ("many", "0", "-3", ""):
        with pytest.raises(DataError, match="BELVEDERE_PIXEL_LIMIT is"):
            decoding._pixel_limit(wrong)


JPEGS = {
    "colour": (NOISE, {}),
    "progressive": (NOISE, {"progressive": True}),
    "gray": (NOISE.convert("L"), {}),
    "CMYK": (NOISE.convert("CMYK"), {}),
    "turned": (NOISE, {"exif": exif(6)}),
}


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
@pytest.mark.parametrize(
    "size", [(64, 48), (17, 23), (15, 9), (9, 8), (8, 8), (7, 40), (3, 3), (1, 1), (1, 99)]
)
def test_a_jpeg_is_decoded_to_a_part_of_its_size_rounded_up(name, shrink, size):
    image, options = JPEGS[name]
    opened = open_image(encoded(image.resize(size), "JPEG", **options), "x")
    decoded = opened.decoded(shrink=shrink)
    assert decoded.shrink == (shrink if min(size) >= shrink else 1)
    expected = [-(-side // decoded.shrink) for side in (opened.height, opened.width)]
    assert list(decoded.pixels.shape) == [*expected, 3]


def test_a_smaller_jpeg_shows_the_same_picture():
    large = quarters(160, 240)
    decoded = decode(encoded(Image.fromarray(large), "JPEG", quality=95), "x")
    for shrink in (2, 4, 8):
        part = open_image(encoded(Image.fromarray(large), "JPEG", quality=95), "x").decoded(shrink=shrink)
        offset = shrink // 2
        assert np.abs(part.pixels.astype(int) - decoded.pixels[offset::shrink, offset::shrink]).mean() < 6
    assert open_image(encoded(NOISE, "PNG"), "x").decoded(shrink=8).shrink == 1


# --- what is no image


@pytest.mark.parametrize(
    "data",
    [
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        b"<!DOCTYPE html><html><body>Not found</body></html>",
        b"just some text",
        b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
        b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2mp41" + bytes(500),
        b"PK\x03\x04" + bytes(100),
        bytes(1000),
        b"\xff\xd8",
    ],
)
def test_what_is_no_image_says_how_it_starts(data):
    with pytest.raises(UnreadableImage) as caught:
        decode(data, "x.jpg")
    assert repr(data[:12]) in caught.value.reason
    assert "0x" not in caught.value.reason.replace("\\x", ""), "an address in memory is another one each time"


def test_a_program_is_not_run(monkeypatch):
    """Pillow hands EPS to Ghostscript, whatever the file is called."""
    monkeypatch.setattr(subprocess, "check_call", lambda *a, **k: pytest.fail("a program was started"))
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "EPS"
    with pytest.raises(UnreadableImage, match="no image format recognized"):
        decode(data, "x.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_a_file_cut_off_anywhere_is_unreadable_and_never_half_an_image(kind):
    data = encoded(NOISE, kind)
    whole = decode(data, "x").pixels
    unreadable = 0
    for end in [*range(0, len(data), max(1, len(data) // 60)), len(data) - 30, len(data) - 20]:
        try:
            assert np.array_equal(
                decode(data[:end], "x").pixels, whole
            )  # only what follows the pixels is missing
        except UnreadableImage:
            unreadable += 1
    assert unreadable >= 50


def test_an_image_that_is_not_what_its_header_says_is_refused(monkeypatch):
    opened = open_image(encoded(NOISE, "PNG"), "x")
    monkeypatch.setattr(type(opened._image), "load", lambda self: setattr(self, "_size", (5, 5)))
    with pytest.raises(UnreadableImage, match=r"says \(17, 23\) pixels, and holds \(5, 5\)"):
        opened.decoded()


def test_a_folder_without_permission_is_left_out_and_said(tmp_path, monkeypatch):
    for name in ("open", "closed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(encoded(NOISE, "PNG"))
    scandir = os.scandir

    def refusing(path):
        if str(path).rstrip("/").endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    source = open_source(str(tmp_path))
    assert [source.key(i) for i in range(len(source))] == ["open/x.png"]
    (told,) = check_sample(source).to_json(source)["skipped_folders"]
    assert told.startswith("closed")
    assert "Permission denied" in told


# --- anything at all

SAMPLES = {
    "jpeg": encoded(NOISE, "JPEG", exif=exif(6)),
    "progressive": encoded(NOISE, "JPEG", progressive=True),
    "cmyk": encoded(NOISE.convert("CMYK"), "JPEG"),
    "png": encoded(NOISE, "PNG", exif=exif(3)),
    "palette": encoded(NOISE.quantize(16), "PNG", transparency=3),
    "16 bit": png(9, 7, 16, 0, b"".join(b"\0" + RNG.bytes(18) for _ in range(7))),
    "apng": encoded(NOISE, "PNG", save_all=True, append_images=[NOISE.rotate(180)]),
    "gif": encoded(NOISE, "GIF", save_all=True, append_images=[NOISE.rotate(180)]),
    "webp": encoded(NOISE, "WEBP"),
    "webp animated": encoded(NOISE, "WEBP", save_all=True, append_images=[NOISE.rotate(180)]),
    "tiff": encoded(NOISE, "TIFF", exif=exif(8)),
    "tiff lzw": encoded(NOISE, "TIFF", compression="tiff_lzw"),
    "tiff float": encoded(NOISE.convert("F"), "TIFF"),
    "bmp": encoded(NOISE, "BMP"),
    "ppm": encoded(NOISE, "PPM"),
    "tga": encoded(NOISE, "TGA"),
    "jpeg 2000": encoded(NOISE, "JPEG2000"),
    "avif": encoded(NOISE, "AVIF"),
}


def corruptions(data: bytes, count: int) -> Iterator[bytes]:
    """Bytes changed anywhere, bytes of the header changed to what breaks sums, ends and stretches lost."""
    rng = np.random.default_rng(len(data))
    for number in range(count):
        changed = bytearray(data)
        at = int(rng.integers(len(data)))
        if number % 4 == 0:
            for place in rng.integers(0, len(data), 1 + number % 5):
                changed[place] = int(rng.integers(256))
        elif number % 4 == 1:
            changed[at % 64 % len(data)] = int(rng.choice([0, 1, 127, 128, 255]))
        elif number % 4 == 2:
            del changed[at:]
        else:
            changed[at : at + int(rng.integers(1, 9))] = rng.bytes(int(rng.integers(1, 30)))
        yield bytes(changed)


@pytest.mark.filterwarnings("ignore::UserWarning")  # pytest undoes the module's filter
@pytest.mark.parametrize("name", SAMPLES)
def test_whatever_happened_to_a_file_it_is_an_image_or_unreadable(name, capfd):
    images = 0
    for data in corruptions(SAMPLES[name], 120):
        started = time.perf_counter()
        try:
            decoded = decode(data, "x")
        except UnreadableImage:
            pass
        else:
            assert isinstance(decoded, Decoded)
            assert decoded.pixels.dtype == np.uint8
            assert decoded.pixels.ndim == 3
            assert decoded.pixels.shape[2] == 3
            assert 0 < decoded.pixels.shape[0] * decoded.pixels.shape[1] <= PIXEL_LIMIT
            images += 1
        assert time.perf_counter() - started < SLOW_S
    assert images < 120
    assert capfd.readouterr().out == ""


SILENT = """
import pickle, sys
from belvedere.data.decode import UnreadableImage, decode
for data in pickle.load(sys.stdin.buffer):
    try:
        decode(data, "x")
    except UnreadableImage as error:
        assert "Warning" not in error.reason, error.reason
"""


def test_a_hostile_file_prints_nothing_and_a_warning_makes_none_unreadable():
    names = ("jpeg", "png", "palette", "gif", "webp", "tiff", "tiff float", "bmp")
    files = pickle.dumps([data for name in names for data in corruptions(SAMPLES[name], 80)])
    arguments = [sys.executable, "-W", "error", "-c", SILENT]
    done = subprocess.run(arguments, input=files, capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# --- the same everywhere

PLAIN_LOOKS = Photometry(flip=0.0, jitter=None, gray=0.0, blur=None, solarize=0.0)


def test_pretraining_evaluation_and_embedding_read_the_same_pixels(tmp_path, monkeypatch):
    """Every path is followed down to what it does with an image, and asked for the pixels it was given."""
    from torch import nn

    from belvedere.data.loader import Loader
    from belvedere.eval import features
    from belvedere.nn.spec import FeatureSpec

    square = Image.fromarray(RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    files = {
        "0 turned.tif": encoded(square, "TIFF", exif=exif(6)),
        "1 turned.jpg": encoded(square, "JPEG", exif=exif(8)),
        "2 clear.png": encoded(Image.merge("RGBA", [*square.split(), square.split()[0]]), "PNG"),
        "3 inks.jpg": encoded(square.convert("CMYK"), "JPEG"),
        "4 deep.png": png(16, 16, 16, 0, b"".join(b"\0" + RNG.bytes(32) for _ in range(16))),
        "5 moving.gif": encoded(square, "GIF", save_all=True, append_images=[square.rotate(90)]),
        "6 named.jpg": encoded(square, "PNG"),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    source = open_source(str(tmp_path))
    by_rule = [decode(content, name).pixels for name, content in sorted(files.items())]

    whole = ViewSpec(
        count=1, px=16, scale=(1.0, 1.0), aspect=(1.0, 1.0), interpolation="bilinear", photometry=PLAIN_LOOKS
    )
    data = DataSpec(path=None, split=None, mean=(0.0,) * 3, std=(1.0,) * 3, max_bad_share=0.0)
    with Loader(source, {"target": whole}, data=data, seed=0, global_batch=7, total_steps=1) as loader:
        (batch,) = loader
    trained = {int(i): view for i, view in zip(batch.index, batch.views["target"][0], strict=True)}

    class Remembering(nn.Module):
        """Takes the pixels it is given for the feature."""

        norm = nn.Identity()

        def forward(self, images, *, blocks=0):
            from belvedere.nn.backbone import Features

            return Features(images.flatten(1), None, images.flatten(2), (1, 1), ())

    spec = FeatureSpec(
        source="pooled", blocks=1, norm="none", resize_px=16, crop_px=16, interpolation="bilinear"
    )

    class Card:
        features, mean, std = spec, (0.0,) * 3, (1.0,) * 3

    evaluated = features.extract(Remembering(), Card(), source).features
    from belvedere.eval.embed import embed

    embed(Remembering(), Card(), source, out=tmp_path / "out.npz")
    embedded = np.load(tmp_path / "out.npz")["features"]
    for index, pixels in enumerate(by_rule):
        expected = pixels.transpose(2, 0, 1).astype(np.float32) / 255
        for got in (trained[index].numpy(), evaluated[index].numpy(), embedded[index]):
            assert np.abs(got.reshape(3, 16, 16) - expected).max() < 1e-6

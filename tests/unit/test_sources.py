"""Opening image sets: what is found, how it is labelled and decoded, and what is refused."""

import gzip
import io
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from belvedere.core.errors import DataError
from belvedere.data.decode import UnreadableImage, decode
from belvedere.data.sources import (
    check_sample,
    from_list,
    open_source,
    relabelled,
    subset,
    with_labels,
)
from belvedere.data.sources.names import Names
from belvedere.data.sources.source import ArraySource, read

FASHION = Path("/usr/share/datasets/fashion-mnist")


def save(path: Path, *, color=(200, 30, 60), size=(12, 10), mode="RGB", **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).convert(mode).save(path, **options)
    return path


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# --- folders


def test_nested_folders_are_labelled_by_the_first_folder(tmp_path):
    for name in ("b/2.png", "b/deep/er/1.JPG", "a/x.png", "root.png"):
        save(tmp_path / name)
    source = open_source(str(tmp_path))
    assert [source.key(i) for i in range(len(source))] == [
        "a/x.png",
        "b/2.png",
        "b/deep/er/1.JPG",
        "root.png",
    ]
    assert source.classes == ("a", "b")
    assert source.labels.tolist() == [0, 1, 1, -1]
    assert read(source, 0).shape == (10, 12, 3)
    assert source.name == tmp_path.name


def test_flat_folder_has_no_labels_and_hidden_files_do_not_count(tmp_path):
    save(tmp_path / "2.png")
    save(tmp_path / "10.png")
    save(tmp_path / ".hidden.png")
    save(tmp_path / ".cache" / "thumb.png")
    (tmp_path / "notes.txt").write_text("no image")
    source = open_source(str(tmp_path))
    assert [source.key(i) for i in range(len(source))] == ["10.png", "2.png"]
    assert source.labels.tolist() == [-1, -1]
    assert source.classes == ()


def test_links_are_followed_but_never_in_circles(tmp_path):
    root = tmp_path / "root"
    save(root / "a" / "1.png")
    save(tmp_path / "elsewhere" / "2.png")
    (root / "a" / "up").symlink_to(root)
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "gone.png").symlink_to(tmp_path / "nowhere.png")
    source = open_source(str(root))
    assert [source.key(i) for i in range(len(source))] == ["a/1.png", "b/2.png", "gone.png"]
    with pytest.raises(UnreadableImage, match=r"gone\.png: cannot be read: No such file"):
        read(source, 2)


@pytest.mark.parametrize("build", ["missing", "empty", "file", "nothing readable by name"])
def test_a_path_without_images_is_refused_by_its_key(tmp_path, build):
    path = tmp_path / "set"
    if build == "file":
        path.write_text("x")
    elif build != "missing":
        path.mkdir()
    if build == "nothing readable by name":
        (path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"data\.path"):
        open_source(str(path))


def test_a_folder_divided_into_parts_is_taken_by_split(tmp_path):
    save(tmp_path / "train" / "cat" / "1.png")
    save(tmp_path / "train" / "dog" / "2.png")
    save(tmp_path / "val" / "dog" / "3.png")
    train, test = open_source(str(tmp_path), split="train"), open_source(str(tmp_path), split="test")
    everything = open_source(str(tmp_path))
    assert [train.key(i) for i in range(len(train))] == ["train/cat/1.png", "train/dog/2.png"]
    assert train.classes == everything.classes == ("cat", "dog")
    assert [test.key(i) for i in range(len(test))] == ["val/dog/3.png"]
    assert everything.labels.tolist() == [0, 1, 1]


def test_a_split_of_an_undivided_folder_is_refused(tmp_path):
    save(tmp_path / "train" / "1.png")  # a class that is called train
    save(tmp_path / "bus" / "2.png")
    assert open_source(str(tmp_path)).classes == ("bus", "train")
    with pytest.raises(DataError, match=r"data\.split is 'train'.*not divided"):
        open_source(str(tmp_path), split="train")
    with pytest.raises(DataError, match="must be train, test or null"):
        open_source(str(tmp_path), split="dev")


def test_test_part_has_the_classes_of_all_parts(tmp_path):
    save(tmp_path / "train" / "cat" / "1.png")
    save(tmp_path / "train" / "dog" / "2.png")
    save(tmp_path / "test" / "dog" / "3.png")
    test = open_source(str(tmp_path), split="test")
    assert test.classes == ("cat", "dog")
    assert test.labels.tolist() == [1]


def test_a_source_says_what_it_is(tmp_path):
    save(tmp_path / "photos" / "a" / "1.png")
    folder = open_source(tmp_path / "photos")
    assert repr(folder) == "FolderSource('photos', 1 image, 1 class)"
    (tmp_path / "list.txt").write_text("photos/a/1.png\nx.png\n")
    assert repr(open_source(tmp_path / "list.txt")) == "ListSource('list.txt', 2 images, no classes)"
    assert repr(open_source("digits")) == "ArraySource('digits', 1,797 images, 10 classes)"
    assert repr(subset(folder, [0])).endswith("1 image, 1 class)")


def test_fingerprint_changes_with_names_sizes_and_labels(tmp_path):
    save(tmp_path / "a" / "1.png")
    save(tmp_path / "b" / "2.png")
    first = open_source(str(tmp_path)).fingerprint()
    assert open_source(str(tmp_path)).fingerprint() == first
    save(tmp_path / "b" / "2.png", size=(90, 70), color=(1, 2, 3))
    resized = open_source(str(tmp_path)).fingerprint()
    (tmp_path / "a" / "1.png").rename(tmp_path / "b" / "1.png")
    moved = open_source(str(tmp_path)).fingerprint()
    assert len({first, resized, moved}) == 3
    source = open_source(str(tmp_path))
    other = relabelled(source, np.array([0, -1]), ("b",))
    assert other.fingerprint() != source.fingerprint()


def test_names_survive_bytes_that_are_no_text():
    odd = os.fsdecode(b"caf\xe9.png")
    names = Names(["", odd, "日本.png"])
    assert list(names) == ["", odd, "日本.png"]
    with pytest.raises(IndexError):
        names[3]


# --- digits and IDX


def test_digits_split_is_fixed_stratified_and_complete():
    train, test, both = (open_source("digits", split=split) for split in ("train", "test", None))
    assert (len(train), len(test), len(both)) == (1347, 450, 1797)
    keys = [source.key(i) for source in (train, test) for i in range(len(source))]
    assert len(set(keys)) == 1797
    assert test.key(0).startswith("digits/")
    share = np.bincount(test.labels) / np.bincount(both.labels)
    assert np.all(np.abs(share - 450 / 1797) < 0.004)
    assert read(both, 0).shape == (8, 8, 3)
    assert int(read(both, 0).max()) == round(15 * 255 / 16)  # digits/0 reaches 15 of 16
    assert open_source("digits", split="test").fingerprint() == test.fingerprint()
    assert train.fingerprint() != test.fingerprint()


def idx(array: np.ndarray) -> bytes:
    magic = 0x0800 + array.ndim
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def idx_folder(tmp_path) -> Path:
    pixels = np.arange(5 * 6 * 7).reshape(5, 6, 7) % 256
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(pixels))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.array([2, 0, 1, 2, 0])))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels[:2])))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.array([1, 1]))))
    return tmp_path


def test_idx_folder_plain_and_compressed(idx_folder):
    train, test, both = (open_source(str(idx_folder), split=split) for split in ("train", "test", None))
    assert (len(train), len(test), len(both)) == (5, 2, 7)
    assert both.key(5) == "test/0"
    assert train.classes == ("0", "1", "2")
    assert both.labels.tolist() == [2, 0, 1, 2, 0, 1, 1]
    assert read(train, 1)[..., 2].tolist() == (np.arange(42, 84).reshape(6, 7)).tolist()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train-images-idx3-ubyte", lambda data: data[:-3], "says 5 x 6 x 7, so 226 bytes, but has 223"),
        ("train-images-idx3-ubyte", lambda data: data + b"x", "but has 227"),
        ("train-images-idx3-ubyte", lambda data: b"\x00\x00\x08\x01" + data[4:], "no IDX file"),
        ("train-images-idx3-ubyte", lambda data: b"", "no IDX file"),
        ("train-labels-idx1-ubyte", lambda data: idx(np.zeros(4)), "4 labels for the 5 images"),
        ("t10k-images-idx3-ubyte.gz", lambda data: data[:-20], "cannot be read"),
        ("t10k-images-idx3-ubyte.gz", lambda data: b"not gzip", "cannot be read"),
    ],
)
def test_damaged_idx_files_are_refused(idx_folder, name, change, message):
    path = idx_folder / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        open_source(str(idx_folder))


def test_idx_without_the_split_or_the_labels(idx_folder):
    (idx_folder / "train-labels-idx1-ubyte").unlink()
    source = open_source(str(idx_folder), split="train")
    assert source.labels.tolist() == [-1] * 5
    assert source.classes == ()
    (idx_folder / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"data\.split is 'test'"):
        open_source(str(idx_folder), split="test")


@pytest.mark.skipif(not FASHION.is_dir(), reason="Fashion-MNIST is not on this machine")
def test_fashion_mnist():
    test = open_source(str(FASHION), split="test")
    assert len(test) == 10_000
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert read(test, 7).shape == (28, 28, 3)


# --- labels and lists


@pytest.mark.parametrize("header", ["", "file,label\n", "\ufeffFile,Label\r\n"])
def test_labels_from_a_csv(tmp_path, header):
    for name in ("a.png", "b, c.png", "d.png"):
        save(tmp_path / "set" / name)
    table = tmp_path / "labels.csv"
    table.write_text(header + '"b, c.png",dog\n\n./a.png, cat \n', encoding="utf-8")
    source = with_labels(open_source(str(tmp_path / "set")), table)
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [0, 1, -1]
    assert source.key(1) == "b, c.png"
    assert read(source, 2).shape == (10, 12, 3)


def test_all_mistakes_of_a_csv_are_reported_together(tmp_path):
    save(tmp_path / "set" / "a.png")
    save(tmp_path / "set" / "b.png")
    table = tmp_path / "labels.csv"
    table.write_text("a.png,cat\na.png,dog\nz.png,cat\nb.png,\nb.png\n")
    with pytest.raises(DataError) as caught:
        with_labels(open_source(str(tmp_path / "set")), table)
    text = str(caught.value)
    for part in (
        "line 2: 'a.png' is labelled 'dog', but 'cat' in line 1",
        "line 3: no image 'z.png'",
        "line 4: 'b.png' has an empty",
        "line 5: 1 columns",
    ):
        assert part in text


@pytest.mark.parametrize("content", [b"", b"file,label\n", b"\xff\xfe\x00", None])
def test_a_csv_that_says_nothing_is_refused(tmp_path, content):
    save(tmp_path / "set" / "a.png")
    table = tmp_path / "labels.csv"
    if content is not None:
        table.write_bytes(content)
    with pytest.raises(DataError, match=r"labels\.csv"):
        with_labels(open_source(str(tmp_path / "set")), table)


def test_fixed_lists_find_images_by_class_and_name(tmp_path):
    for name in ("n02_7.JPEG", "n02_1.JPEG"):
        save(tmp_path / "train" / "n02" / name, color=(int(name[4]) * 20, 0, 0))
    save(tmp_path / "train" / "n01" / "n01_5.JPEG")
    save(tmp_path / "val" / "n01" / "n01_9.JPEG")
    listed = tmp_path / "1img.txt"
    listed.write_text("n02_7.JPEG\n\nn01_5.JPEG\n")
    source = from_list(open_source(str(tmp_path), split="train"), listed)
    assert [source.key(i) for i in range(2)] == ["train/n02/n02_7.JPEG", "train/n01/n01_5.JPEG"]
    assert source.labels.tolist() == [1, 0]
    listed.write_text("n02_7.JPEG\nn02_8.JPEG\nn03_1.JPEG\nn02_7.JPEG\n")
    with pytest.raises(DataError) as caught:
        from_list(open_source(str(tmp_path), split="train"), listed)
    text = str(caught.value)
    assert "line 2: no image 'n02_8.JPEG'" in text
    assert "line 3: no image 'n03_1.JPEG'" in text
    assert "line 4: 'n02_7.JPEG' for the second time, after line 1" in text


def test_subset_keeps_order_labels_and_memory():
    digits = open_source("digits")
    part = subset(digits, [5, 3, 5])
    assert isinstance(part, ArraySource)
    assert [part.key(i) for i in range(3)] == ["digits/5", "digits/3", "digits/5"]
    assert part.labels.tolist() == digits.labels[[5, 3, 5]].tolist()
    assert np.array_equal(read(part, 1), read(digits, 3))
    with pytest.raises(IndexError):
        subset(digits, [1797])
    with pytest.raises(IndexError):
        subset(digits, [-1])


# --- decoding

RED = np.array([200, 30, 60])


@pytest.mark.parametrize(
    ("data", "kind", "pixel", "error"),
    [
        (encoded(Image.new("RGB", (4, 3), tuple(RED)), "PNG"), "RGB", RED, 0),
        (encoded(Image.new("L", (4, 3), 77), "PNG"), "gray", [77] * 3, 0),
        (encoded(Image.new("1", (4, 3), 1), "PNG"), "1-bit", [255] * 3, 0),
        (encoded(Image.new("RGB", (4, 3), tuple(RED)).quantize(4), "PNG"), "palette", RED, 0),
        (encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95), "CMYK", [255, 0, 0], 3),
        (encoded(Image.new("RGBA", (4, 3), (0, 0, 0, 51)), "PNG"), "RGBA with transparency", [204] * 3, 1),
        (encoded(Image.new("LA", (4, 3), (0, 0)), "PNG"), "LA with transparency", [255] * 3, 0),
    ],
)
def test_every_mode_becomes_rgb(data, kind, pixel, error):
    decoded = decode(data, "x")
    assert decoded.kind == kind
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.shape[2] == 3
    assert np.abs(decoded.pixels[0, 0].astype(int) - pixel).max() <= error


def test_palette_and_plain_colours_with_transparency_lie_on_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((1, 0), 1)
    decoded = decode(encoded(palette, "PNG", transparency=0), "x")
    assert decoded.kind == "palette with transparency"
    assert decoded.pixels.tolist() == [[[255] * 3, [10, 20, 30]]]
    keyed = Image.new("RGB", (2, 1), (1, 2, 3))
    keyed.putpixel((1, 0), (9, 9, 9))
    decoded = decode(encoded(keyed, "PNG", transparency=(1, 2, 3)), "x")
    assert decoded.pixels.tolist() == [[[255] * 3, [9] * 3]]


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        decoded = decode(encoded(Image.fromarray(ramp), kind), "x")
        assert decoded.kind == "16-bit gray"
        assert decoded.pixels[0, :, 0].tolist() == [0, 1, 128, 255]
    wide = Image.fromarray(np.array([[-1000, 0, 100_000]], dtype=np.int32))
    assert decode(encoded(wide, "TIFF"), "x").pixels[0, :, 1].tolist() == [0, 3, 255]
    real = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    assert decode(encoded(real, "TIFF"), "x").pixels[0, :, 2].tolist() == [0, 128, 255]
    partly = decode(encoded(Image.fromarray(np.array([[0.5, np.nan]], dtype=np.float32)), "TIFF"), "x")
    assert partly.kind == "float gray, pixels without a value black"
    assert partly.pixels[0, :, 0].tolist() == [128, 0]
    nothing = Image.fromarray(np.array([[np.inf, np.nan]], dtype=np.float32))
    with pytest.raises(UnreadableImage, match="no pixel has a value"):
        decode(encoded(nothing, "TIFF"), "x")


def test_first_frame_and_exif_orientation():
    frames = [Image.new("RGB", (3, 2), color) for color in ((255, 0, 0), (0, 255, 0))]
    decoded = decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), "x")
    assert "first of several frames" in decoded.kind
    assert decoded.pixels[0, 0].tolist() == [255, 0, 0]
    image = Image.new("RGB", (16, 8))
    image.paste((255, 255, 255), (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    decoded = decode(encoded(image, "JPEG", exif=exif, quality=95), "x")
    assert decoded.kind == "turned by EXIF"
    assert decoded.pixels.shape == (16, 8, 3)
    assert decoded.pixels[2, 4, 0] > 240
    assert decoded.pixels[13, 4, 0] < 15


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest undoes the module's filter
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n", "no image format recognized"),
        (b"just some text in a file", "no image format recognized"),
        (encoded(Image.effect_noise((64, 64), 50), "PNG")[:1500], "truncated"),
        (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:900], "truncated"),
        (encoded(Image.new("1", (10_000, 9_000)), "PNG"), "more than 89478485 pixels"),
        (encoded(Image.new("1", (20_000, 10_000)), "PNG"), "more than 89478485 pixels"),
    ],
)
def test_unreadable_bytes_say_why(data, reason):
    with pytest.raises(UnreadableImage, match=reason) as caught:
        decode(data, "some/file.png")
    assert caught.value.key == "some/file.png"
    assert isinstance(caught.value, DataError)


# --- the sample that is tried first


def test_sample_counts_converted_and_unreadable(tmp_path):
    for number in range(6):
        save(tmp_path / f"{number}.png")
    save(tmp_path / "cmyk.jpg", mode="CMYK")
    (tmp_path / "zero.png").write_bytes(b"")
    source = open_source(str(tmp_path))
    report = check_sample(source)
    dumped = json.loads(json.dumps(report.to_json(source)))
    assert dumped["images"] == dumped["tried"] == 8
    assert dumped["read"] == {"CMYK": 1, "RGB": 6}
    assert dumped["converted"] == {"CMYK": ["cmyk.jpg"]}
    assert dumped["unreadable"] == {"zero.png": "the file is empty"}


def test_sample_is_spread_evenly_and_repeats():
    digits = open_source("digits")
    report = check_sample(digits, count=100, seed=3)
    assert report.num_tried == 100
    assert report.to_json(digits) == check_sample(digits, count=100, seed=3).to_json(digits)
    assert report.to_json(digits)["read"] == {"gray": 100}


def test_a_set_of_which_nothing_can_be_read_is_refused(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(b"no image at all")
    with pytest.raises(DataError, match=r"none of 3 images.*data\.path.*:\n  0\.jpg: no image format"):
        check_sample(open_source(str(tmp_path)))


def test_reports_merge_without_counting_twice():
    digits = open_source("digits")
    first, second = check_sample(digits, count=50), check_sample(digits, count=50)
    second.fail(1796, "gone")
    tried = second.num_tried
    first.merge(second)
    assert first.num_tried == tried
    assert first.first_failures(5) == [(1796, "gone")]

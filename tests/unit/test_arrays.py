"""Images in NumPy files, and how loader workers share them."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from containers import same_with_a_worker, sent

from belvedere.core.errors import DataError
from belvedere.data.sources import mapped, open_source, subset
from belvedere.data.sources.arrays import open_array, open_loaded_array
from belvedere.data.sources.ranged import refuse_range_without_effect
from belvedere.data.sources.source import ArraySource, Numbered, Source, read
from belvedere.data.spec import Part

RNG = np.random.default_rng(0)


def pixels(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def saved(path: Path, array: np.ndarray) -> str:
    np.save(path, array)
    return str(path)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 9, 7), (5, 9, 7, 1)),
        ((5, 9, 7, 1), (5, 9, 7, 1)),
        ((5, 9, 7, 3), (5, 9, 7, 3)),
        ((5, 3, 9, 7), (5, 9, 7, 3)),
        ((5, 1, 9, 7), (5, 9, 7, 1)),
        ((5, 3, 9, 3), (5, 3, 9, 3)),  # ambiguous: channels last
    ],
)
def test_shapes(tmp_path, shape, expected):
    array = pixels(*shape)
    source = open_array(saved(tmp_path / "set.npy", array), None)
    assert source.pixels.shape == expected
    wanted = (
        np.moveaxis(array, 1, 3) if len(shape) == 4 and shape[3] not in (1, 3) else array.reshape(expected)
    )
    np.testing.assert_array_equal(source.pixels, wanted)
    assert source.key(4) == "set/4"
    assert source.labels.tolist() == [-1] * 5
    assert read(source, 2).shape == (*expected[1:3], 3)
    with pytest.raises(IndexError):
        source.key(5)


def test_labels_beside_the_array(tmp_path):
    path = saved(tmp_path / "set.npy", pixels(4, 8, 8))
    saved(tmp_path / "set_labels.npy", np.array([[2], [0], [-1], [2]], dtype=np.int16))
    source = open_array(path, None)
    assert source.labels.tolist() == [2, 0, -1, 2]
    assert source.classes == ("0", "1", "2")
    first = source.fingerprint()
    saved(tmp_path / "set_labels.npy", np.array(["cat", "ant", "cat", "bee"]))
    named = open_array(path, None)
    assert named.classes == ("ant", "bee", "cat")
    assert named.labels.tolist() == [2, 0, 2, 1]
    assert named.fingerprint() != first


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.array([1.0, np.nan, -1.0, 2.0]), ["1", None, None, "2"]),
        (np.array([True, False, True, True]), ["true", "false", "true", "true"]),
        (np.array(["a", "", "-1", "b"]), ["a", None, None, "b"]),
        (np.array([b"k\xe4", b"b", b"", b"b"]), ["k\udce4", "b", None, "b"]),
    ],
)
@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_labels_of_other_types(tmp_path, labels, said, ending):
    if ending == "npy":
        path = saved(tmp_path / "set.npy", pixels(4, 8, 8))
        saved(tmp_path / "set_labels.npy", labels)
    else:
        path = tmp_path / "set.npz"
        np.savez(path, images=pixels(4, 8, 8), labels=labels)
    source = open_array(path, None)
    assert [None if label < 0 else source.classes[label] for label in source.labels] == said


def test_arrays_that_are_not_used_are_named(tmp_path):
    whole = pixels(4, 8, 8)
    np.savez(tmp_path / "set.npz", images=whole, fine_class=[0, 1, 2, 1], x_train=whole)
    assert open_array(tmp_path / "set.npz", None).skipped == (
        "arrays that were not used: 'fine_class', 'x_train'",
        "no label was found; 'fine_class' may be it: call the one array of labels `labels`",
    )


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.arange(3), r"set_labels\.npy has shape \[3\]; the labels of 4 images are \[4\]"),
        (np.full(4, 0.5), "holds float64; labels must be whole numbers or names"),
        (np.array([0, 1, 2, -5]), "labels from -5 to 2"),
        (np.array([0, 1, 2, 10**9]), "labels from 0 to 1000000000"),
    ],
)
def test_labels_that_do_not_fit(tmp_path, labels, said):
    path = saved(tmp_path / "set.npy", pixels(4, 8, 8))
    saved(tmp_path / "set_labels.npy", labels)
    with pytest.raises(DataError, match=said):
        open_array(path, None)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (
            np.linspace(0, 1, 256).reshape(4, 8, 8),
            r"float64, not uint8.* 0 to 1; .*data\.range=\[0,1\] \(--range",
        ),
        (np.arange(256).reshape(4, 8, 8) * 16, r"holds int64, not uint8.*data\.range=\[0,4080\]"),
        (np.full((4, 8, 8), np.nan, np.float16), r"holds float16, not uint8"),
        (np.zeros((4, 8, 8), bool), r"holds bool, not uint8 pixels; convert it"),
        (np.zeros((4, 8, 8), complex), r"holds complex128, not uint8 pixels; convert it"),
        (np.zeros((4, 8, 8), "datetime64[s]"), r"holds datetime64\[s\], not uint8 pixels; convert it"),
        (np.zeros((4, 8, 8), [("a", "<i4")]), r"not uint8 pixels; convert it"),
        (np.float32(3.0), r"not uint8 pixels"),
        (pixels(8, 8), r"has shape \[8, 8\]; it must be \[N, H, W\]"),
        (
            pixels(4, 8, 8, 4),
            r"has shape \[4, 8, 8, 4\].*of four channels.*save the three colors, x\[\.\.\., :3\]",
        ),
        (pixels(4, 4, 8, 8), r"of four channels.*x\[:, :3\]"),
        (pixels(0, 8, 8), r"has shape \[0, 8, 8, 1\].*at least one image"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, array, said):
    with pytest.raises(DataError, match=said):
        open_array(saved(tmp_path / "set.npy", array), None)


@pytest.mark.parametrize("where", ["npy", "npz", "divided"])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.uint32, ">u2", np.float32, np.float64])
def test_a_range_makes_images_of_arrays_of_other_types(tmp_path, dtype, where):
    array = np.zeros((3, 4, 5), dtype)
    array[1] = np.array(4095).astype(dtype)
    array[2, 0, 0] = np.array(819).astype(dtype)
    path = tmp_path / f"set.{where[:3] if where != 'divided' else 'npz'}"
    if where == "npy":
        np.save(path, array)
    else:
        np.savez(path, **{"images" if where == "npz" else "x_train": array})
    source = open_source(str(path), value_range=(0, 4095))
    assert source.pixels.dtype == np.uint8
    assert [int(image.max()) for image in source.pixels] == [0, 255, 51]
    refuse_range_without_effect(source, (0, 4095))  # it has one
    assert read(source, 1).shape == (4, 5, 3)
    assert read(subset(source, [2]), 0).max() == 51


def test_a_range_reaches_arrays_behind_a_url_in_a_path_and_in_parts(tmp_path):
    array = np.full((3, 40, 50), 4095, np.uint16)
    array[0] = 0
    path = saved(tmp_path / "set.npy", array)
    opened = [
        open_source(Path(path), value_range=(0, 4095)),
        open_source(f"file://{path}", value_range=(0, 4095)),
        open_source([Part(path=path), Part(path=path, weight=2.0)], value_range=(0, 4095)),
    ]
    for source in opened:
        assert [int(read(source, index).max()) for index in range(3)] == [0, 255, 255]
        refuse_range_without_effect(source, (0, 4095))
    with pytest.raises(DataError, match=r"data\.split is 'train'"):
        open_source(path, split="train", value_range=(0, 4095))


def test_values_outside_a_range_are_cut_and_none_are_said(tmp_path, capsys):
    array = np.array([[[-5.0, np.nan], [2000.0, 100.0]], [[np.inf, -np.inf], [np.nan, np.nan]]])
    path = saved(tmp_path / "set.npy", array)
    source = open_source(path, value_range=(0, 1000))
    assert source.pixels[..., 0].tolist() == [[[0, 0], [255, 26]], [[0, 0], [0, 0]]]
    assert "5 pixels have no value (NaN or infinite) and are black" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.parametrize("wrong", [(5, 5), (5, 1), (0, np.inf), (np.nan, 1)])
def test_what_is_no_range(tmp_path, wrong):
    with pytest.raises(DataError, match=r"data\.range is \["):
        open_source(saved(tmp_path / "set.npy", pixels(4, 8, 8)), value_range=wrong)


def test_a_range_for_bytes_has_no_effect(tmp_path):
    source = open_source(saved(tmp_path / "set.npy", pixels(4, 8, 8)), value_range=(0, 100))
    with pytest.raises(
        DataError, match="which has no effect: none of 4 images tried in 'set' has more than 8"
    ):
        refuse_range_without_effect(source, (0, 100))


def header(text: str, *, version: int = 1) -> bytes:
    size = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + text.encode("latin-1") + bytes(64)


WHOLE = "{'descr': '|u1', 'fortran_order': False, 'shape': (4, 4, 4), }"
HEADERS = {
    "unclosed": header(WHOLE[:-6]),
    "commas": header(WHOLE.replace("(4, 4, 4)", ",,,")),
    "nested": header("(" * 5000),
    "negative": header(WHOLE.replace("(4, 4, 4)", "(4, -4, 4)")),
    "246 TiB": header(WHOLE.replace("(4, 4, 4)", "(1048576, 16384, 16384)")),
    "beyond 64 bits": header(WHOLE.replace("(4, 4, 4)", "(9999999999999, 9999999999999)")),
    "of words": header(WHOLE.replace("(4, 4, 4)", "('a', 4)")),
    "no shape": header("{'descr': '|u1', 'fortran_order': False}"),
    "no type": header(WHOLE.replace("|u1", "|q9")),
    "objects": header(WHOLE.replace("|u1", "|O")),
    "long": header(WHOLE + " " * 20_000, version=2),
    "longer than the file": header(WHOLE)[:8] + b"\xff\xff" + header(WHOLE)[10:],
    "no text": header("\xff\xfe"),
    "version 9": header(WHOLE, version=9),
    "wrong magic": b"\x93NUMPX" + header(WHOLE)[6:],
    "pickle": pickle.dumps({"a": 1}),
    "cut off": header(WHOLE)[:-10],
    "ends at once": b"\x93NUMPY",
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("where", ["npy", "npz", "labels", "bytes"])
@pytest.mark.parametrize("name", HEADERS)
def test_a_damaged_header_is_one_message_with_the_path(tmp_path, name, where):
    path = tmp_path / ("set.npz" if where == "npz" else "set.npy")
    path.write_bytes(HEADERS[name])
    if where == "npz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images.npy", HEADERS[name])
    elif where == "labels":
        saved(path, pixels(4, 4, 4))
        (tmp_path / "set_labels.npy").write_bytes(HEADERS[name])

    def opened() -> Source:
        if where == "bytes":
            return open_loaded_array(path.read_bytes(), None, "memory://set.npy")
        return open_array(str(path), None)

    with pytest.raises(DataError, match=r"set(_labels)?\.np[yz]") as caught:
        opened()
    told = str(caught.value)
    assert "\n" not in told
    assert len(told) < 600
    for advice in ("allow_pickle", "unsafely", "max_header_size", "trust"):
        assert advice not in told


def test_an_array_in_fortran_order_is_read(tmp_path):
    array = pixels(4, 6, 5, 3)
    source = open_array(saved(tmp_path / "set.npy", np.asfortranarray(array)), None)
    np.testing.assert_array_equal(source.pixels, array)
    same_with_a_worker(open_array(saved(tmp_path / "big.npy", np.asfortranarray(pixels(600, 40, 41))), None))


def test_files_that_are_no_arrays(tmp_path):
    whole = Path(saved(tmp_path / "set.npy", pixels(4, 8, 8))).read_bytes()
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    contents = {"cut.npy": whole[:200], "empty.npy": b"", "text.npy": b"text"}
    contents["cut.npz"] = b"PK\x03\x04"
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in ("cut.npy", "empty.npy", "text.npy", "cut.npz", "objects.npy", "gone.npy"):
        with pytest.raises(DataError, match=rf"{name} \(data\.path\) is no NumPy file"):
            open_array(str(tmp_path / name), None)
    with pytest.raises(DataError, match=r"data\.split is 'train'.*one array; set data\.split=null"):
        open_array(str(tmp_path / "set.npy"), "train")


# --- .npz


def test_parts_of_an_npz_file(tmp_path):
    train, test = pixels(4, 6, 6, 3), pixels(2, 6, 6, 3)
    np.savez(
        tmp_path / "set.npz",
        train_images=train,
        val_images=test,
        train_labels=[["b"], ["a"], ["b"], ["b"]],
        val_labels=[["c"], ["a"]],
    )
    path = str(tmp_path / "set.npz")
    np.testing.assert_array_equal(open_array(path, "train").pixels, train)
    held_out = open_array(path, "test")
    np.testing.assert_array_equal(held_out.pixels, test)
    assert held_out.labels.tolist() == [2, 0]  # numbered as in the other part
    assert held_out.classes == ("a", "b", "c")
    whole = open_array(path, None)
    assert len(whole) == 6
    assert whole.labels.tolist() == [1, 0, 1, 1, 2, 0]
    assert whole.key(0) == "train/0"
    assert whole.key(5) == "val/1"


@pytest.mark.parametrize(("images", "labels"), [("images", "labels"), ("X", "y"), ("arr_0", "arr_1")])
def test_names_in_an_npz_file(tmp_path, images, labels):
    np.savez_compressed(tmp_path / "set.npz", **{images: pixels(3, 6, 6), labels: np.array([0, 2, 1])})
    source = open_array(str(tmp_path / "set.npz"), None)
    assert source.labels.tolist() == [0, 2, 1]
    loaded = open_loaded_array((tmp_path / "set.npz").read_bytes(), None, "memory://set.npz")
    assert loaded.fingerprint() == source.fingerprint()


def test_npz_files_without_what_is_asked_for(tmp_path):
    path = str(tmp_path / "set.npz")
    np.savez(path, pictures=pixels(3, 6, 6), labels=np.arange(3))
    with pytest.raises(DataError, match=r"holds pictures, labels; images must be named images, .*x_train"):
        open_array(path, None)
    np.savez(path, x_train=pixels(3, 6, 6))
    with pytest.raises(DataError, match=r"holds x_train; .*data\.split 'test'"):
        open_array(path, "test")
    np.savez(path, x_train=pixels(3, 6, 6), x_test=pixels(3, 7, 6))
    with pytest.raises(DataError, match=r"different sizes.*set data.split"):
        open_array(path, None)
    damaged = bytearray(Path(path).read_bytes())
    damaged[200] ^= 1
    Path(path).write_bytes(damaged)
    with pytest.raises(DataError, match="cannot be read"):
        open_array(path, "train")


# --- sharing


def maps(path: str) -> int:
    """How often this process maps a file into memory."""
    return Path("/proc/self/maps").read_text().count(path)


def test_processes_map_the_file_of_a_large_array(tmp_path):
    array = pixels(2000, 28, 28)
    path = saved(tmp_path / "set.npy", array)
    source = open_array(path, None)
    assert maps(path) == 1
    received, size = sent(source)
    assert size < 50_000  # its labels
    assert maps(path) == 2
    np.testing.assert_array_equal(received.pixels[..., 0], array)
    assert len(pickle.dumps(source)) > array.nbytes  # a pickle that is kept holds all
    assert list(tmp_path.iterdir()) == [Path(path)]


def test_processes_share_a_large_array_without_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped.tempfile, "gettempdir", lambda: str(tmp_path))
    array = pixels(2000, 28, 28, 1)
    source = ArraySource("set", array, labels=np.full(2000, -1), classes=(), keys=Numbered("set/", 2000))
    before = source.fingerprint()
    received, size = sent(source)
    (path,) = tmp_path.glob("*/pixels")
    assert size < 50_000
    assert maps(str(path)) == 2  # this process lets go of its own copy
    np.testing.assert_array_equal(received.pixels, array)
    again, _ = sent(source)
    assert list(tmp_path.glob("*/*")) == [path]  # written once
    assert source.fingerprint() == received.fingerprint() == before
    del received, again
    assert path.exists()
    del source
    assert list(tmp_path.iterdir()) == []


def test_a_small_array_travels_as_it_is():
    source = ArraySource(
        "x", pixels(2, 4, 4, 1), labels=np.zeros(2, int), classes=("0",), keys=Numbered("x/", 2)
    )
    received, _ = sent(source)
    np.testing.assert_array_equal(received.pixels, source.pixels)
    assert received.key(1) == "x/1"


def test_no_room_for_the_shared_file_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "free_bytes", lambda path: 1 << 20)
    with pytest.raises(DataError, match=r"1\.0 MiB are free; set TMPDIR .* or run\.workers to 0"):
        mapped.shared_copy(pixels(2000, 28, 28, 1), open_array)


def test_a_fingerprint_of_a_very_large_array_takes_a_part_of_it(monkeypatch):
    array = pixels(64, 8, 8, 1)

    def fingerprint(values: np.ndarray) -> str:
        return ArraySource(
            "x", values, labels=np.zeros(64, int), classes=("0",), keys=Numbered("x/", 64)
        ).fingerprint()

    whole = fingerprint(array)
    monkeypatch.setattr("belvedere.data.sources.source._HASHED_BYTES", array.nbytes // 4)
    part = fingerprint(array)
    assert part != whole
    array[4] += 1
    assert fingerprint(array) != part


def test_a_loader_reads_an_array_alike_in_a_worker(tmp_path):
    same_with_a_worker(open_array(saved(tmp_path / "set.npy", pixels(600, 3, 40, 41)), None))

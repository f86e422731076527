"""Images in NumPy files, and how loader workers share them."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from containers import same_with_a_worker, sent

from belvedere.core.errors import DataError
from belvedere.data.sources import mapped
from belvedere.data.sources.arrays import open_array, open_loaded_array
from belvedere.data.sources.source import ArraySource, Numbered, read

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
        (np.arange(3), r"set_labels\.npy has shape \[3\]; the labels of 4 images are \[4\]"),
        (np.zeros(4), "holds float64; labels must be whole numbers or names"),
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
        (np.zeros((4, 8, 8), np.float32), r"holds float32, not uint8 pixels; multiply .* by 255"),
        (np.zeros((4, 8, 8), np.int64), r"holds int64, not uint8 pixels; convert it"),
        (pixels(8, 8), r"has shape \[8, 8\]; it must be \[N, H, W\]"),
        (pixels(4, 8, 8, 4), r"has shape \[4, 8, 8, 4\]"),
        (pixels(0, 8, 8), r"has shape \[0, 8, 8, 1\].*at least one image"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, array, said):
    with pytest.raises(DataError, match=said):
        open_array(saved(tmp_path / "set.npy", array), None)


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

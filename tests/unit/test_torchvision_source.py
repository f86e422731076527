"""Torchvision's data sets by name."""

import gzip
import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from containers import again, image, keys, same_with_a_worker
from PIL import Image

from belvedere.core.errors import DataError, MissingPackageError
from belvedere.data.decode import UnreadableImage
from belvedere.data.sources.source import ArraySource, read
from belvedere.data.sources.torchvision import open_torchvision

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BELVEDERE_CACHE", str(tmp_path / "cache"))


def idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}i", *array.shape)
    path.write_bytes(head + array.tobytes())
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(head + array.tobytes()))


@pytest.fixture
def mnist(tmp_path) -> str:
    for part, count in (("train", 6), ("t10k", 4)):
        raw = tmp_path / "FashionMNIST" / "raw"
        idx(raw / f"{part}-images-idx3-ubyte", RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8))
    return f"torchvision:FashionMNIST?root={tmp_path}"


def cifar(root: Path) -> str:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        data = RNG.integers(0, 256, (2, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": [3, 9]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {n}" for n in range(10)]}))
    return f"torchvision:CIFAR10?root={root}"


def test_a_set_with_a_train_flag(mnist):
    train, test, both = (open_torchvision(mnist, split) for split in ("train", "test", None))
    assert isinstance(train, ArraySource)
    assert train.pixels.shape == (6, 28, 28, 1)
    assert train.labels.tolist() == list(range(6))
    assert train.classes[:2] == ("T-shirt/top", "Trouser")
    assert len(train.classes) == len(test.classes) == 10
    assert len(both) == 10
    assert keys(both)[5:7] == ["train/5", "test/0"]
    np.testing.assert_array_equal(both.pixels[6:], test.pixels)
    assert len({each.fingerprint() for each in (train, test, both)}) == 3


def test_colour_arrays(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)  # it compares checksums
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    source = open_torchvision(cifar(tmp_path), "test")
    assert source.pixels.shape == (2, 32, 32, 3)
    assert source.labels.tolist() == [3, 9]
    assert source.classes[9] == "class 9"


def test_a_set_of_objects_is_read_through_them(tmp_path):
    source = open_torchvision("torchvision:FakeData?size=9&num_classes=3", None)
    assert len(source) == 9
    assert set(source.labels.tolist()) <= {0, 1, 2}
    pixels = read(source, 4)
    assert pixels.shape == (224, 224, 3)
    np.testing.assert_array_equal(pixels, read(again(source), 4))
    assert source.fingerprint() == again(source).fingerprint()
    assert (
        source.fingerprint()
        != open_torchvision("torchvision:FakeData?size=8&num_classes=3", None).fingerprint()
    )
    with pytest.raises(UnreadableImage, match=r"FakeData/99"):
        source.stored(99)


def test_a_set_that_lists_its_files_shares_the_rules_of_folders(tmp_path):
    for number, name in enumerate(("b/1.png", "a/2.png", "a/3.png")):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(number))
    source = open_torchvision(f"torchvision:ImageFolder?root={tmp_path}/set", None)
    assert keys(source) == ["a/2.png", "a/3.png", "b/1.png"]
    assert source.classes == ("a", "b")
    assert source.labels.tolist() == [0, 0, 1]
    assert source.stored(2) == image(0)
    (tmp_path / "set" / "a" / "3.png").unlink()
    with pytest.raises(UnreadableImage, match=r"a/3\.png: cannot be read: No such file"):
        source.stored(1)


class Odd:
    """A data set that hands out images of many modes, and one error."""

    def __init__(self, root=None, split="train"):
        if split not in ("train", "val"):
            raise ValueError(f"split must be train or val, not {split}")
        gray = Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10))
        self.images = [
            gray,
            gray.convert("RGB"),
            gray.convert("CMYK"),
            gray.convert("P"),
            gray.convert("RGBA"),
        ]
        self.images += [
            Image.fromarray(np.full((10, 10), 65535, np.uint16)),
            np.zeros((10, 10, 3), np.uint8),
            None,
        ]
        self._labels = list(range(len(self.images)))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self._labels[index]


@pytest.fixture
def odd(monkeypatch):
    import torchvision.datasets as datasets

    monkeypatch.setattr(datasets, "Odd", Odd, raising=False)
    monkeypatch.setattr(datasets, "__all__", (*datasets.__all__, "Odd"))


def test_every_mode_becomes_rgb_by_the_rules_of_all_sources(odd):
    source = open_torchvision("torchvision:Odd", "test")  # its val
    assert len(source) == 8
    assert source.labels.tolist() == list(range(8))
    for index in (0, 1, 3, 4):
        np.testing.assert_array_equal(read(source, index)[..., 0].ravel(), np.arange(100))
    assert np.abs(read(source, 2)[..., 0].ravel().astype(int) - np.arange(100)).max() <= 1
    assert (read(source, 5) == 255).all()
    assert source.stored(6).shape == (10, 10, 3)
    with pytest.raises(UnreadableImage):
        source.stored(7)
    both = open_torchvision("torchvision:Odd", None)
    assert len(both) == 16
    assert read(both, 9).shape == (10, 10, 3)
    with pytest.raises(DataError, match=r"told its split in data.path"):
        open_torchvision("torchvision:Odd?split=val", "test")
    assert len(open_torchvision("torchvision:Odd?split=val", None)) == 8


@pytest.mark.parametrize(
    ("name", "said"), [("FashionMnist", "did you mean FashionMNIST"), ("zzz", "it has LSUN")]
)
def test_unknown_names(name, said):
    with pytest.raises(DataError, match=f"no such data set; .*{said}"):
        open_torchvision(f"torchvision:{name}", None)


def test_options_that_do_not_fit(mnist):
    with pytest.raises(DataError, match=r"the option 'size'; it knows root, train, download"):
        open_torchvision(f"{mnist}&size=3", None)
    with pytest.raises(DataError, match=r"data\.split is 'train', but torchvision's FakeData is not divided"):
        open_torchvision("torchvision:FakeData", "train")
    with pytest.raises(DataError, match="needs more options"):
        open_torchvision("torchvision:CocoDetection?root=.", None)


def test_a_set_that_is_not_there_says_how_to_have_it(tmp_path):
    with pytest.raises(
        DataError, match=rf"cannot be opened in {tmp_path}/cache/torchvision.*\?download=true"
    ):
        open_torchvision("torchvision:CIFAR10", "train")


def test_without_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(MissingPackageError, match=r"uv sync --extra torchvision.*pip install 'torchvision>="):
        open_torchvision("torchvision:CIFAR10", None)


def test_a_loader_reads_objects_alike_in_a_worker():
    same_with_a_worker(open_torchvision("torchvision:FakeData?size=9", None))

"""Folders with many images: the order they get without sorting them all, and what they cost."""

import inspect
import os
import pickle
import random
import sys
from pathlib import Path

import pytest

from belvedere.core.errors import DataError
from belvedere.data.decode import UnreadableImage
from belvedere.data.sources import index as index_module
from belvedere.data.sources.folder import FolderSource, open_folder

LONG_AGO = 1_000_000_000


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("BELVEDERE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def kept(monkeypatch) -> None:
    """Keep indices of any size."""
    monkeypatch.setattr(index_module.open_index, "__kwdefaults__", {"kept_from": 1})


def tree(root: Path, names: list[str]) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode("utf-8", "surrogateescape"))
    age(root)
    return root


def age(root: Path) -> None:
    """Let the last change of every folder lie far back, so that its times can be trusted."""
    for folder, _, _ in os.walk(root):
        os.utime(folder, (LONG_AGO, LONG_AGO))


def keys(source: FolderSource) -> list[str]:
    return [source.key(index) for index in range(len(source))]


def test_images_come_in_the_order_of_their_whole_names(tmp_path):
    names = [
        "a/x.png",
        "a.png",
        "a-b/x.png",
        "a b.png",
        "a/b.png",
        "a/b/c.png",
        "a/b-c.png",
        "a0/x.png",
        "A.png",
    ]
    names += ["é.png", "é/x.png", "日本/x.png", os.fsdecode(b"caf\xe9.png"), os.fsdecode(b"caf\xe9/y.png")]
    source = open_folder(tree(tmp_path / "set", names), None)
    assert keys(source) == sorted(names)


def test_any_tree_is_in_order_with_every_image_once(tmp_path):
    draw = random.Random(0)
    parts = ["a", "b", "a.b", "a-", "a0", "aa", "a ", "~"]
    names = {
        "/".join(draw.choices(parts, k=draw.randrange(3))) + f"/{draw.choice(parts)}{number}.png"
        for number in range(2000)
    }
    names = {name.lstrip("/") for name in names}
    source = open_folder(tree(tmp_path / "set", sorted(names)), None)
    assert keys(source) == sorted(names)
    for index in range(0, len(source), 97):
        name = source.key(index)
        assert source.stored(index) == name.encode()
        assert source.index.columns["size"][index] == len(name)
        label = None if "/" not in name else name.split("/")[0]
        assert source.labels[index] == (-1 if label is None else source.classes.index(label))


def test_a_deep_tree_needs_no_recursion(tmp_path):
    deep = "d/" * 100 + "x.png"
    root = tree(tmp_path / "set", [deep])
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 60)
    try:
        source = open_folder(root, None)
    finally:
        sys.setrecursionlimit(usual)
    assert keys(source) == [deep]


def test_links_that_lead_in_circles_or_nowhere_are_images_by_name(tmp_path):
    root = tree(tmp_path / "set", ["a/1.png"])
    (root / "self.png").symlink_to("self.png")
    (root / "b").symlink_to("b")
    (root / "c").symlink_to("a")
    source = open_folder(root, None)
    assert keys(source) == ["a/1.png", "c/1.png", "self.png"]
    assert source.index.columns["size"].tolist() == [7, 7, -1]
    with pytest.raises(UnreadableImage, match="cannot be read: Too many levels"):
        source.stored(2)


@pytest.mark.usefixtures("kept")
def test_a_kept_folder_is_the_same_and_follows_changes(tmp_path, own_cache):
    root = tree(tmp_path / "set", ["train/a/1.png", "train/b/2.png", "val/c/3.png"])
    first = open_folder(root, "train")
    again = open_folder(root, "train")
    assert first.index.path == again.index.path is not None
    for source in (first, again, pickle.loads(pickle.dumps(again))):
        assert keys(source) == ["train/a/1.png", "train/b/2.png"]
        assert source.classes == ("a", "b", "c")
        assert source.labels.tolist() == [0, 1]
        assert source.divided
        assert source.name == "set"
        assert source.fingerprint() == first.fingerprint()
    assert keys(open_folder(root, None)) == ["train/a/1.png", "train/b/2.png", "val/c/3.png"]
    (root / "val" / "aa").mkdir()  # a class that only the other part has, before b
    assert open_folder(root, "train").labels.tolist() == [0, 2]
    (root / "train" / "b" / "4.png").touch()
    assert len(open_folder(root, "train")) == 3
    (root / "train" / "b" / "2.png").unlink()
    (root / "train" / "b" / "4.png").unlink()
    (root / "train" / "a" / "1.png").unlink()
    with pytest.raises(DataError, match=r"no image file below .* \(data\.path\)"):
        open_folder(root, "train")
    assert [path.suffix for path in (own_cache / "indices").iterdir()] == [".index"] * 4
    tree(root, ["dog/5.png"])
    with pytest.raises(DataError, match=r"data\.split is 'train'.*not divided"):
        open_folder(root, "train")


@pytest.mark.usefixtures("kept")
def test_a_kept_folder_still_says_what_it_skipped(tmp_path, monkeypatch):
    root = tree(tmp_path / "set", ["a/1.png", "b/2.png", "c/3.png"])
    scandir, errors = os.scandir, {"b": PermissionError(13, "Permission denied")}

    def refusing(path):
        error = errors.get(os.path.basename(os.fspath(path).rstrip("/")))
        if error is not None:
            raise error
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    first = open_folder(root, None)
    assert first.skipped == ("b/: Permission denied",)
    assert keys(first) == ["a/1.png", "c/3.png"]
    assert open_folder(root, None).skipped == first.skipped
    assert open_folder(root, None).index.path == first.index.path
    errors["c"] = OSError(5, "Input/output error")
    os.utime(root / "c", (LONG_AGO + 1, LONG_AGO + 1))
    assert keys(open_folder(root, None)) == ["a/1.png"]
    del errors["c"]  # nothing in the folder's times tells that it can be read again
    assert keys(open_folder(root, None)) == ["a/1.png", "c/3.png"]


def test_an_image_that_changed_since_is_read_as_it_is_now(tmp_path):
    root = tree(tmp_path / "set", ["1.png", "2.png"])
    source = open_folder(root, None)
    (root / "1.png").write_bytes(b"longer than before")
    (root / "2.png").unlink()
    assert source.stored(0) == b"longer than before"
    with pytest.raises(UnreadableImage, match=r"2\.png: cannot be read: No such file"):
        source.stored(1)


def test_what_is_no_file_is_refused_and_nobody_waits(tmp_path):
    root = tree(tmp_path / "set", ["4.png"])
    os.mkfifo(root / "1.png")
    (root / "2.png").symlink_to("/dev/zero")
    with (root / "3.png").open("wb") as file:
        file.truncate(2**40)
    source = open_folder(root, None)
    for index in (0, 1):
        with pytest.raises(UnreadableImage, match="a pipe or a device, not a file"):
            source.stored(index)
    with pytest.raises(UnreadableImage, match=r"3\.png: is 1\.0 TiB large; more than 1\.0 GiB is refused"):
        source.stored(2)
    (root / "4.png").unlink()
    (root / "4.png").mkdir()
    with pytest.raises(UnreadableImage, match="a folder"):
        source.stored(3)


def test_a_large_folder_is_kept_and_sent_as_a_path(tmp_path, own_cache):
    root = tmp_path / "set"
    for number in range(21):
        (root / f"n{number:02}").mkdir(parents=True)
    one = root / "n00" / "00000.jpg"
    one.touch()
    for number in range(1, 21_000):
        folder, file = divmod(number, 1000)
        os.link(one, root / f"n{folder:02}" / f"{file:05}.jpg")
    age(root)
    source = open_folder(root, None)
    assert len(source) == 21_000
    assert len(pickle.dumps(source)) < 10_000
    assert len(list((own_cache / "indices").iterdir())) == 1
    again = pickle.loads(pickle.dumps(open_folder(root, None)))
    assert again.key(20_999) == "n20/00999.jpg"
    assert again.labels[20_999] == 20
    assert again.stored(5) == b""

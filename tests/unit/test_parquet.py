"""Images in Parquet files: which columns are taken, how they are unpacked once, and what is refused."""

import json
import os
import pickle
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from containers import again, image, keys, old, same_with_a_worker

from belvedere.core.errors import DataError
from belvedere.data.decode import UnreadableImage
from belvedere.data.sources import parquet, unpacked
from belvedere.data.sources.parquet import is_parquet_folder, open_parquet

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("BELVEDERE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def described(names: list[str]) -> dict[bytes, bytes]:
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def written(path: Path, columns: dict, *, metadata=None, group=2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path, row_group_size=group)
    old(path)
    return path


def rows(*seeds: int) -> pa.Array:
    return pa.array([{"bytes": image(seed), "path": f"{seed}.png"} for seed in seeds], STRUCT)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two files of training, one of testing, as Hugging Face lays them out."""
    names = described(["zebra", "ant", "cat"])
    written(
        tmp_path / "set/train-00000-of-00002.parquet",
        {"image": rows(0, 1, 2), "label": [0, 2, None]},
        metadata=names,
    )
    written(
        tmp_path / "set/train-00001-of-00002.parquet", {"image": rows(3, 4), "label": [2, -1]}, metadata=names
    )
    written(
        tmp_path / "set/validation-00000-of-00001.parquet", {"image": rows(5), "label": [1]}, metadata=names
    )
    return tmp_path / "set"


def blocks(cache: Path) -> list[Path]:
    return sorted((cache / "unpacked").glob("*.images"))


def test_a_folder_by_split(folder, own_cache):
    train, test, both = (open_parquet(str(folder), split) for split in ("train", "test", None))
    for source in (train, again(train)):
        assert len(source) == 5
        assert source.classes == ("zebra", "ant", "cat")
        assert source.labels.tolist() == [0, 2, -1, 2, -1]
        assert [source.stored(index) for index in (4, 0, 3)] == [image(4), image(0), image(3)]
        assert keys(source)[2:4] == ["train-00000-of-00002/2", "train-00001-of-00002/0"]
    assert test.stored(0) == image(5)
    assert test.labels.tolist() == [1]
    assert len(both) == 6
    assert train.name == "set"
    assert len({each.fingerprint() for each in (train, test, both)}) == 3
    assert open_parquet(f"{folder}/train-*.parquet", None).fingerprint() == train.fingerprint()
    assert len(pickle.dumps(train)) < 1500


def test_one_file_and_folders_named_by_part(tmp_path):
    path = written(tmp_path / "set" / "test" / "0000.parquet", {"img": [image(0)], "fine_label": ["cat"]})
    written(
        tmp_path / "set" / "train" / "0000.parquet",
        {"img": [image(1), image(2)], "fine_label": ["dog", "ant"]},
    )
    one = open_parquet(str(path), None)
    assert one.stored(0) == image(0)
    assert one.classes == ("cat",)
    test = open_parquet(str(tmp_path / "set"), "test")
    assert test.classes == ("ant", "cat", "dog")  # of all parts
    assert test.labels.tolist() == [1]
    both = open_parquet(str(tmp_path / "set"), None)
    assert keys(both) == ["test/0000/0", "train/0000/0", "train/0000/1"]
    assert is_parquet_folder(tmp_path / "set")
    (tmp_path / "set" / "x.png").write_bytes(image(0))
    assert not is_parquet_folder(tmp_path / "set")
    with pytest.raises(DataError, match=r"data\.split is 'train', but .* has only the parts test"):
        open_parquet(str(path), "train")
    plain = written(tmp_path / "plain.parquet", {"image": [image(0)]})
    with pytest.raises(DataError, match=r"data\.split is 'train'.*not divided"):
        open_parquet(str(plain), "train")


def test_labels_that_are_plain_numbers(tmp_path):
    source = open_parquet(
        str(written(tmp_path / "set.parquet", {"image": rows(0, 1), "labels": [10, 2]})), None
    )
    assert source.labels.tolist() == [10, 2]
    assert source.classes == tuple(str(number) for number in range(11))


def test_unpacked_once_and_again_when_a_file_changes(folder, own_cache, monkeypatch):
    times = []
    real = parquet._unpack
    monkeypatch.setattr(
        parquet, "_unpack", lambda *args, **options: (times.append(1), real(*args, **options))
    )
    first = open_parquet(str(folder), "train")
    (block,) = blocks(own_cache)
    assert open_parquet(str(folder), "train").fingerprint() == first.fingerprint()
    assert len(times) == 1
    changed = folder / "train-00001-of-00002.parquet"
    written(changed, {"image": rows(7, 8), "label": [0, 0]}, metadata=described(["zebra", "ant", "cat"]))
    second = open_parquet(str(folder), "train")
    assert len(times) == 2
    assert second.labels.tolist() == [0, 2, -1, 0, 0]
    assert second.stored(3) == image(7)
    assert first.stored(3) == image(3)  # its file is in use, and stays
    assert block in blocks(own_cache)
    del first
    written(changed, {"image": rows(9), "label": [0]}, metadata=described(["zebra", "ant", "cat"]))
    third = open_parquet(str(folder), "train")
    assert block not in blocks(own_cache)
    for path in blocks(own_cache):
        path.unlink()
    with pytest.raises(UnreadableImage, match=r"train-00000-of-00002/0: .*No such file"):
        again(third).stored(0)
    assert open_parquet(str(folder), "train").stored(3) == image(9)
    assert len(times) == 4


def test_processes_that_open_at_once_unpack_once(folder, own_cache, monkeypatch):
    times = []
    real = parquet._unpack
    monkeypatch.setattr(
        parquet, "_unpack", lambda *args, **options: (times.append(1), real(*args, **options))
    )
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(open_parquet(str(folder), None))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(times) == 1
    assert {source.stored(5) for source in found} == {image(5)}


def test_fresh_files_are_waited_for(tmp_path, monkeypatch):
    path = written(tmp_path / "set.parquet", {"image": rows(0)})
    os.utime(path)
    slept = []
    monkeypatch.setattr(parquet.time, "sleep", lambda seconds: (slept.append(seconds), old(path)))
    open_parquet(str(path), None)
    assert 0 < slept[0] < 2.1


def test_an_error_while_unpacking_leaves_nothing(folder, own_cache):
    path = folder / "train-00001-of-00002.parquet"
    data = bytearray(path.read_bytes())
    data[4:60] = b"\xff" * 56
    path.write_bytes(data)
    old(path)
    with pytest.raises(
        DataError, match=r"train-00001-of-00002\.parquet \(data\.path\) cannot be read as Parquet"
    ):
        open_parquet(str(folder), "train")
    assert [each.name for each in (own_cache / "unpacked").iterdir() if not each.name.endswith(".lock")] == []


def test_no_room(folder, monkeypatch):
    monkeypatch.setattr(unpacked, "free_bytes", lambda path: 1 << 20)
    with pytest.raises(
        DataError, match=r"unpacked once to .*1\.0 MiB are free: make room, or set BELVEDERE_CACHE"
    ):
        open_parquet(str(folder), None)


def test_a_disk_that_fills_up_meanwhile(folder, own_cache, monkeypatch):
    real = unpacked.BlockFile.__enter__

    def full(self):
        real(self)
        self._file.close()
        self._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115 - closed by __exit__
        return self

    monkeypatch.setattr(unpacked.BlockFile, "__enter__", full)
    with pytest.raises(DataError, match=r"cannot be unpacked to .*No space left on device"):
        open_parquet(str(folder), None)
    assert blocks(own_cache) == []


def test_what_nobody_used_for_a_month_is_removed(folder, own_cache):
    first = open_parquet(str(folder), "train")
    (block,) = blocks(own_cache)
    old(block.with_suffix(".used"))
    unpacked.remove_unused(block.parent)
    assert block.exists()  # still in use
    del first
    unpacked.remove_unused(block.parent)
    assert blocks(own_cache) == []


def test_rows_without_an_image_and_images_in_files(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(image(1))
    values = [
        {"bytes": image(0), "path": None},
        {"bytes": None, "path": "pictures/a.png"},
        {"bytes": None, "path": "pictures/gone.png"},
        {"bytes": None, "path": None},
        None,
        {"bytes": b"", "path": ""},
    ]
    source = open_parquet(str(written(tmp_path / "set.parquet", {"image": pa.array(values, STRUCT)})), None)
    assert [source.stored(index) for index in range(2)] == [image(0), image(1)]
    with pytest.raises(
        UnreadableImage, match="set/2: the row holds no bytes, and the file it names cannot be read"
    ):
        source.stored(2)
    for index in (3, 4, 5):
        with pytest.raises(UnreadableImage, match=f"set/{index}: the row holds no image"):
            source.stored(index)


def test_which_column_holds_the_images(tmp_path):
    scans = {"scan": [image(0)], "label": [0.5], "text": ["x"]}
    source = open_parquet(str(written(tmp_path / "one.parquet", scans)), None)
    assert source.stored(0) == image(0)
    assert source.labels.tolist() == [-1]
    for columns, said in (
        (
            {"left": [image(0)], "right": [image(1)]},
            r"more than one column of images.*left \(binary\), right \(binary\)",
        ),
        ({"text": ["x"], "label": [1]}, r"no column of images.*text \(string\), label \(int64\)"),
    ):
        with pytest.raises(DataError, match=said):
            open_parquet(str(written(tmp_path / "none.parquet", columns)), None)


def test_labels_beyond_the_classes_are_refused(tmp_path):
    path = written(tmp_path / "set.parquet", {"image": rows(0), "label": [3]}, metadata=described(["a", "b"]))
    with pytest.raises(
        DataError, match=r"labels an image 3 in the column 'label', but has the classes 0 to 1"
    ):
        open_parquet(str(path), None)


def test_files_that_are_no_parquet_or_not_there(tmp_path):
    path = tmp_path / "set.parquet"
    for content in (b"", b"no parquet"):
        path.write_bytes(content)
        old(path)
        with pytest.raises(DataError, match=r"set\.parquet \(data\.path\) cannot be read as Parquet"):
            open_parquet(str(path), None)
    with pytest.raises(
        DataError, match=r"gone\.parquet \(data\.path\) cannot be read as Parquet: .*No such file"
    ):
        open_parquet(str(tmp_path / "gone.parquet"), None)
    with pytest.raises(DataError, match=r"names no \.parquet file"):
        open_parquet(str(tmp_path / "cache"), None)
    empty = written(tmp_path / "empty.parquet", {"image": pa.array([], pa.binary())})
    with pytest.raises(DataError, match="holds no image"):
        open_parquet(str(empty), None)


def test_a_loader_reads_parquet_alike_in_a_worker(folder):
    same_with_a_worker(open_parquet(str(folder), None))


PARTS = {"test-0.parquet": {"image": rows(0)}, "train-0.parquet": {"image": rows(1, 2), "label": ["b", "a"]}}


@pytest.mark.parametrize("label", [None, "label"])
@pytest.mark.parametrize(("split", "labels"), [(None, [-1, 1, 0]), ("train", [1, 0]), ("test", [-1])])
def test_labels_that_the_first_file_lacks(tmp_path, split, labels, label):
    for name, columns in PARTS.items():
        written(tmp_path / "set" / name, columns)
    source = open_parquet(str(tmp_path / "set"), split, label=label)
    assert source.labels.tolist() == labels
    assert source.classes == ("a", "b")
    assert any("1 files have no column 'label'" in note for note in source.skipped)


def test_files_that_number_their_classes_differently_are_refused(tmp_path):
    for name, classes in (("a", ["cat", "dog"]), ("b", ["dog", "cat"])):
        columns = {"image": rows(0), "label": [0]}
        written(tmp_path / "set" / f"{name}.parquet", columns, metadata=described(classes))
    with pytest.raises(DataError, match=r"classes differently: .*a\.parquet 'cat', 'dog'; .*b\."):
        open_parquet(str(tmp_path / "set"), None)


def test_names_of_classes_that_the_first_file_lacks(tmp_path):
    written(tmp_path / "set/a.parquet", {"image": rows(0), "label": [1]})
    written(tmp_path / "set/b.parquet", {"image": rows(1), "label": [0]}, metadata=described(["cat", "dog"]))
    source = open_parquet(str(tmp_path / "set"), None)
    assert [source.classes[label] for label in source.labels] == ["dog", "cat"]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["cat", "-1", "nan", None], ["cat", None, None, None]),
        (["3.0", "-1.0", "", "10"], ["3", None, None, "10"]),
        ([-1, 2, 2, None], [None, "2", "2", None]),
        (pa.array([1, 2, None, -1], pa.decimal128(5, 0)), ["1", "2", None, None]),
        (pa.array(["b", "a", None, "a"], pa.string_view()), ["b", "a", None, "a"]),
    ],
)
def test_labels_of_many_types_and_none(tmp_path, values, labels):
    path = written(tmp_path / "set.parquet", {"image": rows(0, 1, 2, 3), "label": values})
    source = open_parquet(str(path), None)
    assert [None if label < 0 else source.classes[label] for label in source.labels] == labels

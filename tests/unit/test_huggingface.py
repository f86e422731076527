"""Data sets of Hugging Face's `datasets`."""

import shutil
import sys

import pytest
from containers import again, image, keys, same_with_a_worker, sent

from belvedere.core.errors import DataError, MissingPackageError
from belvedere.data.decode import UnreadableImage
from belvedere.data.sources import open_source
from belvedere.data.sources.huggingface import from_huggingface, open_huggingface

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


def table(seeds, labels, *, names=("zebra", "ant", "cat"), column="image"):
    features = datasets.Features(
        {
            column: datasets.Image(),
            "note": datasets.Value("string"),
            "label": datasets.ClassLabel(names=list(names)),
        }
    )
    images = [{"bytes": image(seed), "path": None} for seed in seeds]
    return datasets.Dataset.from_dict(
        {column: images, "note": ["?"] * len(images), "label": labels}, features=features
    )


def test_an_object_in_memory():
    source = from_huggingface(table([0, 1, 2], [2, 0, -1]))
    for each in (source, again(source)):
        assert len(each) == 3
        assert each.classes == ("zebra", "ant", "cat")
        assert each.labels.tolist() == [2, 0, -1]
        assert [each.stored(index) for index in range(3)] == [image(0), image(1), image(2)]
    with pytest.raises(IndexError):
        source.stored(3)


def test_processes_share_a_large_object_without_files(tmp_path, monkeypatch):
    monkeypatch.setattr("belvedere.data.sources.mapped.tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("belvedere.data.sources.huggingface.SHARED_BYTES", 100)
    source = from_huggingface(table(range(9), [0, 1, 2] * 3).select([8, 0, 4]))
    whole = source.fingerprint()
    received, size = sent(source)
    assert size < 9 * len(image(0))
    assert [received.stored(index) for index in range(3)] == [image(8), image(0), image(4)]
    assert source.stored(1) == image(0)
    assert received.fingerprint() == source.fingerprint() == whole
    assert sent(source)[0].stored(2) == image(4)
    assert len(list(tmp_path.iterdir())) == 1  # written once
    del source
    assert list(tmp_path.iterdir()) == []


def test_rows_chosen_and_shuffled_keep_their_labels():
    source = from_huggingface(table(range(9), [0, 1, 2] * 3).shuffle(seed=0).select(range(5)))
    for index in range(5):
        seed = next(seed for seed in range(9) if image(seed) == source.stored(index))
        assert source.labels[index] == seed % 3


def test_a_folder_by_split(tmp_path):
    parts = {"train": table([0, 1], [0, 1]), "validation": table([2], [2])}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "set"))
    train, test, both = (open_huggingface(f"hf:{tmp_path}/set", split) for split in ("train", "test", None))
    assert train.labels.tolist() == [0, 1]
    assert test.stored(0) == image(2)
    assert [both.stored(index) for index in range(3)] == [image(number) for number in range(3)]
    assert keys(both) == ["set/0", "set/1", "set/2"]
    with pytest.raises(DataError, match=r"data\.split is 'test', but the data set has only train"):
        from_huggingface(datasets.DatasetDict({"train": table([0], [0])}), split="test")


def test_other_columns_and_labels():
    numbered = datasets.Dataset.from_dict({"scan": [image(0), image(1)], "labels": [3, 1]})
    source = from_huggingface(numbered.cast_column("scan", datasets.Image()))
    assert source.labels.tolist() == [3, 1]
    assert source.classes == ("0", "1", "2", "3")
    named = datasets.Dataset.from_dict({"img": [image(0), image(1), image(2)], "label": ["b", "a", None]})
    source = from_huggingface(named)  # plain bytes
    assert source.labels.tolist() == [1, 0, -1]
    assert source.stored(1) == image(1)
    with pytest.raises(DataError, match=r"no column of images.*text \(string\)"):
        from_huggingface(datasets.Dataset.from_dict({"text": ["a"]}))


def test_images_in_files_and_rows_without_one(tmp_path):
    (tmp_path / "a.png").write_bytes(image(0))
    files = [str(tmp_path / "a.png"), str(tmp_path / "gone.png"), None]
    source = from_huggingface(
        datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())
    )
    assert source.stored(0) == image(0)
    with pytest.raises(UnreadableImage, match="1: cannot be read: No such file"):
        source.stored(1)
    with pytest.raises(UnreadableImage, match="2: the row holds no image"):
        source.stored(2)


def test_the_fingerprint_follows_content_and_labels(tmp_path):
    first = from_huggingface(table([0, 1], [0, 1])).fingerprint()
    table([0, 1], [0, 1]).save_to_disk(str(tmp_path / "set"))
    assert open_huggingface(f"hf:{tmp_path}/set", None).fingerprint() == first
    others = [([0, 1], [1, 1]), ([0], [0]), ([0, 1, 2], [0, 1, 1])]
    assert len({from_huggingface(table(*other)).fingerprint() for other in others} | {first}) == 4
    jpeg = table([0, 1], [0, 1])
    bigger = datasets.Dataset.from_dict(
        {"image": [{"bytes": image(0) + b"?"}, {"bytes": image(1)}], "label": [0, 1]}
    )
    assert from_huggingface(bigger.cast(jpeg.remove_columns("note").features)).fingerprint() != first


def test_what_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no such folder.*nothing is downloaded"):
        open_huggingface("hf:imagenet-1k", None)
    with pytest.raises(DataError, match="no folder that save_to_disk wrote"):
        open_huggingface(f"hf:{tmp_path}", None)
    with pytest.raises(DataError, match=r"IterableDataset is not .*no random access"):
        from_huggingface(table([0], [0]).to_iterable_dataset())
    with pytest.raises(DataError, match=r"list is not a datasets.Dataset"):
        from_huggingface([1, 2])
    with pytest.raises(DataError, match="holds no image"):
        from_huggingface(table([0], [0]).select([]))
    with pytest.raises(DataError, match=r"without splits; set data.split=null"):
        from_huggingface(table([0], [0]), split="train")


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json"])
@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '"x"', "{"])
def test_a_damaged_description_is_refused_in_words(tmp_path, name, content):
    table([0], [1]).save_to_disk(str(tmp_path / "set"))
    (tmp_path / "set" / name).write_text(content)
    if (name, content) == ("dataset_info.json", "{}"):
        assert len(open_huggingface(f"hf:{tmp_path / 'set'}", None)) == 1
        return
    with pytest.raises(DataError, match="is no folder that save_to_disk wrote, or is damaged"):
        open_huggingface(f"hf:{tmp_path / 'set'}", None)


def test_columns_of_an_object_may_be_chosen():
    source = open_source(table([0, 1], [2, 0]).rename_column("note", "kind"), label="kind")
    assert source.classes == ("?",)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingPackageError, match=r"uv sync --extra huggingface.*pip install 'datasets>="):
        open_huggingface("hf:set", None)


def test_a_loader_reads_a_folder_alike_in_a_worker(tmp_path):
    table(range(9), [0, 1, 2] * 3).save_to_disk(str(tmp_path / "set"))
    source = open_huggingface(f"hf:{tmp_path}/set", None)
    same_with_a_worker(source)
    shutil.rmtree(tmp_path / "set")
    with pytest.raises((UnreadableImage, FileNotFoundError)):
        again(source).stored(0)

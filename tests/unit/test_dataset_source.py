"""Data sets of torch as sources: every kind of item, labels, what is refused, and loader workers."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, StackDataset, Subset, TensorDataset

from belvedere.core.errors import DataError, UsageError
from belvedere.data.decode import UnreadableImage
from belvedere.data.loader import Loader
from belvedere.data.sources import inspect, open_source, read
from belvedere.data.spec import DataSpec, Photometry, ViewSpec

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 9, 7, 3), dtype=np.uint8)


class Items(Dataset):
    """Whatever items it is given."""

    def __init__(self, items, **attributes):
        self.items = items
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        return self.items[index]


def encoded(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


KINDS = {
    "PIL": Image.fromarray,
    "array": lambda a: a,
    "array, channels first": lambda a: a.transpose(2, 0, 1),
    "tensor": lambda a: torch.from_numpy(a).permute(2, 0, 1),
    "tensor, channels last": torch.from_numpy,
    "float tensor": lambda a: torch.from_numpy(a).permute(2, 0, 1) / 255,
    "half tensor": lambda a: (torch.from_numpy(a).permute(2, 0, 1) / 255).half(),
    "bfloat16 tensor": lambda a: (torch.from_numpy(a).permute(2, 0, 1) / 255).bfloat16(),
    "double array": lambda a: a / 255.0,
    "bytes": encoded,
}
SHAPES = {
    "image": lambda image: image,
    "(image, label)": lambda image: (image, 3),
    "[image]": lambda image: [image],
    "(image, label, more)": lambda image: (image, torch.tensor(3), "a caption"),
    "dictionary": lambda image: {"image": image, "label": np.int64(3)},
    "img": lambda image: {"img": image, "fine_label": 3},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_item_may_be_an_image_in_many_forms(kind, shape, capsys):
    source = open_source(Items([SHAPES[shape](KINDS[kind](pixels)) for pixels in PIXELS]))
    tolerance = {"half tensor": 1, "bfloat16 tensor": 1}.get(kind, 0)
    for index, pixels in enumerate(PIXELS):
        assert np.abs(read(source, index).astype(int) - pixels).max() <= tolerance
    labelled = shape not in ("image", "[image]")
    assert source.labels.tolist() == [3 if labelled else -1] * 6
    assert source.classes == (("0", "1", "2", "3") if labelled else ())
    assert source.key(5) == "Items/5"
    with pytest.raises(IndexError):
        source.key(6)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "F"])
def test_pil_images_of_all_modes_follow_the_rules_of_files(mode):
    gray = Image.fromarray(PIXELS[0, ..., 0])
    image = Image.fromarray(PIXELS[0].astype(np.float32)[..., 0]) if mode == "F" else gray.convert(mode)
    decoded = inspect(open_source(Items([image])), 0)
    assert decoded.pixels.shape == (9, 7, 3)
    assert decoded.kind != "RGB"


@pytest.mark.parametrize("mode", ["I", "HSV", "RGBX", "RGBa", "La", "PA", "I;16B"])
def test_pil_images_of_modes_that_no_file_has(mode):
    decoded = inspect(open_source(Items([Image.new(mode, (7, 9))])), 0)
    assert decoded.pixels.shape == (9, 7, 3)


def test_gray_arrays_and_file_names(tmp_path):
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    items = [
        PIXELS[0, ..., 0],
        PIXELS[0, ..., :1],
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        tmp_path / "b.png",
    ]
    source = open_source(Items(items))
    assert np.array_equal(read(source, 0), read(source, 1))
    assert np.array_equal(read(source, 2), PIXELS[0])
    assert np.array_equal(read(source, 3), PIXELS[0])
    with pytest.raises(UnreadableImage, match=r"Items/4: cannot be read: No such file"):
        read(source, 4)


class Named(Items):
    classes = ("cat", "dog")


@pytest.mark.parametrize(
    ("dataset", "labels", "classes"),
    [
        (Items(PIXELS, targets=[1, 0, 1, 0, 1, 0]), [1, 0, 1, 0, 1, 0], ("0", "1")),
        (Named(PIXELS, targets=torch.tensor([1, 0, 1, 0, 1, 0])), [1, 0, 1, 0, 1, 0], ("cat", "dog")),
        (Items([(p, "ba"[n % 2]) for n, p in enumerate(PIXELS)]), [1, 0, 1, 0, 1, 0], ("a", "b")),
        (Items([(p, None if n else 2) for n, p in enumerate(PIXELS)]), [2, *[-1] * 5], ("0", "1", "2")),
        (Subset(Named(PIXELS, targets=[0, 0, 0, 1, 1, 1]), [5, 0]), [1, 0], ("cat", "dog")),
        (
            ConcatDataset([Items(PIXELS[:2], targets=[0, 1]), Items(PIXELS[2:3], targets=[2])]),
            [0, 1, 2],
            ("0", "1", "2"),
        ),
        (TensorDataset(torch.from_numpy(PIXELS), torch.arange(6)), list(range(6)), tuple("012345")),
        (StackDataset(image=Items(PIXELS), label=Items([1, 0] * 3)), [1, 0] * 3, ("0", "1")),
    ],
)
def test_labels_are_those_beside_the_items_or_in_them(dataset, labels, classes):
    source = open_source(dataset)
    assert source.labels.tolist() == labels
    assert source.classes == classes
    assert np.array_equal(read(source, 0), PIXELS[5 if isinstance(dataset, Subset) else 0])


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([None, 1, 0, 1], [None, "1", "0", "1"]),
        ([1.0, 0.0, float("nan"), -1.0], ["1", "0", None, None]),
        ([True, False, None, True], ["true", "false", None, "true"]),
        (["a", "", "-1", "b"], ["a", None, None, "b"]),
        ([[1], [0], [], [1]], ["1", "0", None, "1"]),
        ([torch.tensor([1.0]), torch.tensor(0), np.bool_(True), None], None),
        (["10", "9", "2", None], ["10", "9", "2", None]),
    ],
)
@pytest.mark.parametrize("place", ["pair", "key", "other key", "targets"])
def test_labels_of_many_kinds_wherever_they_stand(labels, expected, place):
    if expected is None:
        labels, expected = labels[:2] + labels[:2], ["1", "0", "1", "0"]
    item = {
        "pair": lambda label: (PIXELS[0], label),
        "key": lambda label: {"image": PIXELS[0], "label": label},
    }
    make = item.get(place, lambda label: {"image": PIXELS[0], "class_id": label})
    dataset = Items([PIXELS[0]] * 4, targets=labels) if place == "targets" else Items(list(map(make, labels)))
    source = open_source(dataset)
    assert [None if label < 0 else source.classes[label] for label in source.labels] == expected


def test_a_first_item_that_says_no_label_or_cannot_be_read():
    lacks = [{"image": PIXELS[0]}, {"image": PIXELS[1], "label": 1}, {"image": PIXELS[2], "label": 0}]
    assert open_source(Items(lacks)).labels.tolist() == [-1, 1, 0]
    broken = [None, (PIXELS[1], 1), (PIXELS[2], 0)]
    assert open_source(Items(broken)).labels.tolist() == [-1, 1, 0]


@pytest.mark.parametrize("beside", [True, False])
def test_chained_data_sets_that_number_their_classes_differently(beside):
    kinds = (["cat", "dog"], ["dog", "owl", "cat"])
    parts = [
        Items([(PIXELS[0], 0), (PIXELS[1], 1)], classes=names, **({"targets": [0, 1]} if beside else {}))
        for names in kinds
    ]
    source = open_source(ConcatDataset(parts))
    assert [source.classes[label] for label in source.labels] == ["cat", "dog", "dog", "owl"]


def test_several_keys_that_may_be_the_label_are_said(capsys):
    source = open_source(Items([{"image": PIXELS[0], "fine_label": 1, "coarse_label": 0}]))
    assert source.labels.tolist() == [-1]
    assert "'fine_label', 'coarse_label', and no label is taken" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("label", [10**10, 10**30, -7])
def test_numbers_that_are_no_classes_are_refused(label):
    with pytest.raises(DataError, match=r"(labels|they) must be class numbers"):
        open_source(Items([(PIXELS[0], label), (PIXELS[1], 0)]))


@pytest.mark.parametrize("targets", [[0.5] * 6, [[1, 2]] * 6, [{"boxes": 1}] * 6])
def test_targets_that_are_no_labels_are_said(targets, capsys):
    assert set(open_source(Items(PIXELS, targets=targets)).labels.tolist()) == {-1}
    assert "neither whole numbers nor names, and are not used" in " ".join(capsys.readouterr().err.split())


class Endless(IterableDataset):
    def __iter__(self):
        yield PIXELS[0]


class Unsized:
    def __getitem__(self, index):
        return PIXELS[0]


class Failing(Items):
    def __getitem__(self, index):
        raise LookupError("no such item")


@pytest.mark.parametrize(
    ("dataset", "told"),
    [
        (Endless(), r"Endless has no items by number.*map-style torch\.utils\.data\.Dataset"),
        (Unsized(), "Unsized has no length"),
        (7, "int has no items by number"),
        (Items([]), "holds no image"),
        (Items([3, 4]), "its item holds int; an item must be an image"),
        (Items([None]), "its item holds NoneType"),
        (Items([{"caption": "x"}]), "its item holds NoneType"),
        (Items([PIXELS[0].astype(np.int64)]), "an array of int64"),
        (Items([PIXELS[0].astype(np.uint16)]), "holds uint16"),
        (Items([np.zeros((4, 9, 7), np.uint8)]), r"shape \[4, 9, 7\]"),
        (Items([torch.randn(3, 9, 7)]), r"must be in \[0, 1\]: leave out the normalization.*data\.mean"),
        (Items([torch.full((3, 9, 7), torch.nan)]), r"must be in \[0, 1\]"),
        (Items([torch.full((3, 9, 7), 255.0)]), "divide by 255"),
        (Failing([1]), "LookupError: no such item"),
        (Items([(PIXELS[0], 1), (PIXELS[1], "a")]), "numbers and names"),
    ],
)
def test_what_is_no_set_of_images_is_refused_in_words(dataset, told):
    with pytest.raises(DataError, match=told):
        open_source(dataset)
    if not isinstance(dataset, int):
        with pytest.raises(DataError):
            open_source(dataset, split="train")


def test_one_bad_item_is_one_unreadable_image():
    source = open_source(Items([PIXELS[0], torch.randn(3, 4, 4), 5]))
    for index in (1, 2):
        with pytest.raises(UnreadableImage, match=f"Items/{index}: its item holds"):
            read(source, index)


def test_items_that_change_are_said(capsys):
    class Random(Items):
        def __getitem__(self, index):
            return RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8)

    open_source(Random([0]))
    assert "change from one read to the next" in " ".join(capsys.readouterr().err.split())


def test_many_labels_are_not_read_from_items_and_that_is_said(monkeypatch, capsys):
    monkeypatch.setattr("belvedere.data.sources.dataset._MOST_READ", 3)
    assert set(open_source(Items([(pixels, 1) for pixels in PIXELS])).labels.tolist()) == {-1}
    assert "give it an attribute `targets`" in " ".join(capsys.readouterr().err.split())


VIEW = ViewSpec(
    count=2,
    px=6,
    scale=(0.5, 1.0),
    aspect=(1.0, 1.0),
    interpolation="bilinear",
    photometry=Photometry(flip=0.5, jitter=None, gray=0.0, blur=None, solarize=0.0),
)
DATA = DataSpec(path=None, split=None, mean=(0.5,) * 3, std=(0.5,) * 3, max_bad_share=0.0)


def drained(dataset, workers: int) -> list[torch.Tensor]:
    settings = {"data": DATA, "seed": 0, "global_batch": 2, "total_steps": 4, "workers": workers}
    with Loader(open_source(dataset), {"target": VIEW}, **settings) as batches:
        return [batch.views["target"] for batch in batches]


def test_workers_give_the_same_views():
    dataset = Items([(pixels, 1) for pixels in PIXELS])
    assert all(map(torch.equal, drained(dataset, 0), drained(dataset, 1)))


def test_a_data_set_that_cannot_be_sent_to_workers_is_refused_with_the_remedy():
    dataset = Items(PIXELS, transform=lambda image: image)
    assert drained(dataset, 0)
    with pytest.raises(DataError, match=r"'Items' cannot be sent to loader workers.*run\.workers=0"):
        drained(dataset, 1)


SCRIPT = """
import numpy as np
import belvedere
from belvedere.data.loader import Loader
from test_dataset_source import DATA, VIEW
class Mine:
    def __len__(self): return 8
    def __getitem__(self, index): return np.full((90, 90, 3), index, np.uint8), index % 2
def main():
    options = dict(data=DATA, seed=0, global_batch=4, total_steps=2, workers=1)
    with Loader(belvedere.open_source(Mine()), {"target": VIEW}, **options) as batches:
        print(len(list(batches)), "batches")
GUARD
"""


@pytest.mark.parametrize(
    ("guard", "told"),
    [("if __name__ == '__main__': main()", "2 batches"), ("main()", "keep what starts training there under")],
)
def test_a_data_set_of_the_script_itself_reaches_workers_or_says_what_it_needs(tmp_path, guard, told):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("GUARD", guard))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, str(script)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert told in done.stdout + done.stderr
    assert (done.returncode == 0) == (told == "2 batches")


def test_from_a_data_set_to_a_trained_evaluated_backbone(tmp_path):
    import belvedere

    digits = open_source("digits", split="train")
    dataset = Items([(digits.pixels[index], int(digits.labels[index])) for index in range(120)])
    overrides = ["train.epochs=1", "optim.lr.warmup_epochs=1", "train.global_batch=60", "backbone.depth=1"]
    overrides += ["run.workers=0", "run.device=cpu", f"run.dir={tmp_path / 'run'}", "train.precision=float32"]
    recipe = belvedere.load_recipe("tiny/msn", [*overrides, "data.path=null", "data.split=null"])
    outcome = belvedere.pretrain(recipe, images=dataset)
    assert belvedere.pretrain(recipe, images=dataset).step == outcome.step == 2  # found again, and complete
    with pytest.raises(DataError, match=r"pretrain\(recipe, images="):
        belvedere.pretrain(belvedere.load_recipe(tmp_path / "run" / "recipe.yaml"))
    with pytest.raises(UsageError, match=r"data\.path is 'digits', and images are handed over too"):
        belvedere.pretrain(belvedere.load_recipe("tiny/msn", overrides), images=dataset)
    backbone, card = belvedere.load_backbone(outcome.directory)
    from belvedere.eval.evaluate import Options

    result = belvedere.evaluate(backbone, card, dataset, options=Options(protocols=("knn",)))
    assert result.report["training"]["images"] == 120
    embedded = belvedere.embed(backbone, card, dataset, out=tmp_path / "f.npz")
    assert len(embedded.features) == 120

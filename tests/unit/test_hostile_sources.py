"""Sets of images as other programs wrote them: lists, shards, archives, tables, folders; sound and broken."""

import io
import json
import os
import pickle
import struct
import tarfile
import time
import tracemalloc
import warnings
import zipfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from containers import widened
from PIL import Image

from belvedere.cli import main
from belvedere.core.errors import DataError, EvaluationError, UndividedError
from belvedere.data.decode import UnreadableImage
from belvedere.data.sources import open_source, read, remarks
from belvedere.data.sources.index import open_index
from belvedere.data.sources.mixed import Mixed
from belvedere.data.sources.parts import part_of_file
from belvedere.data.spec import DataSpec, Part
from belvedere.eval.labelled import extract_labelled
from belvedere.recipe.load import load_recipe
from belvedere.train.images import open_images
from belvedere.train.roster import as_begun

SLOW_S = 2.0
"""Far more than any small file may take, on a busy machine too."""


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


# --- lists of files

ODD = "a b.png"
LISTS = {  # name of the list: content, keys, labels
    "bom.csv": ("\ufefffile,label\nx.png,cat\n".encode(), ["x.png"], ["cat"]),
    "bom.tsv": ("\ufefffile\tlabel\nx.png\tcat\n".encode(), ["x.png"], ["cat"]),
    "bom.txt": ("\ufeffx.png\r\n".encode(), ["x.png"], [None]),
    "bom.jsonl": ('\ufeff{"file": "x.png", "label": true}\n'.encode(), ["x.png"], ["true"]),
    "semicolons.csv": (b"file;label\na,b.png;cat\nc.png;dog\n", ["a,b.png", "c.png"], ["cat", "dog"]),
    "semicolons.tsv": (b"label;file\ncat;x.png\n", ["x.png"], ["cat"]),
    "bars.csv": (b"file|label\nx.png|cat\n", ["x.png"], ["cat"]),
    "commas.tsv": (b"file,label\nx.png,cat\n", ["x.png"], ["cat"]),
    "table.txt": (b"file;label\nx.png;cat\n", ["x.png"], ["cat"]),
    "spaces.csv": (b" File , Label \n a b.png , cat \n", [ODD], ["cat"]),
    "spaces.txt": (b"  a b.png \t\r\n", [ODD], [None]),
    "quotes.csv": (b'"file" , "label"\n "a b.png" , "the ""cat"""\n"c.png" ;x,dog\n'.replace(b" ;x", b""),
                   [ODD, "c.png"], ['the "cat"', "dog"]),
    "quotes.txt": (b'"a b.png"\nc"d.png\n"e""f.png"\n', [ODD, 'c"d.png', 'e"f.png'], [None] * 3),
    "newline.csv": (b'file,label\n"a\nb.png","two\nlines"\nc.png,cat\n', ["a\nb.png", "c.png"],
                    ["two\nlines", "cat"]),
    "newline.txt": (b'"a\nb.png"\nc.png\n', ["a\nb.png", "c.png"], [None, None]),
    "newline.jsonl": (b'{"file": "a\\nb.png", "label": "x"}\n', ["a\nb.png"], ["x"]),
    "ends.jsonl": (b'{"file": " a.png ", "label": " x "}\n', [" a.png "], ["x"]),
    "bytes.csv": (b"file,label\nna\xefve\x1b[2J.png,c\xe2t\n", ["na\udcefve\x1b[2J.png"], ["c\udce2t"]),
    "bytes.jsonl": (b'{"file": "\\udcef.png", "label": "\x7f"}\n', ["\udcef.png"], ["\x7f"]),
    "empty cells.csv": (b"file;label;;\nx.png;cat;;\n;;;\n", ["x.png"], ["cat"]),
    "numbers.jsonl": (b'{"file": "a", "label": 2.0}\n{"file": "b", "label": ["3"]}\n'
                      b'{"file": "c", "label": []}\n', ["a", "b", "c"], ["2", "3", None]),
    "other names.csv": (b"id,file_name,Class\n1,x.png,cat\n", ["x.png"], ["cat"]),
    "dots.jsonl": (b'{"file": "x", "meta.label": "y", "m": {"n": 1}}\n', ["x"], ["y"]),
}  # fmt: skip


def test_a_file_that_a_list_names_and_is_not_there_says_where_it_was_looked_for(tmp_path):
    (tmp_path / "list.csv").write_text("file,label\nx.png,cat\n/nowhere/y.png,cat\n")
    source = open_source(tmp_path / "list.csv")
    with pytest.raises(UnreadableImage, match=f"No such file or directory; names start at {tmp_path}, where"):
        source.stored(0)
    with pytest.raises(UnreadableImage, match=r"No such file or directory$"):
        source.stored(1)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BELVEDERE_CACHE", str(tmp_path / "cache"))


def labels_of(source) -> list[str | None]:
    return [None if label < 0 else source.classes[label] for label in source.labels.tolist()]


@pytest.mark.parametrize("kept_from", [1, 20_000])
@pytest.mark.parametrize("name", LISTS)
def test_a_list_as_another_program_wrote_it(tmp_path, own_cache, monkeypatch, name, kept_from):
    monkeypatch.setattr("belvedere.data.sources.index.KEPT_FROM", kept_from)  # from 1 on it lies in a file
    content, keys, labels = LISTS[name]
    (tmp_path / name).write_bytes(content)
    for source in (opened := open_source(str(tmp_path / name)), pickle.loads(pickle.dumps(opened))):
        assert [source.key(index) for index in range(len(source))] == keys
        assert labels_of(source) == labels


CHOICES = {  # content; data.label and data.image; labels, or what is said
    "one.csv": ("file,class_id\na,3\n", {}, ["3"]),
    "two.csv": ("file,label,coarse_label\na,3,1\n", {},
                "several columns .*'label', 'coarse_label'.*data.label"),
    "chosen.csv": ("file,label,coarse_label\na,3,1\n", {"label": "coarse_label"}, ["1"]),
    "any.csv": ("file,label,kind\na,3,x\n", {"label": "kind"}, ["x"]),
    "case.csv": ("file,Kind\na,x\n", {"label": "kind"}, ["x"]),
    "absent.csv": ("file,label,kind\na,3,x\n", {"label": "sort"}, "no column 'sort'.*'label', 'kind'"),
    "image.csv": ("left,right,label\na,b,x\n", {"image": "right"}, ["x"]),
    "no image.csv": ("left,right\na,b\n", {"image": "middle"}, "middle|'left', 'right'"),
    "files.csv": ("image,img_path\na,b\n", {}, "several columns that may name the files"),
    "nested.jsonl": ('{"file": "a", "meta": {"kind": {"id": 4}}}\n', {"label": "meta.kind.id"}, ["4"]),
    "object.jsonl": ('{"file": "a", "label": {"id": 4}}\n', {"label": "label"},
                     "the label is an object with the keys 'id'"),
    "keys.jsonl": ('{"file": "a", "cls": 4}\n{"file": "b", "target": 4}\n', {},
                   "several keys .*'cls', 'target'"),
    "list.jsonl": ('{"file": "a", "labels": [1, 2]}\n', {}, "line 1: the label is a list of 2 values"),
    "half.jsonl": ('{"file": "a", "target": 0.5}\n', {}, "the label is 0.5, which is no whole number"),
    "predictions.csv": ("file,label,probability,predicted\na,x,0.9,yes\nb,y,0.8,no\n", {}, [None, "y"]),
    "flat.txt": ("a.png\n", {"label": "kind"}, "no column 'kind'|columns 'a.png'"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOICES)
def test_the_column_of_labels_is_the_only_one_or_is_chosen(tmp_path, own_cache, name):
    content, chosen, expected = CHOICES[name]
    (tmp_path / name).write_text(content)
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected) as caught:
            open_source(str(tmp_path / name), **chosen)
        assert str(tmp_path / name) in str(caught.value)
    else:
        assert labels_of(open_source(str(tmp_path / name), **chosen)) == expected


def test_what_a_list_says_and_is_not_used_is_named(tmp_path, own_cache):
    (tmp_path / "set.csv").write_text(
        "file,Class,width,split\n\na,x,3,train\n,,,\nb,y,4,validation\nc,y,4,fold 7\n"
    )
    told = open_source(str(tmp_path / "set.csv"), split="test")
    assert [told.key(index) for index in range(len(told))] == ["b"]
    assert told.skipped == (
        "the labels are those of the column 'Class'",
        "columns that were not used: 'width'",
        "2 empty lines were left out",
        "1 lines were left out, whose split is neither train, val nor test: 'fold 7'",
    )
    (tmp_path / "none.csv").write_text("file,width,kind\na,3,cat\n")
    (said,) = open_source(str(tmp_path / "none.csv")).skipped
    assert said.startswith("no label was found; the columns are 'width', 'kind'")


# --- tar files

TINY = encoded(Image.new("RGB", (3, 2), (9, 99, 199)), "PNG")
MAC = b"Mac OS X        \2\0\0\0"  # how an AppleDouble file begins, more or less


def tar_of(path, members, kind=tarfile.PAX_FORMAT):
    """A tar file of (name, content or None for an image)."""
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            data = TINY if content is None else content
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def every(*names, **contents):
    """Images of these names, and `NAME_ENDING=content` as files beside them."""
    return [(name, None) for name in names] + [
        (name.replace("__", "."), content.encode()) for name, content in contents.items()
    ]


FOUR = ("0.png", "1.png", "2.png", "3.png")
NO_TEXT = "na\udcefve\x1b[2J\n"
SHARDS = {  # members: labels by key
    "dots": (every("scan_0.05.png", "scan_0.06.png", scan_0__05__cls="a", scan_0__06__cls="b"),
             {"scan_0.05.png": "a", "scan_0.06.png": "b"}),
    "dots and json": ([("IMG_1.2.png", None), ("IMG_1.2.json", b'{"label": "a"}'), ("IMG_1.png", None)],
                      {"IMG_1.2.png": "a", "IMG_1.png": None}),
    "dates": (every("2023.05.01.jpg.png", "2023.05.02.jpg.png"),
              {"2023.05.01.jpg.png": None, "2023.05.02.jpg.png": None}),
    "a number is no ending": (every("scan_0.png", "scan_0.05.png", scan_0__cls="a"),
                              {"scan_0.png": "a", "scan_0.05.png": None}),
    "two eyes": (every("x.left.png", "x.right.png", x__cls="a"), {"x.left.png": "a", "x.right.png": "a"}),
    "labels of each eye": (every("x.left.png", "x.right.png", x__left__cls="a", x__right__cls="b"),
                           {"x.left.png": "a", "x.right.png": "b"}),
    "a label of one eye only": (every("x.left.png", "x.right.png", x__left__cls="a"),
                                {"x.left.png": "a", "x.right.png": None}),
    "companions": (every("x.png", "x.seg.png", "x.depth.png", x__cls="a"), {"x.png": "a"}),
    "companions with labels": (every("x.png", "x.seg.png", x__cls="a", x__seg__cls="b"),
                               {"x.png": "a", "x.seg.png": "b"}),
    "a mask of another kind": (every("x.jpg", "x.png", x__cls="a"), {"x.jpg": "a"}),
    "without anything beside": (every("x.png", "x.seg.png"), {"x.png": None, "x.seg.png": None}),
    "labels first": ([*((f"{n}.cls", str(n).encode()) for n in range(4)), *every(*FOUR)],
                     {f"{n}.png": str(n) for n in range(4)}),
    "labels last": ([*every(*FOUR), *((f"{n}.cls", b"c") for n in range(4))], dict.fromkeys(FOUR, "c")),
    "shuffled folders": ([("b/1.cls", b"b"), ("a/1.png", None), ("b/1.png", None), ("a/1.cls", b"a")],
                         {"a/1.png": "a", "b/1.png": "b"}),
    "made on a Mac": ([("._0.png", MAC), ("0.png", None), ("._0.cls", MAC), ("0.cls", b"a"),
                       (".DS_Store", MAC), ("__MACOSX/._0.png", MAC), ("./1.png", None), ("./._1.png", MAC),
                       ("./1.cls", b"b")],
                      {"0.png": "a", "1.png": "b"}),
    "upper case": ([*every("0.PNG", "1.Jpeg"), ("0.CLS", b"a"), ("1.Json", b'{"label": "b"}')],
                   {"0.PNG": "a", "1.Jpeg": "b"}),
    "named after the file": ([("p.jpg", None), ("p.jpg.json", b'{"label": 1}')], {"p.jpg": "1"}),
    "a word more": ([("p.jpg", None), ("p.meta.json", b'{"label": 1}')], {"p.jpg": "1"}),
    "bare": ([("0.png", None), ("0.json", b"3"), ("1.png", None), ("1.json", b'"3"')],
             {"0.png": "3", "1.png": "3"}),
    "floats": ([("0.png", None), ("0.json", b'{"target": 3.0}')], {"0.png": "3"}),
    "bools": ([("0.png", None), ("0.json", b'{"class": true}')], {"0.png": "true"}),
    "lists of one": ([("0.png", None), ("0.json", b'{"labels": ["x"]}')], {"0.png": "x"}),
    "the same twice": ([("0.png", None), ("0.json", b'{"label": 3, "class_id": "3"}'), ("0.cls", b"3\n")],
                       {"0.png": "3"}),
    "a file of each kind": ([("0.png", None), ("0.cls", b"a"), ("1.png", None), ("1.json", b'{"cls": "b"}')],
                            {"0.png": "a", "1.png": "b"}),
    "a name that is no text": ([(f"{NO_TEXT}.png", None), (f"{NO_TEXT}.cls", b"c\xe2t\x07")],
                               {f"{NO_TEXT}.png": "c\udce2t\x07"}),
    "long": ([("x" * 300 + ".png", None), ("x" * 300 + ".cls", b"a")], {"x" * 300 + ".png": "a"}),
}  # fmt: skip
KEYS = ("class", "cls", "class_id", "category", "labels", "target", "Class", "classLabel", "category_id")
SHARDS |= {
    key: ([("0.png", None), ("0.json", json.dumps({key: "x", "id": 1}).encode())], {"0.png": "x"})
    for key in KEYS
}


@pytest.mark.parametrize("kept_from", [1, 1000])
@pytest.mark.parametrize("name", SHARDS)
def test_every_image_of_a_tar_file_has_its_label(tmp_path, own_cache, monkeypatch, name, kept_from):
    monkeypatch.setattr("belvedere.data.sources.shards._KEPT_FROM", kept_from)
    members, expected = SHARDS[name]
    kind = tarfile.GNU_FORMAT if kept_from == 1 else tarfile.PAX_FORMAT
    opened = open_source(str(tar_of(tmp_path / "set.tar", members, kind)))
    for source in (opened, pickle.loads(pickle.dumps(opened))):
        found = dict(zip([source.key(i) for i in range(len(source))], labels_of(source), strict=True))
        assert found == expected
        assert source.stored(0) == TINY


def test_what_a_tar_file_holds_and_is_not_taken_is_counted_and_named(tmp_path, own_cache):
    members = [
        *SHARDS["made on a Mac"][0],
        *every("x.png", "x.seg.png", "lone.png", x__cls="a", gone__cls="b"),
    ]
    path = tar_of(tmp_path / "set.tar", [*members, ("x.txt", b"words"), ("list.json", b'{"label": [1, 2]}')])
    source = open_source(str(path))
    assert len(source) == 4
    told = "\n".join(remarks(source))
    for part in (
        "5 hidden members were left out: ._0.png, ._0.cls, .DS_Store, ...",
        "1 images were left out, which stand beside the image of their sample (data.image chooses): x.seg",
        "1 files of labels are those of no image: gone.cls",
        "1 labels in the key 'label' of the .json files are no classes and were left out; list.json: the",
        "files beside the images that were not used: 1 .txt",
        "1 of 4 images have no label: lone.png",
    ):
        assert part in told
    (tmp_path / "none.tar").write_bytes(
        tar_of(tmp_path / "n.tar", [("0.png", None), ("0.json", b'{"id": 1}')]).read_bytes()
    )
    (told,) = remarks(open_source(str(tmp_path / "none.tar")))
    assert (
        "no label was found; beside the images there are 1 .json with the keys 'id', and data.label" in told
    )


KINDS = every("0.png", **{"0__kind": "a", "0__json": '{"kind": "b"}'})
DIFFERENT = every("0.png", **{"0__cls": "a", "0__json": '{"label": "b"}'})
TAR_CHOICES = {  # members; data.label and data.image; labels by key, or what is said
    "ending": (every("0.png", **{"0__cls": "a", "0__txt": "b\n"}), {"label": "txt"}, {"0.png": "b"}),
    "ending with its dot": (every("0.png", **{"0__species": "b"}), {"label": ".species"}, {"0.png": "b"}),
    "key": ([("0.png", None), ("0.json", b'{"label": 1, "kind": "k"}')], {"label": "kind"}, {"0.png": "k"}),
    "nested": ([("0.png", None), ("0.json", b'{"a": {"b": {"c": 7}}}')], {"label": "a.b.c"}, {"0.png": "7"}),
    "key with dots": ([("0.png", None), ("0.json", b'{"a.b": 7}')], {"label": "a.b"}, {"0.png": "7"}),
    "two": ([("0.png", None), ("0.json", b'{"label": 1, "coarse_label": 2}')], {},
            "'label'.*'coarse_label'.*differ"),
    "cls and key": (DIFFERENT, {}, r"\.cls files.*'label'"),
    "both": (KINDS, {"label": "kind"}, "write .kind or json:kind"),
    "the key": (KINDS, {"label": "json:kind"}, {"0.png": "b"}),
    "the ending": (KINDS, {"label": ".kind"}, {"0.png": "a"}),
    "absent": (every("0.png", **{"0__cls": "a", "0__json": '{"k": "b"}'}), {"label": "sort"},
               "no labels called 'sort'.*1 .cls, 1 .json with the keys 'k'"),
    "several classes": ([("0.png", None), ("0.json", b'{"kind": [1, 2]}')], {"label": "kind"},
                        "a list of 2 values"),
    "no whole number": ([("0.png", None), ("0.json", b'{"kind": 0.5}')], {"label": "kind"},
                        "0.5, which is no whole"),
    "left": (every("x.left.png", "x.right.png", x__cls="a"), {"image": "left"}, {"x.left.png": "a"}),
    "left.png": (every("x.left.png", "x.left.jpg", x__cls="a"), {"image": "left.png"}, {"x.left.png": "a"}),
    "masks": (every("x.png", "x.seg.png", x__cls="a"), {"image": "seg"}, {"x.seg.png": "a"}),
    "one kind": (every("x.jpg", "x.png", "x.seg.png", x__cls="a"), {"image": "png"}, {"x.png": "a"}),
    "no such image": (every("x.jpg", "x.seg.png"), {"image": "depth"},
                      "no images called 'depth'.*'jpg', 'seg.png'"),
}  # fmt: skip


@pytest.mark.parametrize("name", TAR_CHOICES)
def test_labels_and_images_of_a_tar_file_are_chosen(tmp_path, own_cache, name):
    members, chosen, expected = TAR_CHOICES[name]
    path = str(tar_of(tmp_path / "set.tar", members))
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            open_source(path, **chosen)
        return
    sources = (open_source(path, **chosen), open_source((tmp_path / "set.tar").as_uri(), **chosen))
    for source in (*sources, open_source([Part(path=path, **chosen)])):
        names = [source.key(i).removeprefix("set/") for i in range(len(source))]
        assert dict(zip(names, labels_of(source), strict=True)) == expected


def header(kind: bytes, size: bytes, name: bytes = b"././@LongLink") -> bytes:
    """A tar header with these 12 bytes for its size."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:136] = b"0000644\0" + b"0000000\0" * 2 + size
    block[136:148] = b"00000000000\0"
    block[148:156], block[156:157], block[257:265] = b" " * 8, kind, b"ustar\x0000"
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


HUGE = b"\x80\0\0\0\0\0\0\2" + bytes(4)  # 8 GiB in base 256
PLAIN_TAR = SHARDS["labels last"][0]
BROKEN_TARS = {
    "a long name of 8 GB": header(b"L", b"77777777777\0") + bytes(1024),
    "a longer name": header(b"L", HUGE) + bytes(1024),
    "a link's long name": header(b"K", HUGE) + bytes(1024),
    "a pax header of 8 GB": header(b"x", HUGE) + bytes(1024),
    "a global pax header": header(b"g", HUGE) + bytes(1024),
    "a negative size": header(b"0", b"\xff" * 12, b"0.png") + bytes(1024),
    "a negative name": header(b"L", b"\xff" * 12) + bytes(1024),
    "a size that is no number": header(b"0", b"abcdefghijk\0", b"0.png") + bytes(1024),
    "an image of 8 GB": header(b"0", HUGE, b"0.png") + bytes(1024),
    "an image of 2^90": header(b"0", b"\x80" + b"\x04" + bytes(10), b"0.png") + bytes(1024),
    "names upon names": (header(b"L", b"00000000002\0") + b"x" + bytes(511)) * 3000,
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_TARS)
def test_a_broken_tar_file_is_one_message_and_takes_no_memory(tmp_path, own_cache, name):
    whole = tar_of(tmp_path / "whole.tar", PLAIN_TAR).read_bytes().rstrip(b"\0")
    start = whole + bytes(-len(whole) % 512)
    for content in (BROKEN_TARS[name], start + BROKEN_TARS[name]):
        (tmp_path / "set.tar").write_bytes(content)
        tracemalloc.start()
        started = time.perf_counter()
        with pytest.raises(DataError, match=r"^[^\n]*set\.tar \(data\.path\) [^\n]*$"):
            open_source(str(tmp_path / "set.tar"))
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
        tracemalloc.stop()
        assert time.perf_counter() - started < SLOW_S


def test_a_tar_file_cut_off_anywhere_is_refused_or_whole(tmp_path, own_cache):
    whole = tar_of(tmp_path / "whole.tar", PLAIN_TAR).read_bytes()
    least = len(whole.rstrip(b"\0"))
    for end in [*range(0, least, 97), least - 1]:
        (tmp_path / "set.tar").write_bytes(whole[:end])
        if end % 512 == 0 and end:  # between two members nothing tells
            continue
        with pytest.raises(DataError, match=r"set\.tar \(data\.path\) (is no whole tar file|holds no image)"):
            open_source(str(tmp_path / "set.tar"))


# --- columns of tables

COLUMNS = {  # columns beside `image`; data.label; labels, or what is said
    "cls": ({"cls": [3]}, None, ["3"]),
    "class": ({"class": ["x"]}, None, ["x"]),
    "target": ({"target": [3]}, None, ["3"]),
    "coarse": ({"coarse_label": [3]}, None, ["3"]),
    "floats": ({"label": [3.0]}, None, ["3"]),
    "not a number": ({"label": [float("nan")]}, None, [None]),
    "bools": ({"label": [True]}, None, ["true"]),
    "lists": ({"label": [["x"]]}, None, ["x"]),
    "empty list": ({"label": [[]], "id": [[1]]}, None, [None]),
    "dictionary": ({"label": pa.array(["x"]).dictionary_encode()}, None, ["x"]),
    "text with spaces": ({"label": [" x "]}, None, ["x"]),
    "two": ({"label": [3], "coarse_label": [1]}, None, "several columns .*'label', 'coarse_label'"),
    "fine and coarse": ({"fine_label": [3], "coarse_label": [1]}, None, "'fine_label', 'coarse_label'"),
    "chosen of two": ({"label": [3], "coarse_label": [1]}, "coarse_label", ["1"]),
    "any name": ({"label": [3], "kind": ["x"]}, "kind", ["x"]),
    "another case": ({"Kind": ["x"]}, "kind", ["x"]),
    "in a struct": ({"meta": [{"kind": {"id": 4}}]}, "meta.kind.id", ["4"]),
    "a name with dots": ({"meta.kind": [4]}, "meta.kind", ["4"]),
    "absent": ({"id": [4]}, "kind", "no column 'kind'.*the columns are 'id'"),
    "several classes": ({"kind": [[1, 2]]}, "kind", "a list of 2 values"),
    "no whole number": ({"kind": [0.5]}, "kind", "0.5, which is no whole number"),
    "a struct": ({"kind": [{"a": 1}]}, "kind", "an object with the keys 'a'"),
    "nobody chose": ({"target": [0.5]}, None, [None]),
    "boxes": ({"labels": [[1, 2]]}, None, [None]),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["parquet", "hf"])
@pytest.mark.parametrize("name", COLUMNS)
def test_the_column_of_labels_of_a_table_is_the_only_one_or_is_chosen(tmp_path, own_cache, name, kind):
    columns, label, expected = COLUMNS[name]
    table = pa.table({"image": [TINY], **columns})
    if kind == "hf":
        path = f"hf:{tmp_path}/set"
        datasets.Dataset(table).save_to_disk(str(tmp_path / "set"))
    else:
        path = str(tmp_path / "set.parquet")
        pq.write_table(table, path)
        os.utime(path, (1_000_000_000, 1_000_000_000))
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            open_source(path, label=label)
    else:
        source = open_source(path, label=label)
        assert labels_of(source) == expected
        assert labels_of(open_source([Part(path=path, label=label)])) == expected
        if name in ("nobody chose", "boxes"):
            assert remarks(source)[0].startswith("no label was found: the column ")


def test_the_column_of_images_is_chosen_and_the_rest_is_named(tmp_path, own_cache):
    other = encoded(Image.new("RGB", (2, 2)), "PNG")
    path = str(tmp_path / "set.parquet")
    pq.write_table(pa.table({"left": [TINY], "right": [other], "id": [7], "Class": ["x"]}), path)
    os.utime(path, (1_000_000_000, 1_000_000_000))
    with pytest.raises(DataError, match=r"more than one column of images.*data.image"):
        open_source(path)
    right, left = open_source(path, image="right"), open_source(path, image="left", label="id")
    assert (right.stored(0), left.stored(0)) == (other, TINY)  # each choice is a set of its own in the cache
    assert (labels_of(right), labels_of(left)) == (["x"], ["7"])
    assert remarks(right) == [
        "the labels are those of the column 'Class'",
        "columns that were not used: 'left', 'id'",
    ]
    with pytest.raises(DataError, match=r"no images in the column 'id', which data.image"):
        open_source(path, image="id")
    with pytest.raises(DataError, match=r"no column 'middle'.*'left', 'right', 'id', 'Class'"):
        open_source(path, image="middle")


@pytest.mark.parametrize("path", ["digits", "folder", "set.zip", "set.npy", "torchvision:FashionMNIST"])
@pytest.mark.parametrize("choice", ["label", "image"])
def test_a_choice_without_effect_is_refused(tmp_path, path, choice):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x.png").write_bytes(TINY)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("x.png", TINY)
    np.save(tmp_path / "set.npy", np.zeros((1, 4, 4), np.uint8))
    given = path if ":" in path or path == "digits" else str(tmp_path / path)
    with pytest.raises(DataError, match=f"data.{choice} .*is 'kind', which has no effect on"):
        open_source(given, **{choice: "kind"})


def test_a_choice_is_part_of_a_recipe_and_leaves_none_where_it_is_not_made():
    part = {"path": "a", "split": None, "weight": 1.0}
    assert Part(**part).model_dump() == part
    assert Part(**part, label="kind").model_dump() == {**part, "label": "kind"}
    data = {"path": "a", "split": None, "mean": (0.5,) * 3, "std": (0.5,) * 3, "max_bad_share": 0.5}
    assert DataSpec(**data).model_dump() == data
    assert DataSpec(**data, image="left").model_dump() == {**data, "image": "left"}
    with pytest.raises(ValueError, match="label must be null where path is a list"):
        DataSpec(**{**data, "path": (Part(**part),)}, label="kind")


# --- parts, classes and folders that wrap all others

TREES = {  # images; classes; images of split train and of split test (None: it is refused)
    "plain": (["cat/1", "dog/2"], ("cat", "dog"), None, None),
    "train, val": (["train/cat/1", "val/dog/2"], ("cat", "dog"), ["train/cat/1"], ["val/dog/2"]),
    "three parts": (["train/cat/1", "valid/dog/2", "test/cat/3"], ("cat", "dog"), ["train/cat/1"],
                    ["test/cat/3"]),
    "validation": (["train/cat/1", "validation/dog/2"], ("cat", "dog"), ["train/cat/1"],
                   ["validation/dog/2"]),
    "training": (["training/cat/1", "testing/dog/2"], ("cat", "dog"), ["training/cat/1"], ["testing/dog/2"]),
    "capitals": (["Train/cat/1", "Test/dog/2"], ("cat", "dog"), ["Train/cat/1"], ["Test/dog/2"]),
    "shouting": (["TRAIN/cat/1", "DEV/dog/2"], ("cat", "dog"), ["TRAIN/cat/1"], ["DEV/dog/2"]),
    "eval": (["train/cat/1", "eval/dog/2"], ("cat", "dog"), ["train/cat/1"], ["eval/dog/2"]),
    "sets": (["train_set/cat/1", "test_set/dog/2"], ("cat", "dog"), ["train_set/cat/1"], ["test_set/dog/2"]),
    "years": (["train2017/cat/1", "val2017/dog/2"], ("cat", "dog"), ["train2017/cat/1"], ["val2017/dog/2"]),
    "without train": (["test/cat/1", "val/dog/2"], ("cat", "dog"), None, ["test/cat/1"]),
    "flat parts": (["train/1", "test/2"], (), ["train/1"], ["test/2"]),
    "one part": (["train/cat/1", "train/dog/2"], ("cat", "dog"), ["train/cat/1", "train/dog/2"], None),
    "wrapped parts": (["w/train/cat/1", "w/val/dog/2"], ("cat", "dog"), ["w/train/cat/1"], ["w/val/dog/2"]),
    "parts that wrap": (["train/x/cat/1", "train/x/dog/2", "test/x/dog/3"], ("cat", "dog"),
                        ["train/x/cat/1", "train/x/dog/2"], ["test/x/dog/3"]),
    "two names of a part": (["train/cat/1", "val/dog/2", "valid/cat/3"], ("cat", "dog"), ["train/cat/1"],
                            ["val/dog/2", "valid/cat/3"]),
    "numbered": (["train/cat/1", "test1/dog/2"], ("cat", "dog"), ["train/cat/1"], ["test1/dog/2"]),
    "named after": (["seg_train/cat/1", "seg_test/dog/2"], ("cat", "dog"), ["seg_train/cat/1"],
                    ["seg_test/dog/2"]),
    "named before": (["train-jpg/1", "val-jpg/2"], (), ["train-jpg/1"], ["val-jpg/2"]),
    "data sets": (["Train Dataset/cat/1", "Test Dataset/dog/2"], ("cat", "dog"), ["Train Dataset/cat/1"],
                  ["Test Dataset/dog/2"]),
    "trainval": (["trainval/cat/1", "test/dog/2"], ("cat", "dog"), ["trainval/cat/1"], ["test/dog/2"]),
    "two tests": (["training/1", "public_test/2", "private_test/3"], (), ["training/1"],
                  ["private_test/3", "public_test/2"]),
    "classes with such words": (["test_tube/1", "train_station/2", "bus/3"],
                                ("bus", "test_tube", "train_station"), None, None),
    "folds": (["fold1/1", "fold2/2"], ("fold1", "fold2"), None, None),
    "wrap": (["wrap/cat/1", "wrap/dog/2"], ("cat", "dog"), None, None),
    "wrap, wrap": (["wrap/wrap/cat/1", "wrap/wrap/dog/2"], ("cat", "dog"), None, None),
    "deep classes": (["wrap/cat/a/1", "wrap/dog/2"], ("cat", "dog"), None, None),
    "a train among vehicles": (["bus/1", "train/2", "car/3"], ("bus", "car", "train"), None, None),
    "a test among animals": (["cat/1", "dog/2", "test/3"], ("cat", "dog", "test"), None, None),
    "odd names": ([f"c\udcff\x1b[2J/{NO_TEXT}", "d\n/2"], ("c\udcff\x1b[2J", "d\n"), None, None),
}  # fmt: skip
AMBIGUOUS = {
    "extra": ["train/1", "test/2", "unlabeled/3"],
    "classes beside": ["train/cat/1", "val/cat/2", "cat/3", "dog/4"],
    "images beside": ["train/1", "test/2", "3"],
    "wrapped": ["w/Training/1", "w/Testing/2", "w/extra/3"],
    "named after": ["seg_train/a/1", "seg_test/a/2", "seg_pred/3"],
}


def packed(tmp_path, kind, names):
    """The images in a folder, a zip archive or a tar file, with things that are no images beside them."""
    names = [f"{name}.png" for name in names]
    if kind == "folder":
        for name in names:
            (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "set" / name).write_bytes(TINY)
        (tmp_path / "set" / "annotations" / "deep").mkdir(parents=True)
        (tmp_path / "set" / "annotations" / "deep" / "x.xml").write_text("<x/>")
        (tmp_path / "set" / "README.md").write_text("words")
        return str(tmp_path / "set")
    if kind == "tar":
        return str(tar_of(tmp_path / "set.tar", [(name, None) for name in names]))
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("README.md", "words")
        for name in names:
            archive.writestr(name, TINY)
    if kind == "url":
        return (tmp_path / "set.zip").as_uri()
    return str(tmp_path / "set.zip")


def keys_of(path, split=None) -> list[str]:
    source = open_source(path, split=split)
    return sorted(source.key(index).removesuffix(".png") for index in range(len(source)))


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "url"])
@pytest.mark.parametrize("name", TREES)
def test_parts_classes_and_wrapping_folders_are_the_same_everywhere(tmp_path, own_cache, name, kind):
    images, classes, train, test = TREES[name]
    if kind in ("zip", "url") and "odd" in name:
        pytest.skip("zipfile writes no such name")
    path = packed(tmp_path, kind, images)
    assert open_source(path).classes == classes
    assert keys_of(path) == sorted(images)
    for split, expected in (("train", train), ("test", test)):
        if expected is None:
            with pytest.raises(DataError, match=f"split is '{split}', but .*(not divided|only the part)"):
                open_source(path, split=split)
        else:
            assert keys_of(path, split) == sorted(expected)
            assert open_source(path, split=split).classes == classes  # the same numbers in every part


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
@pytest.mark.parametrize("name", AMBIGUOUS)
def test_folders_that_may_be_parts_or_classes_are_refused(tmp_path, own_cache, name, kind):
    path = packed(tmp_path, kind, AMBIGUOUS[name])
    with pytest.raises(DataError, match=r"two ways: .*the parts .* or classes beside .*\(a \.csv of"):
        open_source(path)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_a_class_that_is_called_as_a_part_is_said(tmp_path, own_cache, kind):
    path = packed(tmp_path, kind, ["cat/1", "dog/2", "test/3"])
    assert "test/ is taken for a class, as it stands among other folders" in remarks(open_source(path))


def test_what_a_folder_or_zip_holds_and_is_not_taken_is_counted_and_named(tmp_path, own_cache):
    path = packed(tmp_path, "folder", ["cat/1", "dog/2", "3"])
    for name in ("cat/._1.png", ".cache/x.png", "dog/2.heic", "dog/2.cls", "dog/2.CLS"):
        (tmp_path / "set" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "set" / name).write_bytes(MAC)
    told = remarks(open_source(path))
    for part in (
        "1 hidden images were left out: cat/._1.png",
        "1 hidden folders were left out: .cache/",
        "1 .heic files were not used: dog/2.heic",
        "2 .cls files were not used: dog/2.",
        "1 .md files were not used: README.md",
        "1 of 3 images have no label: 3.png",
    ):
        assert any(part in remark for remark in told), (part, told)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in ("a/1.png", "b/2.png", "a/._1.png", "__MACOSX/a/._1.png", "a/.DS_Store", "a/1.cls"):
            archive.writestr(name, TINY)
    assert remarks(open_source(str(tmp_path / "set.zip"))) == [
        "3 hidden members were left out: a/._1.png, __MACOSX/a/._1.png, a/.DS_Store",
        "1 .cls files were not used: a/1.cls",
    ]


FILES_OF_PARTS = {
    "train-00000-of-00001.parquet": "train",
    "validation-00000-of-00001.parquet": "val",
    "Training.tar": "train",
    "testing_000.tar": "test",
    "my-data-dev-3.tar": "val",
    "trainset.parquet": "train",
    "train2017.tar": "train",
    "TEST/0000.parquet": "test",
    "Valid/0000.parquet": "val",
    "trainer-0.parquet": "",
    "contest.tar": "",
    "latest.tar": "",
    "evaluate.tar": "",
    "part-000.tar": "",
}


@pytest.mark.parametrize("name", FILES_OF_PARTS)
def test_the_part_of_a_file_by_its_name(name):
    assert part_of_file(f"/data/{name}") == FILES_OF_PARTS[name]


def test_parts_by_the_names_of_shards_tables_and_splits(tmp_path, own_cache):
    (tmp_path / "s").mkdir()
    (tmp_path / "p").mkdir()
    for name in ("Training-0", "Validation-0"):
        tar_of(tmp_path / "s" / f"{name}.tar", [(f"{name}.png", None), (f"{name}.cls", b"x")])
        pq.write_table(pa.table({"image": [TINY]}), tmp_path / "p" / f"{name}.parquet")
        os.utime(tmp_path / "p" / f"{name}.parquet", (1_000_000_000, 1_000_000_000))
    assert keys_of(str(tmp_path / "s"), "test") == ["Validation-0/Validation-0"]
    assert keys_of(str(tmp_path / "p"), "train") == ["Training-0/0"]
    parts = {name: datasets.Dataset.from_dict({"image": [TINY]}) for name in ("Train", "dev")}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "hf"))
    assert len(open_source(f"hf:{tmp_path}/hf", split="test")) == 1
    (tmp_path / "list.csv").write_text("file,split\na,TRAINING\nb,Valid\n")
    assert keys_of(str(tmp_path / "list.csv"), "test") == ["b"]
    pq.write_table(pa.table({"image": [TINY]}), tmp_path / "p" / "extra.parquet")
    os.utime(tmp_path / "p" / "extra.parquet", (1_000_000_000, 1_000_000_000))
    (told,) = remarks(open_source(str(tmp_path / "p"), split="train"))
    assert told.startswith("1 files were left out, whose names say no part: ")


def test_a_run_goes_on_whose_folders_were_read_as_other_classes(tmp_path, own_cache, monkeypatch):
    source = open_source(packed(tmp_path, "folder", ["wrap/cat/1", "wrap/dog/2"]))

    def before(writer):  # every image in the class `wrap`
        writer.meta["divided"] = False
        for name, size in zip(source.index.names, source.index.columns["size"].tolist(), strict=True):
            writer.add(name, label="wrap", size=size)

    begun = open_index({"kind": "folder"}, before, describe="it")
    begun.write(tmp_path / "images.index")
    monkeypatch.setattr("belvedere.train.roster.checkpoints", lambda directory: [directory])
    resumed, (told,) = as_begun(source, tmp_path)
    assert resumed.fingerprint() == begun.fingerprint != source.fingerprint()
    assert "other classes than when the run began" in told
    assert resumed.stored(0) == TINY


# --- zip archives

ENTRY, LOCAL = b"PK\x01\x02", b"PK\x03\x04"


def zip_of(count=6, *, wide=False) -> bytearray:
    """A sound archive of images; wide: with 64-bit sizes and end record."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(count):
            with archive.open(f"{'ab'[number % 2]}/{number}.png", "w", force_zip64=wide) as member:
                member.write(TINY)
    data = bytearray(file.getvalue())
    return widened(data) if wide else data


def changed(data: bytearray, mark: bytes, at: int, form: str, *values: int, nth: int = 0) -> bytes:
    """Numbers written behind the n-th of these marks."""
    place = -1
    for _ in range(nth + 1):
        place = data.index(mark, place + 1)
    struct.pack_into(form, data, place + at, *values)
    return bytes(data)


END, END_64, LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
MOST = 2**64 - 1
BROKEN_ZIPS = {
    "a longer extra field": changed(zip_of(), ENTRY, 30, "<H", 10_000),
    "an extra field that swallows one member": changed(zip_of(), ENTRY, 30, "<H", 53),
    "an extra field to the end": changed(zip_of(), ENTRY, 30, "<H", 53 * 5),
    "a longer name": changed(zip_of(), ENTRY, 28, "<H", 40),
    "a longer comment": changed(zip_of(), ENTRY, 32, "<H", 300, nth=2),
    "the last one's extra field": changed(zip_of(), ENTRY, 30, "<H", 9, nth=5),
    "more members than there are": changed(zip_of(), END, 8, "<HH", 24, 24),
    "fewer members than there are": changed(zip_of(), END, 8, "<HH", 2, 2),
    "a shorter directory": changed(zip_of(), END, 12, "<I", 53 * 3),
    "a longer directory": changed(zip_of(), END, 12, "<I", 2**31),
    "more members, 64 bits": changed(zip_of(wide=True), END_64, 24, "<QQ", 24, 24),
    "2^64 members": changed(zip_of(wide=True), END_64, 24, "<QQ", MOST, MOST),
    "a huge directory": changed(zip_of(wide=True), END_64, 40, "<Q", MOST),
    "a directory at 2^64": changed(zip_of(wide=True), END_64, 48, "<Q", MOST),
    "a locator at 2^64": changed(zip_of(wide=True), LOCATOR, 8, "<Q", MOST)[:-98] + bytes(98),
    "wide fields that are cut": changed(zip_of(wide=True), ENTRY, 30, "<H", 20, nth=5),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_ZIPS)
def test_a_zip_archive_with_a_broken_directory_is_one_message(tmp_path, own_cache, name):
    (tmp_path / "set.zip").write_bytes(BROKEN_ZIPS[name])
    tracemalloc.start()
    with pytest.raises(DataError, match=r"^[^\n]*set\.zip \(data\.path\) is [^\n]*$") as caught:
        open_source(str(tmp_path / "set.zip"))
    assert any(part in str(caught.value) for part in ("repair it", "pack it anew", "no zip archive"))
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


LYING_ZIPS = {  # what one member claims of itself: the size that its data has, that is stored, its place
    "a size of 2^64": (MOST, len(TINY), 0),
    "2^64 bytes stored": (len(TINY), MOST, 0),
    "8 GB stored": (8 << 30, 8 << 30, 0),
    "500 MB stored": (500 << 20, 500 << 20, 0),
    "a place at 2^64": (len(TINY), len(TINY), MOST),
    "a place at 2^63": (len(TINY), len(TINY), 2**63),
    "a place behind the file": (len(TINY), len(TINY), 1 << 40),
    "a place in the middle": (len(TINY), len(TINY), 7),
    "nothing stored": (0, 0, 0),
}


@pytest.mark.parametrize("name", LYING_ZIPS)
def test_a_member_that_lies_about_itself_is_one_unreadable_image(tmp_path, own_cache, name):
    data = zip_of(wide=True)
    first = data.index(ENTRY)
    struct.pack_into("<QQQ", data, first + 46 + len("a/0.png") + 4, *LYING_ZIPS[name])
    (tmp_path / "set.zip").write_bytes(data)
    source = open_source(str(tmp_path / "set.zip"))
    assert len(source) == 6
    tracemalloc.start()
    with pytest.raises(UnreadableImage, match=r"a/0\.png"):
        read(source, 0)
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()
    assert source.stored(1) == TINY


def test_a_zip_archive_of_more_members_than_its_record_can_count(tmp_path, own_cache):
    """Some programs count them modulo 2^16 where others would write 64 bits."""
    data = zip_of(1)
    start = data.index(ENTRY)
    entry = data[start : start + 46]
    number = 2**16 + 2
    directory = b"".join(entry + b"a/%05d" % n for n in range(number - 1)) + entry + b"a/0.png"
    ending = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 2, 2, len(directory), start, 0)
    (tmp_path / "set.zip").write_bytes(data[:start] + directory + ending)
    source = open_source(str(tmp_path / "set.zip"))
    assert (len(source), source.stored(0)) == (1, TINY)
    assert f"{number - 1} other files were not used: a/00000, a/00001, a/00002, ..." in remarks(source)


@pytest.mark.parametrize("kept_from", [1, 20_000])
def test_names_and_classes_that_are_no_text_survive_everywhere(tmp_path, own_cache, monkeypatch, kept_from):
    monkeypatch.setattr("belvedere.data.sources.index.KEPT_FROM", kept_from)
    monkeypatch.setattr("belvedere.data.sources.shards._KEPT_FROM", kept_from)
    label, odd = "c\udcff\x1b[31m\n", f"{NO_TEXT}.png"
    folder = tmp_path / "dir\udcfe\x07"
    for name in (label, "plain"):
        (folder / name).mkdir(parents=True)
        (folder / name / odd).write_bytes(TINY)
    tar = tar_of(tmp_path / "s\udcfe.tar", [(f"{label}/{odd}", None), (f"plain/{odd}", None)])
    raw = zip_of(2)
    for number, name in enumerate(("\udcff", "\x1b")):  # as many bytes as the names there have
        raw = raw.replace(f"{'ab'[number]}/{number}.png".encode(), os.fsencode(f"{name}/x.png"))
    for at in range(len(raw) - 4):
        if raw[at : at + 4] == ENTRY:
            raw[at + 9] |= 8  # its name is UTF-8, says the flag
    (tmp_path / "z\udcfe.zip").write_bytes(raw)
    jsonl = tmp_path / "l\udcfe.jsonl"
    jsonl.write_text(json.dumps({"file": f"{folder}/{label}/{odd}", "label": label}) + "\n")
    for path in (folder, tar, tmp_path / "z\udcfe.zip", jsonl):
        source = open_source(str(path))
        sent = pickle.loads(pickle.dumps(source))
        assert [sent.key(i) for i in range(len(sent))] == [source.key(i) for i in range(len(source))]
        assert sent.classes == source.classes
        assert sent.stored(0) == TINY
        assert len(source.fingerprint()) == 32
        assert any("\udcff" in name for name in source.classes)
        Mixed([source, source], [1, 1]).fingerprint()
        assert open_source(str(path)).fingerprint() == source.fingerprint()
    assert open_source(str(folder)).classes == ("c\udcff\x1b[31m\n", "plain")


def test_classes_of_tables_may_hold_anything(tmp_path, own_cache):
    odd = "a\x1b[31m\nb\x00"
    table = pa.table({"image": [TINY], "label": [odd]})
    pq.write_table(table, tmp_path / "set.parquet")
    os.utime(tmp_path / "set.parquet", (1_000_000_000, 1_000_000_000))
    datasets.Dataset(table).save_to_disk(str(tmp_path / "hf"))
    for path in (str(tmp_path / "set.parquet"), f"hf:{tmp_path}/hf"):
        source = open_source(path)
        assert source.classes == (odd,)
        assert pickle.loads(pickle.dumps(source)).fingerprint() == source.fingerprint()


def test_what_stands_behind_the_end_of_a_tar_file_is_said(tmp_path, own_cache):
    whole = tar_of(tmp_path / "whole.tar", PLAIN_TAR).read_bytes()
    path = tmp_path / "set.tar"
    least = len(whole.rstrip(b"\0"))
    least += -least % 512
    for content, said in (
        (whole, None),
        (whole[:least], "no mark at their end and may be cut short"),
        (whole + b"words", "hold something behind their end, which was not read"),
        (whole + bytes(512 * 40), None),
    ):
        path.write_bytes(content)
        told = remarks(open_source(str(path)))
        assert len(told) == (said is not None)
        assert said is None or said in told[0]
    path.write_bytes(whole + whole)  # cat a.tar b.tar
    with pytest.raises(DataError, match=r"set\.tar \(data\.path\) holds another tar file .*tar -xif"):
        open_source(str(path))


def test_names_that_come_again_are_counted(tmp_path, own_cache):
    names = ("a/0.png", "b/1.png", "a/0.png")
    (told,) = remarks(open_source(str(tar_of(tmp_path / "set.tar", [(name, None) for name in names]))))
    assert told == "1 images have the name of one before them, and are taken too: a/0.png"
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            archive.writestr(name, TINY)
    (told,) = remarks(open_source(str(tmp_path / "set.zip")))
    assert told == "1 images have the name of one before them, and are taken too"


def test_thousands_of_endings_and_keys_are_a_few_remarks(tmp_path, own_cache):
    members = [(f"0.{number}", b"x") for number in range(3000)]
    members += [(f"{n}.json", json.dumps({f"label_{n}": n, f"key_{n}": n}).encode()) for n in range(300)]
    path = tar_of(tmp_path / "set.tar", [("a/0.png", None), ("b/1.png", None), *members])
    told = remarks(open_source(str(path)))
    assert len(told) < 20
    assert max(map(len, told)) < 1500
    for number in range(100):
        (tmp_path / "folder" / "cat").mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / "cat" / f"IM.{number:04}").touch()
    (tmp_path / "folder" / "cat" / "x.png").write_bytes(TINY)
    told = remarks(open_source(str(tmp_path / "folder")))
    assert len(told) < 20
    assert sum(int(remark.split()[0]) for remark in told) == 100


@pytest.mark.parametrize("label", ["9" * 30, "9" * 5000, "-" + "9" * 5000, "1000001"])
def test_numbers_that_no_class_can_have(tmp_path, own_cache, label):
    path = tar_of(tmp_path / "set.tar", [("0.png", None), ("0.cls", label.encode())])
    with pytest.raises(DataError, match=r"set\.tar \(data\.path\) holds .{,200}be class numbers from 0 on"):
        open_source(str(path))


def test_shards_of_which_only_some_say_their_part(tmp_path, own_cache):
    (tmp_path / "s").mkdir()
    for name in ("train-0", "val-0", "extra"):
        tar_of(tmp_path / "s" / f"{name}.tar", [(f"{name}.png", None)])
    assert len(open_source(str(tmp_path / "s"))) == 3
    with pytest.raises(DataError, match=r"1 say no part by their names.*extra\.tar") as caught:
        open_source(str(tmp_path / "s"), split="train")
    assert not isinstance(caught.value, UndividedError)  # so a recipe's own split is not dropped


def test_parts_of_arrays_by_the_same_names(tmp_path):
    images = np.zeros((2, 4, 4), np.uint8)
    np.savez(tmp_path / "set.npz", x_training=images, X_dev=images[:1])
    assert len(open_source(str(tmp_path / "set.npz"), split="train")) == 2
    assert len(open_source(str(tmp_path / "set.npz"), split="test")) == 1


def test_a_remote_folder_says_what_it_holds_beside_images(tmp_path, own_cache):
    path = packed(tmp_path, "folder", ["train/cat/1", "valid/dog/2"])
    source = open_source(f"file://{path}", split="test")
    assert (source.key(0), source.classes) == ("valid/dog/2.png", ("cat", "dog"))
    assert sorted(remarks(source)) == [
        "1 .md files were not used: README.md",
        "1 .xml files were not used: annotations/deep/x.xml",
    ]


# --- the choice reaches everything that opens images


def test_a_recipe_a_command_and_the_error_know_the_choice(tmp_path, own_cache, capsys):
    path = tmp_path / "set.tar"
    tar_of(path, [(f"{n}.{end}", data) for n in range(2) for end, data in (("png", None), ("kind", b"k"))])
    source = open_source(str(path))
    with pytest.raises(EvaluationError, match=r"no label was found; .*2 \.kind, and data\.label .*--label"):
        extract_labelled(None, None, source, batch_size=1, device=None, precision="float32")
    recipe = load_recipe("tiny/msn", [f"data.path={path}", "data.split=null", "data.label=kind"])
    assert open_images(recipe)[1].classes == ("k",)
    mixture = load_recipe("tiny/msn", [f"data.path=[{{path: {path}, label: kind}}]", "data.split=null"])
    assert open_images(mixture)[1].classes == ("k",)
    assert main(["data", "check", str(path), "--label", "kind", "--json", str(tmp_path / "out.json")]) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["remarks"] == ["the labels are those of the .kind files"]
    assert "the labels are those of the .kind files" in capsys.readouterr().out
    for command in ("data", "evaluate", "embed", "export"):
        assert main([command, "--help"]) == 0
        assert "--label NAME" in capsys.readouterr().out

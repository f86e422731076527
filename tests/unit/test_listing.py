"""Lists of files: text, CSV, TSV and JSON lines, their labels, splits and mistakes."""

import json
import os
import pickle
from pathlib import Path

import fsspec
import pytest
from fsspec.registry import known_implementations

from belvedere.core.errors import DataError, MissingPackageError
from belvedere.data.decode import UnreadableImage
from belvedere.data.sources.listing import ListSource, open_list


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("BELVEDERE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def listed(path: Path, content: str | bytes, *, split: str | None = None) -> ListSource:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return open_list(path, split)


def keys(source: ListSource) -> list[str]:
    return [source.key(index) for index in range(len(source))]


def refusal(path: Path, content: str | bytes, *, split: str | None = None) -> str:
    with pytest.raises(DataError) as caught:
        listed(path, content, split=split)
    text = str(caught.value)
    assert "data.path" in text
    assert str(path) in text
    return text


# --- what is read


def test_a_text_file_names_one_image_a_line_in_its_order(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2 x.png").write_bytes(b"two")
    (tmp_path / "elsewhere.png").write_bytes(b"else")
    away = str(tmp_path / "elsewhere.png")
    source = listed(tmp_path / "set.txt", f"\ufeffb/2 x.png\r\n\n  ./z.png \n{away}\nno extension")
    assert keys(source) == ["b/2 x.png", "z.png", away, "no extension"]
    assert source.labels.tolist() == [-1] * 4
    assert source.classes == ()
    assert source.name == "set.txt"
    assert source.stored(0) == b"two"
    assert source.stored(2) == b"else"
    with pytest.raises(UnreadableImage, match=r"z\.png: cannot be read: No such file"):
        source.stored(1)


TABLES = {
    "comma.csv": 'File,Label\n"b, c.png",dog\n\n./a.png, cat \nd.png,\n',
    "order.csv": 'id,label,path\n1,dog,"b, c.png"\n2,cat,a.png\n3,,d.png\n',
    "tab.tsv": "path\tlabel\nb, c.png\tdog\na.png\tcat\nd.png\t\n",
    "lines.jsonl": '{"file": "b, c.png", "label": "dog", "width": 3}\n\n'
    '{"path": "a.png", "label": "cat"}\n{"file": "d.png", "label": null}\n',
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_name_labels(tmp_path, name):
    source = listed(tmp_path / name, TABLES[name])
    assert keys(source) == ["b, c.png", "a.png", "d.png"]
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [1, 0, -1]
    again = pickle.loads(pickle.dumps(source))
    assert keys(again) == keys(source)
    assert again.fingerprint() == source.fingerprint()


def test_labels_may_be_left_out_and_may_be_numbers(tmp_path):
    assert listed(tmp_path / "a.csv", "file\na.png\n").labels.tolist() == [-1]
    lines = "".join(json.dumps({"file": f"{label}.png", "label": label}) + "\n" for label in (0, 7, 0))
    source = listed(tmp_path / "a.jsonl", lines.replace("0.png", "x.png", 1))
    assert source.classes == ("0", "7")
    assert source.labels.tolist() == [0, 1, 0]


VALUES = ("1.0", "-1", "null", "NaN", '"10"')


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("set.csv", "file,label\na.png,1.0\nb.png,-1.0\nc.png,\nd.png,nan\ne.png,10\n"),
        (
            "set.jsonl",
            "\n".join(f'{{"file": "{n}.png", "label": {v}}}' for n, v in zip("abcde", VALUES, strict=True)),
        ),
    ],
)
def test_numbers_written_as_floats_and_no_label(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    source = open_list(tmp_path / name, None)
    said = [None if label < 0 else source.classes[label] for label in source.labels]
    assert said == ["1", None, None, None, "10"]


def test_names_that_are_no_text(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"image")
    for name, content in (("a.txt", b"caf\xe9.png\n"), ("a.csv", b"file\ncaf\xe9.png\n")):
        assert listed(tmp_path / name, content).stored(0) == b"image"


def test_a_relative_list_and_a_change_of_directory(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"image")
    (tmp_path / "set.txt").write_text("a.png\n")
    monkeypatch.chdir(tmp_path)
    source = open_list(Path("set.txt"), None)
    monkeypatch.chdir("/")
    assert source.stored(0) == b"image"


def test_urls_are_read_through_fsspec(tmp_path):
    with fsspec.open("memory://listed/a//b.png", "wb") as file:
        file.write(b"remote")
    source = listed(
        tmp_path / "set.txt", f"memory://listed/a//b.png\nmemory://listed/gone.png\nfile://{tmp_path}/x"
    )
    (tmp_path / "x").write_bytes(b"local")
    assert source.key(0) == "memory://listed/a//b.png"
    assert source.stored(0) == b"remote"
    assert source.stored(2) == b"local"
    with pytest.raises(UnreadableImage, match=r"^memory://listed/gone\.png: cannot be read: "):
        source.stored(1)


def test_schemes_that_cannot_be_read_are_refused_at_once(tmp_path, monkeypatch):
    assert "nowhere://, which fsspec does not know" in refusal(tmp_path / "a.txt", "nowhere://a/b.png\n")
    known = {"class": "no_such_package.System", "err": "Install no_such_package to reach it"}
    monkeypatch.setitem(known_implementations, "far", known)
    with pytest.raises(MissingPackageError, match="far://, which needs a package: Install no_such_package"):
        listed(tmp_path / "b.txt", "far://bucket/b.png\n")


def test_the_fingerprint_is_of_names_order_and_labels(tmp_path):
    contents = [
        "file,label\na,x\nb,y\n",
        "file,label\nb,y\na,x\n",
        "file,label\na,y\nb,x\n",
        "file,label\na,x\n",
    ]
    assert len({listed(tmp_path / "a.csv", content).fingerprint() for content in contents}) == 4


# --- splits

SPLIT = "file,label,split\na.png,cat,train\nb.png,dog,val\nc.png,bee,test\nd.png,dog,train\n"


def test_a_list_may_say_splits(tmp_path):
    lines = [
        dict(zip(("file", "label", "split"), row.split(","), strict=True)) for row in SPLIT.splitlines()[1:]
    ]
    for name, content in (("a.csv", SPLIT), ("a.jsonl", "\n".join(map(json.dumps, lines)))):
        train, test, both = (
            listed(tmp_path / name, content, split=split) for split in ("train", "test", None)
        )
        assert (keys(train), keys(test), len(both)) == (["a.png", "d.png"], ["c.png"], 4)
        assert train.classes == test.classes == both.classes == ("bee", "cat", "dog")
        assert train.labels.tolist() == [1, 2]
    without = SPLIT.replace("c.png,bee,test\n", "")
    assert keys(listed(tmp_path / "b.csv", without, split="test")) == ["b.png"]


def test_a_split_that_the_list_does_not_have_is_refused(tmp_path):
    for name, content in (("a.txt", "a.png\n"), ("a.csv", "file\na.png\n"), ("a.jsonl", '{"file": "a.png"}')):
        text = refusal(tmp_path / name, content, split="train")
        assert "data.split is 'train'" in text
        assert "set data.split=null" in text
    assert "no image of the split 'test' (data.split)" in refusal(
        tmp_path / "b.csv", "file,split\na.png,train\n", split="test"
    )
    text = refusal(tmp_path / "c.csv", "file,split\na.png,train\nb.png,\n", split="train")
    assert "line 3: 'b.png' has no split, but data.split is 'train'" in text


# --- mistakes


def test_all_mistakes_of_a_table_are_named_together(tmp_path):
    text = refusal(
        tmp_path / "a.csv", "file,label\na.png,cat\nb.png\n ,dog\na.png,dog\nc,d.png,cat\nx\0.png,cat\n"
    )
    for part in (
        "line 3: 1 columns, not 2",
        "line 4: no file",
        "line 5: 'a.png' again, after line 2",
        "line 6: 3 columns, not 2",
        "line 7: 'x\\x00.png' holds a zero byte",
    ):
        assert part in text
    assert "more" not in text


def test_all_mistakes_of_json_lines_are_named_together(tmp_path):
    entries = [
        '{"file": "a.png"}',
        "{",
        "[1]",
        '{"file": 3}',
        '{"file": "b.png", "label": 0.5}',
        '{"name": "x"}',
    ]
    entries += [
        '{"file": "c.png", "label": ["cat", "dog"]}',
        '{"file": "\\ud800.png"}',
        '{"path": ".//a.png"}',
        "[" * 10_000,
    ]
    text = refusal(tmp_path / "a.jsonl", "\n".join(entries))
    for part in (
        "line 2: no JSON",
        "line 3: no object with a file (or path)",
        "line 4: the file is 3, no text",
        "line 5: the label is 0.5, which is no whole number",
        "line 6: no object with a file",
        "line 7: the label is a list of 2 values",
        "line 8: '\\ud800.png' or its label holds half a character",
        "line 9: 'a.png' again, after line 1",
        "line 10: no JSON",
    ):
        assert part in text


def test_many_mistakes_are_counted(tmp_path):
    text = refusal(tmp_path / "a.csv", "file,label\n" + "a\n" * 25)
    assert text.count("1 columns") == 10
    assert "and 15 more" in text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "lists no image"),
        ("a.txt", "\n \n", "lists no image"),
        ("a.csv", "", "columns none"),
        ("a.csv", "file,label\n", "lists no image"),
        ("a.csv", "a.png,cat\n", "the columns 'a.png', 'cat'; its first line must name the columns"),
        ("a.csv", "file,label;x;path\na,b;c;d\n", "can be read as separated by ',', ';'"),
        ("a.csv", "file,path\na,b\n", "each once: file (or path)"),
        ("a.csv", "file,label,label\na,b,c\n", "each once"),
        ("a.csv", 'file\na.png\n"b.png\n', "line 3: unexpected end of data"),
        ("a.jsonl", "", "lists no image"),
        ("a.txt", "a.png\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
    ],
)
def test_a_list_that_says_nothing_is_refused(tmp_path, name, content, message):
    assert message in refusal(tmp_path / name, content)


def test_a_list_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"none\.txt \(data\.path\) cannot be read: No such file"):
        open_list(tmp_path / "none.txt", None)
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        open_list(tmp_path, None)


def test_a_large_list_is_kept_until_it_changes(tmp_path, own_cache):
    path = tmp_path / "set.csv"
    path.write_text("file,label\n" + "".join(f"{number}.png,{number % 7}\n" for number in range(21_000)))
    os.utime(path, (1_000_000_000, 1_000_000_000))
    source = open_list(path, None)
    assert source.index.path is not None
    assert len(pickle.dumps(source)) < 10_000
    assert open_list(path, None).index.path == source.index.path
    with path.open("a") as file:
        file.write("last.png,8\n")
    longer = open_list(path, None)
    assert longer.key(21_000) == "last.png"
    assert source.key(20_999) == "20999.png"


def test_repeated_names_are_found_among_many(tmp_path):
    content = "".join(f"{number}.png\n" for number in range(5000)) + "17.png\n4999.png\n17.png\n"
    text = refusal(tmp_path / "a.txt", content)
    for part in ("5001: '17.png' again, after line 18", "5002: '4999.png' again", "5003: '17.png' again"):
        assert part in text

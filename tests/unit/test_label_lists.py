"""Tables of labels and lists of images as people write them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from belvedere.core.errors import DataError
from belvedere.data.sources import Source, from_list, open_source, read, with_labels
from belvedere.data.sources.lookup import look_up
from belvedere.data.sources.names import encode_path
from belvedere.data.sources.places import places

NAMES = ("a.png", "b c.png", "d,e.png", "f;g.png", "new\nline.png", "sub/x.png", "other/x.png", "é.png")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    root = tmp_path_factory.mktemp("data") / "photos"
    for number, name in enumerate((*NAMES, os.fsdecode(b"zz\xff.png"))):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(root / name)
    return open_source(str(root))


def labels(source: Source) -> dict[str, str]:
    named = zip(range(len(source)), source.labels, strict=True)
    return {source.key(index): source.classes[label] for index, label in named if label >= 0}


# what is written, and the labels that it gives
GOOD = {
    "plain": (b"a.png,cat\nsub/x.png,dog\n", {"a.png": "cat", "sub/x.png": "dog"}),
    "byte-order mark": (b"\xef\xbb\xbfa.png,cat\nsub/x.png,dog", {"a.png": "cat", "sub/x.png": "dog"}),
    "mark before a header": (b"\xef\xbb\xbfFile,Label\r\na.png,cat\r\n", {"a.png": "cat"}),
    "semicolons": (b"a.png;cat\n", {"a.png": "cat"}),
    "semicolons, header": (b"label;file\ncat;a.png\n", {"a.png": "cat"}),
    "semicolons, a comma in the name": (b"d,e.png;cat\n", {"d,e.png": "cat"}),
    "commas, a semicolon in the name": (b"f;g.png,cat\n", {"f;g.png": "cat"}),
    "tabs": (b"path\tlabel\na.png\tcat\n", {"a.png": "cat"}),
    "tabs without a header": (b"a.png\tcat\nd,e.png\tdog\n", {"a.png": "cat", "d,e.png": "dog"}),
    "quotes": (b'"d,e.png","a ""cat"""\n', {"d,e.png": 'a "cat"'}),
    "a line end in a name": (b'"new\nline.png",cat\na.png,dog\n', {"new\nline.png": "cat", "a.png": "dog"}),
    "a line end in a label": (b'a.png,"one\ntwo"\n', {"a.png": "one\ntwo"}),
    "spaces at the ends": (b"  b c.png , cat  \n\n \n", {"b c.png": "cat"}),
    "Windows": (b"a.png,cat\r\nsub\\x.png,dog\r\n", {"a.png": "cat", "sub/x.png": "dog"}),
    "an old Mac": (b"a.png,cat\rsub/x.png,dog\r", {"a.png": "cat", "sub/x.png": "dog"}),
    "dots and slashes": (b"./a.png,cat\n./sub//x.png,dog\n", {"a.png": "cat", "sub/x.png": "dog"}),
    "the folder's name before": (b"sub/./x.png,cat\n", {"sub/x.png": "cat"}),
    "bytes that are not UTF-8": (b"zz\xff.png,cat\n", {os.fsdecode(b"zz\xff.png"): "cat"}),
    "accents apart": ("e\u0301.png,cat\n".encode(), {"é.png": "cat"}),
    "a spreadsheet's filling": (b"file,label,,\na.png,cat,,\n", {"a.png": "cat"}),
    "twice the same": (b"a.png,cat\n./a.png,cat\n", {"a.png": "cat"}),
    "confirmed by a person": (b"file,label,predicted\na.png,cat,no\nb c.png,dog,yes\n", {"a.png": "cat"}),
    "no label in a table of numbers": (
        b"file,label\na.png,1.0\nb c.png,-1.0\nsub/x.png,nan\n",
        {"a.png": "1"},
    ),
    "no label in a table of names": (b"a.png,cat\nb c.png,-1\n", {"a.png": "cat"}),
    "spaces around quotes": (
        b'"a.png" , "cat" \n "b c.png", "one, two"\n',
        {"a.png": "cat", "b c.png": "one, two"},
    ),
    "nothing marked": (b"file,label,predicted\na.png,cat,\n", {"a.png": "cat"}),
}


@pytest.mark.parametrize("case", GOOD)
def test_labels_as_people_write_them(source: Source, tmp_path: Path, case: str) -> None:
    content, expected = GOOD[case]
    (tmp_path / "names.csv").write_bytes(content)
    assert labels(with_labels(source, tmp_path / "names.csv")) == expected


BAD = {
    "another label": (
        b"a.png,cat\n./a.png,dog\n",
        r"line 2: './a.png' is labelled 'dog', but 'cat' in line 1",
    ),
    "several images": (b"x.png,cat\n", r"'x.png' can be 2 images: other/x.png, sub/x.png; write more"),
    "no image": (b"a.png,cat\nz.png,cat\n", r"line 2: no image 'z.png'"),
    "no image after a quoted line end": (b'"new\nline.png",cat\nz.png,cat\n', r"line 3: no image 'z.png'"),
    "a header of other words": (
        b"filename,class\na.png,cat\n",
        r"line 1: no image 'filename' \(a header must",
    ),
    "columns without a header": (
        b"a.png,cat,0.9\n",
        r"line 1: 3 columns, not file,label \(more columns need",
    ),
    "a short line": (b"file,label,note\na.png\n", r"line 2: 'a.png' has an empty label"),
    "a long line": (b"file,label\na.png,cat,dog\n", r"line 2: 3 columns, not 2"),
    "an open quote": (b'a.png,"cat\nb c.png,dog\n', r"names.csv is no table: line 1"),
    "a column twice": (b"file,label,label\na.png,cat,dog\n", r"two columns 'label'"),
    "a label in another encoding": (b"a.png,caf\xe9\n", r"line 1: the label .* is not UTF-8; save the file"),
    "UTF-16": ("a.png,cat\n".encode("utf-16"), r"UTF-16 or UTF-32; save it as UTF-8"),
    "no text": (b"\x89PNG\0\0\0", r"is no text: it holds zero bytes"),
    "only predictions": (
        b"file,label,predicted\na.png,cat,yes\n",
        r"names.csv holds only labels that were pred",
    ),
    "older predictions": (
        b"file,label,probability\na.png,cat,0.9\n",
        r"holds only labels that were predicted",
    ),
    "a mark of another kind": (b"file,label,predicted\na.png,cat,perhaps\n", r"line 2: .* must be yes or no"),
    "predicted and not": (
        b"file,label,predicted\na.png,cat,yes\na.png,dog,no\n",
        r"line 3: 'a.png' is labelled 'dog', but 'cat' in line 2, one of them predicted",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_labels_that_mean_nothing_or_two_things_are_refused(
    source: Source, tmp_path: Path, case: str
) -> None:
    content, message = BAD[case]
    (tmp_path / "names.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        with_labels(source, tmp_path / "names.csv")


def test_what_a_table_holds_and_nobody_uses_is_said(
    source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "names.csv"
    table.write_text(
        "file,label,note,predicted\na.png,cat,x,no\na.png,cat,y,no\nsub/x.png,dog,,yes\n", encoding="utf-8"
    )
    with_labels(source, table)
    said = capsys.readouterr().err
    assert "columns that are not read: note" in said
    assert "lines that repeat an earlier one: 1 ('a.png' (line 3))" in said
    assert "predicted labels are never scored; not used: 1 (sub/x.png)" in said
    assert "labels 1 of 9 images; the others have no label: b c.png" in said
    assert labels(with_labels(source, table, use_predicted=True)) == {"a.png": "cat", "sub/x.png": "dog"}
    assert "predicted labels that are trained on, though no person gave them: 1" in capsys.readouterr().err


LISTS = {
    "plain": (b"sub/x.png\na.png\n", ["sub/x.png", "a.png"]),
    "byte-order mark, Windows": (b"\xef\xbb\xbfa.png\r\n\r\nsub\\x.png\r\n", ["a.png", "sub/x.png"]),
    "commas and semicolons are the name's": (b"d,e.png\nf;g.png\n", ["d,e.png", "f;g.png"]),
    "quotes": (b'"new\nline.png"\n"d,e.png"\n', ["new\nline.png", "d,e.png"]),
    "spaces": (b"  b c.png  \n", ["b c.png"]),
    "bytes that are not UTF-8": (b"zz\xff.png\n", [os.fsdecode(b"zz\xff.png")]),
}


@pytest.mark.parametrize("case", LISTS)
def test_lists_as_people_write_them(source: Source, tmp_path: Path, case: str) -> None:
    content, expected = LISTS[case]
    (tmp_path / "list.txt").write_bytes(content)
    found = from_list(source, tmp_path / "list.txt")
    assert [found.key(index) for index in range(len(found))] == expected


@pytest.mark.parametrize("link", [False, True])
def test_absolute_names_and_names_from_the_lists_own_folder(
    source: Source, tmp_path: Path, link: bool
) -> None:
    root = source.root  # type: ignore[attr-defined]
    if link:
        (tmp_path / "photos").symlink_to(root)
    else:
        (tmp_path / "photos").mkdir()
    listed = (root.parent if not link else tmp_path) / "list.txt"
    listed.write_text(f"{(tmp_path if link else root.parent)}/photos/a.png\nphotos/sub/x.png\n")
    found = from_list(source, listed)
    assert [found.key(index) for index in range(2)] == ["a.png", "sub/x.png"]
    listed.write_text("/elsewhere/a.png\n")
    with pytest.raises(DataError, match=r"no image '/elsewhere/a\.png'"):
        from_list(source, listed)


def test_a_list_of_several_columns_needs_a_header(source: Source, tmp_path: Path) -> None:
    listed = tmp_path / "list.csv"
    listed.write_text("label;file\ncat;a.png\ndog;sub/x.png\n")
    assert [from_list(source, listed).key(index) for index in range(2)] == ["a.png", "sub/x.png"]
    listed.write_text("a.png\nsub/x.png\n")
    assert len(from_list(source, listed)) == 2
    listed.write_text("a.png,cat\n")
    with pytest.raises(DataError, match="its first line must name them"):
        from_list(source, listed)


def test_ambiguous_and_repeated_names_of_a_list_are_refused(source: Source, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("x.png\na.png\n./a.png\n")
    with pytest.raises(DataError) as caught:
        from_list(source, listed)
    assert "line 1: 'x.png' can be 2 images: other/x.png, sub/x.png; write more of its path" in str(
        caught.value
    )
    assert "line 3: './a.png' for the second time, after line 2" in str(caught.value)


def test_a_list_that_cannot_be_read_is_named(source: Source, tmp_path: Path) -> None:
    for name in ("nothing.txt", "."):
        with pytest.raises(DataError, match=r"cannot be read: (No such file|Is a directory)"):
            from_list(source, tmp_path / name)


def test_names_that_the_locale_lacks_are_found_on_the_disk(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ascii_only(name: str) -> bytes:
        return name.encode("ascii", "surrogateescape")

    at = [source.key(index) for index in range(len(source))].index("é.png")
    monkeypatch.setattr(os, "fsencode", ascii_only)
    assert encode_path("/photos/é\udcff.png") == "/photos/é".encode() + b"\xff.png"
    assert read(source, at).shape == (4, 4, 3)
    assert places(source, np.array([at]))[0] is not None


@pytest.mark.parametrize("name", ["a\0b.png", "\0", "x/../a.png"])
def test_names_that_no_file_can_have(source: Source, tmp_path: Path, name: str) -> None:
    found = look_up(source, [name], folder=tmp_path)
    assert found == [[]]

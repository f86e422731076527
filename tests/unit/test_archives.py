"""Images in zip archives and tar shards: what is found, how it is labelled, and what damage does."""

import io
import json
import pickle
import struct
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from containers import again, image, keys, old, same_with_a_worker, widened

from belvedere.core.errors import DataError
from belvedere.data.decode import UnreadableImage
from belvedere.data.sources import access
from belvedere.data.sources.access import Stretches
from belvedere.data.sources.archives import open_zip
from belvedere.data.sources.shards import expanded, is_tar_folder, open_tar
from belvedere.data.sources.source import read


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BELVEDERE_CACHE", str(tmp_path / "cache"))


def zipped(path: Path, names, *, method=zipfile.ZIP_STORED, **contents) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for number, name in enumerate(names):
            archive.writestr(name, image(number))
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


NAMES = ("b/1.png", "a/2.PNG", "a/deep/3.jpg", "4.png")


# --- zip


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_members_are_read_in_place_and_labelled_by_folder(tmp_path, method):
    path = zipped(
        tmp_path / "set.zip", (*NAMES, ".hidden/5.png", "__MACOSX/a/._2.png", "a/._2.PNG"), method=method
    )
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/notes.txt", "no image")
    for source in (open_zip(str(path), None), again(open_zip(str(path), None))):
        assert keys(source) == list(NAMES)
        assert source.classes == ("a", "b")
        assert source.labels.tolist() == [1, 0, 0, -1]
        assert [source.stored(index) for index in (3, 0, 2)] == [image(3), image(0), image(2)]
        assert read(source, 1).shape == (10, 12, 3)
        assert source.name == "set"


@pytest.mark.parametrize("wrap", ["", "set/", "some/set/"])
def test_a_division_is_found_below_folders_that_wrap_everything(tmp_path, wrap):
    names = [wrap + name for name in ("val/a/1.png", "train/a/2.png", "train/b/3.png", "train/a/4.png")]
    path = str(zipped(tmp_path / "set.zip", names))
    train, test, both = open_zip(path, "train"), open_zip(path, "test"), open_zip(path, None)
    assert keys(train) == names[1:]
    assert train.labels.tolist() == [0, 1, 0]
    assert keys(test) == names[:1]
    assert train.classes == test.classes == both.classes == ("a", "b")
    assert sorted(keys(both)) == sorted(names)
    assert test.stored(0) == image(0)
    assert len({each.fingerprint() for each in (train, test, both)}) == 3
    with pytest.raises(IndexError):
        test.stored(1)


def test_a_single_wrapping_folder_is_no_class(tmp_path):
    source = open_zip(str(zipped(tmp_path / "set.zip", ["photos/1.png", "photos/2.png"])), None)
    assert source.labels.tolist() == [-1, -1]
    assert source.classes == ()


def test_a_split_of_an_undivided_archive_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"data\.split is 'train'.*not divided"):
        open_zip(str(zipped(tmp_path / "set.zip", NAMES)), "train")


def test_names_of_every_kind(tmp_path):
    path = zipped(tmp_path / "set.zip", ["ä/ö.png", "é/\U0001f600.png", "b\\c.png"])
    assert keys(open_zip(str(path), None)) == ["ä/ö.png", "é/\U0001f600.png", "b/c.png"]


def test_names_in_utf_8_that_the_archive_does_not_say(tmp_path):
    data = bytearray(zipped(tmp_path / "set.zip", ["ä/ö.png", "b/2.png"]).read_bytes())
    for mark, at in ((b"PK\x03\x04", 7), (b"PK\x01\x02", 9)):  # as macOS writes them
        place = data.find(mark)
        data[place + at] &= ~8
    (tmp_path / "set.zip").write_bytes(data)
    assert open_zip(str(tmp_path / "set.zip"), None).classes == ("b", "ä")
    data = data.replace("ä/ö".encode(), b"\x84/\x94__")  # the same in code page 437
    (tmp_path / "set.zip").write_bytes(data)
    assert keys(open_zip(str(tmp_path / "set.zip"), None))[0] == "ä/ö__.png"


def test_links_in_a_zip_archive_are_left_out_and_said(tmp_path):
    path = zipped(tmp_path / "set.zip", ["a/1.png", "b/2.png"])
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("a/3.png")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "1.png")
    source = open_zip(str(path), None)
    assert keys(source) == ["a/1.png", "b/2.png"]
    assert "1 images that are links to other members were left out: a/3.png" in source.skipped


def test_an_archive_behind_another_one_is_refused(tmp_path):
    first = zipped(tmp_path / "set.zip", NAMES).read_bytes()
    (tmp_path / "set.zip").write_bytes(first + zipped(tmp_path / "b.zip", NAMES[:2]).read_bytes())
    with pytest.raises(DataError, match=f"holds another zip archive before its own, of {len(first)} bytes"):
        open_zip(str(tmp_path / "set.zip"), None)


@pytest.mark.parametrize("offset", [0, 1, 100])
def test_an_end_record_that_is_wrong_about_the_place_of_its_directory(tmp_path, offset):
    path = zipped(tmp_path / "set.zip", NAMES)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.rfind(b"PK\x05\x06") + 16, offset)
    path.write_bytes(data)
    source = open_zip(str(path), None)
    assert [source.stored(index) for index in range(4)] == [image(number) for number in range(4)]


def test_bytes_before_the_archive_and_a_comment_behind_it(tmp_path):
    path = zipped(tmp_path / "set.zip", NAMES)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"PK and a comment" * 100
    path.write_bytes(b"#!/bin/sh\n" * 100 + path.read_bytes())
    source = open_zip(str(path), None)
    assert [source.stored(index) for index in range(4)] == [image(number) for number in range(4)]


def test_64_bit_archives(tmp_path):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(NAMES):
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(image(number))
    extra = struct.pack("<HHHH", 0x7075, 4, 1, 2)
    path.write_bytes(widened(bytearray(path.read_bytes()), before=extra))
    assert zipfile.ZipFile(path).testzip() is None  # what is tested against is an archive
    source = open_zip(str(path), None)
    assert keys(source) == list(NAMES)
    assert [source.stored(index) for index in range(4)] == [image(number) for number in range(4)]


def test_a_changed_byte_is_found_by_its_checksum(tmp_path):
    path = zipped(tmp_path / "set.zip", NAMES)
    data = bytearray(path.read_bytes())
    data[data.find(image(1)) + 40] ^= 1
    path.write_bytes(data)
    source = open_zip(str(path), None)
    with pytest.raises(UnreadableImage, match=r"a/2\.PNG: differs from its checksum"):
        source.stored(1)
    assert source.stored(2) == image(2)


def test_a_deflated_member_that_is_damaged_or_says_another_size(tmp_path):
    path = zipped(tmp_path / "set.zip", NAMES, method=zipfile.ZIP_DEFLATED)
    source = open_zip(str(path), None)
    data = bytearray(path.read_bytes())
    at = data.find(b"b/1.png") + len("b/1.png")
    data[at : at + 20] = b"\xff" * 20
    path.write_bytes(data)
    with pytest.raises(UnreadableImage, match=r"cannot be decompressed|bytes, not the"):
        source.stored(0)


def test_an_archive_that_is_cut_short_or_gone_during_training(tmp_path):
    path = zipped(tmp_path / "set.zip", NAMES)
    source = open_zip(str(path), None)
    with path.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(UnreadableImage, match="cut short"):
        source.stored(0)
    with pytest.raises(UnreadableImage, match="damaged or has changed"):
        source.stored(3)
    path.unlink()
    with pytest.raises(UnreadableImage, match="No such file"):
        again(source).stored(0)


def encrypted(path: Path, only: str | None = None) -> Path:
    """Set the flag of encryption, as a reader sees it, of one member or of all."""
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\x01\x02")
    while at >= 0:
        named = struct.unpack_from("<H", data, at + 28)[0]
        if only is None or data[at + 46 : at + 46 + named] == only.encode():
            data[at + 8] |= 1
        at = data.find(b"PK\x01\x02", at + 4)
    path.write_bytes(data)
    return path


def test_encrypted_members(tmp_path):
    source = open_zip(str(encrypted(zipped(tmp_path / "one.zip", NAMES), "a/2.PNG")), None)
    with pytest.raises(UnreadableImage, match=r"a/2\.PNG: is encrypted"):
        source.stored(1)
    assert source.stored(0) == image(0)
    with pytest.raises(DataError, match="is encrypted; unpack it"):
        open_zip(str(encrypted(zipped(tmp_path / "all.zip", NAMES))), None)


@pytest.mark.parametrize("content", [b"", b"no archive at all" * 10, image(0)])
def test_what_is_no_archive(tmp_path, content):
    path = tmp_path / "set.zip"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"set\.zip \(data\.path\) is no zip archive"):
        open_zip(str(path), None)


def test_an_archive_without_images_or_that_is_not_there(tmp_path):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "nothing")
    with pytest.raises(DataError, match="holds no image file"):
        open_zip(str(path), None)
    with pytest.raises(DataError, match=r"gone\.zip.*No such file"):
        open_zip(str(tmp_path / "gone.zip"), None)


def test_the_fingerprint_follows_names_sizes_and_labels_and_not_the_place(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    first = open_zip(str(zipped(tmp_path / "set.zip", NAMES)), None).fingerprint()
    assert open_zip(str(zipped(tmp_path / "elsewhere" / "set.zip", NAMES)), None).fingerprint() == first
    for other in (("c/1.png", *NAMES[1:]), NAMES[:3], NAMES[::-1]):
        assert open_zip(str(zipped(tmp_path / "other.zip", other)), None).fingerprint() != first


def test_many_threads_read_many_files_with_few_handles(tmp_path, monkeypatch):
    monkeypatch.setattr(access, "_MOST_OPEN", 2)
    files = [tmp_path / f"{number}.bin" for number in range(8)]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]) * 1000)
    stretches = Stretches()
    start = threading.Barrier(4)

    def check(offset: int) -> bool:
        start.wait()
        return all(
            stretches.read(str(files[(turn + offset) % 8]), turn, 500) == bytes([(turn + offset) % 8]) * 500
            for turn in range(400)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(check, range(4)))
    assert len(stretches._open) == 2


def test_a_loader_reads_an_archive_alike_in_a_worker(tmp_path):
    names = [f"{'ab'[number % 2]}/{number}.png" for number in range(9)]
    same_with_a_worker(open_zip(str(zipped(tmp_path / "set.zip", names, method=zipfile.ZIP_DEFLATED)), None))


# --- tar


def tarred(path: Path, members, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    old(path)
    return path


def shard(path: Path, first: int, labels) -> Path:
    """A shard of samples with a `.cls` each."""
    members = []
    for number, label in enumerate(labels, first):
        members += [
            (f"{number:06}.png", image(number)),
            (f"{number:06}.cls", label.encode()),
            (f"{number:06}.txt", b"?"),
        ]
    return tarred(path, members)


def test_samples_of_several_shards(tmp_path):
    shard(tmp_path / "s" / "data-000000.tar", 0, ["2", "0", "11"])
    shard(tmp_path / "s" / "data-000001.tar", 3, ["0\n", "-1"])
    (tmp_path / "s" / "index.json").write_text("{}")
    assert is_tar_folder(tmp_path / "s")
    ways = ("s", "s/*.tar", "s/data-{000000..000001}.tar", "s/data-00000{0,1}.tar")
    sources = [open_tar(str(tmp_path / way), None) for way in ways]
    for source in (*sources, again(sources[0])):
        assert source.labels.tolist() == [2, 0, 11, 0, -1]
        assert source.classes == tuple(str(number) for number in range(12))
        assert keys(source)[2:4] == ["data-000000/000002.png", "data-000001/000003.png"]
        assert [source.stored(index) for index in (4, 0, 3)] == [image(4), image(0), image(3)]
    assert len({source.fingerprint() for source in sources}) == 1


def test_labels_by_name_by_json_and_none(tmp_path):
    said = [
        ("a", {"label": "cat"}),
        ("b", {"label": "ant"}),
        ("c", {}),
        ("d", {"label": None}),
        ("e", {"label": 1.5}),
    ]
    members = []
    for number, (name, content) in enumerate(said):
        members += [(f"{name}.json", json.dumps(content).encode()), (f"{name}.png", image(number))]
    members += [
        ("f.json", b"{no json"),
        ("f.png", image(5)),
        ("g.json", b'{"label": "cat"}'),
        ("g.png", image(6)),
    ]
    members += [("h.cls", b"dog"), ("h.png", image(7))]
    source = open_tar(str(tarred(tmp_path / "set.tar", members)), None)
    assert source.classes == ("ant", "cat", "dog")
    assert source.labels.tolist() == [1, 0, -1, -1, -1, -1, 1, 2]
    assert source.skipped == (
        "1 .cls or .json files could not be read; their images have no label from them",
        "1 labels in the key 'label' of the .json files are no classes and were left out; e.json: the label "
        "is 1.5, which is no whole number",
    )
    tarred(tmp_path / "set.tar", [*members, ("g.cls", b"dog")])
    with pytest.raises(DataError, match=r"the \.cls files and the key 'label' of the \.json files differ"):
        open_tar(str(tmp_path / "set.tar"), None)


def test_numbers_and_names_together_are_names(tmp_path):
    source = open_tar(str(shard(tmp_path / "set.tar", 0, ["1", "cat", "1"])), None)
    assert source.classes == ("1", "cat")
    assert source.labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize("label", ["123456789", "-2"])
def test_numbers_that_are_no_classes(tmp_path, label):
    with pytest.raises(DataError, match="class numbers from 0 on"):
        open_tar(str(shard(tmp_path / "set.tar", 0, ["1", label])), None)


def test_one_image_of_a_sample_and_every_image_of_a_plain_tar(tmp_path):
    sample = [
        ("1.mask.png", image(1)),
        ("1.png", image(0)),
        ("1.cls", b"0"),
        ("2.depth.png", image(2)),
        ("2.cls", b"1"),
    ]
    assert keys(open_tar(str(tarred(tmp_path / "samples.tar", sample)), None)) == ["1.png", "2.depth.png"]
    plain = [(f"./{name}", image(0)) for name in ("b/IMG.1.png", "b/IMG.2.png", "a/x.png", "a/.hidden.png")]
    source = open_tar(str(tarred(tmp_path / "plain.tar", plain)), None)
    assert keys(source) == ["b/IMG.1.png", "b/IMG.2.png", "a/x.png"]
    assert source.classes == ("a", "b")
    assert source.labels.tolist() == [1, 1, 0]


def test_splits_by_the_names_of_shards_and_by_folders_within(tmp_path):
    shard(tmp_path / "s" / "val-0.tar", 0, ["ant"])
    shard(tmp_path / "s" / "train-0.tar", 1, ["cat", "ant"])
    train, test = (open_tar(str(tmp_path / "s"), split) for split in ("train", "test"))
    assert keys(train) == ["train-0/000001.png", "train-0/000002.png"]
    assert test.labels.tolist() == [0]
    assert train.classes == test.classes == ("ant", "cat")
    inside = [
        (f"set/{part}/{name}.png", image(0))
        for part, name in (("val", "a/1"), ("train", "b/2"), ("val", "b/3"))
    ]
    path = str(tarred(tmp_path / "all.tar", inside))
    assert keys(open_tar(path, "train")) == ["set/train/b/2.png"]
    assert keys(open_tar(path, "test")) == ["set/val/a/1.png", "set/val/b/3.png"]
    assert open_tar(path, "test").labels.tolist() == [0, 1]
    with pytest.raises(DataError, match=r"data\.split is 'train'"):
        open_tar(str(shard(tmp_path / "set.tar", 0, ["1"])), "train")


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names(tmp_path, form):
    name = "/".join(["folder" * 5] * 5) + "/image.png" if form == tarfile.USTAR_FORMAT else "ä" * 150 + ".png"
    source = open_tar(str(tarred(tmp_path / "set.tar", [(name, image(1))], format=form)), None)
    assert keys(source) == [name]
    assert source.stored(0) == image(1)


@pytest.mark.parametrize(
    ("ending", "contents", "labels"),
    [
        ("label", [b"b", b"a"], ["b", "a"]),
        ("class", [b"1", b"0\r\n"], ["1", "0"]),
        ("target", [b"x", b""], ["x", None]),
        ("cls", [b"\xef\xbb\xbf3", b"4\n"], ["3", "4"]),
        ("cls", [b"3.0", b"-1.0"], ["3", None]),
        ("cls", [b"cat", b"-1"], ["cat", None]),
        ("cls", [b"cat", b"dog\nowl"], ["cat", None]),
        ("label", [b"cat", b"\x01\x00\x02"], ["cat", None]),
    ],
)
def test_files_that_say_a_label(tmp_path, ending, contents, labels):
    members = [(f"{number}.png", image(number)) for number in range(2)]
    members += [(f"{number}.{ending}", content) for number, content in enumerate(contents)]
    source = open_tar(str(tarred(tmp_path / "set.tar", members)), None)
    assert [None if label < 0 else source.classes[label] for label in source.labels] == labels
    told = " ".join(source.skipped)
    assert ("a text of 2 lines" in told) == (b"dog\nowl" in contents)
    assert ("zero bytes" in told) == (b"\x01\x00\x02" in contents)


@pytest.mark.parametrize(
    ("name", "told"), [("2.png", "1 images that are links"), ("2.cls", "1 files of labels that are links")]
)
def test_links_are_left_out_and_said(tmp_path, name, told):
    path = tarred(tmp_path / "set.tar", [("1.png", image(1))])
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo(name)
        link.type, link.linkname = tarfile.SYMTYPE, "1.png"
        tar.addfile(link)
    source = open_tar(str(path), None)
    assert keys(source) == ["1.png"]
    assert told in source.skipped[0]


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_compressed_tars_are_refused_with_the_remedy(tmp_path, kind):
    packed = tmp_path / f"set.tar.{kind}"
    with tarfile.open(packed, f"w:{kind}") as tar:
        tar.addfile(tarfile.TarInfo("1.png"))
    with pytest.raises(DataError, match=r"is compressed.*decompress it"):
        open_tar(str(packed), None)
    packed.rename(tmp_path / "set.tar")
    with pytest.raises(DataError, match=r"is compressed with .*decompress it"):
        open_tar(str(tmp_path / "set.tar"), None)


def test_shards_that_are_damaged(tmp_path):
    whole = shard(tmp_path / "set.tar", 0, ["0", "1", "2"]).read_bytes()
    third = whole.find(b"000002.png")
    broken = bytearray(whole)
    broken[third : third + 200] = b"\xff" * 200
    for content in (whole[: third + 600], whole[: third + 100], bytes(broken), b"", b"no tar" * 300):
        (tmp_path / "bad.tar").write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.tar \(data\.path\) is no whole tar file"):
            open_tar(str(tmp_path / "bad.tar"), None)


def test_a_shard_cut_short_or_gone_during_training(tmp_path):
    path = shard(tmp_path / "set.tar", 0, ["0", "1", "2"])
    source = open_tar(str(path), None)
    with path.open("r+b") as file:
        file.truncate(700)
    with pytest.raises(UnreadableImage, match=r"000002\.png: .*set\.tar is cut short"):
        source.stored(2)
    path.unlink()
    with pytest.raises(UnreadableImage, match="No such file"):
        again(source).stored(0)


def test_a_shard_that_is_replaced_during_training(tmp_path):
    path = shard(tmp_path / "set.tar", 0, ["0", "1", "2"])
    source = open_tar(str(path), None)
    path.unlink()
    tarred(path, [(f"{number}.png", image(number)) for number in range(30)])
    with pytest.raises(UnreadableImage, match=r"set\.tar has changed since its images were found"):
        source.stored(0)


def test_shards_that_are_not_there(tmp_path):
    shard(tmp_path / "data-0.tar", 0, ["0"])
    with pytest.raises(DataError, match=r"missing: .*data-1\.tar"):
        open_tar(str(tmp_path / "data-{0..1}.tar"), None)
    with pytest.raises(DataError, match=r"names no .tar file"):
        open_tar(str(tmp_path / "other-*.tar"), None)
    with pytest.raises(DataError, match="holds no image file"):
        open_tar(str(tarred(tmp_path / "text.tar", [("1.txt", b"text")])), None)


def test_braces():
    assert list(expanded("a-{08..11}.tar")) == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert list(expanded("{8..10}")) == ["8", "9", "10"]
    assert list(expanded("{a,b}{0..1}")) == ["a0", "a1", "b0", "b1"]
    assert list(expanded("plain")) == ["plain"]
    with pytest.raises(DataError, match="names 1000000000000 files"):
        list(expanded("{000000000000..999999999999}"))


def test_a_loader_reads_shards_alike_in_a_worker(tmp_path, monkeypatch):
    monkeypatch.setattr("belvedere.data.sources.shards._KEPT_FROM", 1)  # the index is mapped from its file
    for number in range(2):
        shard(tmp_path / "s" / f"{number}.tar", 5 * number, ["0", "1", "0", "1", "2"])
    source = open_tar(str(tmp_path / "s"), None)
    assert source._index.path is not None
    assert len(pickle.dumps(source)) < 1500
    same_with_a_worker(source)
    shard(tmp_path / "s" / "1.tar", 5, ["3", "3", "3", "3", "3"])
    assert open_tar(str(tmp_path / "s"), None).labels.tolist() == [0, 1, 0, 1, 2, 3, 3, 3, 3, 3]

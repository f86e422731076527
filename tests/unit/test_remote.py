"""Images behind URLs: memory, files and a server on this machine."""

import io
import sys
import tarfile
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from containers import again, image, keys, same_with_a_worker

from belvedere.core.errors import DataError, MissingPackageError
from belvedere.data.decode import UnreadableImage
from belvedere.data.sources import access
from belvedere.data.sources.remote import open_remote


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BELVEDERE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(access, "_PAUSE_S", 0.0)


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    yield lambda name, content: system.pipe_file(f"/bucket/{name}", content)
    system.rm("/", recursive=True)


NAMES = ("train/b/1.png", "train/a/2.png", "val/a/3.png", "val/c/4 and ä.png")


def test_a_folder_of_images(memory):
    for number, name in enumerate(NAMES):
        memory(f"set/{name}", image(number))
    memory("set/readme.txt", b"text")
    memory("set/.hidden/5.png", image(5))
    train, test, both = (open_remote("memory://bucket/set/", split) for split in ("train", "test", None))
    assert keys(train) == ["train/a/2.png", "train/b/1.png"]
    assert train.classes == test.classes == ("a", "b", "c")
    assert train.labels.tolist() == [0, 1]
    assert test.labels.tolist() == [0, 2]
    assert test.stored(1) == image(3)
    assert len(both) == 4
    assert both.name == "set"
    first = both.fingerprint()
    memory("set/val/a/6.png", image(6))
    assert open_remote("memory://bucket/set", None).fingerprint() != first


def test_an_image_that_is_gone(memory):
    memory("set/a/1.png", image(0))
    source = open_remote("memory://bucket/set", None)
    fsspec.filesystem("memory").rm("/bucket/set/a/1.png")
    with pytest.raises(
        UnreadableImage, match=r"1\.png: memory://bucket/set/1\.png cannot be read|a/1\.png: .*cannot be read"
    ):
        source.stored(0)


def test_networks_that_fail_for_a_moment_are_asked_again(memory, monkeypatch):
    memory("set/a/1.png", image(0))
    source = open_remote("memory://bucket/set", None)
    failures = [ConnectionError("reset"), TimeoutError("late")]
    kind = type(fsspec.filesystem("memory"))
    real = kind.cat_file

    def flaky(self, *args, **options):
        if failures:
            raise failures.pop()
        return real(self, *args, **options)

    monkeypatch.setattr(kind, "cat_file", flaky)
    assert source.stored(0) == image(0)
    failures[:] = [ConnectionError("reset")] * 3
    with pytest.raises(UnreadableImage, match="cannot be read: ConnectionError: reset"):
        source.stored(0)


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        for number in range(9):
            opened.writestr(f"{'ab'[number % 2]}/{number}.png", image(number))
    return file.getvalue()


def shard(first: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number in (first, first + 1):
            for name, content in ((f"{number}.png", image(number)), (f"{number}.cls", str(number).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def test_a_zip_archive(memory):
    memory("set.zip", archive())
    source = open_remote("memory://bucket/set.zip", None)
    assert len(source) == 9
    assert source.labels.tolist() == [number % 2 for number in range(9)]
    assert source.stored(7) == image(7)
    fsspec.filesystem("memory").pipe_file("/bucket/set.zip", archive()[:200])
    with pytest.raises(UnreadableImage, match=r"cut short|damaged"):
        source.stored(8)
    with pytest.raises(DataError, match="no zip archive"):
        open_remote("memory://bucket/set.zip", None)


@pytest.mark.parametrize("path", ["s", "s/*.tar", "s/{0,1}.tar", "s/{0..1}.tar"])
def test_shards(memory, path):
    memory("s/0.tar", shard(0))
    memory("s/1.tar", shard(2))
    source = open_remote(f"memory://bucket/{path}", None)
    assert keys(source) == ["0/0.png", "0/1.png", "1/2.png", "1/3.png"]
    assert source.labels.tolist() == [0, 1, 2, 3]
    assert source.stored(2) == image(2)
    with pytest.raises(DataError, match=r"2\.tar \(data\.path\) cannot be opened"):
        open_remote("memory://bucket/s/{0..2}.tar", None)


@pytest.mark.parametrize("path", ["p", "p/train-0.parquet", "p/*.parquet"])
def test_parquet(memory, path):
    file = io.BytesIO()
    pq.write_table(pa.table({"image": [image(0), image(1)], "label": [1, 0]}), file)
    memory("p/train-0.parquet", file.getvalue())
    source = open_remote(f"memory://bucket/{path}", "train")
    assert source.labels.tolist() == [1, 0]
    assert again(source).stored(1) == image(1)


def test_arrays(memory):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8), dtype=np.uint8)
    file = io.BytesIO()
    np.save(file, pixels)
    memory("set.npy", file.getvalue())
    np.testing.assert_array_equal(open_remote("memory://bucket/set.npy", None).pixels[..., 0], pixels)
    with pytest.raises(DataError, match="cannot be read"):
        open_remote("memory://bucket/gone.npy", None)


def test_what_is_refused(memory):
    memory("set/readme.txt", b"text")
    with pytest.raises(
        DataError, match=r"no image file below memory://bucket/set \(data\.path\); found readme\.txt"
    ):
        open_remote("memory://bucket/set", None)
    with pytest.raises(DataError, match="which is not there"):
        open_remote("memory://bucket/other", None)
    with pytest.raises(DataError, match="a file of no kind that is known"):
        open_remote("memory://bucket/set/readme.txt", None)
    with pytest.raises(DataError, match=r"nosuch://bucket.*cannot be opened"):
        open_remote("nosuch://bucket/set", None)


def test_a_protocol_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(
        MissingPackageError, match=r"^data\.path is 's3://bucket/set', which needs .*s3fs"
    ) as told:
        open_remote("s3://bucket/set", None)
    assert str(told.value).count("Install s3fs") == 1


def test_files_by_url_are_read_alike_in_a_worker(tmp_path):
    for number in range(9):
        path = tmp_path / "set" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(number))
    source = open_remote(f"file://{tmp_path}/set", None)
    assert source.classes == ("a", "b")
    same_with_a_worker(source)


class Quiet(SimpleHTTPRequestHandler):
    """A server of files that understands ranges of bytes and keeps no log."""

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        path = self.translate_path(self.path)
        if not asked.startswith("bytes="):
            return super().do_GET()
        with open(path, "rb") as file:
            content = file.read()
        first, last = asked.removeprefix("bytes=").split("-")
        part = content[int(first) : int(last) + 1 if last else None]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)
        return None


@pytest.fixture
def server(tmp_path):
    """The URL of a server on this machine, and the folder it serves."""
    pytest.importorskip("aiohttp")
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_address[1]}", folder
        serving.shutdown()
        thread.join()


def test_a_server(server):
    url, folder = server
    (folder / "set.zip").write_bytes(archive())
    (folder / "0.tar").write_bytes(shard(0))
    (folder / "set" / "a").mkdir(parents=True)
    (folder / "set" / "a" / "1.png").write_bytes(image(1))
    (folder / "set" / "b").mkdir()
    (folder / "set" / "b" / "2.png").write_bytes(image(2))
    assert open_remote(f"{url}/0.tar", None).stored(1) == image(1)
    images = open_remote(f"{url}/set", None)
    assert keys(images) == ["a/1.png", "b/2.png"]
    assert images.labels.tolist() == [0, 1]
    assert images.stored(1) == image(2)
    zipped = open_remote(f"{url}/set.zip", None)
    assert zipped.stored(4) == image(4)
    same_with_a_worker(zipped)
    with pytest.raises(DataError, match=r"gone\.zip \(data\.path\) cannot be opened"):
        open_remote(f"{url}/gone.zip", None)


def test_a_server_that_sends_only_whole_files(server, monkeypatch):
    url, folder = server
    monkeypatch.setattr(Quiet, "do_GET", SimpleHTTPRequestHandler.do_GET)
    with zipfile.ZipFile(folder / "set.zip", "w") as opened:
        for number in range(300):
            opened.writestr(f"{number}.png", image(number))
    (folder / "0.tar").write_bytes(shard(0))
    with pytest.raises(DataError, match="knows no ranges; copy it here"):
        open_remote(f"{url}/set.zip", None)
    with pytest.raises(DataError, match=r"0\.tar \(data\.path\)|copy it here"):
        open_remote(f"{url}/0.tar", None).stored(0)

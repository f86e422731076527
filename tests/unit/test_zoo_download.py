"""`belvedere zoo`: the table of published models, and fetching one from a server on this machine."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import socket
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from export_networks import resnet, swin, vit
from pydantic import TypeAdapter
from rich.console import Console
from safetensors.torch import save

from belvedere import cli
from belvedere.commands import zoo_list
from belvedere.core.errors import WeightsError
from belvedere.nn.spec import BackboneSpec
from belvedere.recipe.load import load_recipe
from belvedere.zoo import download
from belvedere.zoo.catalogue import LICENCES, entries, entry_of_file
from belvedere.zoo.download import ATTEMPTS, fetch, recorded_sha256
from belvedere.zoo.network_words import short_name

CONTENT = save({"weight": torch.arange(320_000, dtype=torch.float32)})
OTHER = save({"weight": torch.zeros(320_000)})
SUM = hashlib.sha256(CONTENT).hexdigest()
NAME = "vits16_800ep.pth.tar"


class Server(ThreadingHTTPServer):
    """content: the file; breaks: after how many bytes each of the next answers ends; ranges: what was asked
    for; answer: what is sent instead, as it is."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.tag = CONTENT, '"one"'
        self.breaks: list[int] = []
        self.ranges: list[str | None] = []
        self.knows_ranges = True
        self.status: int | None = None
        self.answer: bytes | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{NAME}"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        own, asked = self.server, self.headers.get("Range")
        own.ranges.append(asked)
        if own.answer is not None:
            self.wfile.write(own.answer)
            self.close_connection = True
            return
        if own.status is not None:
            self.send_error(own.status)
            return
        start = 0
        if asked and own.knows_ranges and self.headers.get("If-Range") == own.tag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start and start >= len(own.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(own.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            last = len(own.content) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(own.content)}")
        self.send_header("Content-Length", str(len(own.content) - start))
        if own.tag:
            self.send_header("ETag", own.tag)
        self.end_headers()
        end = start + own.breaks.pop(0) if own.breaks else len(own.content)
        self.wfile.write(own.content[start:end])
        if end < len(own.content):
            self.close_connection = True

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def test_a_file_comes_with_its_record_and_once(server: Server, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    target = fetch(server.address, tmp_path, progress=lambda done, total: told.append((done, total)))
    assert target.read_bytes() == CONTENT
    assert recorded_sha256(target) == SUM
    assert told[0] == (0, len(CONTENT))
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME, f"{NAME}.sha256"]
    assert fetch(server.address, tmp_path) == target
    assert len(server.ranges) == 1


def test_a_transfer_that_breaks_off_is_taken_up_where_it_was(server: Server, tmp_path: Path) -> None:
    server.breaks = [1000, 70_000, 5]
    assert fetch(server.address, tmp_path, pause_s=0).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000-", "bytes=71000-", "bytes=71005-"]


def test_a_later_call_goes_on(server: Server, tmp_path: Path) -> None:
    server.breaks = [1000, *[0] * ATTEMPTS]
    with pytest.raises(WeightsError, match=r"broke off 5 times .*1000 B are kept"):
        fetch(server.address, tmp_path, pause_s=0)
    server.ranges.clear()
    assert fetch(server.address, tmp_path, pause_s=0).read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-"]


@pytest.mark.parametrize("change", ["another version", "no ranges", "no tag"])
def test_parts_of_two_versions_are_never_put_together(server: Server, tmp_path: Path, change: str) -> None:
    server.breaks = [1000, *[0] * ATTEMPTS]
    server.tag = "" if change == "no tag" else server.tag
    with pytest.raises(WeightsError, match="broke off"):
        fetch(server.address, tmp_path, pause_s=0)
    if change == "another version":
        server.content, server.tag = OTHER, '"two"'
    server.knows_ranges = change != "no ranges"
    assert fetch(server.address, tmp_path, pause_s=0).read_bytes() == server.content


def test_a_call_stopped_at_its_end_needs_nothing_more(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT)
    (tmp_path / f"{NAME}.tag").write_text(server.tag)
    assert fetch(server.address, tmp_path, pause_s=0).read_bytes() == CONTENT
    assert server.ranges == [f"bytes={len(CONTENT)}-"]


def test_a_wrong_hash_keeps_nothing(server: Server, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=f"has SHA-256 {SUM}, expected is {'0' * 64}"):
        fetch(server.address, tmp_path, expected_sha256="0" * 64)
    assert not (tmp_path / NAME).exists()
    assert not (tmp_path / f"{NAME}.part").exists()
    target = fetch(server.address, tmp_path, expected_sha256=SUM.upper())
    target.write_bytes(b"altered")
    with pytest.raises(WeightsError, match=r"is no checkpoint: it begins with .*; remove it"):
        fetch(server.address, tmp_path)
    target.write_bytes(OTHER)
    with pytest.raises(WeightsError, match="it was altered; remove it"):
        fetch(server.address, tmp_path)


@pytest.mark.parametrize("tag", ["", 'W/"weak"', '"one"'])
def test_a_server_that_always_closes_early_is_given_up(server: Server, tmp_path: Path, tag: str) -> None:
    server.tag = tag
    server.breaks = [1000] * 40 if not tag.startswith('"') else [1000, *[0] * 40]
    with pytest.raises(WeightsError, match="broke off 5 times"):
        fetch(server.address, tmp_path, pause_s=0)
    assert len(server.ranges) <= ATTEMPTS + 1


def test_a_server_that_moves_by_a_byte_each_time_is_given_up(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MOST_REQUESTS", 20)
    server.breaks = [1] * 100
    with pytest.raises(WeightsError, match=r"broke off 20 times .*20 B are kept"):
        fetch(server.address, tmp_path, pause_s=0)


def _zip(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, b"x" * 100)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html>please log in", "it is a web page"),
        (b"\n  <html>", "it is a web page"),
        (b'<?xml version="1.0"?><Error>AccessDenied</Error>', "it is a web page"),
        (b'{"error": "not found"}', "it begins with"),
        (b"Not found", "it begins with"),
        (b"version https://git-lfs.github.com/spec/v1", "it begins with b'version https:/"),
        (CONTENT[:-5], "its header announces .* bytes, the file has"),
        (CONTENT[:20], "its header would be"),
        (CONTENT + b"more", "its header announces"),
        (b"\x05\0\0\0\0\0\0\0{abcd", "not that of a safetensors file"),
        (_zip("readme.txt"), "a zip archive of something else"),
        (_zip("archive/data.pkl")[:-10], "cut off or damaged"),
        (b"\x1f\x8b\x08" + bytes(50), "it begins with"),
    ],
    ids=range(14),
)
def test_what_is_no_checkpoint_is_not_kept(server: Server, tmp_path: Path, content: bytes, told: str) -> None:
    server.content = content
    server.knows_ranges = False
    with pytest.raises(WeightsError, match=f"gives no checkpoint: .*{told}"):
        fetch(server.address, tmp_path, pause_s=0)
    assert not list(tmp_path.iterdir())
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(WeightsError, match=f"is no checkpoint: .*{told}.*remove it"):
        fetch(server.address, tmp_path, pause_s=0)


@pytest.mark.parametrize("new", [True, False])
def test_what_torch_saves_is_kept(server: Server, tmp_path: Path, new: bool) -> None:
    file = io.BytesIO()
    torch.save({"weight": torch.zeros(3)}, file, _use_new_zipfile_serialization=new)
    server.content = file.getvalue()
    assert fetch(server.address, tmp_path).read_bytes() == server.content


def test_no_room_is_said_before_and_on_the_way(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(download, "free_bytes", lambda path: 1000)
        with pytest.raises(WeightsError, match=r"needs 1.2 MiB more, 1000 B are free.*BELVEDERE_CACHE"):
            fetch(server.address, tmp_path)
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:

        def fill(file: Any, chunk: bytes) -> None:
            file.write(chunk[:10])
            raise full

        patch.setattr(download, "_append", fill)
        with pytest.raises(WeightsError, match="no room"):
            fetch(server.address, tmp_path)
    assert fetch(server.address, tmp_path).read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=10-"


def test_a_server_without_the_file_and_none_at_all(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(WeightsError, match="the server answers 404"):
        fetch(server.address, tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(WeightsError, match=r"cannot be reached .*seems to be offline\. Fetch the file"):
        fetch(f"http://127.0.0.1:{port}/{NAME}", tmp_path)
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize(
    "answer",
    [
        b"200 OK\r\nContent-Length: \xb2\r\n\r\nab",
        b"200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nab",
        b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nab\r\n",
        b"206 OK\r\nContent-Range: bytes 0-1/" + b"9" * 5000 + b"\r\n\r\nab",
        b"302 Found\r\nLocation: http://[::1/x\r\n\r\n",
        b"302 Found\r\nLocation: http://" + b"a" * 300 + b"/x\r\n\r\n",
        b"302 Found\r\nLocation: http://\xe9..a/x y\r\n\r\n",
    ],
    ids=["no digit", "5000 digits", "negative chunk", "range", "address", "long host", "host"],
)
def test_an_answer_that_makes_no_sense_is_told(server: Server, tmp_path: Path, answer: bytes) -> None:
    server.answer = b"HTTP/1.1 " + answer
    with pytest.raises(WeightsError, match=r"broke off 5 times \(the server's answer makes no sense: "):
        fetch(server.address, tmp_path, pause_s=0)
    server.answer = None
    assert fetch(server.address, tmp_path).read_bytes() == CONTENT


def test_two_processes_do_not_write_one_file(server: Server, tmp_path: Path) -> None:
    refused = pytest.raises(WeightsError, match="being fetched by another process")
    with download._alone(tmp_path / f"{NAME}.part"), refused:
        fetch(server.address, tmp_path)


# The catalogue


def test_the_catalogue_is_what_the_recipes_say() -> None:
    found = {entry.name: entry for entry in entries()}
    assert {entry.system for entry in entries()} == set(LICENCES)
    for name in ("msn/vits16", "esvit/swin-tiny-w7", "swav/rn50-800ep"):
        published = load_recipe(name, ["data.path=x"]).published
        assert published is not None
        assert dict(found[name].accuracy) == published.accuracy
    assert found["msn/vits16"].address == "https://dl.fbaipublicfiles.com/msn/vits16_800ep.pth.tar"
    assert found["swav/rn50w5-400ep"].address is None
    assert "Azure" in found["esvit/swin-tiny-w7"].place
    assert entry_of_file("swav_800ep_pretrain.pth.tar", ("swav",)) is found["swav/rn50-800ep"]
    assert entry_of_file("swav_800ep_pretrain.pth.tar", ("msn",)) is None
    files = [entry.file for entry in entries() if entry.file]
    assert len(files) == len(set(files))


@pytest.mark.parametrize("width", [80, 120])
def test_the_tables_fit_the_screen(width: int) -> None:
    written = io.StringIO()
    zoo_list.show(entries(), Console(file=written, width=width, force_terminal=True, color_system=None))
    shown = written.getvalue()
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= width
    first = {line.split()[0]: line.split() for line in shown.splitlines() if line.strip()}
    for entry in entries():
        scores = [f"{score:.1f}" for score in entry.accuracy.values()]
        assert sorted(first[entry.name][-len(scores) :]) == sorted(scores), "every model has a whole line"
        assert str(entry.epochs) in first[entry.name]
    together = " ".join(shown.split())
    assert "no file is published of msn/vitb8, msn/vits16-no-sinkhorn" in together
    assert "esvit: MIT, to be fetched by hand, on Azure" in together


def test_a_pipe_gets_tables_of_80_columns_with_a_line_for_each_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert cli.main(["zoo"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, map(str.rstrip, shown))) <= 80
    rows = {line.split()[0]: line for line in shown if "/" in line}
    for entry in entries():
        assert all(f"{score:.1f}" in rows[entry.name] for score in entry.accuracy.values())
    assert "CC-BY-NC-4.0" in "".join(shown)


def test_json_has_all_that_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["zoo", "--json"]) == 0
    told = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert list(told) == [entry.name for entry in entries()]
    for entry in entries():
        one = told[entry.name]
        assert one["accuracy"] == dict(entry.accuracy)
        assert TypeAdapter(BackboneSpec).validate_json(json.dumps(one["network"])) == entry.backbone
        assert (one["address"] is None) == (one["place"] is not None)
    assert cli.main(["zoo", "msn/vits16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [told["msn/vits16"]]


def test_a_system_and_a_model_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["zoo", "sela"]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines() if line.startswith("sela/")] == [
        "sela/rn50-400ep",
        "sela/rn50-400ep-2x224",
    ]
    assert cli.main(["zoo", "swav/rn50w4-400ep"]) == 0
    shown = capsys.readouterr().out
    for told in ("77.9 %", "4 times as wide", "https://dl.fbaipublicfiles.com/deepcluster/swav_RN50w4"):
        assert told in shown
    assert "belvedere zoo get swav/rn50w4-400ep" in shown
    assert cli.main(["zoo", "swav/rn50w5-400ep"]) == 0
    shown = capsys.readouterr().out
    assert "nowhere that its authors say" in shown
    assert "zoo get" not in shown
    assert "belvedere import" not in shown


def test_a_network_has_the_name_that_the_field_gives_it() -> None:
    names = {entry.name: short_name(entry.backbone) for entry in entries()}
    assert names["msn/vitl7"] == "ViT-L/7"
    assert names["swav/rn50w5-400ep"] == "ResNet-50 w5"
    assert names["esvit/swin-small-w14-region"] == "Swin-S, window 14"
    assert names["esvit/vil-w7"] == "ViL 2-2-6-2, window 7"
    assert short_name(vit()) == "ViT 24x2/8"
    assert short_name(resnet()) == "ResNet 1-1-1-1"
    assert short_name(swin()) == "Swin 2-2, window 4"


def test_get_fetches_into_the_cache(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BELVEDERE_CACHE", str(tmp_path))
    mirror = server.address.removesuffix(NAME)
    assert cli.main(["zoo", "get", "msn/vits16", "--mirror", mirror, "--sha256", SUM]) == 0
    assert (tmp_path / "zoo" / "msn" / NAME).read_bytes() == CONTENT
    told = capsys.readouterr().err
    assert SUM in told
    assert f"belvedere import {tmp_path / 'zoo' / 'msn' / NAME} --as msn/vits16" in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["get"], "give the name of a model"),
        (["get", "msn/vits17"], "nearest: msn/vits16"),
        (["get", "esvit/swin-tiny-w7"], "it is on Azure"),
        (["get", "swav/rn50w5-400ep"], "has no address"),
        (["get", "msn/vits16", "--sha256", "abc"], "64 hexadecimal digits"),
        (["get", "msn/vits16", "--mirror", "ftp://x"], "must begin with https"),
        (["--sha256", SUM], "say how to fetch"),
        (["msn/vits16", "--sha256", SUM], "say how to fetch"),
        (["swa"], "nearest: swav"),
        (["msn", "swav"], "one name at a time, not msn swav"),
        (["get", "msn/vits16", "msn/vitb16"], "give the name of a model"),
        (["get", "msn/vits16", "--json"], "--json is for what is listed"),
    ],
)
def test_mistakes_are_told(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["zoo", *words]) == 2
    assert told in " ".join(capsys.readouterr().err.split())

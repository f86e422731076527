"""Every kind of source by its path, and mixtures of them."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from belvedere.core.errors import DataError
from belvedere.data.sources import open_source, read
from belvedere.data.spec import Part


def png(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (9, 7), (shade, 0, 0)).save(out, "PNG")
    return out.getvalue()


FILES = {"cat/a.png": png(10), "cat/b.png": png(20), "dog/c.png": png(30)}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """One set of three images in every kind of container."""
    for name, content in FILES.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    lines = [{"file": f"folder/{name}", "label": name.split("/")[0]} for name in FILES]
    (tmp_path / "list.txt").write_text("".join(f"{line['file']}\n" for line in lines))
    (tmp_path / "list.csv").write_text("file,label\n" + "".join(f"{x['file']},{x['label']}\n" for x in lines))
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    (tmp_path / "shards").mkdir()
    for number, (name, content) in enumerate(FILES.items()):
        with tarfile.open(tmp_path / "shards" / f"part-{number:03}.tar", "w") as shard:
            for ending, data in ((".png", content), (".cls", name.split("/")[0].encode())):
                member = tarfile.TarInfo(f"{number:06}{ending}")
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))
    rows = [{"bytes": content, "path": name} for name, content in FILES.items()]
    pq.write_table(pa.table({"image": rows, "label": [0, 0, 1]}), tmp_path / "set.parquet")
    np.save(tmp_path / "set.npy", np.stack([np.full((7, 9, 3), shade, np.uint8) for shade in (10, 20, 30)]))
    return tmp_path


@pytest.mark.parametrize(
    ("path", "classes"),
    [
        ("folder", 2),
        ("list.txt", 0),
        ("list.csv", 2),
        ("list.jsonl", 2),
        ("set.zip", 2),
        ("shards", 2),
        ("shards/part-*.tar", 2),
        ("shards/part-{000..002}.tar", 2),
        ("set.parquet", 2),
        ("set.npy", 0),
    ],
)
def test_every_kind_is_opened_by_its_path(made, path, classes):
    source = open_source(str(made / path))
    assert len(source) == 3
    assert len(source.classes) == classes
    if path != "set.npy":
        assert [int(read(source, index)[0, 0, 0]) for index in range(3)] == [10, 20, 30]
    if classes:
        assert source.labels.tolist() == [0, 0, 1]


def test_a_url_opens_what_a_path_opens(made):
    assert len(open_source((made / "set.zip").as_uri())) == 3
    assert open_source((made / "folder").as_uri()).classes == ("cat", "dog")


def test_parts_are_mixed_and_their_classes_joined(made):
    (made / "more" / "emu").mkdir(parents=True)
    (made / "more" / "emu" / "d.png").write_bytes(png(40))
    parts = [Part(path=str(made / "folder"), weight=1.0), Part(path=str(made / "more"), weight=1.0)]
    mixed = open_source(parts)
    assert (len(mixed), mixed.classes, mixed.labels.tolist()) == (4, ("cat", "dog", "emu"), [0, 0, 1, 2])
    with pytest.raises(DataError, match="give each of its parts a split"):
        open_source(parts, split="train")


@pytest.mark.parametrize("name", ["notes.md", "missing", ""])
def test_a_path_of_no_known_kind_says_what_there_is(tmp_path, name):
    (tmp_path / "notes.md").write_text("text")
    with pytest.raises(DataError, match=r"data\.path is .*(\.zip|archive)"):
        open_source(str(tmp_path / name) if name else name)

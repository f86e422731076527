from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from eval_fakes import BrokenSource, FakeBackbone, FakeCard, coloured_source, feature_spec

from belvedere.core.errors import UsageError, WriteError
from belvedere.eval.embed import embed, escaped_names, write_features
from belvedere.eval.features import Extracted, extract

CARD = FakeCard(feature_spec())


def test_npz_holds_features_files_and_labels(tmp_path: Path) -> None:
    source = coloured_source({"ant": 3, "bee": 2}, unlabelled=1, broken=frozenset({1}))
    out = tmp_path / "new" / "features.npz"
    extracted = embed(FakeBackbone(), CARD, source, out=out, batch_size=2)
    assert extracted.unreadable == {"0001.png": "truncated"}
    with np.load(out) as saved:
        np.testing.assert_array_equal(
            saved["features"], extract(FakeBackbone(), CARD, source, batch_size=2).features
        )
        assert saved["features"].dtype == np.float32
        assert saved["files"].tolist() == ["0000.png", "0002.png", "0003.png", "0004.png", "0005.png"]
        assert saved["labels"].tolist() == [0, 0, 1, 1, -1]
        assert saved["classes"].tolist() == ["ant", "bee"]
    assert [path.name for path in out.parent.iterdir()] == ["features.npz"]


def test_parquet_holds_features_files_and_labels(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    source = coloured_source({"ant": 2, "bee": 1}, unlabelled=1)
    out = tmp_path / "features.parquet"
    extracted = embed(FakeBackbone(), CARD, source, out=out)
    table = pq.read_table(out)
    assert table.column_names == ["file", "features", "label"]
    assert table["label"].to_pylist() == ["ant", "ant", "bee", None]
    assert table["file"].to_pylist() == [source.key(i) for i in range(4)]
    np.testing.assert_array_equal(
        np.array(table["features"].to_pylist(), dtype=np.float32), extracted.features
    )


@pytest.mark.parametrize("name", ["f.npz", "f.parquet"])
def test_the_same_bytes_twice_and_no_labels_where_there_are_none(tmp_path: Path, name: str) -> None:
    coloured = coloured_source({"a": 4})
    bare = BrokenSource(
        "bare",
        coloured.pixels,
        labels=np.full(4, -1),
        classes=(),
        keys=["a.png", "b\udcff.png", "é.png", "d"],
    )
    embed(FakeBackbone(), CARD, bare, out=tmp_path / name)
    first = (tmp_path / name).read_bytes()
    embed(FakeBackbone(), CARD, bare, out=tmp_path / name)
    assert (tmp_path / name).read_bytes() == first
    if name.endswith("npz"):
        with np.load(tmp_path / name) as saved:
            assert set(saved.files) == {"features", "files"}
            assert saved["files"].tolist()[1:3] == ["b\\xff.png", "é.png"]


@pytest.mark.parametrize("name", ["f.csv", "f", "f.npz.gz"])
def test_an_unknown_format_is_refused_before_any_work(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"use \.npz or \.parquet"):
        embed(None, CARD, None, out=tmp_path / name)  # type: ignore[arg-type]


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.npz").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        embed(None, CARD, None, out=tmp_path / "d.npz")  # type: ignore[arg-type]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = coloured_source({"a": 2}), tmp_path / "f.npz"
    extracted = Extracted(torch.ones(2, 3), np.arange(2), {})
    write_features(out, extracted, source)
    before = out.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(OSError, match="No space"):
        write_features(out, extracted, source)
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["f.npz"]


def test_names_of_files_and_classes_that_are_not_utf8(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    coloured = coloured_source({"a": 2, "b": 2})
    keys = ["a.png", "b\udcff.png", "\udcff/c.png", "日本.png"]
    source = BrokenSource(
        "odd", coloured.pixels, labels=coloured.labels, classes=("caf\udce9", "日本"), keys=keys
    )
    source.broken = frozenset({2})
    for name in ("f.parquet", "f.npz"):
        extracted = embed(FakeBackbone(), CARD, source, out=tmp_path / name)
        assert list(extracted.unreadable) == ["\udcff/c.png"]
    assert escaped_names(source, extracted) == ["b\\xff.png", "caf\\xe9"]
    table = pq.read_table(tmp_path / "f.parquet")
    assert table["file"].to_pylist() == ["a.png", "b\\xff.png", "日本.png"]
    assert table["label"].to_pylist() == ["caf\\xe9", "caf\\xe9", "日本"]
    with np.load(tmp_path / "f.npz") as saved:
        assert saved["files"].tolist() == ["a.png", "b\\xff.png", "日本.png"]
        assert saved["classes"].tolist() == ["caf\\xe9", "日本"]


def test_out_is_tried_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteError, match="is no folder"):
        embed(None, CARD, None, out=tmp_path / "file" / "f.npz")  # type: ignore[arg-type]

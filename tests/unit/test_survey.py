"""The pass over a source: what is noted of each image, hostile files, interruption."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from belvedere.data.sources import ArraySource, open_source
from belvedere.data.survey import ROW, Survey, spread, survey


def quiet(done: int, total: int) -> None:
    assert 0 <= done <= total


def looked(path: Path, **options: int | bool) -> Survey:
    return survey(open_source(str(path)), progress=quiet, **options)  # type: ignore[arg-type]


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def by_key(found: Survey) -> dict[str, int]:
    return {found.key(at): at for at in range(len(found))}


@pytest.mark.parametrize(
    ("total", "limit", "expected"),
    [(5, None, [0, 1, 2, 3, 4]), (5, 9, [0, 1, 2, 3, 4]), (10, 3, [0, 3, 6]), (0, 3, []), (0, None, [])],
)
def test_a_sample_is_spread_evenly(total: int, limit: int | None, expected: list[int]) -> None:
    assert spread(total, limit).tolist() == expected


def test_each_image_is_noted(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    picture(0).save(tmp_path / "b.bmp")
    picture(1, (16, 50)).save(tmp_path / "c.jpg")
    (tmp_path / "d.png").write_bytes((tmp_path / "c.jpg").read_bytes())  # the wrong extension
    (tmp_path / "e.jpg").write_bytes(b"")
    found = looked(tmp_path)
    at, rows = by_key(found), found.rows
    assert [found.formats[code] for code in rows["format"][:4]] == ["PNG", "BMP", "JPEG", "JPEG"]
    assert (rows["width"][at["c.jpg"]], rows["height"][at["c.jpg"]]) == (16, 50)
    assert rows["bytes"][at["a.png"]] == (tmp_path / "a.png").stat().st_size
    assert found.readable.tolist() == [True, True, True, True, False]
    assert found.reasons == {4: "the file is empty"}
    same = [(rows[kind][0] == rows[kind][1]).all() for kind in ("stored", "pixels")]
    assert same == [False, True]  # saved in another format
    assert (rows["stored"][2] == rows["stored"][3]).all()
    assert found.complete
    assert found.decode_s > 0


def test_equal_bytes_of_another_shape_are_other_pixels() -> None:
    flat = np.zeros((1, 4, 9, 1), dtype=np.uint8)
    one = ArraySource("one", flat, labels=np.array([-1]), classes=(), keys=["a"])
    two = ArraySource("two", flat.reshape(1, 9, 4, 1), labels=np.array([-1]), classes=(), keys=["a"])
    rows = [survey(source, progress=quiet).rows for source in (one, two)]
    assert (rows[0]["pixels"] != rows[1]["pixels"]).any()


def test_hostile_files_are_noted_with_their_reasons(tmp_path: Path) -> None:
    picture(0).convert("CMYK").save(tmp_path / "cmyk.jpg")
    picture(0).save(tmp_path / "moving.gif", save_all=True, append_images=[picture(1)])
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(0).save(tmp_path / "turned.jpg", exif=turned)
    file = io.BytesIO()
    picture(2, (300, 300)).save(file, "PNG")
    (tmp_path / "cut.png").write_bytes(file.getvalue()[:5000])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    found = looked(tmp_path, workers=2)
    at = by_key(found)
    kinds = {
        key: found.kinds[found.rows["kind"][at[key]]] for key in ("cmyk.jpg", "moving.gif", "turned.jpg")
    }
    assert kinds["cmyk.jpg"].startswith("CMYK")
    assert "first of several frames" in kinds["moving.gif"]
    assert "turned by EXIF" in kinds["turned.jpg"]
    assert found.rows["height"][at["turned.jpg"]] == 40  # upright
    assert {found.key(place) for place in found.reasons} == {"cut.png", "text.png", "gone.png"}
    assert all(found.reasons.values())


def test_any_number_of_threads_finds_the_same(tmp_path: Path) -> None:
    for number in range(70):
        picture(number % 50).save(tmp_path / f"{number:02}.png")
    one, many = looked(tmp_path, workers=1), looked(tmp_path, workers=4)
    for name in ("state", "height", "width", "bytes", "stored", "pixels", "color"):
        np.testing.assert_array_equal(one.rows[name], many.rows[name])
    assert one.thumbs is not None
    assert many.thumbs is not None
    np.testing.assert_array_equal(one.thumbs, many.thumbs)


def test_thumbnails_are_made_only_when_asked_for(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    assert looked(tmp_path, thumbs=False).thumbs is None
    assert ROW.itemsize <= 64


def test_a_part_of_a_source(tmp_path: Path) -> None:
    for number in range(10):
        picture(number).save(tmp_path / f"{number}.png")
    found = looked(tmp_path, limit=4)
    assert [found.key(at) for at in range(len(found))] == ["0.png", "2.png", "5.png", "7.png"]
    assert not found.complete


def test_an_empty_source() -> None:
    nothing = ArraySource(
        "nothing", np.zeros((0, 8, 8, 1), np.uint8), labels=np.zeros(0, np.int64), classes=(), keys=[]
    )
    assert len(survey(nothing, progress=quiet)) == 0


class Endless(ArraySource):
    """A million images, each of which takes ten milliseconds to read."""

    def __init__(self) -> None:
        self.name, self.classes = "endless", ()
        self.labels = np.full(1_000_000, -1)
        self.asked = 0

    def __len__(self) -> int:
        return 1_000_000

    def key(self, index: int) -> str:
        return str(index)

    def stored(self, index: int) -> np.ndarray:  # type: ignore[type-arg]
        self.asked += 1
        time.sleep(0.01)
        return np.zeros((8, 8, 1), dtype=np.uint8)


def test_an_interruption_ends_the_threads_at_once() -> None:
    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    source, start = Endless(), time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        survey(source, workers=3, thumbs=False, progress=interrupt)
    assert time.perf_counter() - start < 5
    assert source.asked < 500
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("belvedere-survey")]


class Broken(Endless):
    def stored(self, index: int) -> np.ndarray:  # type: ignore[type-arg]
        raise RuntimeError("a mistake in the source")


def test_an_error_of_the_source_is_not_swallowed() -> None:
    with pytest.raises(RuntimeError, match="a mistake in the source"):
        survey(Broken(), workers=2, thumbs=False, progress=quiet)

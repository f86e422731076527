"""The pictures show what they are given, are readable at the edges, and are the same bytes every time."""

from __future__ import annotations

import json
import math
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image

from belvedere.core.errors import DataError
from belvedere.viz.confusion import _count_words, confusion_picture
from belvedere.viz.curves import _running_mean, curves_picture, read_metrics
from belvedere.viz.figure import SKY, drawn
from belvedere.viz.views import KeptPatches, _denormalized, views_picture

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
SKY_RGB = tuple(int(SKY[i : i + 2], 16) for i in (1, 3, 5))


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def count(path: Path, color: tuple[int, int, int]) -> int:
    return int((pixels(path) == np.array(color)).all(-1).sum())


def solid(color: tuple[float, float, float], views: int, images: int, px: int) -> torch.Tensor:
    return torch.tensor(color)[None, None, :, None, None].expand(views, images, 3, px, px)


def test_a_picture_is_the_same_whatever_the_users_settings_are(tmp_path: Path) -> None:
    def draw(path: Path) -> bytes:
        with drawn(path, width=2, height=2) as figure:
            figure.subplots().plot([0, 1], [1, 0], label="x")
        return path.read_bytes()

    first = draw(tmp_path / "a.png")
    with mpl.rc_context({"font.size": 30.0, "axes.facecolor": "red", "savefig.dpi": 20}):
        assert draw(tmp_path / "b.png") == first
        assert mpl.rcParams["font.size"] == 30.0


def test_a_failure_leaves_the_former_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"former")
    with pytest.raises(RuntimeError), drawn(path, width=1, height=1):
        raise RuntimeError("while drawing")
    assert path.read_bytes() == b"former"
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_views_are_drawn_in_proportion_to_their_pixels(tmp_path: Path) -> None:
    views = {"target": solid((1, 0, 0), 1, 3, 8), "focal": solid((0, 1, 0), 2, 3, 4)}
    views_picture(views, ("target", "focal"), tmp_path / "v.png", **PLAIN)
    red, green = count(tmp_path / "v.png", (255, 0, 0)), count(tmp_path / "v.png", (0, 255, 0))
    assert red == pytest.approx(3 * 150**2, rel=0.05)  # 3 images of an inch
    assert green == pytest.approx(2 * 3 * 75**2, rel=0.05)  # 2 x 3 of half an inch


def test_dropped_patches_are_marked_where_they_were(tmp_path: Path) -> None:
    views = {"anchor": solid((1, 0, 0), 1, 1, 8)}
    kept = {"anchor": KeptPatches([0, 1, 2], 4)}  # of 2 x 2 patches the last is dropped
    views_picture(views, ("anchor",), tmp_path / "v.png", kept=kept, **PLAIN)
    image = pixels(tmp_path / "v.png")
    sky = np.argwhere((image == np.array(SKY_RGB)).all(-1))
    red = np.argwhere((image == np.array((255, 0, 0))).all(-1))
    assert len(sky) == pytest.approx(len(red) / 3, rel=0.05)
    assert tuple(sky.max(0)) == tuple(np.vstack([red, sky]).max(0))  # lower right
    assert sky.min(0)[0] > red.min(0)[0]
    assert sky.min(0)[1] > red.min(0)[1]


def test_pixels_come_back_from_normalized_views() -> None:
    image = torch.arange(256, dtype=torch.float64).reshape(1, 1, 16, 16).expand(2, 3, 16, 16) / 255
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    scale = torch.tensor([mean, std], dtype=torch.float64)[:, None, :, None, None]
    shown = _denormalized(((image - scale[0]) / scale[1]).float(), mean, std)
    assert np.array_equal(shown[0, ..., 0].reshape(-1), np.arange(256))
    assert shown.shape == (2, 16, 16, 3)


@pytest.mark.parametrize("shape", [(8, 8, 3), (40, 400, 3), (500, 30, 3), (1, 1, 3)])
def test_originals_of_any_size_are_shown_whole(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    image = np.full(shape, (0, 0, 255), dtype=np.uint8)
    views = {"target": solid((1, 0, 0), 1, 2, 8)}
    views_picture(views, ("target",), tmp_path / "v.png", originals=[image], **PLAIN, count=5)
    found = np.argwhere((pixels(tmp_path / "v.png") == np.array((0, 0, 255))).all(-1))
    height, width = found.max(0) - found.min(0) + 1
    assert width / height == pytest.approx(shape[1] / shape[0], rel=0.15)
    assert max(width, height) == pytest.approx(150, abs=3)


def write_lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def record(step: int, **changed: object) -> dict[str, object]:
    return {"step": step, "loss": 4.0 - step / 100, "ploss": 3.0, "mean_entropy": 2.0, **changed}


@pytest.mark.parametrize("steps", [1, 2, 39, 400])
def test_curves_of_any_length(tmp_path: Path, steps: int) -> None:
    metrics = write_lines(tmp_path / "metrics.jsonl", *(record(step) for step in range(steps)))
    curves_picture(metrics, tmp_path / "c.png", num_prototypes=64)
    first = (tmp_path / "c.png").read_bytes()
    curves_picture(metrics, tmp_path / "c.png", num_prototypes=64)
    assert (tmp_path / "c.png").read_bytes() == first
    colors = {tuple(color) for color in pixels(tmp_path / "c.png").reshape(-1, 3)}
    assert {(0, 0x72, 0xB2), (0xD5, 0x5E, 0), (0, 0x9E, 0x73)} <= colors  # all three lines are there


def test_metrics_are_read_with_gaps_and_an_unfinished_last_line(tmp_path: Path) -> None:
    metrics = write_lines(tmp_path / "m", record(0, loss=None), {"step": 1, "other": 1.0}, record(2))
    with metrics.open("a", encoding="utf-8") as file:
        file.write('{"step": 3, "lo')
    columns = read_metrics(metrics, ("step", "loss"))
    assert columns["step"].tolist() == [0.0, 2.0]
    assert math.isnan(columns["loss"][0])
    assert columns["loss"][1] == pytest.approx(3.98)
    curves_picture(metrics, tmp_path / "c.png", num_prototypes=8)


def test_metrics_that_cannot_be_drawn_say_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_metrics(tmp_path / "absent", ("step", "loss"))
    with pytest.raises(DataError, match="nothing to draw"):
        read_metrics(write_lines(tmp_path / "a"), ("step", "loss"))
    with pytest.raises(DataError, match="without a number for 'ploss'"):
        read_metrics(write_lines(tmp_path / "b", {"step": 1, "loss": 1.0}), ("step", "loss", "ploss"))
    with pytest.raises(DataError, match="without a number for 'loss'"):
        read_metrics(write_lines(tmp_path / "c", {"step": 1, "loss": "x"}), ("step", "loss"))
    with pytest.raises(DataError, match="line 1 is no record"):
        read_metrics(write_lines(tmp_path / "d", [1, 2]), ("step", "loss"))
    (tmp_path / "e").write_text('{"broken\n{"step": 1, "loss": 2.0}\n', encoding="utf-8")
    with pytest.raises(DataError, match="line 1 is no JSON"):
        read_metrics(tmp_path / "e", ("step", "loss"))


def test_the_running_mean_leaves_out_what_is_not_finite_and_what_is_beyond_the_ends() -> None:
    value = np.array([1.0, 2.0, math.nan, 4.0, 6.0])
    assert _running_mean(value, 1).tolist() == [1.5, 1.5, 3.0, 5.0, 5.0]
    assert np.isnan(_running_mean(np.full(3, math.nan), 1)).all()


@pytest.mark.parametrize("num_classes", [1, 2, 25, 26, 130])
def test_confusions_of_any_number_of_classes(tmp_path: Path, num_classes: int) -> None:
    matrix = np.eye(num_classes, dtype=np.int64) * 7
    matrix[0, -1] += 2
    names = [f"a class with a rather long name {number}" for number in range(num_classes)]
    confusion_picture(matrix, names, tmp_path / "c.png", title="true against predicted")
    size = Image.open(tmp_path / "c.png").size
    assert max(size) <= 15.5 * 150
    assert min(size) >= 3 * 150


def test_a_line_of_the_confusion_is_a_true_class(tmp_path: Path) -> None:
    matrix = np.zeros((4, 4))
    matrix[0, 3] = 1.0  # class 0 taken for class 3; the other classes have no image
    confusion_picture(matrix, list("abcd"), tmp_path / "c.png")
    dark = np.argwhere(pixels(tmp_path / "c.png")[..., 0] < 30)  # the cell, and letters
    image = pixels(tmp_path / "c.png")
    blue = np.argwhere((image[..., 2] > 100) & (image[..., 0] < 60))
    height, width = image.shape[:2]
    assert len(dark) < len(blue)
    assert blue.mean(0)[0] < height / 2  # upper
    assert blue.mean(0)[1] > width / 2  # right


def test_class_names_that_are_no_formula_and_no_text(tmp_path: Path) -> None:
    names = ["a$b_{", "$x^", "new\nline", "caf\udce9", "\x1b[31m"]
    confusion_picture(np.eye(5), names, tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 1000


def test_a_confusion_must_fit_its_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 x 3, not"):
        confusion_picture(np.zeros((2, 2)), list("abc"), tmp_path / "c.png")


def test_counts_are_short_and_nothing_is_blank() -> None:
    words = [_count_words(value, whole=False) for value in (0.0, 0.04, 0.05, 0.3, 9.94, 9.96, 43.2)]
    assert words == ["", "", "0.1", "0.3", "9.9", "10", "43"]
    assert [_count_words(value, whole=True) for value in (0.0, 1.0, 120.0)] == ["", "1", "120"]

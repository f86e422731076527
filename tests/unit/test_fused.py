"""The fused renderer against the torch operations: equal bits.

Without a GPU the kernels run in Triton's interpreter, in a process of their own: the interpreter changes
Triton for good. That process is this file as a script; it renders every case. What the interpreter cannot
show (how a GPU rounds) is shown by arithmetic over all colours, and by the code compiled for a GPU.
"""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from belvedere.data.spec import Blur, Jitter, Photometry, ViewSpec
from belvedere.data.views import fused
from belvedere.data.views.color import hsv_to_rgb, rgb_to_hsv
from belvedere.data.views.draw import NUM_COLUMNS, Column, draw, view_key
from belvedere.data.views.fused_parameters import NOTHING, PLACES, Field, Head, packed, short_hues
from belvedere.data.views.photometry import normalize, photometry

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FACTORS = (0.0, 0.2, 0.61234, 0.999999999, 1.3789, 1.8, 4.0)
TURNS = (-0.5, -0.1, -0.031, 0.0001, 0.0456, 0.1, 0.5)
RADII = (0.1, 0.5, 1.0478468517732487, 1.3, 2.0, 5.0)
COUNTS = {(7, 13, 3): 4, (1, 1, 3): 3, (33, 5, 3): 3, (28, 28, 3): 3, (28, 28, 1): 3}


def plain(number: int) -> np.ndarray:
    """Rows that change nothing."""
    rows = np.zeros((number, NUM_COLUMNS))
    rows[:, Column.BRIGHTNESS : Column.HUE] = 1.0
    rows[:, Column.ORDER_0 : Column.ORDER_3 + 1] = np.arange(4)
    return rows


def with_column(column: Column, values: tuple[float, ...], *, switch: Column) -> np.ndarray:
    rows = plain(len(values))
    rows[:, switch] = 1.0
    rows[:, column] = values
    return rows


def every_order() -> np.ndarray:
    orders = np.array(list(itertools.permutations(range(4))))
    rows = plain(len(orders))
    rows[:, Column.JITTER] = 1.0
    rows[:, Column.BRIGHTNESS : Column.HUE + 1] = (1.3, 0.6, 1.7, 0.13)
    rows[:, Column.ORDER_0 : Column.ORDER_3 + 1] = orders
    return rows


def recipe_view(px: int = 28) -> ViewSpec:
    looks = Photometry(
        flip=0.5,
        jitter=Jitter(p=0.8, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2),
        gray=0.2,
        blur=Blur(p=0.5, radius=(0.1, 2.0)),
        solarize=0.2,
    )
    return ViewSpec(
        count=1, px=px, scale=(0.2, 1.0), aspect=(0.75, 4 / 3), interpolation="bilinear", photometry=looks
    )


def drawn(number: int, *, view: ViewSpec | None = None) -> np.ndarray:
    sizes = np.tile((64, 64), (number, 1))
    return draw(view or recipe_view(), view_key(3, 0, "target"), np.arange(number), sizes)[:, 0]


def mixed(number: int) -> np.ndarray:
    """Drawn rows among which every switch is on for some and off for others."""
    rows = drawn(number)
    for turn, column in enumerate((Column.FLIP, Column.JITTER, Column.BLUR, Column.SOLARIZE, Column.GRAY)):
        rows[:, column] = (np.arange(number) + turn) % 3 > 0
    return rows


def noise(number: int, height: int, width: int, channels: int = 3) -> torch.Tensor:
    rng = np.random.default_rng(height * 1000 + width)
    pixels = rng.integers(0, 256, (number, channels, height, width), dtype=np.uint8)
    pixels[:, :, ::3] = pixels[:, :1, ::3]  # gray lines, and lines of two equal channels
    pixels[:, -1, 1::3] = pixels[:, 0, 1::3]
    return torch.from_numpy(pixels)


def saturated(number: int) -> torch.Tensor:
    """Every hue that is exactly a level, at four spreads [number, 3, 32, 32]."""
    level = torch.arange(256, dtype=torch.int32).repeat(4).view(1, 32, 32)
    full = torch.tensor([255, 170, 85, 34], dtype=torch.int32).repeat_interleave(256).view(1, 32, 32)
    return hsv_to_rgb(level, torch.full_like(level, 255), full).repeat(number, 1, 1, 1)


def alone() -> dict[str, tuple[torch.Tensor, np.ndarray]]:
    """Crops and rows by name: one operation at a time."""
    jitters = {
        name.lower(): with_column(Column[name], FACTORS, switch=Column.JITTER)
        for name in ("BRIGHTNESS", "CONTRAST", "SATURATION")
    }
    turns = with_column(Column.HUE, TURNS, switch=Column.JITTER)
    switched = {
        name: with_column(Column[name.upper()], (1.0, 0.0), switch=Column.NOISE)
        for name in ("flip", "gray", "solarize")
    }
    cases = {name: (noise(len(rows), 17, 23), rows) for name, rows in {**jitters, **switched}.items()}
    cases["nothing"] = (noise(2, 7, 9), plain(2))
    cases["hue"] = (noise(len(turns), 17, 23), turns)
    cases["exact hues"] = (saturated(len(turns)), turns)
    blurs = with_column(Column.RADIUS, RADII, switch=Column.BLUR)
    cases["blur"] = (noise(len(blurs), 13, 21, 1), blurs)
    cases["blur of a dot"] = (noise(3, 1, 2, 1), blurs[::2])
    return cases


def together() -> dict[str, tuple[torch.Tensor, np.ndarray]]:
    """Crops and rows by name: whole rows."""
    cases = {"every order": (noise(24, 9, 11), every_order())}
    for (height, width, channels), number in COUNTS.items():
        cases[f"whole rows {height}x{width}x{channels}"] = (
            noise(number, height, width, channels),
            mixed(number),
        )
    return cases


def cases() -> dict[str, tuple[torch.Tensor, np.ndarray, torch.dtype]]:
    both = {**alone(), **together()}
    narrow = {f"{name}, bfloat16": (*both[name], torch.bfloat16) for name in ("hue", "whole rows 7x13x3")}
    return {**{name: (*case, torch.float32) for name, case in both.items()}, **narrow}


def expected(crops: torch.Tensor, rows: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return normalize(photometry(crops, rows), MEAN, STD, dtype)


def rendered(crops: torch.Tensor, rows: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return fused.finish(crops, rows, mean=MEAN, std=STD, dtype=dtype)


CASES = cases()

# --- in the interpreter


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory) -> dict[str, torch.Tensor]:
    pytest.importorskip("triton")
    path = tmp_path_factory.mktemp("fused") / "views.pt"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), str(path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("name", CASES)
def test_interpreted_kernels_equal_the_torch_operations(interpreted, name):
    crops, rows, dtype = CASES[name]
    ours, theirs = interpreted[name], expected(crops, rows, dtype)
    assert ours.dtype == theirs.dtype == dtype
    assert ours.shape == theirs.shape == (len(crops), 3, *crops.shape[2:])
    assert torch.equal(ours, theirs), f"{(ours != theirs).sum()} of {ours.numel()} differ"
    if name != "nothing":
        assert not torch.equal(theirs, expected(crops, plain(len(rows)), dtype))


def test_a_row_renders_alike_in_any_batch(interpreted):
    whole = interpreted["whole rows 7x13x3"]
    assert torch.equal(interpreted["every second"], whole[::2])
    assert torch.equal(interpreted["last alone"], whole[-1:])


def test_crops_are_left_alone_and_no_view_is_no_work(interpreted):
    assert interpreted["crops after"].equal(CASES["whole rows 7x13x3"][0])
    assert interpreted["no views"].shape == (0, 3, 8, 8)
    assert interpreted["no pixels"].shape == (2, 3, 0, 8)


# --- how a GPU computes


def test_the_code_for_a_gpu_rounds_every_operation(monkeypatch, tmp_path):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from belvedere.data.views import fused_kernels as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = {
        **dict.fromkeys(("crops", "blurred", "source", "target"), "*u8"),
        **dict.fromkeys(("height", "width", "tiles"), "i32"),
        **dict.fromkeys(("CHANNELS", "DOWN"), "constexpr"),
        "batch": "*i32",
        "totals": "*i64",
        "views": "*bf16",
    }
    kinds = set()
    for kernel in (kernels.sum_luma, kernels.color, kernels.blur, kernels.last_blur):
        signature = {name: types[name] for name in kernel.arg_names}
        constants = {name: value for name, value in (("CHANNELS", 3), ("DOWN", True)) if name in signature}
        source = ASTSource(kernel, signature=signature, constexprs=constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(fused.LAUNCH))
        kinds |= set(re.findall(r"\b[a-z]+[.\w]*\.f(?:32|64)\b", compiled.asm["ptx"]))
    arithmetic = {kind for kind in kinds if kind.startswith(("add", "sub", "mul", "div", "fma", "mad"))}
    assert arithmetic == {"add.rn.f32", "sub.rn.f32", "mul.rn.f32", "div.full.f32"}
    assert not any("f64" in kind for kind in kinds)


def quotient(number: torch.Tensor, divisor: torch.Tensor, *, off: float) -> torch.Tensor:
    """`fused_kernels._quotient` by a division that is wrong by the share `off`."""
    return ((number.float() + 0.5) / divisor.float() * (1.0 + off)).int()


@pytest.mark.parametrize("off", [-(2.0**-20), 2.0**-20])
def test_hue_and_saturation_of_every_colour(off):
    """As `rgb_to_hsv` has them, by divisions four times worse than a GPU's fast one, in either direction."""
    short = torch.from_numpy(short_hues())
    channel = torch.arange(256, dtype=torch.int32)
    for red in range(256):
        g, b = torch.meshgrid(channel, channel, indexing="ij")
        r = torch.full_like(g, red)
        high, low = torch.maximum(torch.maximum(r, g), b), torch.minimum(torch.minimum(r, g), b)
        spread = high - low
        from_red = g - b + torch.where(g < b, 6 * spread, 0)
        other = torch.where(g == high, 2 * spread + b - r, 4 * spread + r - g)
        numerator = torch.where(r == high, from_red, other)
        circle = (6 * spread).clamp(min=1)
        hue = quotient(255 * numerator, circle, off=off)
        hue = hue - torch.where(hue * circle == 255 * numerator, short[hue], 0)
        saturation = quotient(255 * spread, high.clamp(min=1), off=off)
        crops = torch.stack([r, g, b]).to(torch.uint8).view(1, 3, 1, -1)
        theirs = [part.view(-1) for part in rgb_to_hsv(crops)]
        assert torch.equal(hue.view(-1), theirs[0])
        assert torch.equal(saturation.view(-1), theirs[1])


def test_every_hue_saturation_and_value_back_to_a_colour():
    """The whole-number formula of `fused_kernels._facet` over all 2**24."""
    level = torch.arange(256, dtype=torch.int32)
    hue, saturation = torch.meshgrid(level, level, indexing="ij")
    turn = 6 * hue
    weights = (
        torch.minimum(turn - 255, 1275 - turn),
        torch.maximum(255 - turn, turn - 765),
        torch.maximum(765 - turn, turn - 1275),
    )
    kept = [65025 - saturation * weight.clamp(0, 255) for weight in weights]
    for value in range(256):
        ours = torch.stack([(2 * value * part + 65025) // 130050 for part in kept]).to(torch.uint8)
        theirs = hsv_to_rgb(hue[None], saturation[None], torch.full_like(hue, value)[None])[0]
        assert torch.equal(ours, theirs)


# --- parameters


def test_packed_rows_list_the_views_with_contrast_and_blur():
    rows = drawn(200)
    zero = np.zeros(3, dtype=np.float32)
    array, with_contrast, with_blur = packed(rows, gray=False, factor=zero, offset=zero)
    fields = array[Head.END :].reshape(200, Field.COUNT)
    assert 0 < with_contrast == ((rows[:, Column.JITTER] > 0) & (rows[:, Column.CONTRAST] != 1)).sum() < 200
    assert 0 < with_blur == (rows[:, Column.BLUR] > 0).sum() < 200
    assert np.array_equal(fields[:with_blur, Field.BLURRED], np.flatnonzero(rows[:, Column.BLUR]))
    assert np.array_equal(fields[fields[:with_blur, Field.BLURRED], Field.BLUR], np.arange(with_blur))
    assert (fields[fields[:with_contrast, Field.CONTRASTED], Field.CONTRAST_AT] < PLACES).all()
    still = rows[:, Column.JITTER] == 0
    assert (fields[still, Field.OPERATION : Field.AMOUNT] == NOTHING).all()


def test_gray_crops_have_no_colour_operations():
    zero = np.zeros(3, dtype=np.float32)
    array, _, _ = packed(every_order(), gray=True, factor=zero, offset=zero)
    operations = array[Head.END :].reshape(24, Field.COUNT)[:, Field.OPERATION : Field.AMOUNT]
    assert set(operations.ravel().tolist()) == {NOTHING, 0, 1}


def test_what_keeps_the_kernels_from_running_is_said(monkeypatch):
    assert "not cpu" in fused.obstacle(torch.device("cpu"), torch.float32)
    assert not fused.renders(torch.device("cpu"), torch.float32)
    device = torch.device("cuda")
    assert "float64" in fused.obstacle(device, torch.float64)
    monkeypatch.setattr(fused, "find_spec", lambda name: None)
    assert "not installed" in fused.obstacle(device, torch.float32)
    monkeypatch.setattr(fused, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old card")
    assert "an old card" in fused.obstacle(device, torch.float32)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(fused.shutil, "which", lambda name: None)
    assert "compiler" in fused.obstacle(device, torch.float32)


# --- on a GPU


@pytest.fixture
def device() -> torch.device:
    chosen = torch.device("cuda")
    if not torch.cuda.is_available() or fused.obstacle(chosen, torch.float32):
        pytest.skip("needs a CUDA device that the kernels run on")
    return chosen


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_kernels_on_a_gpu_equal_the_torch_operations_on_a_cpu(device, name):
    crops, rows, dtype = CASES[name]
    assert torch.equal(rendered(crops.to(device), rows, dtype).cpu(), expected(crops, rows, dtype))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", fused.DTYPES, ids=str)
@pytest.mark.parametrize(("number", "px"), [(512, 224), (2560, 96)])
def test_a_batch_on_a_gpu_equals_the_torch_operations(device, number, px, dtype):
    crops = torch.randint(0, 256, (number, 3, px, px), dtype=torch.uint8, device=device)
    rows = drawn(number, view=recipe_view(px))
    assert torch.equal(rendered(crops, rows, dtype), expected(crops, rows, dtype))


@pytest.mark.gpu
def test_all_colours_turn_alike_on_a_gpu(device):
    code = torch.arange(2**24, dtype=torch.int32, device=device).view(1, 4096, 4096)
    crops = torch.stack([code >> 16, code >> 8 & 255, code & 255], dim=1).to(torch.uint8)
    for turn in TURNS:
        rows = with_column(Column.HUE, (turn,), switch=Column.JITTER)
        assert torch.equal(
            rendered(crops, rows, torch.float32).cpu(), expected(crops.cpu(), rows, torch.float32)
        )


@pytest.mark.gpu
def test_the_device_is_not_waited_for(device):
    crops, rows = noise(64, 96, 96).to(device), drawn(64)
    rendered(crops, rows, torch.float32)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        views = rendered(crops, rows, torch.float32)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(views, expected(crops, rows, torch.float32))


def main(path: str) -> None:
    """Render every case and a few more; called with TRITON_INTERPRET=1."""
    views = {name: rendered(*case) for name, case in CASES.items()}
    crops, rows, dtype = CASES["whole rows 7x13x3"]
    views["every second"] = rendered(crops[::2], rows[::2], dtype)
    views["last alone"] = rendered(crops[-1:], rows[-1:], dtype)
    views["crops after"] = crops
    views["no views"] = rendered(noise(0, 8, 8), plain(0), dtype)
    views["no pixels"] = rendered(noise(2, 0, 8), plain(2), dtype)
    torch.save(views, path)


if __name__ == "__main__":
    main(sys.argv[1])

"""Rendering against Pillow and torchvision, given the same parameters.

Stated tolerance: every operation is equal to Pillow's, byte for byte, and so is the whole chain when Pillow
resizes across first, as it always did before version 13; since then, one level for bilinear, two for bicubic.
"""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from sklearn.datasets import load_sample_images

from belvedere.data.spec import Blur, DataSpec, Jitter, Photometry, ViewSpec
from belvedere.data.views.blur import gaussian_blur
from belvedere.data.views.color import adjust_hue, adjust_saturation, hsv_to_rgb, luma, rgb_to_hsv
from belvedere.data.views.draw import NUM_COLUMNS, Column, draw, view_key
from belvedere.data.views.geometry import geometry, small_geometry
from belvedere.data.views.photometry import brightness, contrast, normalize, photometry
from belvedere.data.views.render import crop, finish

F = pytest.importorskip("torchvision.transforms.functional")
NOISE = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
PIL = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    return [np.ascontiguousarray(image) for image in load_sample_images().images]


@pytest.fixture(scope="module", params=["china", "flower", "noise"])
def picture(request, photographs) -> np.ndarray:
    if request.param == "noise":
        return NOISE
    return photographs[request.param == "flower"][100:260, 200:420].copy()


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]


def pixels(crops: torch.Tensor) -> np.ndarray:
    return crops[0].permute(1, 2, 0).numpy()


def same(ours: np.ndarray, theirs: Image.Image) -> None:
    theirs_array = np.asarray(theirs)
    assert ours.shape == theirs_array.shape
    difference = np.abs(ours.astype(int) - theirs_array.astype(int))
    assert difference.max() == 0, f"mean {difference.mean()}, largest {difference.max()}"


def factor(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


# --- single operations


@pytest.mark.parametrize("value", [0.0, 0.2, 0.61234, 1.0, 1.3789, 1.8, 4.0])
def test_brightness_contrast_saturation_equal_pillow(picture, value):
    image = Image.fromarray(picture)
    same(pixels(brightness(tensor(picture), factor(value))), F.adjust_brightness(image, value))
    same(pixels(contrast(tensor(picture), factor(value))), F.adjust_contrast(image, value))
    same(pixels(adjust_saturation(tensor(picture), factor(value))), F.adjust_saturation(image, value))


@pytest.mark.parametrize("value", [-0.5, -0.1, -0.031, 0.0, 0.0456, 0.1, 0.5])
def test_hue_equals_torchvision(picture, value):
    same(pixels(adjust_hue(tensor(picture), factor(value))), F.adjust_hue(Image.fromarray(picture), value))


def test_hsv_equals_pillow_on_many_colours():
    colours = np.random.default_rng(1).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    colours[:256, :, 0] = colours[:256, :, 1]  # equal channels, where the sector is decided
    colours[256:400, :, 2] = colours[256:400, :, 0]
    colours[400:420] = colours[400:420, :, :1]
    theirs = np.asarray(Image.fromarray(colours).convert("HSV"))
    ours = torch.stack(rgb_to_hsv(tensor(colours)), dim=-1)[0].numpy()
    assert np.array_equal(ours, theirs)
    back = hsv_to_rgb(*tensor(colours).to(torch.int32).unbind(dim=1))
    same(pixels(back), Image.frombytes("HSV", (700, 700), colours.tobytes()).convert("RGB"))


@pytest.mark.parametrize("radius", [0.1, 0.3, 0.5, 1.0, 1.0478468517732487, 1.3, 1.5, 2.0, 2.7, 5.0, 40.0])
def test_blur_equals_pillow(picture, radius):
    same(
        pixels(gaussian_blur(tensor(picture), np.array([radius]))),
        Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)),
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (8, 8), (2, 3)])
def test_blur_of_tiny_images_equals_pillow(size):
    image = np.random.default_rng(2).integers(0, 256, (*size, 3), dtype=np.uint8)
    radii = np.linspace(0.1, 6.0, 23)
    blurred = gaussian_blur(tensor(image).expand(len(radii), -1, -1, -1), radii)
    for one, radius in zip(blurred, radii.tolist(), strict=True):
        same(pixels(one[None]), Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def test_gray_equals_pillow(picture):
    assert np.array_equal(
        luma(tensor(picture))[0, 0].numpy(), np.asarray(Image.fromarray(picture).convert("L"))
    )


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("height", "width", "channels"), [(8, 8, 1), (28, 28, 1), (17, 40, 3), (64, 64, 3), (1, 5, 3)]
)
@pytest.mark.parametrize("px", [1, 8, 16, 28, 70])
def test_batched_crops_equal_pillow(interpolation, height, width, channels, px):
    rng = np.random.default_rng(px)
    images = rng.integers(0, 256, (6, height, width, channels), dtype=np.uint8)
    images[0] = (rng.random((height, width, channels)) > 0.5) * 255  # overshoots with bicubic
    spec = view(count=4, px=px, interpolation=interpolation)
    rows = draw(spec, 5, np.arange(6), np.tile((height, width), (6, 1)))
    ours = small_geometry(images, rows, px, interpolation=interpolation)
    assert ours.shape == (4, 6, channels, px, px)
    for number, image in enumerate(images):
        rgb = np.repeat(image, 3, axis=-1) if channels == 1 else image
        theirs = geometry(rgb, rows[number], px, interpolation=interpolation)
        assert np.array_equal(ours[:, number], theirs[:, :channels])


def test_crops_of_photographs_equal_torchvision(photographs):
    for interpolation in ("bilinear", "bicubic"):
        spec = view(count=5, px=96, interpolation=interpolation)
        rows = draw(spec, 3, np.arange(1), np.array([photographs[0].shape[:2]]))[0]
        ours = geometry(photographs[0], rows, 96, interpolation=interpolation)
        mode = F.InterpolationMode.BILINEAR if interpolation == "bilinear" else F.InterpolationMode.BICUBIC
        for one, row in zip(ours, rows, strict=True):
            box = [int(value) for value in row[: Column.WIDTH + 1]]
            theirs = np.asarray(F.resized_crop(Image.fromarray(photographs[0]), *box, [96, 96], mode))
            difference = np.abs(one.transpose(1, 2, 0).astype(int) - theirs)
            assert difference.max() <= (1 if interpolation == "bilinear" else 2)
            assert difference.mean() < 0.25


# --- the whole chain


def view(*, count=1, px=32, interpolation="bilinear", solarize=0.2) -> ViewSpec:
    looks = Photometry(
        flip=0.5,
        jitter=Jitter(p=0.8, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2),
        gray=0.2,
        blur=Blur(p=0.5, radius=(0.1, 2.0)),
        solarize=solarize,
    )
    return ViewSpec(
        count=count,
        px=px,
        scale=(0.3, 1.0),
        aspect=(3 / 4, 4 / 3),
        interpolation=interpolation,
        photometry=looks,
    )


def published(image: np.ndarray, row: np.ndarray, px: int, interpolation: str) -> Image.Image:
    """The chain of the papers on one view, by Pillow and torchvision."""
    top, left, height, width = (int(value) for value in row[: Column.WIDTH + 1])
    out = Image.fromarray(image).crop((left, top, left + width, top + height))
    out = out.resize((px, height), PIL[interpolation]).resize((px, px), PIL[interpolation])  # across first
    if row[Column.FLIP]:
        out = F.hflip(out)
    if row[Column.JITTER]:
        adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
        for number in row[Column.ORDER_0 : Column.ORDER_3 + 1].astype(int):
            out = adjust[number](out, float(row[Column.BRIGHTNESS + number]))
    if row[Column.GRAY]:
        out = F.to_grayscale(out, 3)
    if row[Column.BLUR]:
        out = out.filter(ImageFilter.GaussianBlur(float(row[Column.RADIUS])))
    if row[Column.SOLARIZE]:
        out = ImageOps.solarize(out, 128)
    return out


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_whole_chain_equals_the_published_one(photographs, interpolation):
    images = [photographs[0], photographs[1][:300, :333], NOISE]
    spec = view(count=24, px=64, interpolation=interpolation)
    sizes = np.array([image.shape[:2] for image in images])
    rows = draw(spec, view_key(0, 0, "target"), np.arange(3), sizes)  # [3, 24, P]
    crops = crop(spec, images, rows)
    changed = photometry(crops.flatten(0, 1), rows.transpose(1, 0, 2).reshape(72, -1)).unflatten(0, (24, 3))
    for number, image in enumerate(images):
        for place in range(24):
            same(
                changed[place, number].permute(1, 2, 0).numpy(),
                published(image, rows[number, place], 64, interpolation),
            )


def test_gray_images_are_rendered_in_one_channel_to_the_same_views():
    images = np.random.default_rng(3).integers(0, 256, (40, 28, 28, 1), dtype=np.uint8)
    spec = view(count=3, px=16)
    rows = draw(spec, 9, np.arange(40), np.tile((28, 28), (40, 1)))
    data = DataSpec(
        path=None, split=None, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), max_bad_share=0.0
    )
    one = finish(crop(spec, images, rows), rows, data=data, dtype=torch.float32)
    three = finish(crop(spec, list(images), rows), rows, data=data, dtype=torch.float32)
    assert one.shape == (3, 40, 3, 16, 16)
    assert torch.equal(one, three)


def test_rows_render_independently_and_leave_their_input_alone():
    crops = torch.from_numpy(np.random.default_rng(4).integers(0, 256, (30, 3, 20, 20), dtype=np.uint8))
    rows = draw(view(), 2, np.arange(30), np.tile((20, 20), (30, 1)))[:, 0]
    before = crops.clone()
    whole = photometry(crops, rows)
    assert torch.equal(crops, before)
    assert not torch.equal(whole, before)
    for start in (0, 7, 22):
        assert torch.equal(
            whole[start : start + 7], photometry(crops[start : start + 7], rows[start : start + 7])
        )


def test_rows_that_ask_for_nothing_change_nothing():
    crops = torch.from_numpy(NOISE.transpose(2, 0, 1)[None].copy())
    assert torch.equal(photometry(crops, np.zeros((1, NUM_COLUMNS))), crops)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_normalize(dtype, tolerance):
    crops = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ours = normalize(crops, mean, std, dtype)
    assert ours.dtype == dtype
    theirs = F.normalize(crops.double() / 255, mean, std)
    assert (ours.double() - theirs).abs().max() < 3 * tolerance
    gray = normalize(crops[:, :1], mean, std, dtype)
    assert torch.equal(gray, ours)


@pytest.mark.gpu
def test_the_device_renders_the_same_bytes():
    crops = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (200, 3, 96, 96), dtype=np.uint8))
    rows = draw(view(), 2, np.arange(200), np.tile((96, 96), (200, 1)))[:, 0]
    assert torch.equal(photometry(crops, rows), photometry(crops.to("cuda"), rows).cpu())


def test_a_jpeg_through_the_whole_path_is_close_to_torchvision(photographs):
    file = io.BytesIO()
    Image.fromarray(photographs[1]).save(file, "JPEG", quality=90)
    image = np.asarray(Image.open(file).convert("RGB"))
    spec = view(count=2, px=48)
    rows = draw(spec, 1, np.arange(1), np.array([image.shape[:2]]))
    data = DataSpec(path=None, split=None, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), max_bad_share=0.0)
    views = finish(crop(spec, [image], rows), rows, data=data, dtype=torch.float64)
    for place in range(2):
        theirs = F.to_tensor(published(image, rows[0, place], 48, "bilinear")).double()
        assert (views[place, 0] - (theirs - 0.5) / 0.25).abs().max() < 1e-6

from __future__ import annotations

import numpy as np
import pytest
import torch
from eval_fakes import BrokenSource, FakeBackbone, FakeCard, coloured_source, feature_spec

from belvedere.core.errors import DataError, EvaluationError
from belvedere.data.sources.source import read
from belvedere.eval.features import evaluation_pixels, extract, feature, image_transform
from belvedere.eval.pixels import pixel_rows, standardised
from belvedere.nn.backbone import Block, Features

RNG = np.random.RandomState(0)


def _output(stages: tuple[int, ...] = (0, 1, 1), *, cls: bool = True) -> tuple[Features, torch.nn.LayerNorm]:
    generator = torch.Generator().manual_seed(1)
    blocks = tuple(
        Block(
            torch.randn(2, 5, 6, generator=generator),
            torch.randn(2, 6, generator=generator) if cls else None,
            None,
            6,
            stage,
        )
        for stage in stages
    )
    pooled = torch.randn(2, 6, generator=generator)
    norm = torch.nn.LayerNorm(6)
    torch.nn.init.normal_(norm.weight, generator=generator)
    return Features(pooled, pooled, blocks[-1].tokens, None, blocks), norm


def _cls(output: Features, number: int) -> torch.Tensor:
    cls = output.blocks[number].cls
    assert cls is not None
    return cls


def test_msn_feature_is_the_last_class_token_without_the_norm() -> None:
    output, norm = _output()
    assert torch.equal(feature(output, feature_spec(), norm), _cls(output, -1))


def test_blocks_stand_oldest_first_and_norm_goes_by_stage() -> None:
    output, norm = _output()
    got = feature(output, feature_spec(blocks=3, norm="last_stage"), norm)
    expected = torch.cat([_cls(output, 0), norm(_cls(output, 1)), norm(_cls(output, 2))], 1)
    assert torch.equal(got, expected)
    everywhere = feature(output, feature_spec(blocks=2, norm="all"), norm)
    assert torch.equal(everywhere, expected[:, 6:])


def test_mean_is_of_normed_tokens_and_cls_comes_first() -> None:
    output, norm = _output()
    got = feature(output, feature_spec(source="cls+mean", norm="all"), norm)
    expected = torch.cat([norm(_cls(output, -1)), norm(output.blocks[-1].tokens).mean(1)], 1)
    torch.testing.assert_close(got, expected)
    mean = feature(output, feature_spec(source="mean"), norm)
    torch.testing.assert_close(mean, output.blocks[-1].tokens.mean(1))


def test_pooled_is_the_backbones_own_and_float32() -> None:
    output, norm = _output()
    got = feature(output._replace(pooled=output.pooled.double()), feature_spec(source="pooled"), norm)
    assert got.dtype == torch.float32
    assert torch.equal(got, output.pooled)
    whole = extract(FakeBackbone(), FakeCard(feature_spec(source="pooled")), coloured_source({"a": 3}))
    assert whole.features.shape == (3, 12)


def test_features_that_do_not_exist_are_named() -> None:
    output, norm = _output(cls=False)
    with pytest.raises(EvaluationError, match="no class token; use 'mean'"):
        feature(output, feature_spec(), norm)
    with pytest.raises(EvaluationError, match=r"features.blocks is 4, but the backbone gives 3"):
        feature(output, feature_spec(source="mean", blocks=4), norm)
    source = coloured_source({"a": 2})
    with pytest.raises(EvaluationError, match="batch size"):
        extract(FakeBackbone(), FakeCard(feature_spec()), source, batch_size=0)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(300, 200), (200, 301), (64, 64), (31, 40), (256, 256)])
def test_pixels_equal_the_published_transform(size: tuple[int, int], interpolation: str) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    from PIL import Image

    pixels = RNG.randint(0, 256, (*size, 3)).astype(np.uint8)
    spec = feature_spec(resize_px=64, crop_px=56, interpolation=interpolation)
    mode = getattr(transforms.InterpolationMode, interpolation.upper())
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    reference = transforms.Compose(
        [
            transforms.Resize(64, interpolation=mode),
            transforms.CenterCrop(56),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )(Image.fromarray(pixels))
    torch.testing.assert_close(image_transform(pixels, spec, mean=mean, std=std), reference)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 2), (3, 4)])
def test_extreme_shapes_become_a_whole_crop(size: tuple[int, int]) -> None:
    pixels = np.full((*size, 3), 77, dtype=np.uint8)
    out = evaluation_pixels(pixels, feature_spec(resize_px=32, crop_px=24))
    assert out.shape == (24, 24, 3)
    assert (out == 77).all()


def test_extract_gives_the_rows_asked_for_in_their_order() -> None:
    source, backbone, card = (
        coloured_source({"a": 5, "b": 6}),
        FakeBackbone(),
        FakeCard(feature_spec(blocks=2)),
    )
    everything = extract(backbone, card, source, batch_size=4)
    assert everything.features.shape == (11, 24)
    assert everything.features.dtype == torch.float32
    assert np.array_equal(everything.index, np.arange(11))
    some = extract(backbone, card, source, indices=np.array([7, 2]), batch_size=1)
    torch.testing.assert_close(some.features, everything.features[[7, 2]])
    assert np.array_equal(some.index, [7, 2])
    assert not everything.features.requires_grad


def test_extract_is_the_forward_of_the_normalized_image() -> None:
    source, backbone, card = coloured_source({"a": 3}), FakeBackbone().eval(), FakeCard(feature_spec())
    image = (torch.from_numpy(read(source, 1)).permute(2, 0, 1).float() / 255 - 0.5) / 0.25
    expected = backbone(image[None], blocks=1).blocks[-1].cls
    torch.testing.assert_close(extract(backbone, card, source).features[1:2], expected)


def test_extract_repeats_its_bytes_and_hardly_sees_the_batch_size() -> None:
    source, backbone, card = coloured_source({"a": 20}), FakeBackbone(), FakeCard(feature_spec())
    first = extract(backbone, card, source, batch_size=8).features
    assert torch.equal(first, extract(backbone, card, source, batch_size=8, workers=1).features)
    torch.testing.assert_close(first, extract(backbone, card, source, batch_size=3).features)


def test_extract_restores_the_training_mode() -> None:
    backbone = FakeBackbone().train()
    backbone.norm.eval()
    extract(backbone, FakeCard(feature_spec()), coloured_source({"a": 2}))
    assert backbone.training
    assert backbone.dropout.training
    assert not backbone.norm.training


def test_unreadable_images_are_listed() -> None:
    source = coloured_source({"a": 6}, broken=frozenset({0, 4}))
    seen: list[tuple[int, int]] = []
    found = extract(
        FakeBackbone(),
        FakeCard(feature_spec()),
        source,
        batch_size=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert np.array_equal(found.index, [1, 2, 3, 5])
    assert len(found.features) == 4
    assert found.unreadable == {"0000.png": "truncated", "0004.png": "truncated"}
    assert seen == [(0, 6), (2, 6), (4, 6), (6, 6)]


def test_nothing_readable_is_an_error() -> None:
    card = FakeCard(feature_spec())
    with pytest.raises(
        DataError, match=r"none of the 2 images of 'fake' can be read:\n  0000.png: truncated"
    ):
        extract(FakeBackbone(), card, coloured_source({"a": 2}, broken=frozenset({0, 1})))
    with pytest.raises(DataError, match="no image"):
        extract(FakeBackbone(), card, coloured_source({"a": 2}), indices=np.empty(0, dtype=np.int64))


def test_other_errors_of_a_source_are_not_swallowed() -> None:
    class Failing(BrokenSource):
        def stored(self, index: int) -> np.ndarray:  # type: ignore[type-arg]
            raise MemoryError("no room")

    good = coloured_source({"a": 2})
    keys = [good.key(i) for i in range(2)]
    bad = Failing("bad", good.pixels, labels=good.labels, classes=good.classes, keys=keys)
    with pytest.raises(MemoryError):
        extract(FakeBackbone(), FakeCard(feature_spec()), bad)


def test_features_that_are_not_finite_are_refused() -> None:
    backbone = FakeBackbone()
    with torch.no_grad():
        backbone.second.fill_(torch.nan)
    with pytest.raises(EvaluationError, match=r"features of 2 images are not finite, first '0000.png'"):
        extract(backbone, FakeCard(feature_spec()), coloured_source({"a": 2}))


def test_bf16_runs_the_network_and_gives_float32() -> None:
    source, card = coloured_source({"a": 4}), FakeCard(feature_spec())
    full = extract(FakeBackbone(), card, source).features
    half = extract(FakeBackbone(), card, source, precision="bf16").features
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    torch.testing.assert_close(half, full, rtol=0.05, atol=0.05)


def test_a_float64_backbone_gives_float32_features() -> None:
    source, card = coloured_source({"a": 4}), FakeCard(feature_spec())
    double = extract(FakeBackbone().double(), card, source).features
    assert double.dtype == torch.float32
    torch.testing.assert_close(double, extract(FakeBackbone(), card, source).features)


def test_pixel_rows_have_one_channel_where_all_is_gray() -> None:
    colour = coloured_source({"a": 3})
    rows = pixel_rows(colour, feature_spec(), indices=np.array([2, 0]))
    assert rows.shape == (2, 192)
    torch.testing.assert_close(rows[1], torch.from_numpy(colour.pixels[0].reshape(-1)).float() / 255)
    keys = [colour.key(i) for i in range(3)]
    gray = BrokenSource("gray", colour.pixels[..., :1], labels=colour.labels, classes=("a",), keys=keys)
    assert pixel_rows(gray, feature_spec()).shape == (3, 64)


def test_standardised_uses_the_statistics_it_is_told() -> None:
    rows = torch.tensor([[0.0, 5.0], [2.0, 5.0]])
    assert torch.equal(standardised(rows, rows), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    other = standardised(torch.tensor([[3.0, 6.0]]), rows)
    assert torch.equal(other, torch.tensor([[2.0, 1.0]]))

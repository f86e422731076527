"""CvT v4: windows against a dense masked attention, BatchNorm over padded maps, sizes, names, refusals."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backbone_checks import drawn, filled_, kept_values_per_image, normal, told_features
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from belvedere.core import rng
from belvedere.nn.build import build
from belvedere.nn.cvt import Attention, CvT, FeedForward
from belvedere.nn.norm import GlobalBatchNorm, commit_, globalize_
from belvedere.nn.spec import BackboneSpec, CvTSpec
from belvedere.nn.spec.cvt import CVT_NAMES, cvt_spec


def _tiny(**changes: object) -> CvTSpec:
    values: dict[str, Any] = {
        "name": "cvt",
        "widths": (4, 8, 12, 16),
        "heads": (1, 2, 3, 4),
        "blocks": (1, 1, 2, 1),
        "kernels": (7, 3, 3, 3),
        "strides": (4, 2, 2, 2),
        "paddings": (2, 1, 1, 1),
        "window": 7,
        "mlp_ratio": 2.0,
        "drop_path": 0.0,
    }
    return CvTSpec.model_validate(values | changes)


# Attention


def _dense(attn: Attention, x: Tensor) -> Tensor:
    """What `attn` must give, by scores between all cells of the padded map, those of other windows hidden."""
    batch, height, width, channels = x.shape
    w = min(attn.window, height, width)
    rows, columns = (-(-side // w) * w for side in (height, width))
    padded = x.new_zeros(batch, channels, rows, columns)
    padded[:, :, :height, :width] = x.permute(0, 3, 1, 2)
    qkv = attn.qkv
    conv = F.conv2d(padded, qkv.dw.weight, padding=1, groups=channels)
    mean, var = conv.mean((0, 2, 3), keepdim=True), conv.var((0, 2, 3), keepdim=True, correction=0)
    conv = (conv - mean) * (var + 1e-5).rsqrt() * qkv.bn.weight.view(-1, 1, 1) + qkv.bn.bias.view(-1, 1, 1)
    parts = F.conv2d(conv, qkv.pw.weight, qkv.pw.bias)
    query, key, value = parts.view(batch, 3, attn.heads, -1, rows * columns).transpose(3, 4).unbind(1)
    cells = list(product(range(rows), range(columns)))
    windows = torch.tensor([(r // w) * columns + c // w for r, c in cells])
    scores = query @ key.transpose(2, 3) / channels**0.5
    scores = scores.masked_fill(windows[:, None] != windows, -torch.inf)
    mixed = (scores.softmax(3) @ value).transpose(2, 3).reshape(batch, channels, rows, columns)
    out = F.conv2d(mixed[:, :, :height, :width], attn.proj_out.weight, attn.proj_out.bias)
    return out.permute(0, 2, 3, 1)


@pytest.mark.parametrize("grid", [(6, 6), (7, 5), (4, 4), (3, 8), (2, 2), (1, 1)])
@pytest.mark.parametrize("heads", [1, 3])
def test_windows_equal_a_dense_masked_attention(grid: tuple[int, int], heads: int) -> None:
    attn = Attention(6, heads, 3).double().train()
    filled_(attn)
    x = normal(2, *grid, 6, dtype=torch.float64).requires_grad_()
    weight = normal(*x.shape, seed=1, dtype=torch.float64)
    found: list[list[Tensor]] = []
    for forward in (attn, lambda given: _dense(attn, given)):
        out = forward(x)
        found.append([out, *torch.autograd.grad((out * weight).sum(), [x, *attn.parameters()])])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-10)


def test_statistics_are_of_the_padded_map() -> None:
    attn = Attention(2, 1, 4)
    globalize_(attn)
    x = normal(2, 5, 5, 2) + 3.0
    attn.train()(x)
    padded = F.pad(x.permute(0, 3, 1, 2), (0, 3, 0, 3))
    conv = F.conv2d(padded, attn.qkv.dw.weight, padding=1, groups=2)
    before = attn.qkv.bn.running_mean.clone()
    assert torch.equal(before, torch.zeros(2)), "a forward keeps them aside"
    commit_(attn)
    torch.testing.assert_close(attn.qkv.bn.running_mean, 0.1 * conv.mean((0, 2, 3)))
    torch.testing.assert_close(attn.qkv.bn.running_var, 0.9 + 0.1 * conv.var((0, 2, 3)))
    assert attn.qkv.bn.num_batches_tracked == 1


def test_the_activation_is_quick_gelu() -> None:
    layer = FeedForward(3, 5).double()
    x = 4 * normal(2, 4, 4, 3, dtype=torch.float64).requires_grad_()
    hidden = F.linear(x, layer.net["0"].weight.flatten(1), layer.net["0"].bias)
    hidden = hidden * torch.sigmoid(1.702 * hidden)
    expected = F.linear(hidden, layer.net["2"].weight.flatten(1), layer.net["2"].bias)
    torch.testing.assert_close(layer(x), expected)


# What comes out


@pytest.mark.parametrize(
    ("px", "sides"),
    [
        (224, [56, 28, 14, 14, 7]),
        (160, [40, 20, 10, 10, 5]),
        (112, [28, 14, 7, 7, 4]),
        (96, [24, 12, 6, 6, 3]),
        (61, [15, 8, 4, 4, 2]),
        (32, [8, 4, 2, 2, 1]),
        (3, [1, 1, 1, 1, 1]),
    ],
)
def test_features_have_the_sizes_they_tell(px: int, sides: list[int]) -> None:
    features = told_features(_tiny(), px, sides)
    assert all(block.cls is None for block in features.blocks)


def test_maps_need_not_be_square() -> None:
    features = drawn(_tiny()).eval()(normal(2, 3, 96, 64), blocks=1)
    assert features.grid == (3, 2)
    assert features.regions is not None
    assert features.regions.shape == (2, 6, 16)
    turned = drawn(_tiny()).eval()(normal(2, 3, 64, 96))
    assert turned.grid == (2, 3)


# Learning


def test_a_batch_may_be_cut_anywhere() -> None:
    network = filled_(build(_tiny(drop_path=0.5))).double().train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # whose statistics are of the rows at hand
    images = normal(2, 6, 3, 40, 40, dtype=torch.float64)  # two views of six rows

    def passed(rows: range) -> Tensor:
        with rng.scope(0, 3, rows):
            out = network(images[:, rows.start : rows.stop].flatten(0, 1)).pooled
        return out.view(2, len(rows), -1)

    whole = passed(range(6))
    torch.testing.assert_close(torch.cat([passed(range(1)), passed(range(1, 6))], dim=1), whole)
    with rng.scope(0, 4, range(6)):
        assert not torch.allclose(network(images.flatten(0, 1)).pooled.view(2, 6, -1), whole)


def test_gradients_reach_every_parameter() -> None:
    network = drawn(_tiny()).train()
    network(normal(2, 3, 96, 96)).pooled.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_bfloat16_rounds_no_residual_sum() -> None:
    network = drawn(_tiny()).train()
    images = normal(4, 3, 96, 96)
    exact = network(images).pooled
    with torch.autocast("cpu", torch.bfloat16):
        features = network(images, blocks=5)
    assert {block.tokens.dtype for block in features.blocks} == {torch.float32}
    torch.testing.assert_close(features.pooled.float(), exact, rtol=0.1, atol=0.1)
    features.pooled.float().sum().backward()


def test_fresh_weights_follow_the_generator() -> None:
    first, again, other = (drawn(_tiny(), seed).state_dict() for seed in (0, 0, 1))
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
        assert (value.dim() < 4) == torch.equal(value, other[name]), name
    weight = drawn(_tiny(widths=(4, 8, 12, 64))).get_parameter("stage3.1.layers.0.1.fn.net.0.weight")
    assert weight.std().item() == pytest.approx(0.02, rel=0.05)


# Names, sizes and settings


def test_published_sizes() -> None:
    with torch.device("meta"):
        network = build(cvt_spec("cvt_tiny"))
    assert sum(p.numel() for p in network.parameters()) == 29_303_616
    assert network.width == 768
    assert CVT_NAMES == ("cvt_tiny",)
    assert len(network.state_dict()) == 234
    rates = [
        network.get_submodule(f"stage{stage}.1.layers.{block}.0.drop_path").rate
        for stage, count in enumerate((2, 2, 6, 2))
        for block in range(count)
    ]
    assert rates == pytest.approx([0.1 * block / 11 for block in range(12)])
    assert cvt_spec("cvt_tiny", drop_path=0.0).drop_path == 0.0


def test_a_checkpoint_loads_strictly_also_over_processes() -> None:
    ours, theirs = drawn(_tiny()), build(_tiny())
    globalize_(theirs)
    assert any(isinstance(module, GlobalBatchNorm) for module in theirs.modules())
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = normal(2, 3, 40, 40)
    torch.testing.assert_close(theirs.eval()(images).pooled, ours.eval()(images).pooled)
    state = dict(ours.state_dict())
    del state["stage2.1.layers.1.0.fn.qkv.bn.running_var"]
    with pytest.raises(RuntimeError, match="Missing key"):
        theirs.load_state_dict(state, strict=True)


def test_what_the_network_cannot_take_is_named() -> None:
    network = build(_tiny()).eval()
    with pytest.raises(ValueError, match="a CvT has no patches that could be dropped"):
        network(normal(1, 3, 96, 96), keep=torch.tensor([0]))
    with pytest.raises(ValueError, match=r"2x96 px leaves the last stage no cell; .* take is 3"):
        network(normal(1, 3, 2, 96))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strides": (4, 2, 2)}, "strides has 3 entries for 4 stages"),
        ({"heads": (1, 2, 3, 5)}, "width 16 is no multiple of its heads 5"),
        ({"paddings": (4, 1, 1, 1)}, "give at most 3"),
        ({"paddings": (-1, 1, 1, 1)}, "greater than or equal to 0"),
        ({"blocks": ()}, "blocks"),
        ({"patch_px": 4}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        _tiny(**changes)


def test_a_spec_is_told_by_its_name() -> None:
    of: TypeAdapter[Any] = TypeAdapter(BackboneSpec)
    again = of.validate_python(_tiny().model_dump())
    assert again == _tiny()
    assert isinstance(build(again), CvT)
    assert (again.depth, again.multiple_px, again.least_px, again.refusal(97)) == (5, 1, 3, "")


def test_the_estimate_of_kept_values_is_near() -> None:
    spec = _tiny(widths=(16, 32, 48, 96))
    kept = kept_values_per_image(drawn(spec).train(), 96)
    assert spec.kept_values(96) == pytest.approx(kept, rel=0.1)

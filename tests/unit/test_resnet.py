"""ResNets: names, sizes, outputs, layouts; SwAV's head and prototypes."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from belvedere.nn import resnet
from belvedere.nn.build import build
from belvedere.nn.heads import PrototypeHeads, initialize_linears_, mlp_head
from belvedere.nn.norm import GlobalBatchNorm, commit_, globalize_
from belvedere.nn.resnet import ResNet
from belvedere.nn.spec import BackboneSpec, FeatureSpec, MLPHeadSpec, ResNetSpec, ViTSpec
from belvedere.nn.spec.resnet import RESNET_NAMES, resnet_spec
from belvedere.nn.spec.vit import vit_spec
from belvedere.nn.vit import ViT


def _tiny(*, block: str = "bottleneck", stem: str = "small", **changes: object) -> ResNetSpec:
    values = {"name": "resnet", "block": block, "blocks": (1, 2, 1, 1), "widen": 1, "width_per_group": 16}
    return ResNetSpec.model_validate(values | {"stem": stem} | changes)


def _drawn(spec: ResNetSpec, seed: int = 0) -> ResNet:
    network = build(spec)
    network.initialize_(torch.Generator().manual_seed(seed))
    return network


def _images(batch: int, px: int, *, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, px, px, generator=torch.Generator().manual_seed(seed))


# Names and sizes


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_torchvision_and_this_load_each_other_and_agree(name: str) -> None:
    theirs = torchvision.models.get_model(name, weights=None).eval()
    ours = _drawn(resnet_spec(name)).eval()
    missing = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert set(missing.missing_keys) == {"fc.weight", "fc.bias"}
    assert missing.unexpected_keys == []
    theirs.fc = nn.Identity()
    images = _images(2, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images).pooled, theirs(images), rtol=1e-4, atol=1e-4)
    ours.load_state_dict(theirs.state_dict(), strict=True)


@pytest.mark.parametrize(
    ("name", "millions", "stem", "width"),
    [
        ("resnet18", 11.18, 64, 512),
        ("resnet34", 21.28, 64, 512),
        ("resnet50", 23.51, 64, 2048),
        ("resnet50w2", 93.91, 128, 4096),
        ("resnet50w4", 375.38, 256, 8192),
        ("resnet50w5", 586.45, 320, 10240),
    ],
)
def test_published_sizes(name: str, millions: float, stem: int, width: int) -> None:
    with torch.device("meta"):
        network = build(resnet_spec(name))
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == millions
    assert network.conv1.weight.shape == (stem, 3, 7, 7)
    assert network.width == width
    assert network.spec.channels(3) == width
    assert name in RESNET_NAMES


def test_the_inner_width_follows_the_width_of_a_group() -> None:
    shapes = {name: tuple(p.shape) for name, p in build(_tiny(blocks=(1, 1, 1, 1))).named_parameters()}
    assert shapes["conv1.weight"] == (16, 3, 3, 3)
    inner = [shapes[f"layer{stage}.0.conv1.weight"][0] for stage in (1, 2, 3, 4)]
    out = [shapes[f"layer{stage}.0.conv3.weight"][0] for stage in (1, 2, 3, 4)]
    assert (inner, out) == ([4, 8, 16, 32], [64, 128, 256, 512])


def test_a_spec_without_inner_channels_is_refused() -> None:
    with pytest.raises(ValidationError, match="set it to at least 8"):
        _tiny(width_per_group=4)
    assert build(_tiny(block="basic", width_per_group=4)).width == 32


def test_backbones_are_told_apart_by_name() -> None:
    of = TypeAdapter(BackboneSpec)
    for spec, network in ((_tiny(), ResNet), (vit_spec("deit_tiny"), ViT)):
        again = of.validate_python(spec.model_dump())
        assert again == spec
        assert isinstance(build(again), network)
    with pytest.raises(ValidationError):
        of.validate_python({"name": "cnn"})
    with pytest.raises(ValidationError):
        of.validate_python(_tiny().model_dump() | {"patch_px": 16})


# What comes out


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize(
    ("stem", "px", "grids"),
    [
        ("small", 32, [32, 16, 8, 4]),
        ("small", 28, [28, 14, 7, 4]),
        ("imagenet", 64, [16, 8, 4, 2]),
        ("imagenet", 50, [13, 7, 4, 2]),
        ("imagenet", 1, [1, 1, 1, 1]),
    ],
)
def test_features_have_the_sizes_they_tell(block: str, stem: str, px: int, grids: list[int]) -> None:
    spec = _tiny(block=block, stem=stem)
    features = _drawn(spec).eval()(_images(2, px), blocks=4)
    assert [stage.grid for stage in features.blocks] == [(side, side) for side in grids]
    assert [stage.stage for stage in features.blocks] == [0, 1, 2, 3]
    for stage in features.blocks:
        assert stage.tokens.shape == (2, stage.grid[0] * stage.grid[1], stage.width)
        assert stage.width == spec.channels(stage.stage)
        assert stage.cls is None
    assert features.cls is None
    assert features.grid == (grids[-1], grids[-1])
    assert spec.num_patches(px) == grids[-1] ** 2 == features.regions.shape[1]
    torch.testing.assert_close(features.pooled, features.regions.mean(1))


def test_rows_and_columns_of_a_map_keep_their_order() -> None:
    network = _drawn(_tiny()).eval()
    images = _images(1, 32)
    images[..., :16] = 0.0
    images[:, :, 20:, :] = 0.0
    features = network(images, blocks=4)
    seen = features.blocks[0].tokens.detach().std(2).view(32, 32)
    assert seen[:16, 20:].mean() > 1.2 * seen[24:, :12].mean()


def test_only_what_is_asked_for_is_returned() -> None:
    network = _drawn(_tiny()).eval()
    features = network(_images(2, 32), regions=False)
    assert features.regions is None
    assert features.blocks == ()
    assert [stage.stage for stage in network(_images(2, 32), blocks=2).blocks] == [2, 3]


def test_dropped_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="no patches"):
        build(_tiny())(_images(2, 32), keep=torch.arange(3))


def test_evaluation_reads_it() -> None:
    from belvedere.eval.features import feature

    network = _drawn(_tiny()).eval()
    output = network(_images(2, 32), blocks=2)
    common = {"resize_px": 32, "crop_px": 32, "interpolation": "bilinear", "norm": "none"}
    pooled = FeatureSpec.model_validate(common | {"source": "pooled", "blocks": 1})
    two = FeatureSpec.model_validate(common | {"source": "mean", "blocks": 2, "norm": "all"})
    assert torch.equal(feature(output, pooled, network.norm), output.pooled)
    assert feature(output, two, network.norm).shape == (2, 256 + 512)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize(("stem", "px"), [("small", 32), ("small", 28), ("imagenet", 64), ("imagenet", 50)])
def test_the_values_kept_are_those_that_autograd_keeps(block: str, stem: str, px: int) -> None:
    spec = _tiny(block=block, stem=stem, blocks=(2, 1, 1, 2), width_per_group=32)
    network = _drawn(spec).train()
    parameters = {p.data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in parameters and tensor.dim() == 4:
            kept[tensor.data_ptr()] = tensor.nbytes // 4
        return tensor

    alive = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alive.append(network(_images(2, px), regions=False).pooled)
    images = 2 * 3 * px * px
    assert sum(kept.values()) - images == 2 * spec.kept_values(px)


# Weights


def test_fresh_weights_follow_the_seed_and_the_stated_law() -> None:
    first, again, other = (_drawn(resnet_spec("resnet18"), seed) for seed in (1, 1, 2))
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in first.state_dict().items())
    assert not torch.equal(first.conv1.weight, other.conv1.weight)
    weight = first.get_parameter("layer3.1.conv2.weight")
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (256 * 9)), rel=0.02)  # fan out
    assert first.get_parameter("layer3.1.bn2.weight").eq(1).all(), "the residual's BatchNorm starts at 1"
    assert first.get_parameter("layer3.1.bn2.bias").eq(0).all()


def test_gradients_reach_every_parameter() -> None:
    for block in ("basic", "bottleneck"):
        network = _drawn(_tiny(block=block)).train()
        network(_images(4, 32), regions=False).pooled.square().sum().backward()
        assert all(p.grad is not None and p.grad.norm() > 0 for p in network.parameters())


def _forward(precision: torch.dtype, *, training: bool, layout: torch.memory_format | None = None) -> Tensor:
    """Pooled features in float64; `layout` instead of the network's own choice."""
    wide = torch.float64 if precision == torch.float64 else torch.float32
    network = _drawn(_tiny(blocks=(1, 1, 1, 1))).to(wide).train(training)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        if layout is not None:
            patch.setattr(resnet, "_layout", lambda images, *, training: layout)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            pooled: Tensor = network(_images(16, 32).to(wide), regions=False).pooled
    return pooled.double()


@pytest.mark.parametrize("training", [True, False])
def test_the_memory_layout_changes_rounding_alone(training: bool) -> None:
    exact = _forward(torch.float64, training=training, layout=torch.contiguous_format)
    for precision, within in ((torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)):
        error = (_forward(precision, training=training) - exact).norm() / exact.norm()
        assert error < within, precision


@pytest.mark.parametrize(
    ("training", "bf16", "channels_last"),
    [(True, True, True), (False, True, True), (False, False, True), (True, False, False)],
)
def test_the_layout_on_a_cpu(training: bool, bf16: bool, channels_last: bool) -> None:
    seen: list[bool] = []
    network = _drawn(_tiny()).train(training)
    network.layer4.register_forward_hook(
        lambda *call: seen.append(call[2].is_contiguous(memory_format=torch.channels_last))
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        network(_images(2, 32))
    assert seen == [channels_last]


def test_its_batch_norm_can_span_processes() -> None:
    network = _drawn(_tiny()).train()
    globalize_(network)
    norms = [m for m in network.modules() if isinstance(m, GlobalBatchNorm)]
    assert len(norms) == 1 + 3 * 5 + 4  # stem, five bottlenecks, four downsamplings
    network(_images(4, 32))
    commit_(network)
    assert network.get_buffer("layer1.0.downsample.1.num_batches_tracked") == 1


# Head and prototypes


def _head(hidden: int, *, batch_norm: bool) -> nn.Module:
    return mlp_head(6, MLPHeadSpec(hidden=hidden, out=4, batch_norm=batch_norm))


def test_the_head_has_the_published_names() -> None:
    names = {
        (8, True): {"0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"},
        (8, False): {"0.weight", "0.bias", "2.weight", "2.bias"},
        (0, False): {"weight", "bias"},
    }
    for (hidden, batch_norm), expected in names.items():
        head = _head(hidden, batch_norm=batch_norm)
        assert {name for name, _ in head.named_parameters()} == expected
        assert head(torch.randn(3, 6)).shape == (3, 4)
    with pytest.raises(ValidationError, match="batch_norm has no effect"):
        MLPHeadSpec(hidden=0, out=4, batch_norm=True)


def test_several_sets_of_prototypes_have_the_published_names() -> None:
    heads = PrototypeHeads(4, [5, 5, 3])
    assert [name for name, _ in heads.named_parameters()] == [f"prototypes{i}.weight" for i in range(3)]
    z = torch.randn(2, 4)
    for scores, weight in zip(heads(z), heads.weights(), strict=True):
        torch.testing.assert_close(scores, z @ weight.T)


def test_linear_layers_are_drawn_as_torch_draws_them() -> None:
    head = mlp_head(400, MLPHeadSpec(hidden=900, out=50, batch_norm=True))
    initialize_linears_(head, torch.Generator().manual_seed(0))
    drawn = {name: p.detach().clone() for name, p in head.named_parameters()}
    initialize_linears_(head, torch.Generator().manual_seed(0))
    assert all(torch.equal(p, drawn[name]) for name, p in head.named_parameters())
    for layer, bound in (("0", 1 / 20), ("3", 1 / 30)):
        for part in ("weight", "bias"):
            largest = drawn[f"{layer}.{part}"].abs().max().item()
            assert 0.85 * bound < largest <= bound
    assert drawn["1.weight"].eq(1).all()


def test_a_vit_tells_its_patches_as_before() -> None:
    spec = vit_spec("deit_small")
    assert isinstance(spec, ViTSpec)
    assert (spec.multiple_px, spec.num_patches(224)) == (16, 196)
    assert (_tiny().multiple_px, _tiny().depth) == (1, 4)

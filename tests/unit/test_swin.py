"""The Swin transformer: against a slow plain one, at sizes it was not built for, and what it refuses."""

import itertools
import re

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from belvedere.core import rng
from belvedere.core.errors import WeightsError
from belvedere.eval.features import feature
from belvedere.nn import windows
from belvedere.nn.backbone import Block as BlockOutput
from belvedere.nn.backbone import Features
from belvedere.nn.build import build
from belvedere.nn.spec import FeatureSpec, SwinSpec
from belvedere.nn.spec.swin import SWIN_NAMES, swin_spec
from belvedere.nn.swin import Swin
from belvedere.recipe.checks import check
from belvedere.zoo.convert.swin import swin_spec_of, swin_state
from belvedere.zoo.load import fill_

TINY = {
    "name": "swin",
    "embed_width": 12,
    "blocks": (2, 3, 1),
    "heads": (2, 2, 4),
    "patch_px": 2,
    "window": 4,
    "mlp_ratio": 2.0,
    "image_px": 32,
    "drop_path": 0.0,
}


def tiny(**other: object) -> SwinSpec:
    """Maps of 16, 8 and 4: shifts in stages 0 and 1, one window in the last."""
    return SwinSpec.model_validate(TINY | other)


def drawn(spec: SwinSpec, seed: int = 0) -> Swin:
    """A network in float64 whose every parameter is noise, so that no part of it goes unnoticed."""
    network = build(spec).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return network.eval()


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# A plain Swin: a loop over tokens and the definition of the spec, section 1.2


def neighbours(place: int, side: int, window: int, shift: int) -> int:
    """Which group of mutually visible places one is in, along one axis of the padded map."""
    rolled = (place - shift) % side
    band = 0 if rolled < side - window else 1 if rolled < side - shift else 2
    return 10 * (rolled // window) + (band if shift else 0)


def plain_attention(block: nn.Module, x: Tensor, window: int, shift: int) -> Tensor:
    """Attention of one normed map [R, C, D], query by query."""
    rows, columns = x.shape[:2]
    high, wide = -(-rows // window) * window, -(-columns // window) * window
    attn, heads = block.attn, block.attn.heads
    padded = F.pad(x, (0, 0, 0, wide - columns, 0, high - rows))
    q, k, v = attn.qkv(padded).unflatten(-1, (3, heads, -1)).unbind(2)  # [R, C, H, d]
    places = list(itertools.product(range(high), range(wide)))
    group = {
        p: (neighbours(p[0], high, window, shift), neighbours(p[1], wide, window, shift)) for p in places
    }
    square = {
        p: tuple((a - shift) % s // window for a, s in zip(p, (high, wide), strict=True)) for p in places
    }
    together: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for p in places:
        together.setdefault(square[p], []).append(p)
    out = torch.zeros_like(x)
    for r, c in itertools.product(range(rows), range(columns)):
        seen = together[square[r, c]]
        below = [(r - shift) % high - (a - shift) % high for a, _ in seen]
        right = [(c - shift) % wide - (b - shift) % wide for _, b in seen]
        index = [
            (m + window - 1) * (2 * window - 1) + n + window - 1 for m, n in zip(below, right, strict=True)
        ]
        apart = torch.tensor([[-100.0 * (group[p] != group[r, c])] for p in seen])
        scores = (q[r, c] * torch.stack([k[p] for p in seen])).sum(-1) * q.shape[-1] ** -0.5  # [K, H]
        weights = (scores + attn.relative_position_bias_table[index] + apart).softmax(0)
        values = torch.stack([v[p] for p in seen])  # [K, H, d]
        out[r, c] = (weights[..., None] * values).sum(0).flatten()
    return attn.proj(out)


def plain(network: Swin, image: Tensor) -> list[Tensor]:
    """Every block's map [R, C, D] of one image, and the normed tokens [N, D] last."""
    spec, maps = network.spec, []
    x = network.patch_embed.norm(network.patch_embed.proj(image[None])[0].permute(1, 2, 0))
    for stage, layer in enumerate(network.layers):
        side = spec.image_px // spec.patch_px // 2**stage
        for number, block in enumerate(layer.blocks):
            window = min(spec.window, side)
            shift = window // 2 if number % 2 and side > spec.window else 0
            x = x + plain_attention(block, block.norm1(x), window, shift)
            x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
            maps.append(x)
        if layer.downsample is not None:
            x = F.pad(x, (0, 0, 0, x.shape[1] % 2, 0, x.shape[0] % 2))
            fours = torch.cat([x[0::2, 0::2], x[1::2, 0::2], x[0::2, 1::2], x[1::2, 1::2]], -1)
            x = layer.downsample.reduction(layer.downsample.norm(fours))
    return [*maps, network.norm(x).flatten(0, 1)]


@pytest.mark.parametrize(("height", "width"), [(32, 32), (12, 12), (10, 26), (2, 2)])
def test_it_is_the_plain_network_at_any_size(height: int, width: int) -> None:
    """Built size; all stages padded, the second to one shifted window; no square and odd maps; one patch."""
    network = drawn(tiny())
    batch = images(2, 3, height, width)
    with torch.no_grad():
        features = network(batch, blocks=6)
        *maps, tokens = plain(network, batch[1])
    torch.testing.assert_close(features.regions[1], tokens)
    torch.testing.assert_close(features.pooled[1], tokens.mean(0))
    assert features.cls is None
    assert [block.stage for block in features.blocks] == [0, 0, 1, 1, 1, 2]
    for block, expected in zip(features.blocks, maps, strict=True):
        torch.testing.assert_close(block.tokens[1], expected.flatten(0, 1))
        assert (block.grid, block.width, block.cls) == (expected.shape[:2], expected.shape[2], None)
    assert features.grid == maps[-1].shape[:2]


@pytest.mark.parametrize("px", [32, 12])
def test_the_pass_with_gradient_is_the_one_without(px: int) -> None:
    network = drawn(tiny())
    with torch.no_grad():
        fused = network(images(2, 3, px, px)).regions
    torch.testing.assert_close(network(images(2, 3, px, px)).regions, fused)


def test_every_parameter_has_the_gradient_of_finite_differences() -> None:
    network = drawn(tiny(blocks=(2, 1), heads=(2, 2))).train()
    batch = images(2, 3, 12, 12)

    def loss() -> Tensor:
        return (network(batch).regions ** 3).sum()

    loss().backward()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            parameter += 1e-5 * direction
            above = loss()
            parameter -= 2e-5 * direction
            slope = (above - loss()) / 2e-5
            parameter += 1e-5 * direction
        # Keys' biases shift all scores of a query alike, so that theirs is zero but for rounding.
        torch.testing.assert_close((parameter.grad * direction).sum(), slope, rtol=1e-5, atol=1e-5)


# Features


def test_only_what_is_asked_for_is_returned() -> None:
    features = drawn(tiny())(images(1, 3, 32, 32), regions=False, blocks=2)
    assert features.regions is None
    assert [(block.stage, block.width, block.grid) for block in features.blocks] == [
        (1, 24, (8, 8)),
        (2, 48, (4, 4)),
    ]
    assert drawn(tiny())(images(1, 3, 32, 32)).blocks == ()


def test_attention_maps_are_those_that_the_network_uses() -> None:
    network = drawn(tiny())
    with torch.no_grad():
        maps = network.attention(images(2, 3, 12, 12))
        first = network.layers[0].blocks[0]
        x = first.norm1(network.patch_embed(images(2, 3, 12, 12)))
        values = windows.cut(first.attn.qkv(F.pad(x, (0, 0, 0, 2, 0, 2))), window=4).unflatten(3, (3, 2, -1))
        mixed = maps[0].unflatten(0, (2, -1)) @ values[:, :, :, 2].transpose(2, 3)
        joined = windows.join(mixed, 8, 8, window=4)[:, :6, :6]
    torch.testing.assert_close(first.attn.proj(joined), first.attn(x))
    assert [tuple(one.shape) for one in maps] == [(8, 2, 16, 16)] * 2 + [(2, 2, 16, 16)] * 3 + [
        (2, 4, 16, 16)
    ]
    for one in maps:
        torch.testing.assert_close(one.sum(-1), torch.ones_like(one[..., 0]))


def test_bfloat16_keeps_the_residual_stream_in_full_precision() -> None:
    network = drawn(tiny()).float()
    batch = images(2, 3, 12, 12).float()
    with torch.no_grad():
        exact = network(batch).pooled
        with torch.autocast("cpu", torch.bfloat16):
            features = network(batch, blocks=6)
    assert {block.tokens.dtype for block in features.blocks} == {torch.float32}
    assert F.cosine_similarity(features.pooled.float(), exact).min() > 0.999


# Tables


def test_tables_made_by_an_evaluation_serve_training() -> None:
    windows.relative_index.cache_clear()
    windows.shift_mask.cache_clear()
    network = drawn(tiny())
    with torch.inference_mode():
        network(images(1, 3, 20, 20))
    network(images(1, 3, 20, 20)).pooled.sum().backward()
    made = windows.shift_mask.cache_info().misses
    network(images(3, 3, 20, 20))
    assert windows.shift_mask.cache_info().misses == made == 2
    assert windows.shift_mask.cache_info().maxsize is not None


def test_a_map_of_one_window_still_has_four_regions() -> None:
    mask = windows.shift_mask(4, 4, 4, 2, torch.device("cpu"), torch.float32)
    assert mask.shape == (1, 16, 16)
    assert (mask == 0).sum() == 4 * 4 * 4
    assert set(mask.unique().tolist()) == {-100.0, 0.0}


# Drop path


def test_drop_path_follows_the_row_of_the_global_batch() -> None:
    network = drawn(tiny(drop_path=0.6)).train()
    batch = images(4, 3, 12, 12)

    def pooled(rows: list[int], step: int = 0) -> Tensor:
        with rng.scope(5, step, rows), torch.no_grad():
            return network(batch[rows]).pooled

    whole = pooled([0, 1, 2, 3])
    torch.testing.assert_close(torch.cat([pooled([2, 3]), pooled([0, 1])]), whole[[2, 3, 0, 1]])
    assert not torch.allclose(pooled([0, 1, 2, 3], step=1), whole)
    with torch.no_grad():
        assert not torch.allclose(network.eval()(batch).pooled, whole)


def test_drop_path_rates_grow_linearly_over_all_blocks() -> None:
    network = build(tiny(drop_path=0.5))
    rates = [block.drop_path.rate for layer in network.layers for block in layer.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])


# The published networks


@pytest.mark.parametrize(
    ("name", "window", "parameters"),
    [
        ("swin_tiny", 7, 27_519_354),
        ("swin_tiny", 14, 27_569_754),
        ("swin_small", 7, 48_837_258),
        ("swin_small", 14, 48_968_298),
        ("swin_base", 7, 86_743_224),
        ("swin_base", 14, 86_917_944),
        ("swin_large", 7, 194_995_476),
    ],
)
def test_published_networks_have_their_numbers_of_parameters(name: str, window: int, parameters: int) -> None:
    assert name in SWIN_NAMES
    with torch.device("meta"):
        network = build(swin_spec(name, window=window))
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert network.state_dict().keys() == dict(network.named_parameters()).keys()


def test_windows_and_shifts_are_those_of_the_built_size() -> None:
    seven, fourteen = swin_spec("swin_tiny"), swin_spec("swin_tiny", window=14)
    stages = range(4)
    assert [seven.window_of(stage) for stage in stages] == [7, 7, 7, 7]
    assert [seven.shift_of(stage, 1) for stage in stages] == [3, 3, 3, 0]
    assert [fourteen.window_of(stage) for stage in stages] == [14, 14, 14, 7]
    assert [fourteen.shift_of(stage, 1) for stage in stages] == [7, 7, 0, 0]
    assert {seven.shift_of(stage, 0) for stage in stages} == {0}
    assert [seven.num_patches(px) for px in (224, 96, 4, 100)] == [49, 9, 1, 16]


def test_fresh_weights_follow_the_seed_and_the_stated_law() -> None:
    def fresh(seed: int) -> Swin:
        network = build(tiny(embed_width=96, heads=(3, 6, 12)))
        network.initialize_(rng.torch_generator(seed, "backbone"))
        return network

    network = fresh(0)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), fresh(0).parameters(), strict=True))
    state, other = network.state_dict(), fresh(1).state_dict()
    for name, value in state.items():
        if name.startswith("patch_embed.proj"):
            assert value.abs().max() <= (3 * 2 * 2) ** -0.5
            assert value.std() == pytest.approx((3 * 2 * 2) ** -0.5 / 3**0.5, rel=0.15)
        elif "norm" in name:
            assert torch.equal(value, torch.full_like(value, float(name.endswith("weight"))))
        elif name.endswith("bias"):
            assert not value.any()
        else:
            assert value.std() == pytest.approx(0.02, rel=0.15), name
            assert not torch.equal(value, other[name])


def test_the_values_kept_are_those_that_autograd_keeps() -> None:
    spec = tiny(embed_width=24)
    network = build(spec).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    for px in (32, 12):
        kept: dict[int, int] = {}

        def note(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own and tensor.dtype == torch.float32:
                kept[storage.data_ptr()] = storage.nbytes() // 4
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            features = network(images(8, 3, px, px).float())
        assert sum(kept.values()) == pytest.approx(8 * spec.kept_values(px), rel=0.2)
        del features


# timm's weights


def timm_names(network: Swin) -> dict[str, Tensor]:
    """The network's tensors as timm names them, with tables that older files store, and a classifier."""
    state = {}
    for name, tensor in network.state_dict().items():
        parts = name.split(".")
        if parts[2] == "downsample" if len(parts) > 2 else False:
            parts[1] = str(int(parts[1]) + 1)
        state[".".join(parts)] = tensor
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.int64)
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(16, 16, 16)
    return state | {"head.fc.weight": torch.zeros(10, 48), "head.fc.bias": torch.zeros(10)}


@pytest.mark.parametrize("layout", ["timm", "published"])
def test_weights_of_timm_and_of_the_authors_load_strictly(layout: str) -> None:
    network = drawn(tiny())
    stored = timm_names(network)
    if layout == "published":
        stored = {name: tensor for name, tensor in stored.items() if "downsample" not in name}
        stored |= {name: tensor for name, tensor in network.state_dict().items() if "downsample" in name}
    state, dropped = swin_state(stored)
    assert dropped.keys() == {
        "layers.0.blocks.0.attn.relative_position_index",
        "layers.0.blocks.1.attn_mask",
        "head.fc.weight",
        "head.fc.bias",
    }
    spec = swin_spec_of({name: tuple(t.shape) for name, t in state.items()}, origin="x", image_px=32)
    assert spec == tiny()
    other = build(spec)
    fill_(other, state, origin="x")
    batch = images(1, 3, 12, 12)
    torch.testing.assert_close(other(batch).pooled, network(batch).pooled)


def test_weights_that_do_not_fit_are_refused_by_name() -> None:
    stored = timm_names(drawn(tiny()))
    del stored["layers.1.downsample.norm.bias"]
    state, _ = swin_state(stored)
    with pytest.raises(WeightsError, match=r"layers\.0\.downsample\.norm\.bias"):
        fill_(build(tiny()), state, origin="x")
    with pytest.raises(WeightsError, match="no Swin"):
        swin_spec_of({"conv1.weight": (64, 3, 7, 7)}, origin="resnet.pth")
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    table = "layers.0.blocks.0.attn.relative_position_bias_table"
    with pytest.raises(WeightsError, match="48 rows"):
        swin_spec_of(shapes | {table: (48, 2)}, origin="x")


# Bad input


@pytest.mark.parametrize(
    ("height", "width", "words"),
    [(33, 32, "33x32 px.*32x32 or 34x32"), (1, 6, "nearest are 2x6"), (0, 4, "0x4 px")],
)
def test_images_without_whole_patches_are_refused(height: int, width: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(tiny())(torch.zeros(1, 3, height, width))


def test_dropped_patches_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Swin .* drop no patches"):
        build(tiny())(torch.zeros(1, 3, 32, 32), keep=torch.arange(3))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"heads": (2, 2)}, "heads names 2 stages, blocks 3"),
        ({"heads": (2, 5, 4)}, "stage 1 is 24 wide .* no multiple of its 5 heads"),
        ({"image_px": 33}, "image_px 33 is no multiple of patch_px 2"),
        ({"image_px": 4}, "image_px 4 leaves no map after 2 halvings; set it to at least 8"),
        ({"blocks": (), "heads": ()}, "at least 1 item"),
        ({"drop_path": 1.0}, "less than 1"),
    ],
)
def test_specs_that_fit_nothing_are_refused(other: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        tiny(**other)


def test_the_nearest_sizes_are_named() -> None:
    spec = swin_spec("swin_tiny")
    assert spec.refusal(96) == ""
    assert spec.refusal(98).endswith("are 96 and 100")
    assert spec.refusal(3).endswith("are 4")


@pytest.mark.parametrize(
    ("given", "key", "words"),
    [
        ({"crop_px": 98}, "crop_px", "98 has no whole patches of 4 px; .* are 96 and 100"),
        ({"source": "cls"}, "source", "cls is not allowed; a Swin has no class token"),
        ({"source": "cls_or_mean"}, "source", "cls_or_mean is not allowed"),
        ({"blocks": 13}, "blocks", "13 blocks of a backbone with depth 12"),
        ({"blocks": 3, "norm": "all"}, "norm", "which has 2 of them; give last_stage"),
    ],
)
def test_features_that_a_swin_has_not_are_refused(given: dict[str, object], key: str, words: str) -> None:
    common = {"source": "mean", "blocks": 1, "norm": "last_stage", "resize_px": 256, "crop_px": 224}
    features = FeatureSpec.model_validate(common | {"interpolation": "bicubic"} | given)
    ((path, found),) = check({"backbone": swin_spec("swin_tiny"), "features": features})
    assert path == ("features", key)
    assert re.search(words, found)


def test_the_class_token_is_taken_where_there_is_one() -> None:
    spec = FeatureSpec(
        source="cls_or_mean", blocks=2, norm="last_stage", resize_px=8, crop_px=8, interpolation="bilinear"
    )
    tokens = images(2, 5, 4)
    blocks = (BlockOutput(tokens, tokens[:, 0], (1, 5), 4, 0), BlockOutput(tokens, None, (1, 5), 4, 1))
    output = Features(tokens[:, 0], None, tokens, (1, 5), blocks)
    norm = nn.LayerNorm(4).double()
    expected = torch.cat([tokens[:, 0], norm(tokens).float().mean(1)], 1)
    torch.testing.assert_close(feature(output, spec, norm), expected.float())

"""ViL: sliding chunks against a dense masked attention, draws of mode 1, sizes, names, refusals."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backbone_checks import drawn, filled_, kept_values_per_image, normal, told_features
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from belvedere.core import rng
from belvedere.nn import sliding
from belvedere.nn.build import build
from belvedere.nn.position import bicubic_matrix
from belvedere.nn.sliding import ALL_CHUNKS, OWN_CHUNK, SlidingAttention, bias_rows, hidden_keys
from belvedere.nn.spec import BackboneSpec, ViLSpec
from belvedere.nn.spec.vil import VIL_NAMES, vil_spec
from belvedere.nn.vil import FullAttention, ViL


def _tiny(**changes: object) -> ViLSpec:
    values: dict[str, Any] = {
        "name": "vil",
        "widths": (4, 8, 12, 16),
        "heads": (1, 2, 3, 4),
        "blocks": (1, 1, 2, 1),
        "patches": (4, 2, 2, 2),
        "sparse": (True, True, False, False),
        "class_token": (True, True, True, False),
        "window": 7,
        "mode": 1,
        "mlp_ratio": 2.0,
        "image_px": 224,
        "drop_path": 0.0,
    }
    return ViLSpec.model_validate(values | changes)


# Attention in chunks


def _dense(attn: SlidingAttention, x: Tensor, grid: tuple[int, int], seen: int) -> Tensor:
    """What `attn` must give, by scores between all tokens: a cell at a time, as the paper describes it."""
    w, heads, first = attn.window, attn.heads, int(attn.class_token)
    offsets = {
        ALL_CHUNKS: set(product((-1, 0, 1), repeat=2)),
        OWN_CHUNK: {(0, 0)},
        **{n: {(0, 0), o} for n, o in enumerate([(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1)], start=1)},
        **{n: {(0, 0), o} for n, o in enumerate([(1, -1), (1, 0), (1, 1)], start=6)},
    }[seen]
    cells = list(product(range(grid[0]), range(grid[1])))
    table = attn.local_relative_position_bias_table
    apart = [
        [(a[0] - b[0] + 2 * w - 1) * (4 * w - 1) + a[1] - b[1] + 2 * w - 1 for b in cells] for a in cells
    ]
    hidden = [[(b[0] // w - a[0] // w, b[1] // w - a[1] // w) not in offsets for b in cells] for a in cells]
    rows = torch.tensor(apart).clamp(0, len(table) - 1)  # those too far apart are hidden anyway
    bias = table[rows].permute(2, 0, 1).masked_fill(torch.tensor(hidden), -torch.inf)
    if first:
        to_cells, to_class = attn.g2l_relative_position_bias.unbind(0)
        bias = torch.cat([to_class[:, None].expand(-1, len(cells), -1), bias], dim=2)
        above = torch.cat([attn.g2g_relative_position_bias[:, 0], to_cells.expand(-1, len(cells))], dim=1)
        bias = torch.cat([above[:, None], bias], dim=1)
    query = attn.query(x).unflatten(2, (heads, -1)).transpose(1, 2)
    key, value = attn.kv(x).unflatten(2, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5 + bias
    out: Tensor = attn.proj((scores.softmax(3) @ value).transpose(1, 2).flatten(2))
    return out


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("grid", [(6, 6), (5, 5), (4, 7), (2, 2), (1, 1)])
def test_chunks_equal_a_dense_masked_attention(grid: tuple[int, int], *, class_token: bool) -> None:
    attn = SlidingAttention(6, 2, 2 if grid[0] < 6 else 3, class_token=class_token).double()
    filled_(attn)
    for seen in range(-1, 9):
        x = normal(2, grid[0] * grid[1] + class_token, 6, dtype=torch.float64).requires_grad_()
        weight = normal(*x.shape, seed=1, dtype=torch.float64)
        found: list[list[Tensor]] = []
        for forward in (attn, lambda *given: _dense(attn, *given)):
            out = forward(x, grid, seen)
            gradients = torch.autograd.grad((out * weight).sum(), [x, *attn.parameters()])
            found.append([out, *gradients])
        for ours, expected in zip(*found, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("grid", [(6, 6), (4, 7)])
def test_without_gradient_the_fused_kernel_gives_the_same(grid: tuple[int, int]) -> None:
    attn = SlidingAttention(6, 2, 3, class_token=True)
    filled_(attn).requires_grad_(requires_grad=False)
    x = normal(2, grid[0] * grid[1] + 1, 6)
    for seen in (OWN_CHUNK, ALL_CHUNKS, 4):
        torch.testing.assert_close(attn(x, grid, seen), _dense(attn, x, grid, seen), rtol=1e-4, atol=1e-5)


def test_tables_are_made_once_and_evaluation_may_be_the_first_to_ask() -> None:
    bias_rows.cache_clear()
    hidden_keys.cache_clear()
    attn = SlidingAttention(6, 2, 3, class_token=True)
    x = normal(1, 26, 6)
    with torch.inference_mode():
        attn(x, (5, 5), ALL_CHUNKS)
    attn(x, (5, 5), ALL_CHUNKS).sum().backward()
    assert attn.local_relative_position_bias_table.grad is not None
    assert bias_rows.cache_info().misses == 1
    assert hidden_keys.cache_info().misses == 1
    assert hidden_keys.cache_info().hits == 1
    for cached in (bias_rows, hidden_keys):
        assert cached.cache_info().maxsize is not None, "a bounded number of sizes is kept"
    bicubic_matrix.cache_clear()
    network = build(_tiny()).eval()
    with torch.inference_mode():
        network(normal(1, 3, 96, 96))
    network(normal(1, 3, 96, 96)).pooled.sum().backward()


def test_neighbours_are_numbered_row_by_row() -> None:
    assert [sliding.seen_chunks(n)[1] for n in range(1, 9)] == [
        (-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1),
    ]  # fmt: skip
    assert sliding.seen_chunks(ALL_CHUNKS)[4] == (0, 0)
    assert len(sliding.seen_chunks(ALL_CHUNKS)) == 9


# Attention over all cells


@pytest.mark.parametrize("side", [2, 3, 5, 8])
def test_biases_for_another_size_are_resized_as_an_image(side: int) -> None:
    attn = FullAttention(6, 2, 5, class_token=False)
    filled_(attn)
    table = attn.local_relative_position_bias_table
    cells = list(product(range(5), repeat=2))
    rows = [[(a[0] - b[0] + 4) * 9 + a[1] - b[1] + 4 for b in cells] for a in cells]
    matrix = table[torch.tensor(rows)].permute(2, 0, 1)
    size = (side * side, side * side)
    expected = F.interpolate(matrix[None], size, mode="bicubic")[0] if side != 5 else matrix
    torch.testing.assert_close(attn.bias(side * side), expected, rtol=1e-4, atol=1e-5)


def test_the_class_token_has_biases_of_its_own() -> None:
    attn = FullAttention(6, 2, 3, class_token=True)
    filled_(attn)
    bias = attn.bias(9)
    assert bias.shape == (2, 10, 10)
    torch.testing.assert_close(bias[:, 0, 0], attn.g2g_relative_position_bias[:, 0, 0])
    torch.testing.assert_close(bias[:, 0, 1:], attn.g2l_relative_position_bias[0].expand(2, 9))
    torch.testing.assert_close(bias[:, 1:, 0], attn.g2l_relative_position_bias[1].expand(2, 9))


# What comes out


@pytest.mark.parametrize(
    ("px", "sides"),
    [
        (224, [56, 28, 14, 14, 7]),
        (192, [48, 24, 12, 12, 6]),
        (160, [40, 20, 10, 10, 5]),
        (128, [32, 16, 8, 8, 4]),
        (112, [28, 14, 7, 7, 3]),
        (96, [24, 12, 6, 6, 3]),
        (64, [16, 8, 4, 4, 2]),
        (32, [8, 4, 2, 2, 1]),
    ],
)
def test_features_have_the_sizes_they_tell(px: int, sides: list[int]) -> None:
    features = told_features(_tiny(), px, sides)
    for block in features.blocks:
        assert (block.cls is None) == (block.stage == 3)
        assert block.cls is None or block.cls.shape == (1, block.width)


def test_the_modes_see_what_they_say() -> None:
    images = normal(2, 3, 96, 96)
    nets = {mode: drawn(_tiny(mode=mode)).eval() for mode in (-1, 0, 1)}
    for network in nets.values():
        filled_(network)
    own, every, trained = (nets[mode](images).pooled for mode in (-1, 0, 1))
    assert torch.equal(every, trained), "out of training mode 1 is mode 0"
    assert not torch.allclose(own, every)
    nets[1].train()
    one, other = (nets[1](images, neighbours=[n, 2]).pooled for n in (5, 7))
    assert not torch.allclose(one, other)
    assert not torch.allclose(one, every)
    assert torch.equal(nets[0].train()(images).pooled, every), "mode 0 draws nothing"


# Draws


def test_integers_of_a_scope_are_the_same_whatever_its_rows() -> None:
    found = []
    for rows in (range(8), range(3), [7]):
        with rng.scope(5, 2, rows):
            found.append((rng.shared_integers(1, 9, 400), rng.shared_integers(1, 9, 400)))
    assert found[0] == found[1] == found[2]
    assert found[0][0] != found[0][1], "each draw of a scope is another"
    counts = torch.bincount(torch.tensor(found[0][0] + found[0][1]), minlength=9)
    assert counts[0] == 0
    assert len(counts) == 9
    assert int(counts[1:].min()) > 60, "about a hundred of each of the eight"
    with rng.scope(5, 3, range(8)):
        assert rng.shared_integers(1, 9, 400) != found[0][0]
    with pytest.raises(RuntimeError, match="outside a scope"):
        rng.shared_integers(1, 9, 1)


def test_a_batch_may_be_cut_anywhere() -> None:
    network = filled_(build(_tiny(drop_path=0.5))).double().train()
    images = normal(2, 6, 3, 64, 64, dtype=torch.float64)  # two views of six rows

    def passes(rows: range) -> Tensor:
        """Two groups of crops, as a step has them: [2 views, rows, D] of each, side by side."""
        part = images[:, rows.start : rows.stop]
        with rng.scope(0, 3, rows):
            outs = [network(part[..., :px, :px].flatten(0, 1)).pooled for px in (64, 32)]
        return torch.cat([out.view(2, len(rows), -1) for out in outs], dim=2)

    whole = passes(range(6))
    torch.testing.assert_close(torch.cat([passes(range(1)), passes(range(1, 6))], dim=1), whole)
    assert torch.equal(passes(range(6)), whole), "the same step draws the same"
    with rng.scope(0, 4, range(6)):
        assert not torch.allclose(network(images.flatten(0, 1)).pooled.view(2, 6, -1), whole[..., :16])


def test_neighbours_are_drawn_in_training_with_mode_1_alone() -> None:
    network = build(_tiny()).train()
    images = normal(1, 3, 32, 32)
    with pytest.raises(RuntimeError, match="outside a scope"):
        network(images)
    for bad in ([1], [1, 9], [0, 1], [1, 2, 3]):
        with pytest.raises(ValueError, match="each of the 2 sparse blocks"):
            network(images, neighbours=bad)
    with pytest.raises(ValueError, match="no effect"):
        network.eval()(images, neighbours=[1, 1])


# Learning


def test_gradients_reach_every_parameter() -> None:
    """What a class token gathers in the last block of its stage is dropped with it: zeros, as published."""
    network = drawn(_tiny(blocks=(2, 1, 2, 1))).train()
    network(normal(2, 3, 96, 96), neighbours=[5, 7, 1]).pooled.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        dropped = name.endswith("g2g_relative_position_bias") and name[:8] in (
            "layer1.3",
            "layer2.1",
            "layer3.3",
        )
        assert bool(parameter.grad.abs().sum() > 0) != dropped, name


def test_bfloat16_rounds_no_residual_sum() -> None:
    network = drawn(_tiny()).train()
    images = normal(2, 3, 96, 96)
    exact = network(images, neighbours=[5, 7]).pooled
    with torch.autocast("cpu", torch.bfloat16):
        features = network(images, neighbours=[5, 7], blocks=5)
    assert {block.tokens.dtype for block in features.blocks} == {torch.float32}
    torch.testing.assert_close(features.pooled.float(), exact, rtol=0.05, atol=0.05)
    features.pooled.float().sum().backward()


def test_fresh_weights_follow_the_generator() -> None:
    first, again, other = (drawn(_tiny(), seed).state_dict() for seed in (0, 0, 1))
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
        constant = name.endswith(("norm.weight", "norm.bias", "norm_embed.weight", "norm_embed.bias"))
        constant |= name.endswith(".bias") and not name.endswith("0.proj.bias")
        assert constant == torch.equal(value, other[name]), name
    big = drawn(_tiny(widths=(4, 8, 12, 64)))
    for name in ("layer4.2.mlp.fc1.weight", "layer3.1.attn.local_relative_position_bias_table"):
        assert big.get_parameter(name).std().item() == pytest.approx(0.02, rel=0.05)


# Names, sizes and settings


def test_published_sizes() -> None:
    with torch.device("meta"):
        network = build(vil_spec("vil_2262"))
    assert sum(p.numel() for p in network.parameters()) == 27_569_352
    assert network.width == 768
    assert VIL_NAMES == ("vil_2262",)
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    assert len(shapes) == 205
    assert shapes["layer1.3.attn.local_relative_position_bias_table"] == (27 * 27, 3)
    assert shapes["layer4.1.attn.local_relative_position_bias_table"] == (13 * 13, 24)
    assert shapes["layer2.0.proj.weight"] == (192, 96, 2, 2)


def test_a_published_file_lists_shared_projections_twice() -> None:
    network = drawn(_tiny())
    state = network.state_dict()
    assert not any("_global" in name for name in state), "each tensor is saved once"
    published = dict(state)
    for name, value in state.items():
        for part in ("query", "kv", "proj"):
            if name.startswith(("layer1.1.attn.", "layer2.1.attn.")) and f".attn.{part}." in name:
                published[name.replace(f".{part}.", f".{part}_global.")] = value.clone()
    assert len(published) == len(state) + 12
    fresh = build(_tiny())
    fresh.load_state_dict(published, strict=True)
    assert all(torch.equal(value, state[name]) for name, value in fresh.state_dict().items())
    assert len(published) == len(state) + 12, "the caller's dictionary is left alone"
    published["layer2.1.attn.kv_global.bias"] += 1
    with pytest.raises(RuntimeError, match=r"layer2\.1\.attn\.kv_global\.bias differs.*SHARE_W"):
        build(_tiny()).load_state_dict(published, strict=True)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        build(_tiny()).load_state_dict({**state, "layer3.1.attn.query_global.weight": state["norm.bias"]})
    del published["layer1.1.attn.query.weight"]
    with pytest.raises(RuntimeError, match=r"layer1\.1\.attn\.query\.weight"):
        build(_tiny()).load_state_dict(published, strict=True)


def test_what_the_network_cannot_take_is_named() -> None:
    network = build(_tiny()).eval()
    with pytest.raises(ValueError, match="a ViL has no patches that could be dropped"):
        network(normal(1, 3, 96, 96), keep=torch.tensor([0]))
    with pytest.raises(ValueError, match=r"98x98 px has no whole patches of 4 px; .* 96 and 100"):
        network(normal(1, 3, 98, 98))
    with pytest.raises(ValueError, match=r"28x28 px leaves the last stage no cell; .* 32"):
        network(normal(1, 3, 28, 28))
    with pytest.raises(ValueError, match="96x64 px is not square"):
        network(normal(1, 3, 96, 64))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": (1, 2, 3)}, "heads has 3 entries for 4 stages"),
        ({"heads": (1, 2, 3, 5)}, "width 16 is no multiple of its heads 5"),
        ({"class_token": (True, True, True, True)}, "class_token of the last stage must be false"),
        ({"sparse": (False,) * 4}, "mode 1 has no effect without a sparse stage"),
        ({"image_px": 222}, "image_px 222 has no whole patches of 4 px; .* 220 and 224"),
        ({"image_px": 16}, "smallest that this ViL can take is 32"),
        ({"mode": 2}, "Input should be -1, 0 or 1"),
        ({"mode_switch": 0.75}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        _tiny(**changes)


def test_a_spec_is_told_by_its_name() -> None:
    of: TypeAdapter[Any] = TypeAdapter(BackboneSpec)
    again = of.validate_python(_tiny().model_dump())
    assert again == _tiny()
    assert isinstance(build(again), ViL)
    assert (again.depth, again.multiple_px, again.refusal(224), again.refusal(112)) == (5, 4, "", "")


@pytest.mark.parametrize("mode", [-1, 0, 1])
def test_the_estimate_of_kept_values_is_near(mode: int) -> None:
    spec = _tiny(mode=mode, widths=(12, 24, 48, 96))
    neighbours = {"neighbours": [5, 7]} if mode == 1 else {}
    kept = kept_values_per_image(drawn(spec).train(), 96, **neighbours)
    assert spec.kept_values(96) == pytest.approx(kept, rel=0.15)

"""The linear map of tokens: that of torch, by another kernel where that is faster."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from belvedere.ops import linear as module
from belvedere.ops.linear import linear

SHAPES = [(3, 5, 8), (20, 1, 8), (4, 3, 7, 8), (2, 2, 3, 2, 8)]


@pytest.fixture(autouse=True)
def _no_product_is_too_small(monkeypatch):
    monkeypatch.setattr(module, "_FEW", 1)


def draw(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(dtype)
    weight = torch.randn(6, shape[-1], generator=generator).to(dtype)
    return x, weight, torch.randn(6, generator=generator).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("biased", [True, False])
def test_equals_torch_with_its_gradients(shape, biased):
    given = [part.requires_grad_() for part in draw(shape)][: 3 if biased else 2]
    found = []
    for function in (linear, F.linear):
        out = function(given[0], given[1], given[2] if biased else None)
        assert out.is_contiguous()
        found.append([out, *torch.autograd.grad(out.square().sum(), given)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_tokens_may_lie_anyhow_in_memory():
    x, weight, bias = draw((4, 8, 5, 3))
    x = x.permute(0, 3, 2, 1)[:, :, 1:]  # [4, 3, 4, 8], neither dense nor with tokens in a row
    torch.testing.assert_close(
        linear(x, weight[:, :1].expand(-1, 8), bias), F.linear(x, weight[:, :1].expand(-1, 8), bias)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_stay_matrix_products(dtype):
    x, weight, bias = draw((3, 5, 8), dtype)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))


def test_autocast_rounds_as_ever():
    x, weight, bias = draw((3, 5, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = linear(x, weight, bias)
        assert ours.dtype == torch.bfloat16
        assert torch.equal(ours, F.linear(x, weight, bias))


def test_no_images_and_no_tokens():
    weight = torch.randn(6, 8)
    assert linear(torch.zeros(0, 5, 8), weight, None).shape == (0, 5, 6)
    assert linear(torch.zeros(2, 0, 8), weight, None).shape == (2, 0, 6)


def test_an_export_has_matrix_products_only():
    class Layer(torch.nn.Module):
        def forward(self, x, weight):
            return linear(x, weight, None)

    exported = torch.export.export(Layer(), draw((3, 5, 8))[:2])
    names = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert not [name for name in names if "conv" in name]


@pytest.mark.parametrize(
    ("images", "threads", "few", "taken"),
    [(20, 1, 1, True), (3, 2, 1, True), (3, 1, 1, False), (20, 1, 10**6, False)],
)
def test_the_convolution_is_taken_where_it_pays(images, threads, few, taken, monkeypatch):
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch was built without oneDNN")
    calls = []
    convolve = F.conv2d
    monkeypatch.setattr(module.F, "conv2d", lambda *given: calls.append(given) or convolve(*given))
    monkeypatch.setattr(module, "_FEW", few)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    linear(*draw((images, 5, 8)))
    assert bool(calls) == taken

"""Attention is the textbook's formula, whichever kernel computes it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from belvedere.ops.attention import attention


def _drawn(queries: int, tokens: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 2, length, 16) for length in (queries, tokens, tokens)]
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [part.to(dtype).transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for part in drawn]


def _textbook(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores = torch.einsum("bhsd,bhtd->bhst", query, key) / query.shape[-1] ** 0.5
    return torch.einsum("bhst,bhtd->bhsd", scores.softmax(-1), value)


@pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.03)]
)
@pytest.mark.parametrize("queries", [9, 1])
def test_output_and_gradients_are_the_formula(dtype: torch.dtype, atol: float, queries: int) -> None:
    given = _drawn(queries, 9, dtype)
    exact = [part.detach().double().requires_grad_() for part in given]
    mixed, expected = attention(*given), _textbook(*exact)
    assert mixed.dtype == dtype
    torch.testing.assert_close(mixed.double(), expected, rtol=0, atol=atol)
    towards = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected)
    mixed.backward(towards.to(dtype))
    expected.backward(towards)
    for one, other in zip(given, exact, strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=0, atol=atol)

"""Resizing positions in a graph whose image size is left open equals the fixed matrices."""

from __future__ import annotations

import pytest
import torch

from belvedere.nn.position import _traced_margin, _traced_matrix, bicubic_matrix


@pytest.mark.parametrize("margin", [0.0, 0.1])
@pytest.mark.parametrize("new", [1, 3, 6, 14, 15, 37])
def test_the_traced_matrix_is_the_fixed_one(new: int, margin: float) -> None:
    old, like = 14, torch.zeros((), dtype=torch.float64)
    kept = _traced_margin(old, (new, new + 1), margin, like=like)
    fixed = bicubic_matrix(old, new, (new + margin) / old, torch.device("cpu"), torch.float64)
    torch.testing.assert_close(_traced_matrix(old, new, kept), fixed, atol=1e-12, rtol=0)


def test_at_the_built_size_there_is_no_margin_and_no_resize() -> None:
    margin = _traced_margin(5, (5, 5), 0.1, like=torch.zeros((), dtype=torch.float64))
    assert torch.equal(_traced_matrix(5, 5, margin), torch.eye(5, dtype=torch.float64))

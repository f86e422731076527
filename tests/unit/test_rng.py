"""Keyed random numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from belvedere.core import rng
from belvedere.nn.vit import DropPath


def test_a_row_keeps_its_numbers_however_rows_are_cut() -> None:
    whole = rng.uniforms(7, range(100), 5)
    np.testing.assert_array_equal(whole[40:60], rng.uniforms(7, range(40, 60), 5))
    np.testing.assert_array_equal(whole[:, :3], rng.uniforms(7, range(100), 3))
    assert not np.array_equal(whole, rng.uniforms(8, range(100), 5))


def test_uniforms_are_uniform_and_unrelated() -> None:
    draws = rng.uniforms(rng.fold(0, "test"), range(20_000), 4)
    assert draws.min() >= 0.0
    assert draws.max() < 1.0
    np.testing.assert_allclose(draws.mean(0), 0.5, atol=0.01)
    np.testing.assert_allclose(draws.var(0), 1 / 12, atol=0.003)
    related = np.corrcoef(np.concatenate([draws, np.roll(draws, 1, axis=0)], axis=1).T)
    assert np.abs(related - np.eye(8)).max() < 0.03


def test_fold_tells_paths_apart() -> None:
    keys = [rng.fold(0, 1, 23), rng.fold(0, 12, 3), rng.fold(1, 1, 23), rng.fold(0, "1", 23), rng.fold(0)]
    assert len(set(keys)) == len(keys)
    assert rng.fold(3, "views", 4) == rng.fold(3, "views", 4)


def test_drop_path_follows_the_row_of_the_global_batch() -> None:
    drop = DropPath(0.5).train()
    x = torch.ones(3 * 8, 2)  # three views of eight rows, view-major
    with rng.scope(0, 5, range(8)):
        whole = drop(x).view(3, 8, 2)
    parts = []
    for rows in (range(3), range(3, 8)):
        with rng.scope(0, 5, rows):
            parts.append(drop(x[: 3 * len(rows)]).view(3, len(rows), 2))
    assert torch.equal(whole, torch.cat(parts, dim=1))
    assert set(whole.unique().tolist()) == {0.0, 2.0}, "what stays is scaled by 1 / (1 - rate)"


def test_each_draw_of_a_scope_is_another() -> None:
    with rng.scope(0, 0, range(64)):
        assert not torch.equal(rng.row_uniforms(64), rng.row_uniforms(64))


def test_drawing_outside_a_scope_is_a_mistake() -> None:
    with pytest.raises(RuntimeError, match="outside a scope"):
        DropPath(0.1).train()(torch.ones(2, 2))

"""What every handler needs: rebuilding inputs and weights, and comparing with a case's tolerances."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from weight_recipe import recipe_state_dict

from belvedere.data.batch import Batch

DDOF = {"mugs": 1, "huggingface": 1}

DEVICE = torch.device(os.environ.get("BELVEDERE_TEST_DEVICE", "cpu"))
"""Where losses and trajectories are computed; the recorded numbers and their tolerances are the same."""


def normal(seed: int, shape: list[int] | tuple[int, ...]) -> Tensor:
    """RandomState(seed).standard_normal(shape).astype(float32), as every described input is."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(tuple(shape)).astype(np.float32))


def here(array: np.ndarray | Tensor) -> Tensor:
    """A recorded array as a tensor on `DEVICE`."""
    return torch.as_tensor(array).to(DEVICE)


def placed(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches with all their tensors on `DEVICE`, as a loader hands them out."""
    for batch in batches:
        parts = {
            name: {key: here(value) for key, value in getattr(batch, name).items()}
            for name in ("views", "flags", "draws")
        }
        yield replace(batch, index=here(batch.index), label=here(batch.label), **parts)


def weights(case: dict[str, Any]) -> dict[str, Tensor]:
    """The state dict a case's `weights` describe, under the authors' names."""
    state = recipe_state_dict(case["weights"]["shapes"], case["weights"]["seed"])
    return {name: torch.from_numpy(value) for name, value in state.items()}


def fill_(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load every tensor of `state`, and nothing else, into `module`."""
    module.load_state_dict(state, strict=True)


def stats(tensor: Tensor, *, ddof: int = 0) -> np.ndarray:
    """[mean, standard deviation, L2 norm] in float64."""
    wide = tensor.detach().cpu().double()
    return np.array([wide.mean(), wide.std(correction=ddof), wide.norm()])


def compare(
    case: dict[str, Any], name: str, actual: Any, expected: np.ndarray, *, relative: bool = False
) -> None:
    """Assert |actual - expected| <= atol + rtol * |expected| for the leading corner that `expected` holds.

    relative: scalars that are held to the relative tolerance alone.
    """
    array = actual.detach().cpu().numpy() if isinstance(actual, Tensor) else np.asarray(actual)
    assert array.ndim == expected.ndim, f"{name}: {array.shape} against {expected.shape}"
    array = array[tuple(slice(size) for size in expected.shape)]
    assert array.shape == expected.shape, f"{name}: {array.shape} against {expected.shape}"
    if expected.dtype.kind in "iub":
        np.testing.assert_array_equal(array, expected, err_msg=name)
        return
    rtol = case.get("rtol_by_array", {}).get(name, case["rtol"])
    atol = 0.0 if relative else case["atol"]
    np.testing.assert_allclose(array, expected, rtol=rtol, atol=atol, err_msg=name)

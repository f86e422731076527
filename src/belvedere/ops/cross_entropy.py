"""Cross-entropy of many rows with many prototypes, which never holds more than a chunk of the logits.

With 65,536 prototypes the logits of a batch's regions are gigabytes; their log-softmax, the targets and the
gradient are as much again, each. Here a chunk's gradient is taken as soon as its logits are there. That costs
three products, as many as the direct form, and leaves a gradient of the rows and one of the matrix.

Legend: V views, B images, N rows of a view and image (regions, or 1), D columns, K prototypes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_ELEMENTS = 1 << 24
"""Logits of a chunk: 64 MiB of float32. Larger ones were no faster on a CPU."""


class Targets(NamedTuple):
    """Targets of some images in one run of rows [V, B, N, D]: which run, which images, and the distributions
    [V, b, N, K], each times a weight, at least float32."""

    run: int
    images: slice
    values: Tensor


def image_chunks(num_images: int, rows: int, prototypes: int) -> Iterator[slice]:
    """The images in chunks of as many as make no more logits, of `rows` rows each, than fit; at least one."""
    size = max(1, _ELEMENTS // max(1, rows * prototypes))
    for start in range(0, num_images, size):
        yield slice(start, min(start + size, num_images))


def cross_entropy(
    runs: Sequence[Tensor],
    weight: Tensor,
    targets: Iterable[Targets],
    *,
    temperature: float,
    scales: Sequence[float],
) -> Tensor:
    """sum over runs of scale * sum over rows of -t . log softmax(z W^T / temperature): 0-d, at least float32.

    runs [V, B, N, D] each, of one type, in which the products are taken (bfloat16 under autocast); the rest
    is at least float32. weight [K, D]. targets: made chunk by chunk, without gradient, while this runs; rows
    that no chunk names count nothing. Differentiable once, in `runs` and `weight`.
    """
    loss: Tensor = _CrossEntropy.apply(targets, temperature, tuple(scales), weight, *runs)
    return loss


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        targets: Iterable[Targets],
        temperature: float,
        scales: tuple[float, ...],
        weight: Tensor,
        *runs: Tensor,
    ) -> Tensor:
        matrix = weight.to(runs[0].dtype)  # [K, D]
        total = weight.new_zeros((), dtype=_wide(weight.dtype))
        ctx.weight_gradient = torch.zeros_like(weight) if ctx.needs_input_grad[3] else None
        ctx.run_gradients = [
            torch.zeros_like(run) if needed else None
            for run, needed in zip(runs, ctx.needs_input_grad[4:], strict=True)
        ]
        for number, images, values in targets:
            z = runs[number][:, images]  # [V, b, N, D]
            rows, scale = z.flatten(0, 2), scales[number]
            loss, gradient = _of_rows(rows, matrix, values.flatten(0, 2), temperature)
            total += scale * loss
            factor = scale / temperature
            run_gradient = ctx.run_gradients[number]
            if run_gradient is not None:
                run_gradient[:, images] = (gradient @ matrix).mul_(factor).view_as(z)
            if ctx.weight_gradient is not None:
                _add_product_(ctx.weight_gradient, gradient.T, rows, factor)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        through = [g if g is None else g * gradient.to(g.dtype) for g in ctx.run_gradients]
        weight = ctx.weight_gradient
        return None, None, None, weight if weight is None else weight * gradient.to(weight.dtype), *through


def _of_rows(z: Tensor, matrix: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The loss of rows z [R, D] with targets [R, K], 0-d, and its gradient in the scaled logits [R, K]."""
    logits = z @ matrix.T  # [R, K]
    log_p = logits.to(_wide(logits.dtype)).div_(temperature).log_softmax(1)
    del logits
    loss = -torch.einsum("rk,rk->r", targets, log_p).sum()
    gradient = log_p.exp_().mul_(targets.sum(1, keepdim=True)).sub_(targets)
    return loss, gradient.to(z.dtype)


def _add_product_(total: Tensor, left: Tensor, right: Tensor, factor: float) -> None:
    """total += factor * left @ right, summed in the type of `total`."""
    if total.dtype == right.dtype:
        total.addmm_(left, right, alpha=factor)
    else:
        total.add_(left @ right, alpha=factor)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)

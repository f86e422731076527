"""InfoNCE: each view's embedding is to be like the teacher's of the same image and unlike a queue of others.

Logits of negatives are never held together: with 65,536 keys those of a batch's views are gigabytes. Of a
chunk of rows only the sum of exponentials is kept, and its gradient.

Legend: B images, V views, of which the teacher saw T, O columns of an embedding, K keys, R rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_LOGITS = 1 << 24
"""Logits of a chunk: 64 MiB of float32."""


def contrastive_loss(z: Tensor, keys: Tensor, queue: Tensor, *, temperature: float) -> Tensor:
    """The mean over images and pairs of a teacher's and another view of the cross-entropy that finds the
    image's own key among the queue's, halved between large and small views (`halves`): 0-d.

    z [V, B, O] unit rows, the first T of the large views; keys [T, B, O] and queue [K, O] unit rows without
    gradient. All at least float32. Mugs, instance and local-group discrimination.
    """
    positive = torch.einsum("vbo,tbo->tvb", z, keys) / temperature  # [T, V, B]
    negative = log_sum_exp(z.flatten(0, 1), queue, temperature=temperature).view(z.shape[:2])  # [V, B]
    return halves(torch.logaddexp(positive, negative) - positive)


def halves(terms: Tensor) -> Tensor:
    """Of terms [T, V, ...] of pairs, those of a view with itself left out: the mean of the pairs with a large
    view (the first T) and the mean of those with a small one, averaged; the former alone where no view is
    small. 0-d."""
    teachers, views = terms.shape[:2]
    large = [terms[t, v] for t in range(teachers) for v in range(teachers) if v != t]
    mean = torch.stack(large).mean()
    return mean if views == teachers else (mean + terms[:, teachers:].mean()) / 2


def log_sum_exp(z: Tensor, keys: Tensor, *, temperature: float) -> Tensor:
    """log of the sum over keys [K, O] of exp(z . key / temperature), for rows z [R, O]: [R].

    Differentiable once, in `z`.
    """
    total: Tensor = _LogSumExp.apply(z, keys, temperature)
    return total


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, keys: Tensor, temperature: float) -> Tensor:
        totals: list[Tensor] = []
        gradients: list[Tensor] = []
        for rows in z.split(max(1, _LOGITS // len(keys))):
            logits = (rows @ keys.T).div_(temperature)  # [r, K]
            totals.append(logits.logsumexp(1))
            if ctx.needs_input_grad[0]:
                shares = logits.sub_(totals[-1].unsqueeze(1)).exp_()
                gradients.append((shares @ keys).div_(temperature))
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(totals)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (of_rows,) = ctx.saved_tensors
        return of_rows * gradient.unsqueeze(1), None, None

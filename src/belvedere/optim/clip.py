"""Gradient norms and clipping."""

from __future__ import annotations

import torch
from torch import Tensor

from belvedere.optim.spec import Clip

_EPS = 1e-6  # torch's clip_grad_norm_


def gradient_norms(parameters: list[Tensor]) -> Tensor:
    """The L2 norm of every gradient [P]; -1 where there is none."""
    found = [p.grad for p in parameters if p.grad is not None]
    if len(found) == len(parameters):
        return torch.stack(torch._foreach_norm(found))
    return torch.stack([p.new_tensor(-1.0) if p.grad is None else p.grad.norm() for p in parameters])


@torch.no_grad()
def clip_(parameters: list[Tensor], norms: Tensor, clip: Clip) -> None:
    """Scale gradients down to `clip.norm`: all by their total norm, or each by its own. `norms` as above."""
    present = [(p.grad, norm) for p, norm in zip(parameters, norms, strict=True) if p.grad is not None]
    gradients = [gradient for gradient, _ in present]
    if not gradients:
        return
    if clip.kind == "total":
        total = torch.stack([norm for _, norm in present]).norm()
        torch._foreach_mul_(gradients, (clip.norm / (total + _EPS)).clamp(max=1.0))
    else:
        torch._foreach_mul_(gradients, [(clip.norm / (norm + _EPS)).clamp(max=1.0) for _, norm in present])

"""BatchNorm whose statistics span all processes, or groups of them, on any device and in any precision.

Same parameters, buffers and names as torch's. Running statistics are kept aside by a training forward and
written by `commit_` once the step is known to be good, so that a forward changes no state: a non-finite step
can be replayed, and the two forwards of an accumulated step count once.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from belvedere.core import dist


class GlobalBatchNorm(nn.Module):
    """Normalizes [R, C] or [R, C, ...] by the mean and biased variance of each channel over all processes.

    group: over this many processes instead, neighbours by rank (None: all; 1: each alone); a divisor of their
    number. Running statistics are then the mean over the groups, equal on every process. Every process must
    give the same number of rows. Momentum is the weight on the new value, as in torch.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self, channels: int, *, eps: float = 1e-5, momentum: float = 0.1, group: int | None = None
    ) -> None:
        super().__init__()
        self.eps, self.momentum, self.group = eps, momentum, group
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))
        self.pending: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        if self._together() == 1:
            # Momentum 1 leaves this batch's statistics in the two fresh tensors: no second pass over x.
            mean, var = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
            out = F.batch_norm(x, mean, var, self.weight, self.bias, True, 1.0, self.eps)
            self.pending.append((mean, var))
            return out
        together = self._together()
        out, mean, var = _Together.apply(x, self.weight, self.bias, self.eps, together)
        count = x.numel() // x.shape[1] * together
        self.pending.append((mean, var * (count / (count - 1))))
        normalized: Tensor = out
        return normalized

    def _together(self) -> int:
        """How many processes share their statistics."""
        world = dist.world_size()
        if self.group is None or world == 1:
            return world
        if world % self.group:
            raise ValueError(f"BatchNorm over groups of {self.group} needs a multiple of that; got {world}")
        return self.group


class _Together(torch.autograd.Function):
    """BatchNorm of x [R, C, ...] over groups of `together` processes: (normalized, mean [C], biased variance
    [C]), the last two without gradient. One collective in each direction, of all processes: each group has
    its rows in it, which is less than to build and keep communicators of their own.

    As everywhere, the gradient of x is that of the sum of all processes' losses, and those of weight and bias
    are this process's part.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, together: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        over, column = _dims(x)
        wide = x.to(weight.dtype)
        rows = x.numel() // x.shape[1]
        near = wide.mean(over)  # [C], but for its rounding
        centred = wide - near.view(column)
        local = torch.stack([near, centred.sum(over), centred.square().sum(over)]).double()  # [3, C]
        nears, sums, squares = _of_group(local, together).unbind(1)  # [together, C] each
        # Chan et al. 1979: squares about the mean of each process, and of these means about the mean of all.
        # Sums of x and of its square would cancel where a channel's mean is large beside its deviation.
        means = nears + sums / rows
        mean = means.mean(0)
        total = (squares - sums.square() / rows).sum(0) + rows * (means - mean).square().sum(0)
        var = total / (rows * together)
        inverse = torch.rsqrt(var + eps).to(weight.dtype)
        offset = (local[0] - mean).to(weight.dtype) * inverse  # `centred` is about this process's mean
        scale, shift = weight * inverse, offset * weight + bias
        out = torch.addcmul(shift.view(column), centred, scale.view(column)).to(x.dtype)
        mean, var = mean.to(weight.dtype), var.to(weight.dtype)
        ctx.save_for_backward(x, weight, near, inverse, offset)
        ctx.together = together
        ctx.mark_non_differentiable(mean, var)
        return out, mean, var

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, near, inverse, offset = ctx.saved_tensors
        over, column = _dims(x)
        gradient = gradient.to(weight.dtype)
        centred = x.to(weight.dtype) - near.view(column)
        normalized = torch.addcmul(offset.view(column), centred, inverse.view(column))
        local = torch.stack([gradient.sum(over), (gradient * normalized).sum(over)])  # [2, C]
        of_bias, of_weight = local
        of_x = None
        if ctx.needs_input_grad[0]:
            count = x.numel() // x.shape[1] * ctx.together
            shared = _summed(local, ctx.together) / count  # [2, C]
            of_x = gradient - shared[0].view(column) - normalized * shared[1].view(column)
            of_x = (of_x * (weight * inverse).view(column)).to(x.dtype)
        needed = zip((of_weight, of_bias), ctx.needs_input_grad[1:3], strict=True)
        return of_x, *(value if wanted else None for value, wanted in needed), None, None


def _dims(x: Tensor) -> tuple[list[int], list[int]]:
    """The dimensions of x [R, C, ...] that a channel spans, and the shape that lays [C] along it."""
    return [dim for dim in range(x.dim()) if dim != 1], [1, -1] + [1] * (x.dim() - 2)


def _of_group(local: Tensor, together: int) -> Tensor:
    """The values [together, ...] of the processes of this one's group, by rank, to the bit."""
    values = local.new_zeros(dist.world_size(), *local.shape)
    values[dist.rank()] = local
    dist.all_reduce_(values)  # every value is a sum with zeros
    first = dist.rank() // together * together
    return values[first : first + together]


def _summed(local: Tensor, together: int) -> Tensor:
    """The sum over the processes of this one's group."""
    groups, mine = dist.world_size() // together, dist.rank() // together
    sums = local.new_zeros(groups, *local.shape)
    sums[mine] = local
    dist.all_reduce_(sums)
    return sums[mine]


def globalize_(module: nn.Module, *, group: int | None = None) -> None:
    """Replace every BatchNorm below `module` by a `GlobalBatchNorm` that holds the same tensors.

    group: how many processes share their statistics (None: all).
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            setattr(module, name, _converted(child, group))
        else:
            globalize_(child, group=group)


def _converted(norm: nn.BatchNorm1d | nn.BatchNorm2d, group: int | None) -> GlobalBatchNorm:
    momentum = 0.1 if norm.momentum is None else norm.momentum
    new = GlobalBatchNorm(norm.num_features, eps=norm.eps, momentum=momentum, group=group)
    new.to(device=norm.weight.device, dtype=norm.weight.dtype)
    new.load_state_dict(norm.state_dict())
    new.weight.requires_grad_(norm.weight.requires_grad)
    new.bias.requires_grad_(norm.bias.requires_grad)
    return new.train(norm.training)


def discard_(module: nn.Module) -> None:
    """Forget the statistics of forwards that did not become a step."""
    for norm in module.modules():
        if isinstance(norm, GlobalBatchNorm):
            norm.pending.clear()


@torch.no_grad()
def commit_(module: nn.Module) -> None:
    """Move running statistics by those of this step's forwards, in their order."""
    _average_groups_(module)
    for norm in module.modules():
        if isinstance(norm, GlobalBatchNorm):
            for mean, var in norm.pending:
                norm.running_mean.lerp_(mean, norm.momentum)
                norm.running_var.lerp_(var, norm.momentum)
                norm.num_batches_tracked += 1
            norm.pending.clear()


def _average_groups_(module: nn.Module) -> None:
    """Replace statistics of groups by their mean over the groups, so that processes stay equal."""
    norms = [
        norm for norm in module.modules() if isinstance(norm, GlobalBatchNorm) and norm.group is not None
    ]
    dist.average_([value for norm in norms for pair in norm.pending for value in pair])

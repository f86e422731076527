"""BatchNorm whose statistics span all processes, or groups of them, on any device and in any precision.

Same parameters, buffers and names as torch's. Running statistics are kept aside by a training forward and
written by `commit_` once the step is known to be good, so that a forward changes no state: a non-finite step
can be replayed, and the two forwards of an accumulated step count once.
"""

from __future__ import annotations

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
        return self._over_processes(x)

    def _together(self) -> int:
        """How many processes share their statistics."""
        world = dist.world_size()
        if self.group is None or world == 1:
            return world
        if world % self.group:
            raise ValueError(f"BatchNorm over groups of {self.group} needs a multiple of that; got {world}")
        return self.group

    def _summed(self, total: Tensor) -> Tensor:
        """The sum of [C] over the processes of this one's group, differentiable."""
        together = self._together()
        groups = dist.world_size() // together
        if groups == 1:
            return dist.summed(total)
        # One sum over all processes in which each group has a row: a few kilobytes more to send than over
        # communicators of their own, and none to build and keep.
        mine = dist.rank() // together
        rows = [total if row == mine else torch.zeros_like(total) for row in range(groups)]
        return dist.summed(torch.stack(rows))[mine]

    def _over_processes(self, x: Tensor) -> Tensor:
        over = [dim for dim in range(x.dim()) if dim != 1]
        column = [1, -1] + [1] * (x.dim() - 2)
        wide = x.to(self.running_mean.dtype)
        count = x.numel() // x.shape[1] * self._together()
        mean = self._summed(wide.sum(over)) / count  # [C]
        centred = wide - mean.view(column)
        var = self._summed(centred.square().sum(over)) / count  # [C]
        self.pending.append((mean.detach(), var.detach() * (count / (count - 1))))
        scale = self.weight * torch.rsqrt(var + self.eps)
        return (centred * scale.view(column) + self.bias.view(column)).to(x.dtype)


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

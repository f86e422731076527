"""The one place that knows whether there are other processes. Every function also works with one."""

from __future__ import annotations

import datetime
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """This process's number on its machine, from 0 (torchrun's LOCAL_RANK)."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """Whether this process writes files and talks to the terminal."""
    return rank() == 0


def start(device: torch.device, *, timeout_s: float = 1800.0) -> bool:
    """Join the processes that torchrun started; true if there are any. Does nothing when already joined."""
    if dist.is_initialized():
        return True
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return False
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout_s))
    return True


def stop() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    box: list[Any] = [None] * world_size()
    dist.all_gather_object(box, value)
    return box


def all_reduce_(tensor: Tensor, *, op: str = "sum") -> None:
    """Replace `tensor` by its sum or maximum over processes."""
    if world_size() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM if op == "sum" else dist.ReduceOp.MAX)


def gathered(tensor: Tensor) -> Tensor:
    """The rows [n, ...] of every process in the order of ranks [W * n, ...], on every rank. All give as many
    rows."""
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def average_(tensors: list[Tensor]) -> None:
    """Replace every tensor by its mean over processes, through one flat buffer per dtype."""
    if world_size() == 1 or not tensors:
        return
    for dtype in {tensor.dtype for tensor in tensors}:
        same = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in same])
        dist.all_reduce(flat)
        flat /= world_size()
        for tensor, part in zip(same, flat.split([tensor.numel() for tensor in same]), strict=True):
            tensor.copy_(part.view_as(tensor))


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


def summed(tensor: Tensor) -> Tensor:
    """The sum over processes, differentiable.

    Its gradient is summed over processes too: with losses that are means over each process's rows and
    gradients averaged afterwards, that is the exact gradient of the global mean.
    """
    if world_size() == 1:
        return tensor
    result: Tensor = _Sum.apply(tensor)
    return result


def averaged(tensor: Tensor) -> Tensor:
    """The mean over processes, differentiable (see `summed`)."""
    return summed(tensor) / world_size()

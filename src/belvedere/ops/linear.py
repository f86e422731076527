"""Linear maps of tokens by whichever kernel is fast where the tensors are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_FEW = 1 << 22
"""Multiplications fewer than which a convolution costs more to call than it saves."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weight^T + bias: x [B, ..., I], weight [O, I], bias [O] -> [B, ..., O].

    In float32 on a CPU torch hands a matrix product to MKL, which keeps its AVX-512 kernels to Intel's
    processors, and a 1x1 convolution to oneDNN, which uses what there is: twice as fast on an AMD EPYC.
    """
    if not _by_convolution(x, weight):
        return F.linear(x, weight, bias)
    images = x.reshape(len(x), 1, -1, x.shape[-1]).permute(0, 3, 1, 2)  # [B, I, 1, T], channels last
    mixed = F.conv2d(images, weight[:, :, None, None], bias)
    return mixed.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def _by_convolution(x: Tensor, weight: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()  # nor exporting: there it stays a matrix product
        and x.dim() >= 3
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * len(weight) >= _FEW
        and (len(x) >= 16 or torch.get_num_threads() > 1)  # else torch does not give it to oneDNN
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )

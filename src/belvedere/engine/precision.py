"""Where numbers are bfloat16 and where they never are."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["bf16", "float32", "float64"]


def parameter_dtype(precision: Precision) -> torch.dtype:
    """The type of parameters and views: float64 only where asked for, never bfloat16."""
    return torch.float64 if precision == "float64" else torch.float32


def best_device() -> str:
    """What a run without `run.device` takes: `cuda` or `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def multiplies_bf16_fast(device: str) -> bool:
    """Whether `cpu` or `cuda` has instructions for bfloat16 products: GPUs since compute capability 8.0, CPUs
    with AMX or AVX-512 BF16.

    torch tells of a CPU's under private names, which another version may lack: then the answer is no.
    """
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        supported = getattr(torch.cpu, name, None)
        if supported is not None and supported():
            return True
    return False


def settled(wanted: Precision, device: str) -> tuple[Precision, str | None]:
    """The precision that a run has on `cpu` or `cuda`, and what to tell of it, if anything.

    bfloat16 on a GPU without instructions for it is emulated, slower than float32 and no more exact: float32
    is taken. On a CPU without them it stays, since the same recipe is to have the same numbers there.
    """
    not_here = device == "cuda" and not torch.cuda.is_available()  # a plan for another machine
    if wanted != "bf16" or not_here or multiplies_bf16_fast(device):
        return wanted, None
    if device == "cuda":
        name = torch.cuda.get_device_name()
        major, minor = torch.cuda.get_device_capability()
        return "float32", (
            f"train.precision is bf16, for which {name} (compute capability {major}.{minor}) has no "
            "instructions: the run takes float32. It costs about twice the memory for activations, and about "
            "twice the time of a step or more"
        )
    if platform.machine().lower() not in ("x86_64", "amd64"):  # of others torch does not tell
        return "bf16", None
    return "bf16", (
        "train.precision is bf16, for which this CPU has no instructions (AMX, AVX-512 BF16): it is "
        "emulated, and a step takes longer; train.precision=float32 is usually faster here"
    )


@contextmanager
def networks(precision: Precision, device: torch.device) -> Iterator[None]:
    """Run networks in bfloat16 where the precision says so.

    Open one per pass: autocast keeps its copies of weights for as long as it is open, and copies made
    without gradient must not serve a pass with gradient.
    """
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        yield


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Leave autocast for a loss."""
    with torch.autocast(device.type, enabled=False):
        yield


def at_least_float32(tensor: Tensor) -> Tensor:
    """`tensor` promoted to float32; float64 stays."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()

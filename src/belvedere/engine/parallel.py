"""How a whole method is spread over processes and micro-batches without changing what it computes.

The student is wrapped by DistributedDataParallel; gradients of trainable parameters outside it (MSN's
prototypes) are averaged here. BatchNorm spans all processes, or groups of them. With a micro-batch, features
of all rows are encoded without gradient, the loss sees them together once, and each micro-batch is encoded
again to carry its share of the gradient into the backbone: equal to the large batch, not an approximation of
it. Only a backbone's BatchNorm sees the micro-batch alone, as that of so many separate processes would.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from belvedere.core import dist, rng
from belvedere.data.batch import Batch
from belvedere.engine.precision import Precision, networks
from belvedere.nn.norm import commit_, discard_, globalize_

# Buffers are kept equal by BatchNorm itself. torch renamed the argument after 2.11.
_KEEP_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
    else "broadcast_buffers": False
}


class Spread:
    """A method made ready for this process: its device, its precision, wrapped where there are others."""

    def __init__(
        self,
        method: nn.Module,
        *,
        device: torch.device,
        precision: Precision,
        seed: int,
        micro_batch: int | None = None,
    ) -> None:
        self.method, self.device, self.precision, self.seed = method, device, precision, seed
        self.micro_batch = micro_batch
        self.on_part: Callable[[int, int], None] | None = None
        """Told (passes over micro-batches done, of so many) while a step is under way."""
        raw = method.get_submodule("student")
        self.student: nn.Module = raw
        if dist.world_size() > 1:
            ids = [device.index] if device.type == "cuda" else None
            self.student = DistributedDataParallel(raw, device_ids=ids, **_KEEP_BUFFERS)
        inside = {id(p) for p in raw.parameters()}
        self.trained = [(name, p) for name, p in method.named_parameters() if p.requires_grad]
        self.outside = [p for _, p in self.trained if id(p) not in inside]
        self.inside = [p for _, p in self.trained if id(p) in inside]

    def cuts(self, batch: Batch) -> list[tuple[int, int]]:
        """The micro-batches of this process's rows."""
        rows, size = len(batch.rows), self.micro_batch or len(batch.rows)
        return [(start, min(start + size, rows)) for start in range(0, rows, size)]

    def part_done(self, done: int, total: int) -> None:
        """Tell whoever listens how far the step under way is."""
        if self.on_part is not None:
            self.on_part(done, total)

    @contextmanager
    def scope(self, batch: Batch, step: int, network: str) -> Iterator[None]:
        """The randomness and the precision of one pass of one network over some rows."""
        seed = rng.fold(self.seed, network)
        with rng.scope(seed, step, batch.rows), networks(self.precision, self.device):
            yield

    def average_gradients(self, *, all_of_them: bool) -> None:
        """Average what the wrapper did not: parameters outside the student, or all after `no_sync`."""
        chosen = self.outside + (self.inside if all_of_them else [])
        dist.average_([p.grad for p in chosen if p.grad is not None])

    def unsynchronized(self) -> AbstractContextManager[None]:
        """A context in which the wrapper leaves gradients as they are."""
        if isinstance(self.student, DistributedDataParallel):
            return self.student.no_sync()
        return nullcontext()

    def discard(self) -> None:
        """Forget the statistics of forwards that did not become a step."""
        discard_(self.method)

    def commit(self) -> None:
        """Keep the statistics of this step's forwards."""
        commit_(self.method)


def prepare_(
    method: nn.Module, *, device: torch.device, dtype: torch.dtype, batch_norm_group: int | None = None
) -> None:
    """Move a method to its device and type, in train mode (teachers too), BatchNorm over all processes or
    groups of so many."""
    globalize_(method, group=batch_norm_group)
    method.to(device=device, dtype=dtype)
    method.train()


def rows_together(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Micro-batches of encoded features [V, b, ...] joined into one [V, B, ...]."""
    return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}


def backward_in_parts(
    encode: Callable[[Batch], dict[str, Tensor]],
    batch: Batch,
    cuts: list[tuple[int, int]],
    gradient: dict[str, Tensor],
    done: Callable[[], None],
) -> None:
    """Encode each micro-batch again, with gradient, and send its rows of `gradient` [V, B, ...] through.

    done: called after each."""
    for start, stop in cuts:
        again = encode(batch.part(start, stop))
        torch.autograd.backward(
            [again[name] for name in gradient], [grad[:, start:stop] for grad in gradient.values()]
        )
        done()

"""What a process remembers of earlier steps: keys to tell images apart from, and tokens to look up.

Both hold the rows of all processes, in the order of the global batch, and are equal on all of them. Storing
reads nothing back: how many rows are stored, and where, stays on the device.

Legend: K slots, D columns, R rows, n neighbours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SCORES = 1 << 24
"""Similarities of one look-up's chunk: 64 MiB of float32."""


class KeyQueue(nn.Module):
    """A ring of unit keys: queue [K, D], at first random, and queue_ptr [1] int64, the next slot.
    Mugs, section 3 (as MoCo, He et al. 2020)."""

    queue: Tensor
    queue_ptr: Tensor

    def __init__(self, slots: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("queue", F.normalize(torch.randn(slots, width, generator=generator), dim=1))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64))

    @torch.no_grad()
    def push_(self, keys: Tensor) -> None:
        """Put keys [R, D], at most K of them, in the place of the oldest."""
        slots = (self.queue_ptr + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue.index_copy_(0, slots, keys.to(self.queue))
        self.queue_ptr.copy_((self.queue_ptr + len(keys)) % len(self.queue))


class Memory(nn.Module):
    """Tokens of earlier images: queue_q [K, D] is searched, queue_k [K, D] answers, queue_ptr [1] int64 is
    the next slot. Both begin with random rows of their own, and store the same.

    The pointer moves as in the code that made the published weights: by twice the rows stored, unless they
    reach past the last slot. So many slots stay random (half of 65,536 with 512 rows a step), which the
    search then hardly ever finds.
    """

    queue_q: Tensor
    queue_k: Tensor
    queue_ptr: Tensor

    def __init__(self, slots: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("queue_q", torch.randn(slots, width, generator=generator))
        self.register_buffer("queue_k", torch.randn(slots, width, generator=generator))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64))

    def neighbours(self, queries: Tensor, count: int) -> Tensor:
        """The rows that answer for the `count` slots most like each query [R, D]: [R, n, D], no gradient."""
        return self.queue_k[self.search(queries, count)]

    @torch.no_grad()
    def search(self, queries: Tensor, count: int) -> Tensor:
        """The slots [R, n] with the highest cosine similarity, best first, in at least float32.

        A query's length does not change the order, and a slot's divides its scores: no copy of the memory is
        made.
        """
        with torch.autocast(queries.device.type, enabled=False):
            length = torch.linalg.vector_norm(self.queue_q, dim=1).clamp(min=1e-12)  # [K]
            chunks = queries.to(self.queue_q).split(max(1, _SCORES // len(self.queue_q)))
            found = [(rows @ self.queue_q.T).div_(length).topk(count).indices for rows in chunks]
        return torch.cat(found)

    @torch.no_grad()
    def push_(self, rows: Tensor, kept: Tensor | None = None) -> None:
        """Store rows [R, D], at most K of them; those alone that are kept [R] (bool), in their order."""
        total = len(rows)
        numbers = torch.arange(total, device=rows.device)
        count = torch.full_like(self.queue_ptr, total)
        if kept is not None:
            kept = kept.to(device=rows.device, dtype=torch.bool)
            count = kept.sum(0, keepdim=True)
            rows = rows[torch.argsort(~kept, stable=True)]  # those kept first
        slots = (self.queue_ptr + numbers) % len(self.queue_q)
        is_new = (numbers < count).unsqueeze(1)
        for queue in (self.queue_q, self.queue_k):
            queue.index_copy_(0, slots, torch.where(is_new, rows.to(queue), queue[slots]))
        self.queue_ptr.copy_(_advanced(self.queue_ptr, count, len(self.queue_q)))


def _advanced(pointer: Tensor, count: Tensor, slots: int) -> Tensor:
    """Where the published pointer stands after `count` rows: twice as far, or right after them where they
    reached past the last slot."""
    end = pointer + count
    return torch.where(end > slots, end - slots, (end + count) % slots)

"""The memory bank of DeepCluster-v2: the last embedding of every image, and which image each row is of.

Rows are written in the order in which images are visited, so a bank has as many as an epoch has images. Each
process keeps its own rows; a row's position among those of all processes follows from step and rank, and is
what makes processes agree with one that holds all rows.

Legend: A banks (one for each assigned crop), B rows of this process in a step, n rows of this process in an
epoch, D columns, N images of the data set.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from belvedere.core import dist

UNSEEN = -100
"""The label of an image that is in no row: what torch's cross-entropy ignores."""


class Bank(nn.Module):
    """embeddings [A, n, D], one bank per assigned crop, and index [n] int64, the image of each row (-1: not
    written yet). Both are empty until `allocate` says how large a run is."""

    embeddings: Tensor
    index: Tensor

    def __init__(self, crops: int, width: int) -> None:
        super().__init__()
        self.batch = 0
        self.register_buffer("embeddings", torch.zeros(crops, 0, width))
        self.register_buffer("index", torch.zeros(0, dtype=torch.int64))

    def allocate(self, *, steps: int, batch: int) -> None:
        """Make room for the rows of `steps` steps of `batch` rows each; what was held is forgotten."""
        self.batch = batch
        crops, _, width = self.embeddings.shape
        self.embeddings = self.embeddings.new_zeros(crops, steps * batch, width)
        self.index = self.index.new_full((steps * batch,), -1)

    def is_full(self) -> bool:
        """Whether every row was written. Reads one value from the device."""
        return len(self.index) > 0 and bool((self.index >= 0).all())

    @torch.no_grad()
    def write_(self, step: int, z: Tensor, index: Tensor) -> None:
        """Put the embeddings z [A, B, D] of images index [B] in the rows of the epoch's step `step`."""
        rows = slice(step * self.batch, (step + 1) * self.batch)
        self.embeddings[:, rows] = z.to(self.embeddings.dtype)
        self.index[rows] = index

    def positions(self) -> Tensor:
        """Where each row stands among those of all processes [n]: step by step, and in a step by rank."""
        step = torch.arange(len(self.index) // self.batch, device=self.index.device)
        row = torch.arange(self.batch, device=self.index.device) + dist.rank() * self.batch
        return (step.unsqueeze(1) * (self.batch * dist.world_size()) + row).flatten()

    def last_of_image(self, images: int) -> Tensor:
        """Whether no later row, of any process, is of the same image [n]; `images` is N.

        An image stands in several rows where it replaced one that could not be read.
        """
        positions = self.positions()
        last = torch.full((images,), -1, device=self.index.device)
        last.scatter_reduce_(0, self.index, positions, "amax")
        dist.all_reduce_(last, op="max")
        return last[self.index] == positions

    def by_image(self, labels: Tensor, images: int) -> Tensor:
        """Labels [n] of this process's rows as a table over all images [N] int32, the same on every process.

        `UNSEEN` where an image is in no row; of several rows of an image the last one counts.
        """
        counts = self.last_of_image(images)
        table = torch.full((images,), UNSEEN, dtype=torch.int32, device=labels.device)
        table[self.index[counts]] = labels[counts].to(torch.int32)
        dist.all_reduce_(table, op="max")
        return table


class Snapshot(nn.Module):
    """A bank as it was at one moment, read by image: embeddings [A, n, D]; row [N] int32, where this process
    holds each image (-1: nowhere)."""

    embeddings: Tensor
    row: Tensor

    def __init__(self, crops: int, width: int) -> None:
        super().__init__()
        self.register_buffer("embeddings", torch.zeros(crops, 0, width))
        self.register_buffer("row", torch.zeros(0, dtype=torch.int32))

    def allocate(self, *, rows: int, images: int) -> None:
        """Make room for n `rows` of N `images`."""
        crops, _, width = self.embeddings.shape
        self.embeddings = self.embeddings.new_zeros(crops, rows, width)
        self.row = self.row.new_full((images,), -1)

    @torch.no_grad()
    def take_(self, bank: Bank) -> None:
        """Hold what `bank` holds now."""
        self.embeddings.copy_(bank.embeddings)
        counts = bank.last_of_image(len(self.row))
        rows = torch.arange(len(counts), dtype=torch.int32, device=counts.device)
        self.row.fill_(-1)
        self.row[bank.index[counts]] = rows[counts]

    @torch.no_grad()
    def of_images(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The embeddings [A, B, D] of images index [B], whichever process holds them; seen [B] is false, and
        the embedding zero, where none does. Every process must ask for as many."""
        wanted = torch.zeros(dist.world_size(), len(index), dtype=index.dtype, device=index.device)
        wanted[dist.rank()] = index
        dist.all_reduce_(wanted)
        row = self.row[wanted].long()  # [W, B]
        held = row >= 0
        found = self.embeddings[:, row.clamp(min=0)] * held.unsqueeze(2)  # [A, W, B, D]
        dist.all_reduce_(found)
        seen = held.to(torch.int32)
        dist.all_reduce_(seen)
        return found[:, dist.rank()], seen[dist.rank()] > 0

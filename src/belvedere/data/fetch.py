"""One batch as a pure function of the step: what a loader's worker computes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from belvedere.core.errors import BelvedereError, DataError
from belvedere.data.decode import PLAIN, UnreadableImage
from belvedere.data.draw import draw, view_key
from belvedere.data.geometry import SMALL_PX, Pixels
from belvedere.data.order import permutation, positions, rows_of, steps_per_epoch
from belvedere.data.render import crop, finish
from belvedere.data.source import ArraySource, Source
from belvedere.data.spec import DataSpec, ViewSpec


@dataclass
class Fetched:
    """One batch on its way to the device, and what was met in reading it.

    views {role: [V, B, 3, px, px]} ready for the model, or uint8 crops [V, B, C, px, px] with their
    parameters in rows {role: [B, V, P]}; index, label [B]; kinds {index: kind} of images that were
    converted; failed {index: reason}; replaced {index: index used instead} of the images that this batch
    asked for.
    """

    views: dict[str, Tensor]
    rows: dict[str, NDArray[np.float64]]
    index: Tensor
    label: Tensor
    asked: NDArray[np.int64]
    kinds: dict[int, str] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    replaced: dict[int, int] = field(default_factory=dict)

    def pin_memory(self) -> Fetched:
        """Itself with page-locked tensors (called by torch's DataLoader)."""
        self.views = {role: view.pin_memory() for role, view in self.views.items()}
        self.index, self.label = self.index.pin_memory(), self.label.pin_memory()
        return self


@dataclass
class Failed:
    """An error of ours met in a worker; as a value, it arrives without the worker's traceback."""

    error: BaseException


@dataclass(frozen=True)
class Order:
    """What fixes which images a process gets at a step."""

    seed: int
    global_batch: int
    rank: int
    world_size: int


class Fetch:
    """A batch by its step; `fetch[step]` is what torch's DataLoader calls."""

    def __init__(
        self,
        source: Source,
        views: dict[str, ViewSpec],
        *,
        data: DataSpec,
        order: Order,
        dtype: torch.dtype,
        finished: bool,
        replaced: dict[int, int],
    ) -> None:
        """finished: photometry and normalization happen here, and not on a device afterwards."""
        self.source, self.views, self.data, self.order = source, views, data, order
        self.dtype, self.finished, self.replaced = dtype, finished, dict(replaced)
        self.steps_per_epoch = steps_per_epoch(len(source), order.global_batch)
        self.rows = rows_of(order.global_batch, rank=order.rank, world_size=order.world_size)

    @property
    def usual_kind(self) -> str:
        """What an image is of which a batch notes nothing."""
        source = self.source
        return "gray" if isinstance(source, ArraySource) and source.pixels.shape[-1] == 1 else PLAIN

    def __getitem__(self, step: int) -> Fetched | Failed:
        try:
            return self.fetch(step)
        except BelvedereError as error:
            return Failed(error)

    def fetch(self, step: int) -> Fetched:
        """The batch of one step. Raises DataError when not one image of the source can be read."""
        order = self.order
        epoch, where = positions(
            step,
            steps_per_epoch=self.steps_per_epoch,
            global_batch=order.global_batch,
            rank=order.rank,
            world_size=order.world_size,
        )
        asked = permutation(len(self.source), order.seed, epoch)[where]
        batch = Fetched({}, {}, torch.empty(0), torch.empty(0), asked)
        images, index = self._images(asked, batch)
        sizes = np.array([image.shape[:2] for image in images], dtype=np.int64)
        batch.index = torch.from_numpy(index)
        batch.label = torch.from_numpy(self.source.labels[index])
        for role, spec in self.views.items():
            rows = draw(spec, view_key(order.seed, epoch, role), where, sizes)
            crops = crop(spec, images, rows)
            if self.finished:
                batch.views[role] = finish(crops, rows, data=self.data, dtype=self.dtype)
            else:
                batch.views[role], batch.rows[role] = crops, rows
        return batch

    def _images(
        self, asked: NDArray[np.int64], batch: Fetched
    ) -> tuple[Pixels | list[Pixels], NDArray[np.int64]]:
        """The images asked for or their replacements, and their indices; notes in `batch` what was met."""
        source = self.source
        if isinstance(source, ArraySource) and max(source.pixels.shape[1:3]) <= SMALL_PX:
            return source.pixels[asked], asked.copy()
        images, index = [], asked.copy()
        for row, wanted in enumerate(asked.tolist()):
            used, pixels = self._readable(wanted, batch)
            images.append(pixels)
            index[row] = used
        return images, index

    def _readable(self, wanted: int, batch: Fetched) -> tuple[int, Pixels]:
        """The image, or the next one (modulo N) that can be read: the same in every worker and run."""
        used = self.replaced.get(wanted, wanted)
        for _ in range(len(self.source)):
            try:
                decoded = self.source.inspect(used)
            except UnreadableImage as error:
                batch.failed[used] = error.reason
                used = (used + 1) % len(self.source)
                continue
            if decoded.kind != PLAIN:
                batch.kinds[used] = decoded.kind
            if used != wanted:
                self.replaced[wanted] = batch.replaced[wanted] = used
            return used, decoded.pixels
        raise DataError(
            f"not one of the {len(self.source)} images of {self.source.name!r} (data.path) can be read"
        )

"""One batch as a pure function of the step: what a loader's worker computes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from belvedere.core.errors import BelvedereError, DataError
from belvedere.data.decode import PLAIN, Decoded, Opened, UnreadableImage, open_image
from belvedere.data.order import positions, rows_of, steps_per_epoch
from belvedere.data.sources.source import ArraySource, Source, value_range_of
from belvedere.data.spec import DataSpec, ViewSpec
from belvedere.data.views.draw import Floats, Ints, draw_views, weak_images
from belvedere.data.views.geometry import SMALL_PX
from belvedere.data.views.render import crop, crop_views, empty_crops, finish, largest_shrink

_MOST_HELD = 256 << 20  # encoded bytes a batch keeps from reading headers to decoding; the rest is read twice
_MOST_TRIED = 1000  # images in a row that cannot be read: the disk is gone, not an image


class Wanted(NamedTuple):
    """The batch of one step, and the images [B] at its rows. The order of an epoch is worked out once, where
    batches are consumed; a worker is only told its part of it. replaced {index: index used instead}: of these
    images, what any worker has replaced before; a file that is back would else count for some of them."""

    step: int
    asked: Ints
    replaced: Mapping[int, int] = {}


@dataclass
class Fetched:
    """One batch on its way to the device, and what was met in reading it.

    views {role: [V, B, 3, px, px]} ready for the model, or uint8 crops [V, B, C, px, px] with their
    parameters in rows {role: [B, V, P]}; index [B] of the images used; kinds {index: kind} of images that
    were converted; failed {index: reason}; replaced {index: index used instead} of the images that this batch
    asked for; flags {name: [B]} as in `Batch`. Roles that are copies are not among the views.
    """

    views: dict[str, Tensor]
    rows: dict[str, Floats]
    index: Tensor
    asked: Ints
    kinds: dict[int, str] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    replaced: dict[int, int] = field(default_factory=dict)
    flags: dict[str, Tensor] = field(default_factory=dict)

    def pin_memory(self) -> Fetched:
        """Itself with page-locked tensors (called by torch's DataLoader)."""
        self.views = {role: view.pin_memory() for role, view in self.views.items()}
        self.index = self.index.pin_memory()
        self.flags = {name: flag.pin_memory() for name, flag in self.flags.items()}
        return self


@dataclass
class Failed:
    """An error of ours met in a worker; as a value, it arrives without the worker's traceback."""

    error: BaseException


@dataclass(frozen=True)
class Order:
    """What fixes which images a process gets at a step. rows: the first so many of a batch alone, to try
    something out (None: all)."""

    seed: int
    global_batch: int
    rank: int
    world_size: int
    rows: int | None = None


class Fetch:
    """A batch by its step and images; `fetch[wanted]` is what torch's DataLoader calls."""

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
        self.source, self.data, self.order = source, data, order
        self.views = {role: spec for role, spec in views.items() if spec.copy_of is None}
        self.dtype, self.finished, self.replaced = dtype, finished, dict(replaced)
        self.steps_per_epoch = steps_per_epoch(len(source), order.global_batch)
        self.rows = rows_of(order.global_batch, rank=order.rank, world_size=order.world_size)[: order.rows]
        self.value_range = value_range_of(source)
        self.shares = False  # whether views are to lie in memory that the training process sees too
        self._room: dict[str, Tensor] = {}  # crops that nobody sees but the next stage

    @property
    def batch_bytes(self) -> int:
        """Bytes of the views or crops of one batch."""
        value = self.dtype.itemsize if self.finished else 1
        return sum(spec.count * len(self.rows) * 3 * spec.px**2 * value for spec in self.views.values())

    @property
    def usual_kind(self) -> str:
        """What an image is of which a batch notes nothing."""
        source = self.source
        return "gray" if isinstance(source, ArraySource) and source.pixels.shape[-1] == 1 else PLAIN

    def positions(self, step: int) -> tuple[int, Ints]:
        """The epoch of a step, and the positions in it of this process's rows [B]."""
        order = self.order
        epoch, where = positions(
            step,
            steps_per_epoch=self.steps_per_epoch,
            global_batch=order.global_batch,
            rank=order.rank,
            world_size=order.world_size,
        )
        return epoch, where[: order.rows]

    def __getitem__(self, wanted: Wanted) -> Fetched | Failed:
        try:
            return self.fetch(wanted)
        except BelvedereError as error:
            return Failed(error)

    def fetch(self, wanted: Wanted) -> Fetched:
        """The batch of one step. Raises DataError when not one image of the source can be read."""
        self.replaced.update(wanted.replaced)
        epoch, where = self.positions(wanted.step)
        batch = Fetched({}, {}, torch.empty(0), wanted.asked)
        source = self.source
        if isinstance(source, ArraySource) and max(source.pixels.shape[1:3]) <= SMALL_PX:
            crops = self._from_small(source, epoch, where, batch)
        else:
            crops = self._from_each(epoch, where, batch)
        weak = weak_images(self.views, batch.rows)
        if weak is not None:
            batch.flags["weak"] = torch.from_numpy(weak)
        for role in self.views:
            if self.finished:
                rows, place = batch.rows.pop(role), None
                if self.shares:
                    place = _shared((*crops[role].shape[:2], 3, *crops[role].shape[3:]), self.dtype)
                views = finish(crops[role], rows, data=self.data, dtype=self.dtype, out=place)
                batch.views[role] = views
            else:
                batch.views[role] = crops[role]
        return batch

    def _from_small(self, source: ArraySource, epoch: int, where: Ints, batch: Fetched) -> dict[str, Tensor]:
        """Crops of small images held in memory, all at once."""
        images = source.pixels[batch.asked]
        sizes = np.broadcast_to(np.array(images.shape[1:3]), (len(images), 2))
        batch.index = torch.from_numpy(batch.asked.copy())
        batch.rows = self._drawn(epoch, where, sizes)
        return {role: crop(spec, images, batch.rows[role]) for role, spec in self.views.items()}

    def _drawn(self, epoch: int, where: Ints, sizes: Ints) -> dict[str, Floats]:
        """Rows {role: [B, V, P]} of images of these sizes [B, 2] at these positions [B] of an epoch."""
        return draw_views(self.views, seed=self.order.seed, epoch=epoch, positions=where, sizes=sizes)

    def _from_each(self, epoch: int, where: Ints, batch: Fetched) -> dict[str, Tensor]:
        """Crops of images that are decoded one after another.

        All headers come first, so that the views of a whole batch are drawn at once and each image is decoded
        no larger than its views need; only one decoded image is held at a time.
        """
        reading, held = [], 0
        for wanted in batch.asked:
            image = _Reading(self, int(wanted), batch)
            reading.append(image)
            held += image.num_bytes
            if held > _MOST_HELD:
                held -= image.num_bytes
                image.close()
        sizes = np.array([image.size for image in reading], dtype=np.int64)
        batch.rows = self._drawn(epoch, where, sizes)
        crops = {role: self._empty_crops(role, len(reading)) for role in self.views}
        for row, image in enumerate(reading):
            decoded = None
            while decoded is None:
                boxes = {role: batch.rows[role][row] for role in self.views}
                decoded = image.decoded(largest_shrink(self.views, boxes))
                if decoded is None:  # another image takes its place, of another size
                    size = np.array([image.size])
                    for role, rows in self._drawn(epoch, where[row : row + 1], size).items():
                        batch.rows[role][row] = rows[0]
            out = {role: crops[role][:, row].numpy() for role in self.views}
            crop_views(decoded.pixels, self.views, boxes, out=out, shrink=decoded.shrink)
            image.close()
        batch.index = torch.tensor([image.used for image in reading], dtype=torch.int64)
        return crops

    def _empty_crops(self, role: str, num_images: int) -> Tensor:
        """Room for the crops of one role: used again for every batch where they are finished here."""
        if not self.finished:
            empty = empty_crops(self.views[role], num_images)
            return _shared(tuple(empty.shape), empty.dtype) if self.shares else empty
        if role not in self._room or self._room[role].shape[1] != num_images:
            self._room[role] = empty_crops(self.views[role], num_images)
        return self._room[role]


def _shared(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An empty tensor in memory that another process can map, so that nobody has to copy it later."""
    count = math.prod(shape)
    shared: torch.UntypedStorage = torch.UntypedStorage._new_shared(count * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(shared, 0, (count,), (1,)).view(shape)


class _Reading:
    """One image asked for, or the next one (modulo N) that can be read: the same in every worker and run."""

    def __init__(self, fetch: Fetch, wanted: int, batch: Fetched) -> None:
        self._fetch, self._wanted, self._batch = fetch, wanted, batch
        self.used = fetch.replaced.get(wanted, wanted)
        self._tried = 0
        self._opened: Opened | None = None
        self.size, self.num_bytes = (0, 0), 0  # height and width upright; what is held while it is open
        self._open()

    def close(self) -> None:
        """Let go of the image's bytes; decoding reads them again."""
        self._opened = None

    def decoded(self, shrink: int) -> Decoded | None:
        """The pixels; None when another image, or this one with another size, has been opened instead."""
        drawn_for = self.used, self.size
        opened = self._opened or self._open()
        if (self.used, self.size) != drawn_for:
            return None
        try:
            decoded = opened.decoded(shrink=shrink)
        except UnreadableImage as error:
            self._next(error.reason)
            self._open()
            return None
        if decoded.kind != PLAIN:
            self._batch.kinds[self.used] = decoded.kind
        if self.used != self._wanted:
            self._fetch.replaced[self._wanted] = self._batch.replaced[self._wanted] = self.used
        return decoded

    def _open(self) -> Opened:
        source = self._fetch.source
        while True:
            try:
                stored = source.stored(self.used)
                key, value_range = source.key(self.used), self._fetch.value_range
                opened = self._opened = open_image(stored, key, value_range=value_range)
                self.size = opened.height, opened.width
                self.num_bytes = len(stored) if isinstance(stored, bytes) else 0
                return opened
            except UnreadableImage as error:
                self._next(error.reason)

    def _next(self, reason: str) -> None:
        source = self._fetch.source
        self._batch.failed[self.used] = reason
        self._tried += 1
        if self._tried >= len(source):
            raise DataError(f"not one of the {len(source)} images of {source.name!r} (data.path) can be read")
        if self._tried >= _MOST_TRIED:
            raise DataError(
                f"{self._tried} images of {source.name!r} (data.path) in a row cannot be read; are they "
                f"still there? The last, {source.key(self.used)}: {reason}"
            )
        self.used = (self.used + 1) % len(source)

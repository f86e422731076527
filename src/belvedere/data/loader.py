"""Batches of views, prepared ahead of the step that needs them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from belvedere.core.errors import DataError
from belvedere.data.ahead import Ahead, in_thread, in_workers
from belvedere.data.batch import Batch
from belvedere.data.fetch import Failed, Fetch, Fetched, Order, Wanted
from belvedere.data.order import epoch_order
from belvedere.data.report import DataReport
from belvedere.data.room import remarks, waiting_remark
from belvedere.data.sources.source import Source
from belvedere.data.spec import DataSpec, ViewSpec
from belvedere.data.views import native
from belvedere.data.views.render import finish

_EARLY_S = 20.0  # from then on a share of the time says something
_MIN_BAD = 8  # a share of fewer bad images says nothing


class _Asked:
    """Steps with the images at their rows; the order of an epoch is held here, and by no worker.

    replaced: as the loader knows it by the time that a step is asked for.
    """

    def __init__(self, fetch: Fetch, steps: range, replaced: dict[int, int]) -> None:
        self._fetch, self._steps, self._replaced = fetch, steps, replaced

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[Wanted]:
        for step in self._steps:
            epoch, where = self._fetch.positions(step)
            order = epoch_order(self._fetch.source, self._fetch.order.seed, epoch)
            asked, replaced = order[where], self._replaced
            known = {index: replaced[index] for index in asked.tolist() if index in replaced}
            yield Wanted(step, asked, known)


class Loader:
    """The batches of steps `start_step` to `total_steps` - 1, each a pure function of its step.

    waited_s: seconds the consumer waited for data. asked: images asked for so far. replaced: {index of an
    unreadable image: index used instead}, of the batches handed out (and what was given); a resumed run
    hands it in again. report: what the images of those batches were. `Batch.index` and `label` are of the
    image that was used. Iterating again starts again at `start_step`; `close` (or leaving a `with`) stops
    what runs ahead.

    rows: the first so many of each batch alone, as they stand in the whole one, to try a step out.
    workers: processes that prepare batches; with 0, one thread of this process does. Raises DataError when
    the source holds fewer images than one global batch, or when more than `data.max_bad_share` of at least
    eight unreadable images among those asked for had to be replaced.
    """

    def __init__(
        self,
        source: Source,
        views: dict[str, ViewSpec],
        *,
        data: DataSpec,
        seed: int,
        global_batch: int,
        total_steps: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        start_step: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008
        replaced: dict[int, int] | None = None,
        rows: int | None = None,
    ) -> None:
        self.waited_s, self.asked = 0.0, 0
        self.replaced = dict(replaced or {})
        self.report = DataReport(len(source))
        self.start_step, self.total_steps = start_step, total_steps
        self._source, self._views, self._data, self._workers = source, views, data, workers
        self._dtype, self._device = dtype, device
        self._num_bad, self._remarked = 0, False
        self._first: tuple[float, float] | None = (
            None  # when the first batch came, and what it was waited for
        )
        self._ahead: Ahead | None = None
        self._fetch = Fetch(
            source,
            views,
            data=data,
            order=Order(seed, global_batch, rank, world_size, rows),
            dtype=dtype,
            finished=device.type == "cpu",
            replaced=self.replaced,
        )

    @property
    def steps_per_epoch(self) -> int:
        return self._fetch.steps_per_epoch

    @property
    def remarks(self) -> list[str]:
        """What a person should know of these workers on this machine, before the first batch."""
        return remarks(self._fetch, self._workers)

    def waiting_remark(self) -> str | None:
        """What to change if much of the time since the first batch went into waiting; asked at the end."""
        if self._first is None:
            return None
        since, waited_s = self._first
        return waiting_remark(self.waited_s - waited_s, time.perf_counter() - since, self._workers)

    def early_remark(self) -> str | None:
        """The same once, as soon as it can be said; asked after each step."""
        if self._first is None or self._remarked or time.perf_counter() - self._first[0] < _EARLY_S:
            return None
        told = self.waiting_remark()
        self._remarked = told is not None
        return told

    def __len__(self) -> int:
        return max(0, self.total_steps - self.start_step)

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread or the workers; what they had prepared is dropped."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def __iter__(self) -> Iterator[Batch]:
        self.close()
        native.warn_if_missing()
        steps = range(self.start_step, self.total_steps)
        wanted = _Asked(self._fetch, steps, self.replaced)
        pin = self._device.type == "cuda"
        if self._workers:
            ahead = in_workers(self._fetch, wanted, workers=self._workers, pin=pin)
        else:
            ahead = in_thread(self._fetch, wanted, pin=pin)
        self._ahead = ahead
        try:
            for _ in steps:
                start = time.perf_counter()
                fetched = next(ahead)
                now = time.perf_counter()
                self.waited_s += now - start
                if self._first is None:  # what it takes to start workers is no measure of the rest
                    self._first = (now, self.waited_s)
                if isinstance(fetched, Failed):
                    raise fetched.error
                self._note(fetched)
                yield self._batch(fetched)
        finally:
            ahead.close()

    def _batch(self, fetched: Fetched) -> Batch:
        """The batch on its device, with the photometry that was left to it."""
        device = self._device
        label = torch.from_numpy(self._source.labels[fetched.index.numpy()])
        views = {role: view.to(device, non_blocking=True) for role, view in fetched.views.items()}
        for role, rows in fetched.rows.items():
            views[role] = finish(views[role], rows, data=self._data, dtype=self._dtype)
        for role, spec in self._views.items():
            if spec.copy_of is not None:
                views[role] = views[spec.copy_of].clone()  # its own memory, as every view has
        return Batch(
            views={role: views[role] for role in self._views},
            index=fetched.index.to(device, non_blocking=True),
            label=label.to(device, non_blocking=True),
            rows=self._fetch.rows,
            flags={name: flag.to(device, non_blocking=True) for name, flag in fetched.flags.items()},
        )

    def _note(self, fetched: Fetched) -> None:
        """Count what was read and replaced; stop when it is too much."""
        self.asked += len(fetched.asked)
        self.replaced.update(fetched.replaced)
        for index in fetched.index.tolist():
            self.report.record(index, fetched.kinds.get(index, self._fetch.usual_kind))
        for index, reason in fetched.failed.items():
            self.report.fail(index, reason)
        self._num_bad += sum(index in self.replaced for index in fetched.asked.tolist())
        allowed = self._data.max_bad_share
        enough = self._num_bad >= _MIN_BAD or (allowed == 0.0 and self._num_bad > 0)
        if enough and self._num_bad > allowed * self.asked:
            files = [self._source.key(index) for index in sorted(self.replaced)]
            more = f" and {len(files) - 10} more" if len(files) > 10 else ""
            raise DataError(
                f"{self._num_bad} of the {self.asked} images asked for could not be read, more than "
                f"data.max_bad_share ({allowed}) allows: {', '.join(files[:10])}{more}. Repair or remove "
                f"them, or raise data.max_bad_share"
            )

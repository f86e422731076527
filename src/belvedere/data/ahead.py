"""Running ahead of the consumer: batches prepared by one thread, or by worker processes."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import types
import warnings
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch.utils.data import DataLoader, get_worker_info

from belvedere.core import machine
from belvedere.core.errors import DataError
from belvedere.data import stall
from belvedere.data.fetch import Failed, Fetch, Fetched, Wanted
from belvedere.data.piped import PipedWorkers
from belvedere.data.room import AHEAD, fits_shared_memory, start_method
from belvedere.data.sources.source import Source

_POLL_S = 0.1
_SIGNS_OF_FULL_MEMORY = ("unable to allocate shared memory", "unable to mmap", "Bus error", "(shm)")
_SIGNS_OF_DEATH = ("exited unexpectedly", "is killed by signal", *_SIGNS_OF_FULL_MEMORY)  # in torch's words
_SIGN_OF_WAITING = "DataLoader timed out"
_SIGKILL, _SIGBUS = -9, -int(getattr(signal, "SIGBUS", 7))  # as exit codes; Windows has neither


class Ahead(Protocol):
    """Batches in the order of their steps, computed before they are asked for."""

    def __next__(self) -> Fetched | Failed: ...

    def close(self) -> None: ...


class _Thread:
    """One background thread: torch and numpy release the interpreter lock while they compute."""

    def __init__(self, fetch: Fetch, wanted: Iterable[Wanted], *, pin: bool) -> None:
        self._ready: queue.Queue[Fetched | Failed] = queue.Queue(maxsize=AHEAD)
        self._stop = threading.Event()
        # the thread must not refer to this object, or it would keep it alive
        self._thread = threading.Thread(
            target=_run,
            args=(fetch, wanted, pin, self._ready, self._stop),
            name="belvedere-views",
            daemon=True,
        )
        self._finalizer = weakref.finalize(self, _stop, self._stop, self._ready, self._thread)
        self._thread.start()

    def __next__(self) -> Fetched | Failed:
        while not self._stop.is_set():
            try:
                return self._ready.get(timeout=1.0)
            except queue.Empty:
                continue
        raise RuntimeError("the loader was closed")

    def close(self) -> None:
        self._finalizer()  # at most once; also when collected and when the interpreter ends


def _run(
    fetch: Fetch,
    wanted: Iterable[Wanted],
    pin: bool,
    ready: queue.Queue[Fetched | Failed],
    stop: threading.Event,
) -> None:
    _one_thread_here()
    left = iter(wanted)
    while True:
        try:
            batch = next(left, None)
            if batch is None:
                return
            item = fetch[batch]
            if pin and isinstance(item, Fetched):
                item = item.pin_memory()
        except BaseException as error:  # the consumer raises it
            item = Failed(error)
        while not stop.is_set():
            try:
                ready.put(item, timeout=_POLL_S)
                break
            except queue.Full:
                continue
        if stop.is_set() or isinstance(item, Failed):
            return


def _one_thread_here() -> None:
    """Compute with one torch thread in this thread only, beside the networks.

    torch keeps the count per thread, but new threads take the last one set anywhere: a passing thread sets
    it back.
    """
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    passing = threading.Thread(target=torch.set_num_threads, args=(usual,))
    passing.start()
    passing.join()


def _stop(stop: threading.Event, ready: queue.Queue[Fetched | Failed], thread: threading.Thread) -> None:
    stop.set()
    while not ready.empty():
        ready.get_nowait()
    if thread is not threading.current_thread():
        thread.join()


class _Workers:
    """torch's DataLoader over the batches wanted, one item one batch."""

    def __init__(self, fetch: Fetch, wanted: Iterable[Wanted], *, workers: int, pin: bool) -> None:
        with _main_module_hidden(fetch.source), warnings.catch_warnings():
            # the remarks of data/room.py say it with what to change
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            warnings.filterwarnings("ignore", message="Got pickle error")
            loader: DataLoader[Any] = DataLoader(
                cast(Any, fetch),
                batch_size=None,
                sampler=cast(Any, wanted),
                num_workers=workers,
                prefetch_factor=AHEAD,
                pin_memory=pin,
                multiprocessing_context=_context(),
                timeout=stall.LOOK_S,
                worker_init_fn=_start_worker,
                generator=torch.Generator(),  # or torch's global one would be drawn from
            )
            self._batches: Any = iter(loader)
        self._of_main = _defined_in_main(fetch.source)
        self._stall = stall.Stall(look_s=stall.LOOK_S)
        # multiprocessing's own exit would wait for ever for workers that do not hear SIGTERM
        self._at_exit = partial(_close_if_alive, weakref.ref(self))
        atexit.register(self._at_exit)

    def __next__(self) -> Fetched | Failed:
        if self._batches is None:
            raise RuntimeError("the loader was closed")
        self._stall.reset()
        while (item := self._next()) is None:
            try:
                self._stall.look(self._waited_for())
            except DataError:
                for process in self._batches._workers:  # one that is stuck would not hear that it is to end
                    process.kill()
                raise
        return item

    def _next(self) -> Fetched | Failed | None:
        """The next batch; None when none came for a while."""
        try:
            return cast("Fetched | Failed", next(self._batches))
        except (RuntimeError, EOFError, ConnectionError) as error:
            told = str(error)
            if told.startswith(_SIGN_OF_WAITING):
                return None
            if isinstance(error, RuntimeError) and not any(sign in told for sign in _SIGNS_OF_DEATH):
                raise
            raise DataError(_why_ended(self._exit_codes(), told, of_main=self._of_main)) from error

    def _waited_for(self) -> list[tuple[int, Any]]:
        """The worker (its number and process) whose batch is the next one, or all where torch keeps no record
        of it."""
        workers = list(enumerate(self._batches._workers))
        asked = getattr(self._batches, "_task_info", {}).get(getattr(self._batches, "_rcvd_idx", None))
        return [workers[asked[0]]] if asked else workers

    def _exit_codes(self) -> list[int]:
        """Those of the workers that have ended, negative for a signal."""
        for process in self._batches._workers:
            process.join(timeout=_POLL_S)  # what has died is not always known at once
        return [process.exitcode for process in self._batches._workers if process.exitcode is not None]

    def close(self) -> None:
        batches, self._batches = self._batches, None
        if batches is None:
            return
        atexit.unregister(self._at_exit)
        processes = list(batches._workers)
        batches._shutdown_workers()  # what its finalizer does, now and not when a traceback lets go of it
        for process in processes:
            process.join(timeout=5.0)
            if process.is_alive():
                process.kill()
                process.join()

    def __del__(self) -> None:
        if getattr(self, "_batches", None) is not None:
            self.close()


def _why_ended(exit_codes: list[int], told: str, *, of_main: bool = False) -> str:
    """What happened to a worker, and what to do. told: torch's words; of_main: the source is defined in the
    user's script, which workers run too."""
    if _SIGKILL in exit_codes:
        return (
            "a loader worker ended: it was killed (SIGKILL), as the kernel does when memory runs out; lower "
            "run.workers or train.global_batch, or give this machine or container more memory"
        )
    if _SIGBUS in exit_codes or any(sign in told for sign in _SIGNS_OF_FULL_MEMORY):
        return (
            f"a loader worker ended: a bus error, as when {machine.SHARED}, through which batches pass, is "
            "full; lower run.workers, or set run.workers=0 to do without it, or give it more room (docker "
            "run --shm-size=8g). A file that shrinks while it is read can be the reason too"
        )
    ended = [f"signal {-code}" if code < 0 else f"exit status {code}" for code in exit_codes if code]
    why = ", ".join(ended) or " ".join(told.split()) or "no reason known"
    if of_main:
        return (
            f"a loader worker ended ({why}): the data set is defined in the script itself, which every "
            "worker runs too; keep what starts training there under `if __name__ == '__main__':`, move the "
            "data set to a module, or set run.workers=0"
        )
    return f"a loader worker ended ({why}); try run.workers=0, which shows errors where they happen"


def _close_if_alive(workers: weakref.ref[_Workers]) -> None:
    alive = workers()
    if alive is not None:
        alive.close()


def in_thread(fetch: Fetch, wanted: Iterable[Wanted], *, pin: bool) -> Ahead:
    """Prepare two batches ahead in a thread."""
    return _Thread(fetch, wanted, pin=pin)


def in_workers(fetch: Fetch, wanted: Iterable[Wanted], *, workers: int, pin: bool) -> Ahead:
    """Prepare two batches ahead in each of `workers` processes; through pipes where shared memory is too
    small or of no use."""
    kind = _Workers if fits_shared_memory(fetch, workers) else _piped
    try:
        return kind(fetch, wanted, workers=workers, pin=pin)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        if "pickle" not in str(error).lower() and "local object" not in str(error):
            raise
        raise DataError(
            f"{fetch.source.name!r} cannot be sent to loader workers ({' '.join(str(error).split())}): "
            "define its class, and the functions it uses, at the top of a module, or set run.workers=0"
        ) from error


def _piped(fetch: Fetch, wanted: Iterable[Wanted], *, workers: int, pin: bool) -> Ahead:
    with _main_module_hidden(fetch.source):
        return PipedWorkers(
            fetch,
            wanted,
            workers=workers,
            pin=pin,
            context=_context(),
            start=_start_worker,
            why_ended=partial(_why_ended, of_main=_defined_in_main(fetch.source)),
        )


def _context() -> Any:
    """Processes started by a server that has loaded torch and never ran a thread.

    Forking the training process would copy locks that its threads (torch, gloo, CUDA, progress) hold;
    spawning would load torch once per worker.
    """
    context = multiprocessing.get_context(start_method())
    if start_method() == "forkserver":
        context.set_forkserver_preload(["belvedere.data.ahead", "belvedere.data.deaf"])
    return context


@contextmanager
def _main_module_hidden(source: Source) -> Iterator[None]:
    """Start workers without running the user's script in them once more.

    A new process imports the main module, so a script without an `if __name__ == "__main__"` guard would
    train again inside its own worker. Workers need it only for a source that is defined there.
    """
    if _defined_in_main(source):
        yield
        return
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _defined_in_main(source: Source) -> bool:
    """Whether the class of a source, or of one it is made of, is defined in the user's script."""
    parts: tuple[Source, ...] = getattr(source, "parts", ())
    own = type(source).__module__ == "__main__" or getattr(source, "needs_main", False)
    return own or any(map(_defined_in_main, parts))


def _start_worker(number: int) -> None:
    """One thread each, deaf to Ctrl-C and a scheduler's SIGTERM: the main process decides when to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    worker = get_worker_info()
    if worker is not None and isinstance(worker.dataset, Fetch):
        worker.dataset.shares = True
    threading.Thread(target=_end_with_parent, name="belvedere-parent", daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when the training process is gone, however that died.

    torch's own watch looks at the server that forked the worker, which lives as long as its children do.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

"""Loader workers that need nothing but pipes: for machines without usable shared memory.

The queues and locks of multiprocessing are made of named semaphores, which lie in /dev/shm too: where that is
full or read-only, torch's DataLoader cannot even start.
"""

from __future__ import annotations

import atexit
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from belvedere.core.errors import DataError
from belvedere.data import stall
from belvedere.data.fetch import Failed, Fetch, Fetched, Wanted
from belvedere.data.handover import ByPipe
from belvedere.data.room import AHEAD

_GRACE_S = 5.0


class PipedWorkers:
    """Batches in the order of their steps from `workers` processes, each of which has a pipe to this one.

    Step i is worker i's, modulo their number; each is told of two steps at a time. start: called in each
    worker first; why_ended: words for exit codes of workers that are gone.
    """

    def __init__(
        self,
        fetch: Fetch,
        wanted: Iterable[Wanted],
        *,
        workers: int,
        pin: bool,
        context: Any,
        start: Callable[[int], None],
        why_ended: Callable[[list[int], str], str],
    ) -> None:
        self._left, self._pin, self._why_ended = iter(wanted), pin, why_ended
        self.processes: list[Any] = []
        self._pipes: list[Connection] = []
        self._told = deque[int]()  # workers that owe a batch, in the order of the steps
        self._stall = stall.Stall(look_s=stall.LOOK_S)
        # multiprocessing's own exit would wait for ever for workers that do not hear SIGTERM
        self._at_exit = partial(_close_if_alive, weakref.ref(self))
        atexit.register(self._at_exit)
        try:
            for number in range(workers):
                here, there = context.Pipe()
                arguments = (fetch, there, number, start)
                process = context.Process(target=_serve, args=arguments, daemon=True)
                self._pipes.append(here)
                process.start()
                self.processes.append(process)
                there.close()
            for _ in range(AHEAD):
                for number in range(workers):
                    self._tell(number)
        except BaseException:
            self.close()
            raise

    def _tell(self, number: int) -> None:
        """Tell a worker of the next step, if there is one."""
        step = next(self._left, None)
        if step is not None:
            with suppress(OSError):  # gone; said when its batch is asked for
                self._pipes[number].send(step)
            self._told.append(number)

    def __next__(self) -> Fetched | Failed:
        if not self._pipes:
            raise RuntimeError("the loader was closed")
        if not self._told:
            raise StopIteration
        number = self._told.popleft()
        pipe, process = self._pipes[number], self.processes[number]
        self._stall.reset()
        while not pipe.poll(stall.LOOK_S):
            if not process.is_alive():
                break
            self._stall.look([(number, process)])
        try:
            item: Fetched | Failed = pipe.recv()
        except (EOFError, OSError) as error:
            process.join(timeout=_GRACE_S)
            codes = [each.exitcode for each in self.processes if each.exitcode is not None]
            raise DataError(self._why_ended(codes, str(error))) from error
        self._tell(number)
        return item.pin_memory() if self._pin and isinstance(item, Fetched) else item

    def close(self) -> None:
        """Stop the workers; what they had prepared is dropped."""
        atexit.unregister(self._at_exit)
        pipes, self._pipes = self._pipes, []
        for pipe in pipes:
            pipe.close()
        for process in self.processes:
            process.join(timeout=0.5)
            if process.is_alive():
                process.kill()
                process.join()

    def __del__(self) -> None:
        if getattr(self, "_pipes", None):
            self.close()


def _close_if_alive(workers: weakref.ref[PipedWorkers]) -> None:
    alive = workers()
    if alive is not None:
        alive.close()


def _serve(fetch: Fetch, pipe: Connection, number: int, start: Callable[[int], None]) -> None:
    """What a worker does: batches of the steps it is told of, until the pipe is closed."""
    start(number)
    told: queue.SimpleQueue[Wanted | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, told), name="belvedere-told", daemon=True).start()
    batches = ByPipe(fetch)
    while (wanted := told.get()) is not None:
        try:
            item: Any = batches[wanted]
        except BaseException as error:  # the consumer raises it
            item = Failed(error)
        try:
            pipe.send(item)
        except OSError:  # nobody reads any more
            return
        except Exception as error:  # what cannot be pickled
            pipe.send(Failed(RuntimeError(f"{type(error).__name__}: {error}")))


def _listen(pipe: Connection, told: queue.SimpleQueue[Wanted | None]) -> None:
    """Take what is sent at once: neither side ever waits for the other to read."""
    while True:
        try:
            told.put(pipe.recv())
        except (EOFError, OSError):
            told.put(None)
            return

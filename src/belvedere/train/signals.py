"""Ctrl-C and SIGTERM become a wish to stop after the step under way, answered at once.

A step may keep the main thread in one operation for a minute, and Python's handlers run in that thread. So
signals are heard in another one, which says what happens next; a second signal ends the process also then.
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from belvedere.core import log

EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""
STEP = "this step"
_STOPPING = (signal.SIGINT, signal.SIGTERM)
_RETRY_S = 0.1
_TO_UNWIND_S = 3.0  # for what closes files and workers; then the process ends where it stands
_ECHO_S = 2.0  # launchers and schedulers send a signal to a group and to its processes: that is one signal


class StopRequest:
    """Whether somebody asked this process to stop, by which signal, and what they are told.

    doing: what is finished before the run stops. saved: the step of the last checkpoint (None: there is none
    yet); finished: the steps finished. `begins` and `ended` keep the time of steps.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.doing = STEP
        self.saved: int | None = None
        self.finished = 0
        self._steps_s: deque[float] = deque(maxlen=7)
        self._since = time.monotonic()

    @property
    def asked(self) -> bool:
        return self.name is not None

    def begins(self) -> None:
        """A step begins now; what came before it (a save) is no part of it."""
        self._since, self.doing = time.monotonic(), STEP

    def ended(self, finished: int) -> None:
        """A step has ended, and so many are finished."""
        self._steps_s.append(time.monotonic() - self._since)
        self.finished = finished
        self.begins()

    def first_answer(self, number: signal.Signals) -> str:
        """What the first signal is answered with."""
        left = ""
        if self.doing == STEP and self._steps_s:
            seconds = statistics.median(self._steps_s) - (time.monotonic() - self._since)
            left = f", about {max(1, round(seconds)):,} s"
        elif self.doing == STEP:
            left = ", the first one, which can take longer than the others"
        again = "; again to quit now" if number == signal.SIGINT else ""
        return f"{number.name}: finishing {self.doing}{left}, then saving{again}"

    def second_answer(self) -> str:
        """What a second one is answered with: what is lost."""
        lost = self.finished - (self.saved or 0)
        steps = f"{lost:,} finished step{'s' * (lost != 1)}" if lost > 0 else "no finished step"
        if self.saved is None:
            return f"quitting now: there is no checkpoint yet, {steps} lost; the same command starts again"
        return (
            f"quitting now: the checkpoint of step {self.saved:,} is whole, {steps} since then lost; "
            "the same command continues from it"
        )


@contextmanager
def stop_request(
    *, say: Callable[[str], None] = log.say, ends_process: bool = False
) -> Iterator[StopRequest]:
    """Listen for SIGINT and SIGTERM: the first asks, a second one raises KeyboardInterrupt.

    say: where both are answered, from a thread. ends_process: where the second one finds the main thread in
    an operation that does not return within seconds, end the process with status 130. A SIGTERM that comes
    twice within two seconds counts once, and among several processes a SIGINT too: launchers repeat them.
    Outside the main thread Python delivers no signals, and nothing is listened for.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    listener = _Listener(request, say, ends_process=ends_process)
    try:
        yield request
    finally:
        listener.close()


class _Listener:
    """Hears the signals of this process in a thread of its own, by the bytes that Python's C handler writes
    to a socket whatever the main thread does."""

    def __init__(self, request: StopRequest, say: Callable[[str], None], *, ends_process: bool) -> None:
        self._request, self._say, self._ends_process = request, say, ends_process
        self._asked_at: float | None = None
        self._quits = self._raised = False
        self._done = threading.Event()
        self._ours, self._pythons = socket.socketpair()
        self._pythons.setblocking(False)
        self._former_fd = signal.set_wakeup_fd(self._pythons.fileno(), warn_on_full_buffer=False)
        self._former = {number: signal.signal(number, self._in_main_thread) for number in _STOPPING}
        self._thread = threading.Thread(target=self._listen, name="belvedere-signals", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Give the signals back to whoever had them."""
        self._done.set()
        for number, handler in self._former.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._former_fd)
        self._pythons.close()  # ends the thread's wait
        self._thread.join()
        self._ours.close()

    def _in_main_thread(self, number: int, frame: FrameType | None) -> None:
        if self._request.name is None:
            self._request.name = signal.Signals(number).name
        if self._quits and not self._raised:  # once, or it would disturb what closes files and workers
            self._raised = True
            raise KeyboardInterrupt

    def _listen(self) -> None:
        while heard := self._ours.recv(16):
            for number in heard:
                if number in _STOPPING and not self._quits:
                    self._hear(signal.Signals(number))

    def _hear(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at, self._request.name = now, number.name
            self._tell(self._request.first_answer(number))
            return
        repeated = number == signal.SIGTERM or os.environ.get("WORLD_SIZE", "1") != "1"
        if repeated and now - self._asked_at < _ECHO_S:
            return
        self._quits = True
        self._tell(self._request.second_answer())
        self._interrupt()

    def _interrupt(self) -> None:
        """Have the main thread raise KeyboardInterrupt, and wait until it has left.

        A handler that ran before this thread heard did not raise, and only a signal ends a wait; one that
        comes just before the wait begins does not, so that it is sent again.
        """
        main, deadline = threading.main_thread().ident, time.monotonic() + _TO_UNWIND_S
        assert main is not None
        while not self._raised and time.monotonic() < deadline:
            signal.pthread_kill(main, signal.SIGINT)
            if self._done.wait(_RETRY_S):
                return
        if self._ends_process and not self._done.wait(max(0.0, deadline - time.monotonic())):
            _end_here()

    def _tell(self, text: str) -> None:
        with suppress(OSError, ValueError):  # nobody reads any more; the signal counts all the same
            self._say(text)


def _end_here() -> None:
    """End the process though its main thread is busy. Loader workers see it and end too."""
    with suppress(OSError, ValueError):
        log.console().show_cursor(True)
        sys.stderr.flush()
    os._exit(EXIT_INTERRUPTED)

"""Whether the machine has room for the loader's workers: CPUs, memory, and the memory that batches pass
through."""

from __future__ import annotations

import math
import multiprocessing
import os

from belvedere.core import machine
from belvedere.core.files import readable_size
from belvedere.data.fetch import Fetch

AHEAD = 2
"""Batches that each worker prepares ahead."""
_MUCH_WAITING = 0.1
_WORTH_TELLING_S = 5.0
_OWN_BYTES = {"forkserver": 64 << 20, "spawn": 320 << 20}
"""What a worker keeps to itself before it holds a batch (measured: unique set size with torch 2.15; 36 MiB
after a start from a server that holds the libraries for all, growing as pages are written to)."""
_SERVER_BYTES = 300 << 20


def start_method() -> str:
    """How workers are started: from a server, where the system has one."""
    there = multiprocessing.get_all_start_methods()
    return "forkserver" if "forkserver" in there else "spawn"


def shared_memory_bytes(fetch: Fetch, workers: int) -> int:
    """The most that batches on their way occupy at once: those ahead, one handed out, and one being written
    by each worker; of all training processes of this machine."""
    return fetch.batch_bytes * ((AHEAD + 1) * workers + 1) * _local_processes()


def fits_shared_memory(fetch: Fetch, workers: int) -> bool:
    """Whether batches can be handed over in shared memory. A process that fills it dies without a word."""
    free = machine.shared_bytes()
    return (free is None or shared_memory_bytes(fetch, workers) <= free) and has_semaphores()


def has_semaphores() -> bool:
    """Whether processes can have locks in common, which lie in shared memory as well."""
    try:
        multiprocessing.get_context(start_method()).Lock()
    except (OSError, ImportError):  # no room, read-only, forbidden; or a Python built without them
        return False
    return True


def remarks(fetch: Fetch, workers: int) -> list[str]:
    """What a person should know of `run.workers` on this machine before they start; mostly nothing."""
    if not workers:
        return []
    found = []
    processes, cpus = _local_processes(), machine.cpu_count()
    if workers * processes > cpus:
        each = f" by each of {processes} training processes" if processes > 1 else ""
        found.append(
            f"run.workers is {workers}{each}, and {_count(cpus, 'CPU')} may be used here: more workers than "
            f"CPUs only wait for each other; set run.workers={max(1, cpus // processes)}"
        )
    method = start_method()
    needed = (_OWN_BYTES[method] + (AHEAD + 1) * fetch.batch_bytes) * workers * processes
    needed += _SERVER_BYTES * processes if method == "forkserver" else 0
    left = machine.available_bytes()
    if left is not None and needed > left:
        found.append(
            f"run.workers is {workers}, which takes about {readable_size(needed)} of memory, and "
            f"{readable_size(left)} are free: a worker may be killed for memory; lower run.workers"
        )
    free = machine.shared_bytes()
    if not has_semaphores():
        found.append(
            f"processes cannot have locks in common here ({machine.SHARED} is read-only, full or forbidden): "
            f"the batches of {workers} workers go through pipes instead, which costs a little time"
        )
    elif free is not None and not fits_shared_memory(fetch, workers):
        wanted = shared_memory_bytes(fetch, workers)
        found.append(
            f"{machine.SHARED} has {readable_size(free)} free, and the batches of {workers} workers may take "
            f"{readable_size(wanted)}: they go through pipes instead, which costs a little time. In a "
            f"container, docker run --shm-size={-(-wanted // 2**30)}g makes room"
        )
    return found


def waiting_remark(waited_s: float, seconds: float, workers: int) -> str | None:
    """What to change after a run that waited for data for much of its time; None where it did not.

    seconds: how long it trained, in which it waited for waited_s.
    """
    if waited_s < _WORTH_TELLING_S or waited_s <= _MUCH_WAITING * seconds:
        return None
    return f"{waited_s / seconds:.0%} of the time went into waiting for data{_remedy(workers)}"


def loading_remark(load_s: float, step_s: float, workers: int) -> str | None:
    """What to change before a run that would wait for data for much of its time; None where it would not.

    load_s: seconds in which one thread makes the views of a batch; step_s: that the rest of its step takes.
    """
    prepared_s = load_s / max(1, workers)  # with none, a thread beside the step makes them
    share = 1.0 - step_s / prepared_s if prepared_s > 0 else 0.0
    if share <= _MUCH_WAITING:
        return None
    needed = math.ceil(load_s / step_s) if step_s > 0 else None
    return f"about {share:.0%} of the time would go into waiting for data{_remedy(workers, needed)}"


def _remedy(workers: int, needed: int | None = None) -> str:
    """What to do about waiting. needed: workers that would be enough, where that is known."""
    processes, cpus = _local_processes(), machine.cpu_count()
    if workers * processes < cpus:
        most = max(1, cpus // processes)
        more = most if needed is None else min(most, max(needed, workers + 1))
        return f"; {_count(cpus, 'CPU')} may be used: set run.workers={more} (now {workers})"
    return (
        f", and run.workers={workers} keeps {_count(cpus, 'CPU')} busy: use a machine with more, "
        "a faster disk, or images made smaller beforehand (to a shorter side of twice the largest view)"
    )


def _local_processes() -> int:
    """Training processes on this machine, as torchrun says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"

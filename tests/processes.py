"""Processes beside the one that runs the tests: some that form one group, and one that may be killed.

Each is started once and serves every test of a pytest process: loading torch takes longer than most answers.
"""

from __future__ import annotations

import importlib
import itertools
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from belvedere.core import dist

_spawn = multiprocessing.get_context("spawn")
_numbers = itertools.count()


class _Server:
    """A process that answers what it is sent, and the line to it. It ends with this process."""

    def __init__(self, serve: Callable[[Connection], None]) -> None:
        self.line, theirs = _spawn.Pipe()
        self.process = _spawn.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.line.close()


# A group

_members: list[_Server] = []


def answers_of(
    answer: Callable[[int], Any], directory: Path, *, count: int = 2, timeout_s: float = 300.0
) -> list[Any]:
    """What `answer(rank)` returns in each of `count` processes, by rank; it must be a module's function.

    Raises: AssertionError with a process's traceback if `answer` fails there, if a process ends, or if one
    takes longer than `timeout_s`.
    """
    while len(_members) < count:
        _members.append(_Server(_serve_in_a_group))
    rendezvous = directory / f"rendezvous-{next(_numbers)}"
    lines = [member.line for member in _members[:count]]
    for rank, line in enumerate(lines):
        line.send((answer, rank, count, rendezvous))
    try:
        return _collected(lines, time.monotonic() + timeout_s)
    except BaseException:
        for member in _members:  # the others may be waiting for the one that failed
            member.end()
        _members.clear()
        raise


def _collected(lines: list[Connection], deadline: float) -> list[Any]:
    told: dict[int, Any] = {}
    while len(told) < len(lines):
        waiting = [line for rank, line in enumerate(lines) if rank not in told]
        ready = wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
        assert ready, f"processes {[lines.index(line) for line in waiting]} did not answer in time"
        for line in ready:
            assert isinstance(line, Connection)
            rank = lines.index(line)
            try:
                told[rank], failure = line.recv()
            except EOFError:
                failure = "it ended"
            assert not failure, f"process {rank}: {failure}"
    return [told[rank] for rank in range(len(lines))]


def _serve_in_a_group(line: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        try:
            answer, rank, count, rendezvous = line.recv()
        except EOFError:
            return
        try:
            torch.distributed.init_process_group(
                "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=count
            )
            told, failure = answer(rank), ""
            dist.stop()
        except Exception:
            told, failure = None, traceback.format_exc()
        line.send((told, failure))


# One that may be killed

_parents: list[_Server] = []


def exit_code_of(call: Callable[..., object], *args: Any, timeout_s: float = 300.0) -> int:
    """How a process ends that does `call(*args)`, a module's function: 0, 1 if that raises, or minus the
    signal that killed it."""
    if not _parents:
        _parents.append(_Server(_serve_with_children))
    (parent,) = _parents
    parent.line.send((call, args))
    if not parent.line.poll(timeout_s):
        parent.end()
        _parents.clear()
        raise AssertionError(f"{call.__name__} did not end in {timeout_s} s")
    code: int = parent.line.recv()
    return code


def _serve_with_children(line: Connection) -> None:
    """Fork for every call. This process runs no thread whose locks a child could inherit."""
    torch.set_num_threads(1)
    importlib.import_module("belvedere.train.run")
    while True:
        try:
            call, args = line.recv()
        except EOFError:
            return
        child = os.fork()
        if child == 0:
            _run_and_end(call, args)
        line.send(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _run_and_end(call: Callable[..., object], args: tuple[Any, ...]) -> None:
    code = 1
    try:
        call(*args)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)

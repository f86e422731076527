"""Several processes that form one group, for what they have to agree on."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from belvedere.core import dist

forkserver = multiprocessing.get_context("forkserver")
forkserver.set_forkserver_preload(["torch", "pytest"])


def answers_of(answer: Callable[[int], Any], directory: Path, *, count: int = 2) -> list[Any]:
    """What `answer(rank)` returns in each of `count` processes, by rank; it must be a module's function."""
    answers = forkserver.Queue()
    processes = [
        forkserver.Process(target=_process, args=(answer, rank, count, directory, answers))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    told = dict(answers.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    return [told[rank] for rank in range(count)]


def _process(answer: Callable[[int], Any], rank: int, count: int, directory: Path, answers: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{directory / 'rendezvous'}", rank=rank, world_size=count
    )
    answers.put((rank, answer(rank)))
    dist.stop()

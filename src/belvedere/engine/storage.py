"""Tensors to files and back, through torch.distributed.checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from belvedere.core import dist
from belvedere.core.files import system_error
from belvedere.engine.agreement import failed

INDEX_NAME = ".metadata"
Observer = Callable[[str], None]


class _Writer(FileSystemWriter):
    """Tells when the first file of this process is on the disk."""

    def __init__(self, path: Path, observer: Observer) -> None:
        super().__init__(path, single_file_per_rank=True, sync_files=True, thread_count=1)
        self._observer = observer

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            written = super().write_data(plan, planner)
            written.wait()
        except Exception as error:
            raise system_error(error) or error from None
        self._observer("first_file")
        return written


def write_tensors(writing: Path, tensors: Mapping[str, Tensor], observer: Observer) -> None:
    """Write this process's share of the tensors and, on rank 0, where each lies."""
    plain = {name: tensor.detach() for name, tensor in tensors.items()}
    try:
        with _known():
            save(plain, storage_writer=_Writer(writing, observer), no_dist=dist.world_size() == 1)
    except CheckpointException as error:
        raise _reported(error) from error


@contextmanager
def _known() -> Iterator[None]:
    """One process is a way to train like any other; torch warns of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


def _reported(error: CheckpointException) -> BaseException:
    """The error of the first process that failed, with its number; an interruption goes before errors."""
    causes = [(process, failure[0]) for process, failure in sorted(error.failures.items())]
    for _, cause in causes:
        if not isinstance(cause, Exception):
            return cause
    process, first = causes[0]
    assert isinstance(first, Exception)
    return failed(first, process)


def read_tensors(path: Path, targets: dict[str, Tensor]) -> None:
    """Fill the targets. Each process reads for itself."""
    try:
        with _known():
            load(targets, storage_reader=FileSystemReader(path), no_dist=True)
    except CheckpointException as error:
        # Read alone, every process counts as 0; `agree` adds the number.
        raise error.failures[0][0] from error

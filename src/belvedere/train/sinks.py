"""Where the numbers of a run go besides `metrics.jsonl`: TensorBoard, Weights & Biases; only when asked."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from belvedere.core.errors import BelvedereError, MissingPackageError
from belvedere.core.files import write_text
from belvedere.core.packages import extra_command

WANDB_ID = "wandb-id.txt"
_ID = re.compile(r"[\w-]{1,64}", re.ASCII)


class Sink(Protocol):
    """Takes the numbers of logged steps."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take the numbers of one step, counted from 0."""

    def close(self) -> None:
        """Hand on what is still waiting; nothing is written afterwards."""


class Kind(NamedTuple):
    """package: to be installed; needs: the module that must be importable; writes: names in the run's
    directory."""

    package: str
    needs: str
    writes: tuple[str, ...]


SINKS = {
    "tensorboard": Kind("tensorboard", "torch.utils.tensorboard", ("tensorboard",)),
    "wandb": Kind("wandb", "wandb", ("wandb", WANDB_ID)),
}


def require(name: str) -> ModuleType:
    """The module that a sink of `run.sinks` needs. Raises `MissingPackageError`."""
    try:
        return import_module(SINKS[name].needs)
    except ImportError as error:
        raise _missing(SINKS[name].package, error) from error


def open_sinks(
    names: Sequence[str],
    directory: Path,
    *,
    run_name: str | None = None,
    start_step: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> tuple[Sink, ...]:
    """The sinks of `run.sinks`, writing into the run's directory; to be opened by the first process only.

    settings: the recipe, shown beside the numbers. start_step: where a run continues, so that what an
    interrupted process wrote beyond it is not shown. Raises `MissingPackageError`.
    """
    opened: list[Sink] = []
    try:
        for name in names:
            if name == "tensorboard":
                opened.append(TensorBoard(directory, start_step=start_step))
            elif name == "wandb":
                opened.append(WeightsAndBiases(directory, run_name=run_name, settings=settings))
            else:
                raise BelvedereError(f"run.sinks: there is no sink {name!r}; allowed are tensorboard, wandb")
    except BaseException:
        for sink in opened:
            sink.close()
        raise
    return tuple(opened)


class TensorBoard:
    """Event files in `<run>/tensorboard`."""

    def __init__(self, directory: Path, *, start_step: int) -> None:
        purge_step = start_step or None
        writer = require("tensorboard").SummaryWriter
        self._writer = writer(str(directory / "tensorboard"), purge_step=purge_step)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, global_step=step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """One W&B run per run directory: its id is kept there, and the same command continues it.

    The project is WANDB_PROJECT, or `belvedere`. Steps that a continued run repeats are not shown twice: W&B
    keeps the first, and exact resume makes both the same.
    """

    def __init__(self, directory: Path, *, run_name: str | None, settings: Mapping[str, Any] | None) -> None:
        wandb = require("wandb")
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "belvedere"),
                name=run_name,
                id=_kept_id(directory / WANDB_ID),
                resume="allow",
                dir=str(directory),
                config=dict(settings or {}),
            )
        except wandb.Error as error:
            raise BelvedereError(
                f"run.sinks: Weights & Biases did not start: {error}\n"
                "  log in with `wandb login`, set WANDB_MODE=offline, or take wandb out of run.sinks"
            ) from error

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()


def _kept_id(path: Path) -> str:
    """The id in this file, or a new one, written there."""
    if not path.exists():
        write_text(path, uuid.uuid4().hex[:12] + "\n")
    found = path.read_text(encoding="utf-8", errors="replace").strip()
    if not _ID.fullmatch(found):
        raise BelvedereError(f"{path} holds no id of Weights & Biases; remove it to begin another run there")
    return found


def _missing(package: str, error: ImportError) -> MissingPackageError:
    return MissingPackageError(
        f"run.sinks asks for {package}, which cannot be imported ({error}); "
        f"{extra_command(package)}, or take {package} out of run.sinks"
    )
